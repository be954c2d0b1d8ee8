/** Writes an image's refcounts, as they are in memory, when it is left clean. */
import type { Layer } from '../layer/layer.ts';
import type { Clusters } from './clusters.ts';
import type { Qcow2Header } from './format.ts';

export type RefcountPlace = { readonly at: number; readonly clusters: number };

/**
 * Writes blocks and table, and says where the table is now: the caller makes them durable, and then
 * the header that says so. `blocks` is changed. New blocks count themselves.
 */
export async function writeRefcounts(
  below: Layer,
  { clusterBytes, refcountOrder }: Qcow2Header,
  clusters: Clusters,
  blocks: number[],
  table: RefcountPlace,
): Promise<RefcountPlace> {
  const perBlock = (clusterBytes * 8) / 2 ** refcountOrder;
  let place = table;
  for (;;) {
    const end = clusters.usedEnd;
    const needed = Math.ceil(end / perBlock);
    const missing = missingBlocks(clusters, blocks, perBlock, needed);
    if (missing.length > 0) {
      const places = await clusters.allocate(missing.length);
      while (blocks.length < needed) blocks.push(0);
      for (const [i, index] of missing.entries()) blocks[index] = places[i]!;
    } else if (needed * 8 > place.clusters * clusterBytes) {
      const count = Math.ceil((needed * 8 * 1.5) / clusterBytes);
      if (place.clusters > 0) clusters.release(place.at, place.clusters * clusterBytes);
      place = { at: await clusters.allocateRun(count), clusters: count };
    } else break;
  }
  await writeAll(below, clusterBytes, refcountOrder, clusters, blocks);
  const bytes = Buffer.alloc(place.clusters * clusterBytes);
  for (const [i, at] of blocks.entries()) bytes.writeBigUInt64BE(BigInt(at), i * 8);
  await below.write(place.at, bytes, false);
  return place;
}

function missingBlocks(
  clusters: Clusters,
  blocks: readonly number[],
  perBlock: number,
  needed: number,
): number[] {
  const missing: number[] = [];
  const end = clusters.usedEnd;
  for (let i = 0; i < needed; i++) {
    if ((blocks[i] ?? 0) !== 0) continue;
    for (let n = i * perBlock; n < (i + 1) * perBlock && n < end; n++) {
      if (clusters.refcountOf(n) === 0) continue;
      missing.push(i);
      break;
    }
  }
  return missing;
}

async function writeAll(
  below: Layer,
  clusterBytes: number,
  order: number,
  clusters: Clusters,
  blocks: readonly number[],
): Promise<void> {
  const perBlock = (clusterBytes * 8) / 2 ** order;
  for (const [i, at] of blocks.entries()) {
    if (at === 0) continue;
    const bytes = Buffer.alloc(clusterBytes);
    for (let n = 0; n < perBlock; n++) {
      const count = clusters.refcountOf(i * perBlock + n);
      if (count !== 0) setRefcount(bytes, n, order, count);
    }
    await below.write(at, bytes, false);
  }
}

/** Specification: qcow2.txt, "Host cluster management": below a byte from the lowest bit up. */
function setRefcount(bytes: Buffer, index: number, order: number, count: number): void {
  if (order < 3) {
    const perByte = 8 >> order;
    const shift = (index % perByte) << order;
    bytes[Math.floor(index / perByte)]! |= count << shift;
    return;
  }
  const width = 2 ** (order - 3);
  bytes.writeUIntBE(count, index * width + Math.max(0, width - 6), Math.min(width, 6));
}
