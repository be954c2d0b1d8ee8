import { ConfigError } from '../base/errors.ts';
import { MAX_FRAME_BYTES } from '../base/limits.ts';

/**
 * The way of captured frames from the worker to the control thread: a ring of bytes in shared
 * memory with one writer at a time and one reader. It never blocks the writer: what does not fit
 * is counted as lost.
 *
 * Head: WRITE and READ count bytes and run freely modulo 2^32; SEEN and LOST count frames modulo
 * 2^32. A record starts on 8 bytes: its size, bits of direction, length of the frame, bytes of it
 * that follow, seconds and nanoseconds of its time. Records wrap around the end of the ring.
 */
export const RING_HEAD_BYTES = 64;
export const RING_WRITE = 0;
export const RING_READ = 1;
export const RING_SEEN = 2;
export const RING_LOST = 3;
/** Two words: workers that write to one ring take turns; see ticket-lock.hot.ts. */
export const RING_LOCK = 4;

export const RECORD_BYTES = 24;
export const RECORD_SIZE = 0;
export const RECORD_DIRECTION = 4;
export const RECORD_ORIGINAL = 8;
export const RECORD_CAPTURED = 12;
export const RECORD_SECONDS = 16;
export const RECORD_NANOSECONDS = 20;

/** Some 20 ms of small frames at 5 Mpps, or 2700 large ones; the reader looks every 5 ms. */
const DEFAULT_RING_BYTES = 4 * 1024 * 1024;

/** What a worker needs to write; can be posted to it. */
export type CaptureRing = {
  readonly memory: SharedArrayBuffer;
  readonly snapLen: number;
};

/** @throws ConfigError when `snapLen` is no positive number. */
export function createCaptureRing(snapLen: number, ringBytes = DEFAULT_RING_BYTES): CaptureRing {
  if (!Number.isInteger(snapLen) || snapLen < 1) {
    throw new ConfigError('snapLen', `${snapLen} is not a positive number of bytes`);
  }
  let bytes = 4096;
  while (bytes < ringBytes) bytes *= 2;
  const memory = new SharedArrayBuffer(RING_HEAD_BYTES + bytes);
  return { memory, snapLen: Math.min(snapLen, MAX_FRAME_BYTES + 4) };
}

export type CapturedFrame = {
  /** Nanoseconds since 1970. */
  readonly time: bigint;
  readonly direction: number;
  readonly originalBytes: number;
  readonly capturedBytes: number;
};

/** The control thread's end. */
export class CaptureRingReader {
  readonly #head: Int32Array;
  readonly #data: Buffer;
  readonly #mask: number;

  constructor(ring: CaptureRing) {
    this.#head = new Int32Array(ring.memory, 0, RING_HEAD_BYTES / 4);
    this.#data = Buffer.from(ring.memory, RING_HEAD_BYTES);
    this.#mask = this.#data.length - 1;
  }

  /** Frames that passed, captured or lost. */
  get seen(): number {
    return Atomics.load(this.#head, RING_SEEN) >>> 0;
  }

  get lost(): number {
    return Atomics.load(this.#head, RING_LOST) >>> 0;
  }

  /** Bytes of records that wait. */
  get pending(): number {
    return (Atomics.load(this.#head, RING_WRITE) - this.#head[RING_READ]) >>> 0;
  }

  /** The oldest record that waits, or null. */
  peek(): CapturedFrame | null {
    if (this.pending === 0) return null;
    const at = this.#head[RING_READ];
    const seconds = BigInt(this.#word(at + RECORD_SECONDS));
    return {
      time: seconds * 1_000_000_000n + BigInt(this.#word(at + RECORD_NANOSECONDS)),
      direction: this.#word(at + RECORD_DIRECTION),
      originalBytes: this.#word(at + RECORD_ORIGINAL),
      capturedBytes: this.#word(at + RECORD_CAPTURED),
    };
  }

  /** Copies the bytes of the record that `peek` showed, and takes it out of the ring. */
  take(frame: CapturedFrame, into: Buffer, at: number): void {
    const start = this.#head[RING_READ];
    const from = (start + RECORD_BYTES) & this.#mask;
    const first = Math.min(frame.capturedBytes, this.#data.length - from);
    this.#data.copy(into, at, from, from + first);
    this.#data.copy(into, at + first, 0, frame.capturedBytes - first);
    Atomics.store(this.#head, RING_READ, (start + this.#word(start + RECORD_SIZE)) | 0);
  }

  #word(at: number): number {
    return this.#data.readUInt32LE(at & this.#mask);
  }
}
