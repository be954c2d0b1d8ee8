/**
 * Counts who uses which cluster of an image's file, from all that points to one: the refcounts of
 * the file are never believed. So what a killed process or a power cut left behind, another's
 * mistake, and an image that is made to hurt are all found before the first write.
 */
import { Qcow2Error } from './qcow2-error.ts';
import type { Layer } from '../layer/layer.ts';
import { MAX_CLUSTERS, MAX_REFCOUNT } from './clusters.ts';
import { MAX_L1_BYTES, type Qcow2Header } from './format.ts';
import { COMPRESSED, NONE, tableOffset } from './l2-entry.ts';
import { readPast } from './read-past.ts';
import { SectorTable } from './sector-table.ts';
import type { Tables } from './tables.ts';

/** Of the table of snapshots. QEMU allows 64 MiB; 65536 of usual names are below 8. */
const MAX_SNAPSHOT_BYTES = 2 ** 24;

/** L1 entries of all snapshots together. */
const MAX_L1_ENTRIES = 2 ** 24;

/** L2 tables read at once. */
const READ_AHEAD = 16;

export type WalkResult = {
  readonly refcounts: Uint16Array;
  /** Clusters up to the last that is used. */
  readonly end: number;
  /** Host offsets of refcount blocks, 0 for none; as long as the table. */
  readonly refcountBlocks: number[];
};

/** @throws Qcow2Error naming what points where it must not. */
export async function walkImage(
  below: Layer,
  header: Qcow2Header,
  tables: Tables,
): Promise<WalkResult> {
  const walk = new Walk(below, header);
  walk.claimTable(0, header.clusterBytes, 'header');
  walk.claimTable(header.l1At, header.l1Count * 8, 'l1_table_offset');
  walk.claimTable(header.refcountTableAt, header.refcountTableBytes, 'refcount_table_offset');
  const refcountBlocks = await walk.claimRefcountBlocks();
  walk.addL1('the L1 table', header.l1Count, (i) => [tables.l1.hi(i), tables.l1.lo(i)]);
  await walk.claimSnapshots();
  walk.claimL2Tables();
  await walk.countClusters(tables);
  return { refcounts: walk.refcounts, end: walk.end, refcountBlocks };
}

class Walk {
  readonly refcounts: Uint16Array;
  end = 0;
  readonly #below: Layer;
  readonly #header: Qcow2Header;
  /** Bit by cluster: a table or the header is there. */
  readonly #isTable: Uint8Array;
  /** By host offset of an L2 table: in how many L1 tables it is. */
  readonly #l2Uses = new Map<number, number>();

  constructor(below: Layer, header: Qcow2Header) {
    this.#below = below;
    this.#header = header;
    const count = Math.ceil(below.sizeBytes / header.clusterBytes);
    if (count > MAX_CLUSTERS) {
      const text = `has ${count} clusters, and at most ${MAX_CLUSTERS} can be written to`;
      throw this.#wrong('the file', `${text}: open it read-only, or convert to larger clusters`);
    }
    this.refcounts = new Uint16Array(count);
    this.#isTable = new Uint8Array(Math.ceil(count / 8));
  }

  /** What nothing else may overlap. */
  claimTable(at: number, sizeBytes: number, field: string): void {
    if (sizeBytes === 0) return;
    const { first, last } = this.#clusters(at, sizeBytes, field);
    for (let cluster = first; cluster <= last; cluster++) {
      if (this.refcounts[cluster] !== 0) {
        throw this.#wrong(field, `is at byte ${at}, where another table or the header is`);
      }
      this.#isTable[cluster >> 3]! |= 1 << (cluster & 7);
      this.#count(cluster, 1, field);
    }
  }

  async claimRefcountBlocks(): Promise<number[]> {
    const { refcountTableAt, refcountTableBytes, clusterBytes } = this.#header;
    const bytes = Buffer.alloc(refcountTableBytes);
    await readPast(this.#below, refcountTableAt, bytes);
    const blocks: number[] = [];
    for (let i = 0; i * 8 < bytes.length; i++) {
      const at = Number(bytes.readBigUInt64BE(i * 8));
      if (at !== 0) this.claimTable(at, clusterBytes, `refcount table entry ${i}`);
      blocks.push(at);
    }
    return blocks;
  }

  async claimSnapshots(): Promise<void> {
    const { snapshotCount, snapshotsAt } = this.#header;
    if (snapshotCount === 0) return;
    const room = Math.max(0, this.#below.sizeBytes - snapshotsAt);
    const table = Buffer.alloc(Math.min(MAX_SNAPSHOT_BYTES, room));
    await readPast(this.#below, snapshotsAt, table);
    let at = 0;
    let end = 0;
    let entries = 0;
    for (let i = 0; i < snapshotCount; i++) {
      const field = `snapshot ${i}`;
      if (at + 40 > table.length) throw this.#wrong(field, 'lies outside the table of snapshots');
      const l1At = Number(table.readBigUInt64BE(at));
      const l1Count = table.readUInt32BE(at + 8);
      const names = table.readUInt16BE(at + 12) + table.readUInt16BE(at + 14);
      end = at + 40 + table.readUInt32BE(at + 36) + names;
      at = Math.ceil(end / 8) * 8;
      entries += l1Count;
      if (l1Count * 8 > MAX_L1_BYTES || entries > MAX_L1_ENTRIES) {
        throw this.#wrong(field, `has an L1 table of ${l1Count} entries, which is too large`);
      }
      await this.#addSnapshotL1(field, l1At, l1Count);
    }
    if (end > table.length) throw this.#wrong('nb_snapshots', 'asks for more than the table holds');
    this.claimTable(snapshotsAt, end, 'snapshots_offset');
  }

  /** What an L1 table points to; each L2 table once. */
  addL1(name: string, count: number, entry: (index: number) => readonly [number, number]): void {
    const seen = new Set<number>();
    for (let i = 0; i < count; i++) {
      const [hi, lo] = entry(i);
      const at = tableOffset(hi, lo);
      if (at === 0) continue;
      const field = `entry ${i} of ${name}`;
      if (at === null) throw this.#wrong(field, 'has reserved bits set');
      this.#clusters(at, this.#header.clusterBytes, field);
      if (seen.has(at)) throw this.#wrong(field, `points to byte ${at}, as another one does`);
      seen.add(at);
      this.#l2Uses.set(at, (this.#l2Uses.get(at) ?? 0) + 1);
    }
  }

  claimL2Tables(): void {
    for (const [at, uses] of this.#l2Uses) {
      this.claimTable(at, this.#header.clusterBytes, `L2 table at byte ${at}`);
      this.#count(at / this.#header.clusterBytes, uses - 1, `L2 table at byte ${at}`);
    }
  }

  async countClusters(tables: Tables): Promise<void> {
    const all = [...this.#l2Uses];
    for (let i = 0; i < all.length; i += READ_AHEAD) {
      await Promise.all(
        all.slice(i, i + READ_AHEAD).map(async ([at, uses]) => {
          const bytes = Buffer.allocUnsafeSlow(this.#header.clusterBytes);
          await readPast(this.#below, at, bytes);
          this.#countTable(tables, new SectorTable(this.#below, at, bytes), uses);
        }),
      );
    }
  }

  async #addSnapshotL1(field: string, l1At: number, l1Count: number): Promise<void> {
    if (l1Count === 0) return;
    this.claimTable(l1At, l1Count * 8, `the L1 table of ${field}`);
    const l1 = Buffer.alloc(l1Count * 8);
    await readPast(this.#below, l1At, l1);
    const entry = (n: number): [number, number] => [
      l1.readUInt32BE(n * 8),
      l1.readUInt32BE(n * 8 + 4),
    ];
    this.addL1(`the L1 table of ${field}`, l1Count, entry);
  }

  #countTable(tables: Tables, table: SectorTable, uses: number): void {
    const { clusterBytes, isExtendedL2 } = this.#header;
    const words = isExtendedL2 ? 2 : 1;
    const count = clusterBytes / (8 * words);
    for (let i = 0; i < count; i++) {
      if (table.hi(i * words) === 0 && table.lo(i * words) === 0) continue;
      const cluster = tables.clusterOf(table, i);
      if (cluster.kind === NONE || cluster.hostAt === 0) continue;
      const field = `L2 entry ${i} of the table at byte ${table.at}`;
      const isPacked = cluster.kind === COMPRESSED;
      const room = Math.max(1, this.#below.sizeBytes - cluster.hostAt);
      const size = isPacked ? Math.min(cluster.packedBytes, room) : clusterBytes;
      const { first, last } = this.#clusters(cluster.hostAt, size, field, isPacked);
      for (let host = first; host <= last; host++) {
        if ((this.#isTable[host >> 3]! >> (host & 7)) & 1) {
          throw this.#wrong(field, `points to byte ${cluster.hostAt}, where a table is`);
        }
        this.#count(host, uses, field);
      }
    }
  }

  #count(cluster: number, more: number, field: string): void {
    const count = this.refcounts[cluster]! + more;
    if (count > MAX_REFCOUNT) throw this.#wrong(field, `is one of more than ${MAX_REFCOUNT}`);
    this.refcounts[cluster] = count;
    if (cluster >= this.end) this.end = cluster + 1;
  }

  #clusters(at: number, size: number, field: string, isPacked = false): Span {
    const { clusterBytes } = this.#header;
    if (!isPacked && at % clusterBytes !== 0) {
      throw this.#wrong(field, `points to byte ${at}, no multiple of ${clusterBytes}`);
    }
    const first = Math.floor(at / clusterBytes);
    const last = Math.floor((at + size - 1) / clusterBytes);
    if (last < this.refcounts.length) return { first, last };
    throw this.#wrong(field, `points to ${size} bytes at ${at}, outside the file`);
  }

  #wrong(field: string, problem: string): Qcow2Error {
    return new Qcow2Error(this.#below.description, field, problem);
  }
}

type Span = { readonly first: number; readonly last: number };
