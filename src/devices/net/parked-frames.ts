/**
 * Frames for a guest behind a virtual IOMMU that came while its rings or buffers waited for a
 * translation. Linux with a lazy IOMMU makes us forget all of them each 10 ms, QEMU needs a
 * millisecond to tell them again: a switch that dropped what came meanwhile lost 4 % of pings.
 *
 * Copies in our own memory, in their order; as many as fit, not for long. One per port.
 */
import { BATCH } from '../../base/limits.ts';
import { FRAME_BATCH_BYTES, FrameBatch, HEADER_SLOT_BYTES } from '../../switch/frame-batch.ts';

/** Bytes behind the header copies: some large TCP segments, or BATCH frames of usual size. */
const DATA_BYTES = 512 * 1024;
/** Private arena memory that it needs: allocated by the main thread. */
export const PARKED_FRAMES_BYTES = FRAME_BATCH_BYTES + DATA_BYTES;

/** What waited longer was given up by its sender, or is for a guest that has restarted since. */
const MAX_AGE_MS = 500;

export class ParkedFrames {
  readonly batch: FrameBatch;
  /** Frames of `batch` that still wait. */
  readonly list = new Int32Array(BATCH);
  count = 0;
  readonly #buffer: ArrayBufferLike;
  readonly #dataAt: number;
  #dataBytes = 0;
  #sinceMs = 0;

  constructor(buffer: ArrayBufferLike, at: number) {
    this.batch = new FrameBatch({ buffer, at });
    this.#buffer = buffer;
    this.#dataAt = at + FRAME_BATCH_BYTES;
  }

  /** Copies frames `list[from .. count)`, from the first on; returns how many had room. */
  add(source: FrameBatch, list: Int32Array, from: number, count: number, nowMs: number): number {
    if (this.count === 0) {
      this.clear();
      this.#sinceMs = nowMs;
    }
    for (let k = from; k < count; k++) if (!this.#copy(source, list[k]!)) return k - from;
    return count - from;
  }

  /** Those of `list[from .. count)`, a part of our own `list`, wait on, behind `kept` others. */
  keep(list: Int32Array, from: number, count: number): void {
    for (let k = from; k < count; k++) this.list[this.count++] = list[k]!;
  }

  isTooOld(nowMs: number): boolean {
    return nowMs - this.#sinceMs > MAX_AGE_MS;
  }

  /** Returns how many waited. */
  clear(): number {
    const { count } = this;
    this.count = 0;
    this.batch.count = 0;
    this.batch.segments = 0;
    this.#dataBytes = 0;
    return count;
  }

  #copy(source: FrameBatch, frame: number): boolean {
    const { batch } = this;
    const to = batch.count;
    const headerLen = source.headerLen[frame]!;
    const bytes = source.frameLen[frame]! - headerLen;
    if (to === batch.capacity || this.#dataBytes + bytes > DATA_BYTES) return false;
    // The same place in its slot, whatever tag was pushed in front of it.
    const headerAt = source.headerAt[frame]!;
    const at = to * HEADER_SLOT_BYTES + (headerAt % HEADER_SLOT_BYTES);
    batch.headers.set(source.headers.subarray(headerAt, headerAt + headerLen), at);
    batch.headerAt[to] = at;
    for (const column of ['headerLen', 'frameLen', 'offload', 'csumStart', 'csumOffset'] as const) {
      batch[column][to] = source[column][frame]!;
    }
    for (const column of ['gsoType', 'gsoSize', 'gsoHeaderLen', 'vlan', 'tagged'] as const) {
      batch[column][to] = source[column][frame]!;
    }
    batch.segFirst[to] = batch.segments;
    batch.segCount[to] = bytes > 0 ? 1 : 0;
    if (bytes > 0) {
      const start = this.#dataAt + this.#dataBytes;
      this.#gather(source, frame, new Uint8Array(this.#buffer, start, bytes));
      batch.segOffset[batch.segments] = start;
      batch.segLen[batch.segments] = bytes;
      batch.segments++;
      this.#dataBytes += bytes;
    }
    batch.plain = 0;
    batch.count = to + 1;
    this.list[this.count++] = to;
    return true;
  }

  #gather(source: FrameBatch, frame: number, into: Uint8Array): void {
    const first = source.segFirst[frame]!;
    let at = 0;
    for (let s = first; s < first + source.segCount[frame]!; s++) {
      const len = source.segLen[s]!;
      into.set(new Uint8Array(this.#buffer, source.segOffset[s]!, len), at);
      at += len;
    }
  }
}
