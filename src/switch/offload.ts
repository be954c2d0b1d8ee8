import { assert } from '../base/assert.ts';
import { BATCH, MAX_FRAME_BYTES } from '../base/limits.ts';
import { DROP_GSO_HEADERS, DROP_GSO_SIZE, DROP_GSO_TYPE, DROP_MTU } from './counters.ts';
import { DROP_OFFLOAD_HEADER } from './counters.ts';
import { FrameBatch, GSO_ECN, TAG_PRESENT, FRAME_BATCH_BYTES } from './frame-batch.ts';
import { ACCEPT_CSUM } from './port-plane.ts';
import {
  appendFrame,
  appendGsoSegment,
  finishChecksum,
  gatherFrame,
  PLAN_BAD_SIZE,
  PLAN_BAD_TYPE,
  PLAN_OK,
  PLAN_WORDS,
  planSegments,
} from './offload.hot.ts';

/**
 * Finishes for a receiver what it does not do itself: checksums, and cutting up large TCP and UDP
 * frames (TSO, USO).
 *
 * Theory of operation. `begin` copies the whole frame into scratch memory, checks it, and decides;
 * `emit` appends finished frames to `batch`, as many as fit, and is called again after the batch
 * was transmitted and `reset`, until it says that it is done. Finished frames of several sources
 * gather in the batch, so that a receiver without offloads still gets batches.
 *
 * Scratch memory: first one header area per frame of the batch, then a heap of frame copies that
 * `reset` empties (but for a frame that is not done yet).
 */
const HEADER_AREA_BYTES = 192;

/**
 * Longest headers of a frame to be cut up: Ethernet, tag, IPv4 or IPv6 with options, TCP. What is
 * longer is dropped as DROP_GSO_HEADERS.
 */
export const GSO_HEADER_BYTES_MAX = HEADER_AREA_BYTES;

/**
 * Frames that one frame may become: 64 KiB in pieces of 48 bytes, Linux's smallest
 * (tcp_min_snd_mss). A guest that asks for more is dropped as DROP_GSO_SIZE.
 */
export const GSO_SEGMENTS_MAX = 1366;

/**
 * Segments that the frames of one round may become, all receivers together: 2 ms of work. 64 of the
 * largest TSO frames with a usual MSS stay below it; what a guest asks for beyond is dropped as
 * DROP_GSO_SIZE, so that it cannot take the others' time.
 */
export const GSO_SEGMENTS_PER_ROUND = 4096;

/** Room for a batch of 1514-byte frames, or two of the largest. */
const HEAP_BYTES = 2 * 65536 + 16384;

/** Scratch memory that a SoftwareOffload needs. */
export const OFFLOAD_SCRATCH_BYTES = FRAME_BATCH_BYTES + BATCH * HEADER_AREA_BYTES + HEAP_BYTES;

/** What `begin` returns: go on with `emit`; transmit the batch and `begin` again. Or a DROP_*. */
export const OFFLOAD_READY = 0;
export const OFFLOAD_FULL = -1;

const NOTHING = 0;
const WHOLE_FRAME = 1;
const SEGMENTS = 2;
const PLAN_SEGMENTS = 5;
const PLAN_HEADER = 2;
const PLAN_PAYLOAD = 3;
const PLAN_SIZE = 4;
const PLAN_PARTIAL = 8;
const TAG_BYTES = 4;

export class SoftwareOffload {
  /** Finished frames, ready to be transmitted. */
  readonly batch: FrameBatch;
  /** 0, 1, 2, ...: the batch as a transmit list. */
  readonly list = Int32Array.from({ length: BATCH }, (_, i) => i);
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #headersAt: number;
  readonly #heapAt: number;
  readonly #heapEnd: number;
  readonly #plan = new Int32Array(PLAN_WORDS);
  #heapNext: number;
  #pending = NOTHING;
  #frameAt = 0;
  #frameLen = 0;
  #nextSegment = 0;

  /** Segments that this round may still make. */
  #budget = GSO_SEGMENTS_PER_ROUND;

  /** `scratchAt` is the arena offset of OFFLOAD_SCRATCH_BYTES of our own memory. */
  constructor(view: DataView, bytes: Uint8Array, scratchAt: number) {
    assert(scratchAt + OFFLOAD_SCRATCH_BYTES <= view.byteLength, 'scratch lies in the arena');
    this.#view = view;
    this.#bytes = bytes;
    this.batch = new FrameBatch({ buffer: view.buffer, at: scratchAt });
    this.#headersAt = scratchAt + FRAME_BATCH_BYTES;
    this.#heapAt = this.#headersAt + BATCH * HEADER_AREA_BYTES;
    this.#heapEnd = scratchAt + OFFLOAD_SCRATCH_BYTES;
    this.#heapNext = this.#heapAt;
  }

  /** A new round of the switch. */
  startRound(): void {
    this.#budget = GSO_SEGMENTS_PER_ROUND;
  }

  /** Segments that the frame of the last `begin` becomes; 0 when only its checksum is due. */
  get segments(): number {
    return this.#pending === SEGMENTS ? this.#plan[PLAN_SEGMENTS] : 0;
  }

  /**
   * Takes frame `i` of `source` over for a receiver with these ACCEPT_* bits. Returns
   * OFFLOAD_READY, OFFLOAD_FULL, or the DROP_* column of why it cannot be done.
   */
  begin(source: FrameBatch, i: number, accepts: number, maxFrameBytes: number): number {
    assert(this.#pending === NOTHING, 'the frame before is done');
    const lenBytes = source.frameLen[i];
    const tagBytes = (source.tagged[i] & TAG_PRESENT) !== 0 ? TAG_BYTES : 0;
    const gsoType = source.gsoType[i];
    if (gsoType === 0 && lenBytes - tagBytes > maxFrameBytes) return DROP_MTU;
    if (lenBytes > MAX_FRAME_BYTES + TAG_BYTES) return DROP_MTU;
    if (this.#heapNext + lenBytes > this.#heapEnd) return OFFLOAD_FULL;
    if (this.batch.count === this.batch.capacity) return OFFLOAD_FULL;
    const frameAt = this.#heapNext;
    if (gatherFrame(source, i, this.#view, this.#bytes, frameAt) < 0) return DROP_OFFLOAD_HEADER;
    this.#frameAt = frameAt;
    this.#frameLen = lenBytes;
    if (gsoType === 0) {
      finishChecksum(this.#view, frameAt, lenBytes, source.csumStart[i], source.csumOffset[i]);
      this.#pending = WHOLE_FRAME;
    } else {
      const kind = gsoType & ~GSO_ECN;
      const problem = this.#planFrame(kind, source.gsoSize[i], maxFrameBytes + tagBytes);
      if (problem !== 0) return problem;
      this.#plan[PLAN_PARTIAL] = (accepts & ACCEPT_CSUM) !== 0 ? 1 : 0;
      this.#budget -= this.#plan[PLAN_SEGMENTS];
      this.#nextSegment = 0;
      this.#pending = SEGMENTS;
    }
    // Rounded up, so that copies start on a cache line's half.
    this.#heapNext += (lenBytes + 31) & ~31;
    return OFFLOAD_READY;
  }

  #planFrame(kind: number, gsoSize: number, maxFrameBytes: number): number {
    const plan = this.#plan;
    const outcome = planSegments(
      this.#view,
      this.#frameAt,
      this.#frameLen,
      kind,
      gsoSize,
      GSO_HEADER_BYTES_MAX,
      Math.min(GSO_SEGMENTS_MAX, this.#budget),
      plan,
    );
    if (outcome === PLAN_BAD_TYPE) return DROP_GSO_TYPE;
    if (outcome === PLAN_BAD_SIZE) return DROP_GSO_SIZE;
    if (outcome !== PLAN_OK) return DROP_GSO_HEADERS;
    const longest = plan[PLAN_HEADER] + Math.min(plan[PLAN_SIZE], plan[PLAN_PAYLOAD]);
    return longest > maxFrameBytes ? DROP_MTU : 0;
  }

  /** Appends finished frames to `batch`. False when it is full before the frame is done. */
  emit(): boolean {
    const out = this.batch;
    if (this.#pending === WHOLE_FRAME) {
      if (out.count === out.capacity) return false;
      appendFrame(out, this.#view, this.#frameAt, this.#frameLen);
    } else if (this.#pending === SEGMENTS) {
      const total = this.#plan[PLAN_SEGMENTS];
      for (; this.#nextSegment < total; this.#nextSegment++) {
        if (out.count === out.capacity) return false;
        const headerAt = this.#headersAt + out.count * HEADER_AREA_BYTES;
        appendGsoSegment(out, this.#view, this.#plan, this.#frameAt, headerAt, this.#nextSegment);
      }
    }
    this.#pending = NOTHING;
    return true;
  }

  /** Empties `batch` after it was transmitted; a frame that is not done stays. */
  reset(): void {
    this.batch.count = 0;
    this.batch.segments = 0;
    if (this.#pending === NOTHING) this.#heapNext = this.#heapAt;
  }
}
