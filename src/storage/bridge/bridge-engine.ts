/**
 * A stack of layers as an engine: the data plane's end of the way to a storage thread. Requests
 * keep their place in guest memory; the storage thread copies.
 */
import { assert } from '../../base/assert.ts';
import { drainEventfd, EIO, signalEventfd } from '../../sys/index.ts';
import type { Engine } from '../engine.ts';
import { IO_ZONE_APPEND, type IoBatch, type IoDone } from '../io-batch.ts';
import { RequestRing, RING_SLOTS, SLOT_SEGMENTS } from './request-ring.ts';

export type BridgeEngineSpec = {
  readonly kind: 'bridge';
  readonly ring: SharedArrayBuffer;
  /** eventfds: something was submitted, something was completed. The image's. */
  readonly submitFd: number;
  readonly completionFd: number;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
};

export class BridgeEngine implements Engine {
  readonly inOrder = false;
  readonly completionFd: number;
  readonly readOnly: boolean;
  sizeBytes: number;
  readonly #ring: RequestRing;
  readonly #submitFd: number;
  readonly #free = new Int32Array(RING_SLOTS);
  #freeCount = RING_SLOTS;
  /** By slot: 1 while it is out. */
  readonly #out = new Uint8Array(RING_SLOTS);
  readonly #id = new Int32Array(RING_SLOTS);

  constructor(spec: BridgeEngineSpec) {
    this.#ring = new RequestRing(spec.ring);
    this.#submitFd = spec.submitFd;
    this.completionFd = spec.completionFd;
    this.sizeBytes = spec.sizeBytes;
    this.readOnly = spec.readOnly;
    for (let slot = 0; slot < RING_SLOTS; slot++) this.#free[slot] = slot;
  }

  get pending(): number {
    return RING_SLOTS - this.#freeCount;
  }

  submit(batch: IoBatch, first: number): number {
    const count = Math.min(this.#freeCount, batch.count - first);
    for (let i = 0; i < count; i++) this.#put(batch, first + i);
    if (count > 0) signalEventfd(this.#submitFd);
    return count;
  }

  reap(done: IoDone): number {
    let count = 0;
    // Before looking: what completes from here on signals anew, and is not drained away unseen.
    if (this.#ring.reapable > 0) drainEventfd(this.completionFd);
    while (count < done.capacity) {
      let slot = this.#ring.reap();
      const isLost = slot < 0 && this.#ring.isDead; // of a thread that ended, nothing comes back
      if (isLost) slot = this.#out.indexOf(1);
      if (slot < 0) break;
      done.id[count] = this.#id[slot]!;
      done.status[count] = isLost ? -EIO : this.#ring.status[slot]!;
      done.op[count] = this.#ring.op[slot]!;
      done.at[count] = this.#ring.at[slot]!;
      this.#out[slot] = 0;
      this.#free[this.#freeCount++] = slot;
      count++;
    }
    done.count = count;
    return count;
  }

  hurry(): void {
    if (this.pending === 0) return;
    this.#ring.hurry();
    signalEventfd(this.#submitFd);
  }

  settle(): void {
    this.hurry();
    for (;;) {
      const { news } = this.#ring;
      if (this.#ring.isDead || this.#ring.reapable === this.pending) return;
      this.#ring.waitFor(news);
    }
  }

  /** The stack knows its size by itself. */
  resize(sizeBytes: number): void {
    this.sizeBytes = sizeBytes;
  }

  close(): void {
    assert(this.pending === 0, 'an engine that is closed has nothing pending');
  }

  #put(batch: IoBatch, row: number): void {
    const ring = this.#ring;
    const slot = this.#free[--this.#freeCount]!;
    const segments = batch.segCount[row]!;
    assert(segments <= SLOT_SEGMENTS, 'a request has the segments of one chain');
    this.#out[slot] = 1;
    this.#id[slot] = batch.id[row]!;
    ring.op[slot] = batch.op[row]!;
    ring.flags[slot] = batch.flags[row]!;
    ring.at[slot] = batch.at[row]!;
    ring.size[slot] = batch.size[row]!;
    ring.segCount[slot] = segments;
    if (ring.op[slot] === IO_ZONE_APPEND) {
      ring.tagOrder[slot] = batch.tagOrder[row]!;
      ring.tagQueue[slot] = batch.tagQueue[row]!;
    }
    const from = batch.segFirst[row]!;
    const to = slot * SLOT_SEGMENTS;
    for (let s = 0; s < segments; s++) {
      ring.segOffset[to + s] = batch.segOffset[from + s]!;
      ring.segLen[to + s] = batch.segLen[from + s]!;
    }
    ring.submit(slot);
  }
}
