import type { FrameBatch, FrameTap } from '../switch/index.ts';
import { captureFrame, publishCapture } from './capture-ring.hot.ts';
import { type CaptureRing, RING_HEAD_BYTES, RING_LOCK, RING_WRITE } from './capture-ring.ts';
import { lockTicket, unlockTicket } from '../sys/ticket-lock.hot.ts';
import { DIRECTION_INBOUND, DIRECTION_OUTBOUND } from './pcapng.ts';

const NANOSECONDS = 1_000_000_000;

/**
 * Copies the frames of one port into a capture ring. Lives in the worker, as the port's FrameTap.
 * Frames of one batch get one time: when the batch was taken or is about to be sent.
 */
export class CaptureTap implements FrameTap {
  readonly #head: Int32Array;
  readonly #ring: DataView;
  readonly #arena: DataView;
  readonly #snapLen: number;
  // performance.now() is a double of milliseconds: exact to nanoseconds from its own origin on,
  // not from 1970 on.
  readonly #originSeconds = Math.floor(performance.timeOrigin / 1000);
  readonly #originNanoseconds = Math.round((performance.timeOrigin % 1000) * 1e6);
  #seconds = 0;
  #nanoseconds = 0;

  constructor(ring: CaptureRing, arena: { readonly view: DataView }) {
    this.#head = new Int32Array(ring.memory, 0, RING_HEAD_BYTES / 4);
    this.#ring = new DataView(ring.memory);
    this.#arena = arena.view;
    this.#snapLen = ring.snapLen;
  }

  ingress(batch: FrameBatch, count: number): void {
    this.#readClock();
    lockTicket(this.#head, RING_LOCK);
    let position = this.#head[RING_WRITE];
    for (let i = 0; i < count; i++) position = this.#put(position, batch, i, DIRECTION_INBOUND);
    publishCapture(this.#head, position);
    unlockTicket(this.#head, RING_LOCK);
  }

  egress(batch: FrameBatch, list: Int32Array, count: number): void {
    this.#readClock();
    lockTicket(this.#head, RING_LOCK);
    let position = this.#head[RING_WRITE];
    for (let k = 0; k < count; k++) {
      position = this.#put(position, batch, list[k], DIRECTION_OUTBOUND);
    }
    publishCapture(this.#head, position);
    unlockTicket(this.#head, RING_LOCK);
  }

  #put(position: number, batch: FrameBatch, i: number, direction: number): number {
    return captureFrame(
      this.#head,
      this.#ring,
      position,
      batch,
      i,
      this.#arena,
      this.#snapLen,
      direction,
      this.#seconds,
      this.#nanoseconds,
    );
  }

  #readClock(): void {
    const nanoseconds = this.#originNanoseconds + Math.round(performance.now() * 1e6);
    const seconds = Math.floor(nanoseconds / NANOSECONDS);
    this.#seconds = this.#originSeconds + seconds;
    this.#nanoseconds = nanoseconds - seconds * NANOSECONDS;
  }
}
