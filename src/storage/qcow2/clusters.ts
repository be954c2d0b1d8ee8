/**
 * Which clusters of an image's file are used, and by how many. Only a writable image has this.
 *
 * Whatever is handed out reads as zeros, durably: an entry that reaches the disk before the data
 * that it points to then shows zeros, never another's bytes. So a cluster that is freed goes
 *
 *   freed ── flush ──► its old entry is gone for good; a hole is punched ── flush ──► pool
 *
 * and the end of the file is grown, and that made durable, before anything is handed out of it.
 */
import { constants } from 'node:os';
import { assert } from '../../base/assert.ts';
import { messageOf } from '../../base/errors.ts';
import { type Layer, LayerError } from '../layer/layer.ts';
import type { Barrier } from './barrier.ts';
import { runsOf } from './sector-table.ts';

/** 4 TiB of file in clusters of 64 KiB; 128 MiB of memory for their counts. */
export const MAX_CLUSTERS = 2 ** 26;

/** Free, and in one of the lists. Larger counts than this are refused when they are counted. */
export const LISTED = 0xffff;
export const MAX_REFCOUNT = LISTED - 1;

/** The file grows by an eighth of itself, within these. */
const MIN_GROWTH_BYTES = 2 ** 22;
const MAX_GROWTH_BYTES = 2 ** 30;

/** So much is freed before we flush by ourselves, so that it can be used again. */
const MAX_FREED_BYTES = 2 ** 26;

/** Clusters looked at for free ones in one flush. */
const SCAN_CLUSTERS = 2 ** 16;

export type ClustersOptions = {
  readonly below: Layer;
  readonly barrier: Barrier;
  readonly clusterBytes: number;
  readonly refcountOrder: number;
  /** By cluster of the file. */
  readonly refcounts: Uint16Array;
  /** Clusters up to the last that is used. */
  readonly end: number;
};

export class Clusters {
  readonly #below: Layer;
  readonly #barrier: Barrier;
  readonly #clusterBytes: number;
  #refcounts: Uint16Array;
  /** From here to `#limit` nothing was handed out yet, and zeros are read. */
  #end: number;
  #limit: number;
  #growing: Promise<void> | null = null;
  /** It cannot grow: what lay behind the last one used is free as any other, not known as zeros. */
  #isFixed = false;
  #scanned = 0;
  #scanEnd: number;
  #freed: number[] = [];
  #punched: number[] = [];
  #pool: number[] = [];
  #punching: Promise<void> = Promise.resolve();
  #reclaiming: Promise<void> | null = null;

  constructor(options: ClustersOptions) {
    this.#below = options.below;
    this.#barrier = options.barrier;
    this.#clusterBytes = options.clusterBytes;
    this.#refcounts = options.refcounts;
    this.#end = options.end;
    this.#limit = options.end;
    this.#scanEnd = options.end;
  }

  /** Clusters of the file up to the last that is used. */
  get usedEnd(): number {
    let end = this.#end;
    while (end > 0 && this.refcountOf(end - 1) === 0) end--;
    return end;
  }

  refcountOf(cluster: number): number {
    const count = cluster < this.#refcounts.length ? this.#refcounts[cluster]! : 0;
    return count === LISTED ? 0 : count;
  }

  /** Somebody has just what he needs: the cluster at a host offset is used once. */
  isOurs(hostAt: number): boolean {
    return this.refcountOf(Math.floor(hostAt / this.#clusterBytes)) === 1;
  }

  /** Cuts off what is behind the last one used: it is old, and may hold anything. */
  async trim(): Promise<void> {
    this.#end = this.usedEnd;
    this.#refcounts.fill(0, this.#end);
    this.#freed = this.#freed.filter((cluster) => cluster < this.#end);
    this.#punched = this.#punched.filter((cluster) => cluster < this.#end);
    this.#pool = this.#pool.filter((cluster) => cluster < this.#end);
    const bytes = this.#end * this.#clusterBytes;
    try {
      await this.#below.resize(bytes);
      this.#limit = this.#end;
      this.#scanEnd = Math.min(this.#scanEnd, this.#end);
    } catch {
      this.#isFixed = true; // a block device, or what is made of one
      this.#limit = Math.min(MAX_CLUSTERS, Math.floor(this.#below.sizeBytes / this.#clusterBytes));
      this.#end = this.#limit;
      this.#scanEnd = this.#limit;
      this.#room(this.#end);
    }
  }

  /**
   * Host offsets of so many clusters, each used once from now on.
   * @throws LayerError ENOSPC; then none are taken.
   */
  async allocate(count: number): Promise<number[]> {
    const taken: number[] = [];
    try {
      while (taken.length < count) taken.push(await this.#one());
    } catch (error) {
      this.giveBack(taken);
      throw error;
    }
    return taken;
  }

  /** The host offset of so many clusters in a row. */
  async allocateRun(count: number): Promise<number> {
    while (this.#limit - this.#end < count) await this.#grow(count);
    const first = this.#end;
    this.#end += count;
    this.#room(this.#end);
    this.#refcounts.fill(1, first, this.#end);
    return first * this.#clusterBytes;
  }

  /** What was allocated, written perhaps, and never pointed to. */
  giveBack(hostAts: readonly number[]): void {
    for (const hostAt of hostAts) this.release(hostAt, 1);
  }

  /** An entry pointed to this, and points elsewhere now: in the file, if not yet on the disk. */
  release(hostAt: number, sizeBytes: number): void {
    const first = Math.floor(hostAt / this.#clusterBytes);
    const last = Math.floor((hostAt + sizeBytes - 1) / this.#clusterBytes);
    for (let cluster = first; cluster <= last; cluster++) {
      const count = this.refcountOf(cluster);
      if (count === 0) continue; // packed data may end where the file does
      this.#refcounts[cluster] = count === 1 ? LISTED : count - 1;
      if (count === 1) this.#freed.push(cluster);
    }
    if (this.#freed.length * this.#clusterBytes > MAX_FREED_BYTES) this.#reclaim();
  }

  /** For the barrier: what is freed before a flush may be used some time after it. */
  beforeFlush(): () => void {
    this.#scan();
    const freed = this.#freed;
    const punched = this.#punched;
    this.#freed = [];
    this.#punched = [];
    return () => {
      for (const cluster of punched) this.#pool.push(cluster);
      if (freed.length > 0) this.#punching = this.#punching.then(() => this.#punch(freed));
    };
  }

  /** When it resolves, nothing happens by itself any more. */
  async settle(): Promise<void> {
    await this.#reclaiming;
    await this.#punching;
  }

  counters(): Record<string, number> {
    return {
      qcow2_file_clusters: this.#end,
      qcow2_free_clusters: this.#freed.length + this.#punched.length + this.#pool.length,
    };
  }

  async #one(): Promise<number> {
    for (;;) {
      let cluster = this.#pool.pop();
      if (cluster === undefined && this.#end < this.#limit) cluster = this.#end++;
      if (cluster === undefined) {
        await this.#grow(1);
        continue;
      }
      this.#room(cluster + 1);
      this.#refcounts[cluster] = 1;
      return cluster * this.#clusterBytes;
    }
  }

  /** One at a time; returns when there may be more than there was. */
  #grow(count: number): Promise<void> {
    this.#growing ??= this.#growBy(count).finally(() => (this.#growing = null));
    return this.#growing;
  }

  async #growBy(count: number): Promise<void> {
    if (this.#isFixed) return this.#reuse();
    const eighth = (this.#limit * this.#clusterBytes) / 8;
    const bytes = Math.min(Math.max(eighth, MIN_GROWTH_BYTES), MAX_GROWTH_BYTES);
    const more = Math.max(count, Math.ceil(bytes / this.#clusterBytes));
    const limit = Math.min(this.#limit + more, MAX_CLUSTERS);
    if (limit < this.#end + count) throw this.#full(`it has ${MAX_CLUSTERS} clusters`);
    try {
      await this.#below.resize(limit * this.#clusterBytes);
    } catch (error) {
      throw this.#full(messageOf(error));
    }
    await this.#barrier.sync();
    this.#limit = limit;
  }

  async #reuse(): Promise<void> {
    for (let round = 0; round < 2; round++) {
      await this.#barrier.sync();
      await this.#punching;
    }
    const isDone = this.#scanned >= this.#scanEnd && this.#freed.length === 0;
    if (this.#pool.length === 0 && this.#punched.length === 0 && isDone) {
      throw this.#full('no cluster is free');
    }
  }

  #full(why: string): LayerError {
    const { description, sizeBytes } = this.#below;
    const text = `the qcow2 image in ${description} stays at ${sizeBytes} bytes: ${why}`;
    return new LayerError(constants.errno.ENOSPC, text);
  }

  #reclaim(): void {
    const done = (): void => void (this.#reclaiming = null);
    // A flush that fails is told to who asks for the next one.
    this.#reclaiming ??= this.#barrier.sync().then(done, done);
  }

  async #punch(freed: number[]): Promise<void> {
    const size = this.#clusterBytes;
    freed.sort((a, b) => a - b);
    for (const [first, count] of runsOf(freed)) {
      try {
        await this.#below.zero(first * size, count * size, { unmap: true, fua: false });
      } catch {
        continue; // not to be used before the image is opened anew
      }
      for (let i = 0; i < count; i++) this.#punched.push(first + i);
    }
  }

  /** Free clusters that were there when the image was opened: found a few at a time. */
  #scan(): void {
    const end = Math.min(this.#scanEnd, this.#scanned + SCAN_CLUSTERS);
    for (; this.#scanned < end; this.#scanned++) {
      if (this.#refcounts[this.#scanned] !== 0) continue;
      this.#refcounts[this.#scanned] = LISTED;
      this.#freed.push(this.#scanned);
    }
  }

  #room(end: number): void {
    if (end <= this.#refcounts.length) return;
    assert(end <= MAX_CLUSTERS);
    const larger = new Uint16Array(
      Math.min(MAX_CLUSTERS, Math.max(end, 2 * this.#refcounts.length)),
    );
    larger.set(this.#refcounts);
    this.#refcounts = larger;
  }
}
