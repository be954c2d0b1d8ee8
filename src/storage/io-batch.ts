import { assert } from '../base/assert.ts';
import { BATCH, BATCH_SEGMENTS } from '../base/limits.ts';

// What a request asks for: `IoBatch.op`.
export const IO_READ = 0;
export const IO_WRITE = 1;
/** What completed before this was submitted is durable when it completes. */
export const IO_FLUSH = 2;
/** The range may be given back; what it reads as afterwards is not promised. */
export const IO_DISCARD = 3;
/** The range reads as zeros. */
export const IO_ZEROES = 4;
/** What was in the range is overwritten where it lies, with zeros, durably. */
export const IO_ERASE = 5;
// Of zoned disks (zoned/). All but the first two name a zone by its beginning, `IoBatch.at`.
/**
 * `size` bytes to the zone's write pointer. Behind the segments of the data come those of 8 bytes,
 * into which the sector goes that the data went to.
 */
export const IO_ZONE_APPEND = 6;
/** A report of `size` bytes on the zones from that of `at` on, into the segments. */
export const IO_ZONE_REPORT = 7;
export const IO_ZONE_OPEN = 8;
export const IO_ZONE_CLOSE = 9;
export const IO_ZONE_FINISH = 10;
export const IO_ZONE_RESET = 11;
export const IO_ZONE_RESET_ALL = 12; // `at` is 0
/**
 * What is known of the range: records in the one segment, as `readExtents` has them, of a begin of
 * it. An engine that knows nothing leaves the segment as it is.
 */
export const IO_EXTENTS = 13;

// `IoBatch.flags`.
/** The request's own effect is durable when it completes. */
export const IO_FUA = 1;
/** IO_ZEROES: the range may be given back, if it still reads as zeros. */
export const IO_UNMAP = 2;
/** A zoned disk: begun before, by a process that died; it may have been done. */
export const IO_AGAIN = 4;

// `IoDone.status`, beside -errno: what the rules of zones forbid. The request was wrong, not the
// medium. Linux has no errno above 4095.
export const IO_ZONE_INVALID = -5003;
export const IO_ZONE_UNALIGNED = -5004; // not at the write pointer
export const IO_ZONE_OPEN_LIMIT = -5005;
export const IO_ZONE_ACTIVE_LIMIT = -5006;

const OP_NAMES = [
  'read',
  'write',
  'flush',
  'discard',
  'write zeroes',
  'erase',
  'zone append',
  'zone report',
  'zone open',
  'zone close',
  'zone finish',
  'zone reset',
  'reset of all zones',
  'extents',
] as const;

export function ioName(op: number): string {
  return OP_NAMES[op] ?? `op ${op}`;
}

/** Ranges of one discard or write-zeroes request: each is a row of its own. */
export const MAX_IO_RANGES = 16;

/**
 * Requests to an engine, in columns: filled by a device, read by `Engine.submit`, and the device's
 * again when that returns. Owned by one worker and reused.
 */
export class IoBatch {
  readonly capacity: number;
  readonly segCapacity: number;
  count = 0;
  segments = 0;

  readonly op: Uint8Array;
  readonly flags: Uint8Array;
  /** Given back by `Engine.reap`; the caller's. */
  readonly id: Int32Array;
  /** Where on the disk, and how much, bytes. Both 0 for IO_FLUSH. */
  readonly at: Float64Array;
  readonly size: Float64Array;
  /**
   * Reads and writes: segments [segFirst, segFirst + segCount), `size` bytes together. IO_EXTENTS:
   * one, of any size.
   */
  readonly segFirst: Int32Array;
  readonly segCount: Int32Array;
  /** IO_ZONE_APPEND: which request of which queue, the same after a crash. 0: nobody asks again. */
  readonly tagOrder: Float64Array;
  readonly tagQueue: Int32Array;
  /** Arena offset and length of each segment. */
  readonly segOffset: Float64Array;
  readonly segLen: Int32Array;

  constructor(capacity = BATCH * MAX_IO_RANGES, segCapacity = BATCH_SEGMENTS) {
    assert(capacity >= 1 && segCapacity >= 1, 'an IoBatch has room');
    this.capacity = capacity | 0; // a boxed double would make the field one
    this.segCapacity = segCapacity | 0;
    this.op = new Uint8Array(capacity);
    this.flags = new Uint8Array(capacity);
    this.id = new Int32Array(capacity);
    this.at = new Float64Array(capacity);
    this.size = new Float64Array(capacity);
    this.segFirst = new Int32Array(capacity);
    this.segCount = new Int32Array(capacity);
    this.tagOrder = new Float64Array(capacity);
    this.tagQueue = new Int32Array(capacity);
    this.segOffset = new Float64Array(segCapacity);
    this.segLen = new Int32Array(segCapacity);
  }

  clear(): void {
    this.count = 0;
    this.segments = 0;
  }

  /** Appends one request; for tests and whatever is rare. Returns its row. */
  add(
    op: number,
    at: number,
    size: number,
    segments: readonly (readonly [offset: number, len: number])[] = [],
    flags = 0,
  ): number {
    const row = this.count++;
    assert(row < this.capacity && this.segments + segments.length <= this.segCapacity);
    this.op[row] = op;
    this.flags[row] = flags;
    this.id[row] = row;
    this.at[row] = at;
    this.size[row] = size;
    this.segFirst[row] = this.segments;
    this.segCount[row] = segments.length;
    for (const [offset, len] of segments) {
      this.segOffset[this.segments] = offset;
      this.segLen[this.segments++] = len;
    }
    return row;
  }
}

/** Requests that have completed, in columns: filled by `Engine.reap`. */
export class IoDone {
  readonly capacity: number;
  count = 0;
  /** `IoBatch.id` of the request. */
  readonly id: Int32Array;
  /** 0, IO_ZONE_*, or -errno: EIO, ENOSPC, EINVAL (outside of the disk), EROFS, EOPNOTSUPP. */
  readonly status: Int32Array;
  /** What and where it was, for whoever reports an error. */
  readonly op: Uint8Array;
  readonly at: Float64Array;

  constructor(capacity = BATCH * MAX_IO_RANGES) {
    this.capacity = capacity | 0;
    this.id = new Int32Array(capacity);
    this.status = new Int32Array(capacity);
    this.op = new Uint8Array(capacity);
    this.at = new Float64Array(capacity);
  }
}
