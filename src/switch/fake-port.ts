import { HEADER_COPY_BYTES } from '../base/limits.ts';
import { type FrameBatch, HEADER_SLOT_BYTES, HEADER_SLOT_START } from './frame-batch.ts';
import type { PortPlane } from './port-plane.ts';

/** A frame outside a batch: its bytes and what its virtio-net header says. */
export type FakeFrame = {
  readonly bytes: Uint8Array;
  readonly offload?: number;
  readonly csumStart?: number;
  readonly csumOffset?: number;
  readonly gsoType?: number;
  readonly gsoSize?: number;
};

/** Plain memory that stands for the arena in tests. */
export class FakeArena {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  #next: number;

  /** The first `reserved` bytes are the caller's, e.g. for offload scratch. */
  constructor(sizeBytes: number, reserved = 0) {
    this.bytes = new Uint8Array(sizeBytes);
    this.view = new DataView(this.bytes.buffer);
    this.#next = reserved;
  }

  /** Puts bytes somewhere and says where; places are not given back. */
  place(bytes: Uint8Array): number {
    const at = this.#next;
    this.#next += bytes.length;
    this.bytes.set(bytes, at);
    return at;
  }
}

/**
 * A port for tests: sends the frames of `outgoing`, keeps what it gets in `delivered`. Frames are
 * split into segments of at most `segmentBytes`.
 */
export class FakePort implements PortPlane {
  accepts = 0;
  maxFrameBytes = 1514;
  ready = true;
  segmentBytes = 1000;
  /** Takes at most this many frames per `transmit`. */
  room = Number.MAX_SAFE_INTEGER;
  readonly outgoing: FakeFrame[] = [];
  readonly delivered: Required<FakeFrame>[] = [];
  releases = 0;
  flushes = 0;
  transmits = 0;
  readonly #arena: FakeArena;

  constructor(arena: FakeArena) {
    this.#arena = arena;
  }

  receive(batch: FrameBatch): number {
    const frames = this.outgoing.splice(0, batch.capacity);
    batch.count = frames.length;
    batch.segments = 0;
    for (const [i, frame] of frames.entries()) {
      const headerLen = Math.min(frame.bytes.length, HEADER_COPY_BYTES);
      batch.headerAt[i] = i * HEADER_SLOT_BYTES + HEADER_SLOT_START;
      batch.headerLen[i] = headerLen;
      batch.frameLen[i] = frame.bytes.length;
      batch.headers.set(frame.bytes.subarray(0, headerLen), batch.headerAt[i]);
      batch.segFirst[i] = batch.segments;
      for (let at = headerLen; at < frame.bytes.length; at += this.segmentBytes) {
        const piece = frame.bytes.subarray(at, at + this.segmentBytes);
        batch.segOffset[batch.segments] = this.#arena.place(piece);
        batch.segLen[batch.segments++] = piece.length;
      }
      batch.segCount[i] = batch.segments - batch.segFirst[i];
      batch.offload[i] = frame.offload ?? 0;
      batch.csumStart[i] = frame.csumStart ?? 0;
      batch.csumOffset[i] = frame.csumOffset ?? 0;
      batch.gsoType[i] = frame.gsoType ?? 0;
      batch.gsoSize[i] = frame.gsoSize ?? 0;
      batch.gsoHeaderLen[i] = 0;
    }
    return frames.length;
  }

  release(_batch: FrameBatch): void {
    this.releases++;
  }

  transmit(batch: FrameBatch, list: Int32Array, count: number): number {
    this.transmits++;
    const taken = Math.min(count, this.room);
    for (let k = 0; k < taken; k++)
      this.delivered.push(readFrame(batch, list[k], this.#arena.bytes));
    return taken;
  }

  flush(): void {
    this.flushes++;
  }
}

/** Frame `i` of a batch as it would be delivered. */
export function readFrame(batch: FrameBatch, i: number, arena: Uint8Array): Required<FakeFrame> {
  const bytes = new Uint8Array(batch.frameLen[i]);
  const headerAt = batch.headerAt[i];
  bytes.set(batch.headers.subarray(headerAt, headerAt + batch.headerLen[i]));
  let at = batch.headerLen[i];
  for (let seg = batch.segFirst[i]; seg < batch.segFirst[i] + batch.segCount[i]; seg++) {
    const from = batch.segOffset[seg];
    bytes.set(arena.subarray(from, from + batch.segLen[seg]), at);
    at += batch.segLen[seg];
  }
  if (at !== bytes.length) throw new Error(`frame of ${bytes.length} bytes has ${at}`);
  return {
    bytes,
    offload: batch.offload[i],
    csumStart: batch.csumStart[i],
    csumOffset: batch.csumOffset[i],
    gsoType: batch.gsoType[i],
    gsoSize: batch.gsoSize[i],
  };
}
