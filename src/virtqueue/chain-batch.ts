import { assert } from '../base/assert.ts';
import { BATCH, BATCH_SEGMENTS } from '../base/limits.ts';
import { fillRows } from './chain-segments.hot.ts';

/** Distance of two columns in `ChainBatch.rows`, in words; also the largest capacity. */
export const ROW_STRIDE = 256;
// Columns of `ChainBatch.rows`.
const HEAD = 0;
const SLOTS = 1;
const SEG_FIRST = 2;
const READ_SEGS = 3;
const WRITE_SEGS = 4;
const READ_BYTES = 5;
const WRITE_BYTES = 6;
const WRITTEN = 7;
const COLUMNS = 8;

/** `ChainBatch.uniform`: every chain is one segment, and all are readable, or all writable. */
export const UNIFORM_READ = 1;
export const UNIFORM_WRITE = 2;

/**
 * A batch of descriptor chains in columns: filled by `takeChains`, read by the device, finished by
 * `putUsed`. Owned by one worker and reused; all addresses are resolved arena offsets, so nothing
 * is left to check. Segment columns hold first the readable, then the writable segments of a chain.
 */
export class ChainBatch {
  readonly capacity: number;
  readonly segCapacity: number;
  /** Chains in the batch. */
  count = 0;
  /** Segments in use. */
  segments = 0;
  /**
   * UNIFORM_*, or 0 when not known to be: then chain i is segment i, and nothing else of a row
   * needs to be looked at but its head. Set by the takers, only where `lazy`.
   */
  uniform = 0;
  /** 1: rows of a uniform batch are left unfilled; who needs them calls `fillRows`. */
  readonly lazy: number;
  /**
   * 1: rows hold head, slots and written only. 2: and there are no segments, nobody needs them, so
   * that a chain that was read may have been of several, and take several slots. Of a ring with a
   * log such rows have the first and last guest page that was written where others have `segFirst`
   * and `readSegs`.
   */
  unfilled = 0;

  /**
   * All the columns below, one behind the other, ROW_STRIDE words apart. The takers write through
   * this one array: a loop over eight arrays keeps sixteen pointers and eight lengths, and spills
   * them (10.0 against 14.5 ns per chain).
   */
  readonly rows: Int32Array;

  /** Split: first descriptor. Packed: buffer id. The identity of the chain. */
  readonly head: Int32Array;
  /** Packed: ring slots that the chain occupies. Split: not used. */
  readonly slots: Int32Array;
  /** Index of the chain's first segment. */
  readonly segFirst: Int32Array;
  /** How many segments the device may read; they come first. */
  readonly readSegs: Int32Array;
  /** How many segments the device may write. */
  readonly writeSegs: Int32Array;
  /** Total bytes readable, and writable. Below 2^31 each, checked. */
  readonly readBytes: Int32Array;
  readonly writeBytes: Int32Array;
  /** Bytes written into the chain (used.len): 0 when taken, set by the device before `putUsed`. */
  readonly written: Int32Array;

  /** Arena offset and length of each segment; lengths are never 0. */
  readonly segOffset: Float64Array;
  readonly segLen: Int32Array;

  constructor(capacity = BATCH, segCapacity = BATCH_SEGMENTS, lazy = false) {
    assert(capacity > 0 && capacity <= ROW_STRIDE, 'capacity of a ChainBatch');
    assert(segCapacity > 0, 'segment capacity of a ChainBatch');
    this.capacity = capacity | 0; // a boxed double would make the field one, see DeviceQueue
    this.segCapacity = segCapacity | 0;
    this.lazy = lazy ? 1 : 0;
    const rows = new Int32Array(COLUMNS * ROW_STRIDE);
    const column = (k: number) => rows.subarray(k * ROW_STRIDE, k * ROW_STRIDE + capacity);
    this.rows = rows;
    this.head = column(HEAD);
    this.slots = column(SLOTS);
    this.segFirst = column(SEG_FIRST);
    this.readSegs = column(READ_SEGS);
    this.writeSegs = column(WRITE_SEGS);
    this.readBytes = column(READ_BYTES);
    this.writeBytes = column(WRITE_BYTES);
    this.written = column(WRITTEN);
    this.segOffset = new Float64Array(segCapacity);
    this.segLen = new Int32Array(segCapacity);
  }
}

/**
 * Appends row `row` of `from` to `to`, for a device that finishes requests later and in another
 * order: `putUsed` takes the copy as well. False: no room.
 */
export function keepChain(from: ChainBatch, row: number, to: ChainBatch): boolean {
  if (from.unfilled !== 0) fillRows(from, from.count);
  const segs = from.readSegs[row]! + from.writeSegs[row]!;
  const at = to.count;
  if (at === to.capacity || to.segments + segs > to.segCapacity) return false;
  const first = from.segFirst[row]!;
  for (let s = 0; s < segs; s++) {
    to.segOffset[to.segments + s] = from.segOffset[first + s]!;
    to.segLen[to.segments + s] = from.segLen[first + s]!;
  }
  for (let column = 0; column < COLUMNS; column++) {
    to.rows[at + column * ROW_STRIDE] = from.rows[row + column * ROW_STRIDE]!;
  }
  to.segFirst[at] = to.segments;
  to.segments += segs;
  to.count++;
  to.uniform = 0;
  to.unfilled = 0;
  return true;
}

/** For what `keepChain` filled. */
export function clearBatch(batch: ChainBatch): void {
  batch.count = 0;
  batch.segments = 0;
}
