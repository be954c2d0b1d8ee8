import { BATCH, BATCH_SEGMENTS } from '../base/limits.ts';

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

  /** Split: first descriptor. Packed: buffer id. The identity of the chain. */
  readonly head: Uint16Array;
  /** Packed: ring slots that the chain occupies. Split: 1. */
  readonly slots: Uint16Array;
  /** Index of the chain's first segment. */
  readonly segFirst: Int32Array;
  /** How many segments the device may read; they come first. */
  readonly readSegs: Int32Array;
  /** How many segments the device may write. */
  readonly writeSegs: Int32Array;
  /** Total bytes readable, and writable. Below 2^31 each, checked. */
  readonly readBytes: Int32Array;
  readonly writeBytes: Int32Array;
  /** Set by the device before `putUsed`: bytes written into the chain (used.len). */
  readonly written: Int32Array;

  /** Arena offset and length of each segment. */
  readonly segOffset: Float64Array;
  readonly segLen: Int32Array;

  constructor(capacity = BATCH, segCapacity = BATCH_SEGMENTS) {
    this.capacity = capacity;
    this.segCapacity = segCapacity;
    this.head = new Uint16Array(capacity);
    this.slots = new Uint16Array(capacity);
    this.segFirst = new Int32Array(capacity);
    this.readSegs = new Int32Array(capacity);
    this.writeSegs = new Int32Array(capacity);
    this.readBytes = new Int32Array(capacity);
    this.writeBytes = new Int32Array(capacity);
    this.written = new Int32Array(capacity);
    this.segOffset = new Float64Array(segCapacity);
    this.segLen = new Int32Array(segCapacity);
  }
}
