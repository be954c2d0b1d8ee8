/**
 * A table of the image in memory, an L1 or an L2 table, written through: a change is on its way as
 * soon as it is made, and who made it waits until it is in the file. Memory is never ahead of the
 * file for longer than that, but after a failure; then whoever uses the table next tries again.
 *
 * Sectors that changed are written whole, by one writer at a time: two writes of one sector, each
 * with one of two changes, have no order below.
 */
import { SECTOR_BYTES } from '../disk-image.ts';
import type { Layer } from '../layer/layer.ts';

export class SectorTable {
  /** Host offset. */
  readonly at: number;
  readonly bytes: Buffer;
  /** Requests that look at it: it stays in memory. */
  users = 0;
  readonly #below: Layer;
  readonly #dirtySectors = new Set<number>();
  #writing: Promise<void> | null = null;
  #next: Promise<void> | null = null;

  constructor(below: Layer, at: number, bytes: Buffer) {
    this.#below = below;
    this.at = at;
    this.bytes = bytes;
  }

  /** Something in it is not in the file yet. */
  get isDirty(): boolean {
    return this.#dirtySectors.size > 0 || this.#writing !== null;
  }

  hi(index: number): number {
    return this.bytes.readUInt32BE(index * 8);
  }

  lo(index: number): number {
    return this.bytes.readUInt32BE(index * 8 + 4);
  }

  set(index: number, hi: number, lo: number): void {
    this.bytes.writeUInt32BE(hi, index * 8);
    this.bytes.writeUInt32BE(lo, index * 8 + 4);
    this.#dirtySectors.add(Math.floor((index * 8) / SECTOR_BYTES));
  }

  /** All changes made before this was called are in the file (not durable) when it resolves. */
  write(): Promise<void> {
    if (this.#writing === null) return this.#start();
    const again = (): Promise<void> => {
      this.#next = null;
      return this.write(); // somebody may have begun one meanwhile
    };
    this.#next ??= this.#writing.then(again, again);
    return this.#next;
  }

  #start(): Promise<void> {
    this.#writing = this.#writeDirty();
    return this.#writing;
  }

  async #writeDirty(): Promise<void> {
    const sectors = [...this.#dirtySectors].sort((a, b) => a - b);
    this.#dirtySectors.clear();
    try {
      await Promise.all(
        runsOf(sectors).map(([first, count]) => {
          const from = first * SECTOR_BYTES;
          // A copy: what is changed meanwhile is written by the next round.
          const some = Buffer.from(this.bytes.subarray(from, from + count * SECTOR_BYTES));
          return this.#below.write(this.at + from, some, false);
        }),
      );
    } catch (error) {
      for (const sector of sectors) this.#dirtySectors.add(sector);
      throw error;
    } finally {
      this.#writing = null;
    }
  }
}

/** Sorted numbers as runs: [first, count]. */
export function runsOf(sorted: readonly number[]): [number, number][] {
  const runs: [number, number][] = [];
  for (const value of sorted) {
    const last = runs.at(-1);
    if (last !== undefined && last[0] + last[1] === value) last[1]++;
    else runs.push([value, 1]);
  }
  return runs;
}
