/**
 * The regions of a memory table, mapped, and kept where they are when the next table names them
 * again: what works on them, or has pinned them, need not stop for a table that only grows.
 */
import { fstatSync } from 'node:fs';
import type { BackendMemoryRegion } from '../base/vhost-backend.ts';
import { fdStat } from '../sys/index.ts';
import { MemoryTable } from './memory-table.ts';
import { SharedRegion } from './shared-region.ts';

/** A table that was prepared; `commit` or `abandon` ends it. */
export type RegionsUpdate = {
  readonly next: MemoryTable;
  /** Regions of `next` that were mapped for it. */
  readonly fresh: readonly SharedRegion[];
  /** Regions of the old table that are not in `next`; they are mapped until `commit`. */
  readonly gone: readonly SharedRegion[];
};

/** Owns the mappings. */
export class GuestRegions {
  /** Which file each region is of: addresses alone do not say that it is the same memory. */
  readonly #files = new WeakMap<SharedRegion, string>();
  #table = new MemoryTable();

  get table(): MemoryTable {
    return this.#table;
  }

  /**
   * Maps what is new. The fds stay the caller's.
   * @throws MemoryError with the field at fault; nothing has changed then.
   */
  prepare(regions: readonly BackendMemoryRegion[]): RegionsUpdate {
    const next = new MemoryTable();
    const fresh: SharedRegion[] = [];
    try {
      for (const [i, description] of regions.entries()) {
        const kept = this.#kept(description);
        if (kept !== null) {
          next.add(kept);
          continue;
        }
        const region = SharedRegion.map(description.fd, description, `region ${i}`);
        fresh.push(region);
        this.#files.set(region, fileOf(description.fd));
        next.add(region);
      }
    } catch (error) {
      for (const region of fresh) region.close();
      throw error;
    }
    const gone = this.#table.regions.filter((region) => !next.regions.includes(region));
    return { next, fresh, gone };
  }

  commit({ next, gone }: RegionsUpdate): void {
    this.#table = next;
    for (const region of gone) region.close();
  }

  abandon({ fresh }: RegionsUpdate): void {
    for (const region of fresh) region.close();
  }

  /** Idempotent. */
  close(): void {
    this.#table.close();
  }

  /** The region that is this one already. */
  #kept(description: BackendMemoryRegion): SharedRegion | null {
    const region = this.#table.find(description);
    if (region === null || BigInt(region.fdOffset) !== description.fdOffset) return null;
    return this.#files.get(region) === fileOf(description.fd) ? region : null;
  }
}

/** Device and inode. A file that is no memory could make us wait: mapping it is refused anyway. */
function fileOf(fd: number): string {
  if (fdStat(fd).kind !== 'memfd-like') return '';
  const { dev, ino } = fstatSync(fd, { bigint: true });
  return `${dev}:${ino}`;
}
