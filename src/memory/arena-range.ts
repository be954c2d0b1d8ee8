/**
 * Who owns which addresses of the arena: a first-fit allocator over its offsets. Main thread only;
 * other threads are told offsets.
 *
 * Ranges are multiples of 2 MiB (huge pages may back them), with an unmapped guard gap between
 * two of them. Offset 0 is never handed out, so that 0 is no valid offset by accident.
 */
import { isMainThread } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { arena, type RegionHandle, regionGeneration } from '../sys/index.ts';
import { MemoryError } from './errors.ts';

/** Unit of the allocator, and size of the guard gap behind each range. */
export const RANGE_UNIT_BYTES = 2 * 1024 * 1024;

type Taken = { start: number; end: number }; // with the guard gap

const taken: Taken[] = []; // sorted by start

/** Closed ranges whose region another thread still uses. */
const lingering: { range: Taken; handle: RegionHandle; generation: number }[] = [];

/** A piece of the arena's addresses. Nothing is mapped in it yet. */
export class ArenaRange {
  readonly offset: number;
  readonly sizeBytes: number;
  #taken: Taken | null;

  /** Use `reserveRange`. */
  constructor(offset: number, sizeBytes: number, own: Taken) {
    this.offset = offset;
    this.sizeBytes = sizeBytes;
    this.#taken = own;
  }

  /** Gives the addresses back at once; regions in it must be released. Idempotent. */
  close(): void {
    if (this.#taken !== null) giveBack(this.#taken);
    this.#taken = null;
  }

  /**
   * Gives the addresses back once the region is unmapped, which is when the last thread has
   * released it. `generation` is that of the handle when the region was mapped.
   */
  closeAfter(handle: RegionHandle, generation: number): void {
    if (this.#taken === null) return;
    lingering.push({ range: this.#taken, handle, generation });
    this.#taken = null;
    sweep();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Reserves `sizeBytes` of arena addresses, at a multiple of `alignBytes` (a power of two).
 * @throws MemoryError ERR_VRING_MEMORY_ARENA when no gap is large enough.
 */
export function reserveRange(sizeBytes: number, alignBytes = RANGE_UNIT_BYTES): ArenaRange {
  assert(isMainThread, 'arena ranges belong to the main thread');
  assert(Number.isSafeInteger(sizeBytes) && sizeBytes > 0);
  assert(alignBytes > 0 && Number.isInteger(Math.log2(alignBytes)));
  sweep();
  const align = Math.max(alignBytes, RANGE_UNIT_BYTES);
  const need = roundUp(sizeBytes, RANGE_UNIT_BYTES) + RANGE_UNIT_BYTES;
  let start = roundUp(RANGE_UNIT_BYTES, align);
  let at = 0;
  while (at < taken.length && taken[at]!.start < start + need) {
    start = roundUp(Math.max(start, taken[at]!.end), align);
    at++;
  }
  if (start + need > arena().sizeBytes) {
    const text = `no ${sizeBytes} bytes left in the arena of ${arena().sizeBytes} bytes`;
    throw new MemoryError('ERR_VRING_MEMORY_ARENA', 'memory_size', text);
  }
  const own = { start, end: start + need };
  taken.splice(at, 0, own);
  return new ArenaRange(start, sizeBytes, own);
}

/** Ranges that are in use or wait for their last user, for leak tests. */
export function reservedRanges(): number {
  sweep();
  return taken.length;
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

function giveBack(range: Taken): void {
  const at = taken.indexOf(range);
  assert(at >= 0);
  taken.splice(at, 1);
}

function sweep(): void {
  for (let i = lingering.length - 1; i >= 0; i--) {
    const { range, handle, generation } = lingering[i]!;
    if (regionGeneration(handle) === generation) continue;
    lingering.splice(i, 1);
    giveBack(range);
  }
}
