import { assert } from '../../base/assert.ts';
import { BATCH, BATCH_SEGMENTS } from '../../base/limits.ts';

/** Distance of two columns in `rows`, in words; also the largest capacity. See ChainBatch. */
const STRIDE = 256;

/** One buffer of a chain: guest-physical address and length. */
export type Buffer = { readonly gpa: number; readonly len: number };

/**
 * Chains that a driver is about to add, in columns: the mirror of the device side's ChainBatch.
 * Segment columns hold first the readable, then the writable buffers of a chain.
 */
export class DriverBatch {
  readonly capacity: number;
  readonly segCapacity: number;
  /** Chains in the batch, each of at least one segment. */
  count = 0;
  segments = 0;

  /** The five columns below, one behind the other; what `addChains` reads. */
  readonly rows: Int32Array;
  readonly segFirst: Int32Array;
  readonly readSegs: Int32Array;
  readonly writeSegs: Int32Array;
  /** 1: through an indirect table, where the queue has room for it and more than one segment. */
  readonly indirect: Int32Array;
  /** Set by `addChains`: the identity under which `reapUsed` returns the chain. */
  readonly id: Int32Array;

  readonly segGpa: Float64Array;
  readonly segLen: Int32Array;

  constructor(capacity = BATCH, segCapacity = BATCH_SEGMENTS) {
    assert(capacity > 0 && capacity <= STRIDE, 'capacity of a DriverBatch');
    this.capacity = capacity | 0; // a boxed double would make the field one, see DeviceQueue
    this.segCapacity = segCapacity | 0;
    const rows = new Int32Array(5 * STRIDE);
    const column = (k: number) => rows.subarray(k * STRIDE, k * STRIDE + capacity);
    this.rows = rows;
    this.segFirst = column(0);
    this.readSegs = column(1);
    this.writeSegs = column(2);
    this.indirect = column(3);
    this.id = column(4);
    this.segGpa = new Float64Array(segCapacity);
    this.segLen = new Int32Array(segCapacity);
  }

  clear(): void {
    this.count = 0;
    this.segments = 0;
  }

  /** Appends one chain; for control queues and tests. Returns its row. */
  addChain(readable: readonly Buffer[], writable: readonly Buffer[], indirect = false): number {
    const segs = readable.length + writable.length;
    assert(segs > 0, 'a chain has at least one buffer');
    assert(this.count < this.capacity && this.segments + segs <= this.segCapacity, 'batch is full');
    const row = this.count++;
    this.segFirst[row] = this.segments;
    this.readSegs[row] = readable.length;
    this.writeSegs[row] = writable.length;
    this.indirect[row] = indirect ? 1 : 0;
    for (const list of [readable, writable]) {
      for (const buffer of list) {
        this.segGpa[this.segments] = buffer.gpa;
        this.segLen[this.segments++] = buffer.len;
      }
    }
    return row;
  }
}

/** Chains that came back. */
export class UsedBatch {
  readonly capacity: number;
  count = 0;
  readonly id: Int32Array;
  /** Bytes that the device says it wrote; never more than the chain has room for. */
  readonly len: Int32Array;

  constructor(capacity = BATCH) {
    this.capacity = capacity | 0;
    this.id = new Int32Array(capacity);
    this.len = new Int32Array(capacity);
  }
}
