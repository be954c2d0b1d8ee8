/** A new, empty image. */
import { ConfigError } from '../../base/errors.ts';
import { MAX_DISK_BYTES, SECTOR_BYTES } from '../disk-image.ts';
import type { Layer } from '../layer/layer.ts';
import {
  AT_L1,
  AT_REFCOUNT_TABLE,
  AT_SIZE,
  EXT_BACKING_FORMAT,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MIN_CLUSTER_BITS,
  QCOW2_MAGIC,
} from './format.ts';

/** With the field for compression, padded to eight bytes. */
const HEADER_BYTES = 112;

/** What others find below an image. */
export type Backing = { readonly name: string; readonly format: 'raw' | 'qcow2' };

export type CreateOptions = {
  readonly sizeBytes: number;
  /** 16: clusters of 64 KiB, as QEMU has them. */
  readonly clusterBits?: number;
  /** What others find below it; nothing is opened. */
  readonly backing?: Backing;
};

/**
 * Writes an image over whatever `file` holds, version 3, and makes it durable.
 * @throws ConfigError: no such size. LayerError.
 */
export async function createQcow2(file: Layer, options: CreateOptions): Promise<void> {
  const { sizeBytes, clusterBits = 16 } = options;
  if (!(clusterBits >= MIN_CLUSTER_BITS && clusterBits <= MAX_CLUSTER_BITS)) {
    const expected = `expected ${MIN_CLUSTER_BITS} to ${MAX_CLUSTER_BITS}`;
    throw new ConfigError('clusterBits', `is ${clusterBits}, ${expected}`);
  }
  const clusterBytes = 2 ** clusterBits;
  const l1Count = Math.ceil(sizeBytes / ((clusterBytes / 8) * clusterBytes));
  const isWhole = sizeBytes > 0 && sizeBytes % SECTOR_BYTES === 0 && sizeBytes <= MAX_DISK_BYTES;
  if (!isWhole || l1Count * 8 > MAX_L1_BYTES) {
    const text = `${sizeBytes} bytes is no size of a qcow2 image in clusters of ${clusterBytes}`;
    throw new ConfigError('sizeBytes', text);
  }
  const l1Clusters = Math.ceil((l1Count * 8) / clusterBytes);
  const layout = planRefcounts(clusterBytes, 1 + l1Clusters);
  const header = headerOf(options, clusterBits, l1Count, layout);
  await file.resize(0);
  await file.resize(layout.total * clusterBytes);
  const table = Buffer.alloc(layout.tableClusters * clusterBytes);
  for (let block = 0; block < layout.blocks; block++) {
    const at = (1 + layout.tableClusters + block) * clusterBytes;
    table.writeBigUInt64BE(BigInt(at), block * 8);
    const counts = Buffer.alloc(clusterBytes);
    const perBlock = clusterBytes / 2;
    for (let i = 0; i < perBlock && block * perBlock + i < layout.total; i++) {
      counts.writeUInt16BE(1, i * 2);
    }
    await file.write(at, counts, false);
  }
  await file.write(clusterBytes, table, false);
  await file.write(0, header, false);
  await file.flush();
}

type Layout = { readonly tableClusters: number; readonly blocks: number; readonly total: number };

/** Header, refcount table, refcount blocks, L1 table, in this order; blocks count themselves. */
function planRefcounts(clusterBytes: number, others: number): Layout {
  let layout: Layout = { tableClusters: 1, blocks: 1, total: others + 2 };
  for (;;) {
    const blocks = Math.ceil(layout.total / (clusterBytes / 2));
    const tableClusters = Math.ceil((blocks * 8) / clusterBytes);
    const total = others + blocks + tableClusters;
    if (total === layout.total && blocks === layout.blocks) return layout;
    layout = { tableClusters, blocks, total };
  }
}

function headerOf(
  { sizeBytes, backing }: CreateOptions,
  clusterBits: number,
  l1Count: number,
  { tableClusters, blocks }: Layout,
): Buffer {
  const clusterBytes = 2 ** clusterBits;
  const header = Buffer.alloc(clusterBytes);
  header.writeUInt32BE(QCOW2_MAGIC, 0);
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(clusterBits, 20);
  header.writeBigUInt64BE(BigInt(sizeBytes), AT_SIZE);
  header.writeUInt32BE(l1Count, AT_L1);
  header.writeBigUInt64BE(BigInt((1 + tableClusters + blocks) * clusterBytes), AT_L1 + 4);
  header.writeBigUInt64BE(BigInt(clusterBytes), AT_REFCOUNT_TABLE);
  header.writeUInt32BE(tableClusters, AT_REFCOUNT_TABLE + 8);
  header.writeUInt32BE(4, 96); // 16 bits each
  header.writeUInt32BE(HEADER_BYTES, 100);
  nameBacking(header, backing ?? null);
  return header;
}

/**
 * Names the backing file in the first cluster of an image that `createQcow2` made.
 * @throws ConfigError: the name is too long.
 */
export function nameBacking(header: Buffer, backing: Backing | null): void {
  header.fill(0, HEADER_BYTES);
  header.writeBigUInt64BE(0n, 8);
  header.writeUInt32BE(0, 16);
  if (backing === null) return;
  const { name, format } = backing;
  const at = HEADER_BYTES;
  header.writeUInt32BE(EXT_BACKING_FORMAT, at);
  header.writeUInt32BE(format.length, at + 4);
  header.write(format, at + 8, 'latin1');
  const nameAt = at + 16 + 8; // one padded extension, and the end of extensions
  const bytes = Buffer.from(name);
  if (bytes.length > 1023 || nameAt + bytes.length > header.length) {
    throw new ConfigError('backing', `the name ${name} is too long for an image`);
  }
  bytes.copy(header, nameAt);
  header.writeBigUInt64BE(BigInt(nameAt), 8);
  header.writeUInt32BE(bytes.length, 16);
}
