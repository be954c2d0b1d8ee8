/** The L1 table, and L2 tables as they are needed; some stay in memory. */
import { Qcow2Error } from './qcow2-error.ts';
import type { Layer } from '../layer/layer.ts';
import { l2Count, type Qcow2Header } from './format.ts';
import {
  type Cluster,
  COMPRESSED,
  dataEntry,
  decodeEntry,
  MIXED,
  type NONE,
  tableOffset,
  ZERO,
} from './l2-entry.ts';
import { readPast } from './read-past.ts';
import { SectorTable } from './sector-table.ts';

/** 256 GiB of disk in clusters of 64 KiB. */
const MAX_CACHE_BYTES = 2 ** 25;

export class Tables {
  readonly #below: Layer;
  readonly #header: Qcow2Header;
  readonly #l2Count: number;
  readonly #maxCached: number;
  /** By L1 index, the one used last at the end. */
  readonly #cache = new Map<number, SectorTable>();
  readonly #loading = new Map<number, Promise<void>>();
  /** In memory, and not in the file: writing them has failed. */
  readonly #unsettled = new Set<SectorTable>();
  l1: SectorTable;

  constructor(below: Layer, header: Qcow2Header, l1: SectorTable) {
    this.#below = below;
    this.#header = header;
    this.#l2Count = l2Count(header);
    this.#maxCached = Math.max(16, Math.floor(MAX_CACHE_BYTES / header.clusterBytes));
    this.l1 = l1;
  }

  /** Of the disk, mapped by one L2 table. */
  get spanBytes(): number {
    return this.#l2Count * this.#header.clusterBytes;
  }

  /** Where the L2 table is; 0: there is none. @throws Qcow2Error. */
  offsetOf(l1Index: number): number {
    const at = tableOffset(this.l1.hi(l1Index), this.l1.lo(l1Index));
    if (at === null) throw this.#wrong(`L1 entry ${l1Index}`, 'has reserved bits set');
    this.#checkPlace(at, () => `L1 entry ${l1Index}`);
    return at;
  }

  /** The table stays until it is released; null: there is none. */
  async use(l1Index: number): Promise<SectorTable | null> {
    for (;;) {
      const table = this.#cache.get(l1Index);
      if (table !== undefined) {
        this.#cache.delete(l1Index); // and to the end
        this.#cache.set(l1Index, table);
        table.users++;
        return table;
      }
      if (this.offsetOf(l1Index) === 0) return null;
      let loading = this.#loading.get(l1Index);
      if (loading === undefined) {
        loading = this.#load(l1Index).finally(() => this.#loading.delete(l1Index));
        this.#loading.set(l1Index, loading);
      }
      await loading;
    }
  }

  release(table: SectorTable): void {
    table.users--;
  }

  /** Another table in its place, in memory; the L1 entry is the caller's. */
  replace(l1Index: number, table: SectorTable): void {
    this.#cache.delete(l1Index);
    this.#keep(l1Index, table);
  }

  /** Changes are in the file when it resolves. Until they are, nothing may rely on them. */
  async write(table: SectorTable): Promise<void> {
    try {
      await table.write();
      this.#unsettled.delete(table);
    } catch (error) {
      this.#unsettled.add(table);
      throw error;
    }
  }

  /** What is in memory is in the file. */
  async settle(): Promise<void> {
    for (const table of this.#unsettled) await this.write(table);
  }

  get isSettled(): boolean {
    return this.#unsettled.size === 0;
  }

  /** What entry `index` says; judged. */
  clusterOf(table: SectorTable, index: number): Cluster {
    const { clusterBits, isExtendedL2 } = this.#header;
    const word = isExtendedL2 ? index * 2 : index;
    const bitmap = isExtendedL2 ? ([table.hi(word + 1), table.lo(word + 1)] as const) : null;
    const cluster = decodeEntry(table.hi(word), table.lo(word), clusterBits, bitmap);
    const field = (): string => `L2 entry ${index} of the table at byte ${table.at}`;
    if (cluster === null) throw this.#wrong(field(), 'has bits set that mean nothing');
    if (cluster.kind === COMPRESSED) {
      const fileEnd = Math.ceil(this.#below.sizeBytes / 512) * 512;
      if (cluster.hostAt + 1 > fileEnd) {
        throw this.#wrong(field(), `points to byte ${cluster.hostAt}, outside the file`);
      }
    } else {
      if (this.#header.version === 2 && cluster.kind === ZERO) {
        throw this.#wrong(field(), 'is a zero cluster, which version 2 has not');
      }
      this.#checkPlace(cluster.hostAt, field);
    }
    return cluster;
  }

  setData(table: SectorTable, index: number, hostAt: number): void {
    const [hi, lo] = dataEntry(hostAt);
    this.#set(table, index, hi, lo, [0, 0xffffffff]);
  }

  /** Nothing is allocated: zeros, or what the backing file has. */
  setEmpty(table: SectorTable, index: number, kind: typeof NONE | typeof ZERO): void {
    const isZero = kind === ZERO;
    const low = isZero && !this.#header.isExtendedL2 ? 1 : 0;
    this.#set(table, index, 0, low, [isZero ? 0xffffffff : 0, 0]);
  }

  /** Subclusters of a mixed one, in order. */
  subclusters({ kind, allocated, zeros }: Cluster): ('data' | 'zero' | 'none')[] {
    if (kind !== MIXED) return [];
    return Array.from({ length: 32 }, (_, i) => {
      if ((allocated >>> i) & 1) return 'data';
      return (zeros >>> i) & 1 ? 'zero' : 'none';
    });
  }

  #set(t: SectorTable, index: number, hi: number, lo: number, bitmap: [number, number]): void {
    if (!this.#header.isExtendedL2) return t.set(index, hi, lo);
    // Both words of an entry are in one sector.
    t.set(index * 2, hi, lo);
    t.set(index * 2 + 1, bitmap[0], bitmap[1]);
  }

  async #load(l1Index: number): Promise<void> {
    const at = this.offsetOf(l1Index);
    const bytes = Buffer.allocUnsafeSlow(this.#header.clusterBytes);
    await readPast(this.#below, at, bytes);
    // Somebody may have put another in its place meanwhile.
    if (this.offsetOf(l1Index) !== at || this.#cache.has(l1Index)) return;
    this.#keep(l1Index, new SectorTable(this.#below, at, bytes));
  }

  #keep(l1Index: number, table: SectorTable): void {
    this.#cache.set(l1Index, table);
    for (const [index, old] of this.#cache) {
      if (this.#cache.size <= this.#maxCached) break;
      const isIdle = old.users === 0 && !old.isDirty && !this.#unsettled.has(old);
      if (isIdle && old !== table) this.#cache.delete(index);
    }
  }

  #checkPlace(at: number, field: () => string): void {
    if (at % this.#header.clusterBytes !== 0) {
      throw this.#wrong(field(), `points to byte ${at}, no multiple of a cluster`);
    }
    if (at > 0 && at >= this.#below.sizeBytes) {
      throw this.#wrong(field(), `points to byte ${at}, outside the file`);
    }
  }

  #wrong(field: string, problem: string): Qcow2Error {
    return new Qcow2Error(this.#below.description, field, problem);
  }
}
