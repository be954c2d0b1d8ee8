/**
 * Requests between a data plane's thread and a disk's storage thread: slots in shared memory, and
 * two queues of slot numbers, one each way. Each queue has one producer and one consumer. The data
 * plane owns a slot until it is submitted, the storage thread until it is completed.
 */
import { MAX_CHAIN_DESCRIPTORS } from '../../base/limits.ts';
import { IO_EXTENTS } from '../io-batch.ts';

/** Requests that are out at once; the rest waits in the virtqueues. */
export const RING_SLOTS = 256;

/** Segments of one request: what one chain has at most. */
export const SLOT_SEGMENTS = MAX_CHAIN_DESCRIPTORS;

const MASK = RING_SLOTS - 1;

// Cells of `#cells`: counters that wrap at 2^32.
const SUBMITTED = 0;
const TAKEN = 1;
const COMPLETED = 2;
const REAPED = 3;
const NEWS = 4;
const DEAD = 5;
const HURRIED = 6;
const CELLS = 16;

const ENTRIES = RING_SLOTS * SLOT_SEGMENTS;

export const REQUEST_RING_BYTES =
  8 * (3 * RING_SLOTS + ENTRIES) + 4 * (CELLS + 7 * RING_SLOTS + ENTRIES);

export class RequestRing {
  /** By slot. `status` is written by the storage thread, all else by the data plane. */
  readonly at: Float64Array;
  readonly size: Float64Array;
  readonly op: Int32Array;
  readonly flags: Int32Array;
  readonly segCount: Int32Array;
  readonly status: Int32Array;
  /** As `IoBatch.tagOrder`; of appends alone. */
  readonly tagOrder: Float64Array;
  readonly tagQueue: Int32Array;
  /** From SLOT_SEGMENTS * slot on. */
  readonly segOffset: Float64Array;
  readonly segLen: Int32Array;
  readonly #submitQueue: Int32Array;
  readonly #doneQueue: Int32Array;
  readonly #cells: Int32Array;

  /** Over REQUEST_RING_BYTES of zeros, or what another thread made of them. */
  constructor(memory: SharedArrayBuffer) {
    let place = 0;
    const doubles = (count: number): Float64Array => {
      const column = new Float64Array(memory, place, count);
      place += 8 * count;
      return column;
    };
    const words = (count: number): Int32Array => {
      const column = new Int32Array(memory, place, count);
      place += 4 * count;
      return column;
    };
    this.at = doubles(RING_SLOTS);
    this.size = doubles(RING_SLOTS);
    this.tagOrder = doubles(RING_SLOTS);
    this.segOffset = doubles(ENTRIES);
    this.#cells = words(CELLS);
    this.op = words(RING_SLOTS);
    this.flags = words(RING_SLOTS);
    this.segCount = words(RING_SLOTS);
    this.status = words(RING_SLOTS);
    this.tagQueue = words(RING_SLOTS);
    this.#submitQueue = words(RING_SLOTS);
    this.#doneQueue = words(RING_SLOTS);
    this.segLen = words(ENTRIES);
  }

  /** Data plane: hands a slot over. There are as many places as slots. */
  submit(slot: number): void {
    const place = Atomics.load(this.#cells, SUBMITTED);
    this.#submitQueue[place & MASK] = slot;
    Atomics.store(this.#cells, SUBMITTED, (place + 1) | 0);
  }

  /** Data plane: a slot that came back, or -1. */
  reap(): number {
    return this.#next(REAPED, COMPLETED, this.#doneQueue);
  }

  /** Data plane: how many `reap` would give. */
  get reapable(): number {
    return (Atomics.load(this.#cells, COMPLETED) - Atomics.load(this.#cells, REAPED)) | 0;
  }

  /** Data plane: how often something has happened to what is out, for `waitFor`. */
  get news(): number {
    return Atomics.load(this.#cells, NEWS);
  }

  /** Data plane: waits until `news` is another number. */
  waitFor(news: number): void {
    Atomics.wait(this.#cells, NEWS, news);
  }

  /** Data plane: somebody waits for what was submitted so far. */
  hurry(): void {
    Atomics.store(this.#cells, HURRIED, Atomics.load(this.#cells, SUBMITTED));
  }

  /** Storage thread: position up to which requests are waited for; as `position`. */
  get hurriedTo(): number {
    return Atomics.load(this.#cells, HURRIED);
  }

  /** Storage thread: position of the next request that `take` gives; counts and wraps at 2^32. */
  get position(): number {
    return Atomics.load(this.#cells, TAKEN);
  }

  /** Storage thread: the bytes that the next request is about, without taking it, or -1. */
  peekSize(): number {
    const place = Atomics.load(this.#cells, TAKEN);
    if (place === Atomics.load(this.#cells, SUBMITTED)) return -1;
    const slot = this.#submitQueue[place & MASK]!;
    return this.op[slot] === IO_EXTENTS ? 0 : this.size[slot]!; // a question moves nothing
  }

  /** Storage thread: a slot that was submitted, or -1. */
  take(): number {
    return this.#next(TAKEN, SUBMITTED, this.#submitQueue);
  }

  /** Storage thread: gives a slot back. */
  complete(slot: number, status: number): void {
    this.status[slot] = status;
    const place = Atomics.load(this.#cells, COMPLETED);
    this.#doneQueue[place & MASK] = slot;
    Atomics.store(this.#cells, COMPLETED, (place + 1) | 0);
    this.#tell();
  }

  get isDead(): boolean {
    return Atomics.load(this.#cells, DEAD) !== 0;
  }

  /** Whoever sees the storage thread end: nothing comes back any more. */
  die(): void {
    Atomics.store(this.#cells, DEAD, 1);
    this.#tell();
  }

  #tell(): void {
    Atomics.add(this.#cells, NEWS, 1);
    Atomics.notify(this.#cells, NEWS);
  }

  #next(consumed: number, produced: number, queue: Int32Array): number {
    const place = Atomics.load(this.#cells, consumed);
    if (place === Atomics.load(this.#cells, produced)) return -1;
    const slot = queue[place & MASK]!;
    Atomics.store(this.#cells, consumed, (place + 1) | 0);
    return slot;
  }
}
