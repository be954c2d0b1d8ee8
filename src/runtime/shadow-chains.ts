/**
 * The chains that a shadow ring has out: under the id of the shadow ring's driver side, what the
 * guest's ring calls the chain, and where the device may write. Columns; reused, so that nothing is
 * allocated once every id was out with its longest chain.
 */
import { ChainBatch, type DeviceQueue } from '../virtqueue/index.ts';
import { logBuffers } from '../virtqueue/dirty-log.hot.ts';
import type { UsedBatch } from '../virtqueue/driver/index.ts';

export class ShadowChains {
  /** By id: the chain's head, and the slots that it takes (packed). */
  readonly #head: Int32Array;
  readonly #slots: Int32Array;
  /** By id: its number in the order in which chains were taken; -1: it is not out. */
  readonly #taken: Float64Array;
  /** By id: the writable segments, arena offset and length. */
  readonly #offsets: Float64Array[];
  readonly #lengths: Int32Array[];
  readonly #segments: Int32Array;
  readonly #done = new ChainBatch();
  /** One row per chain: the last byte that the device may write. */
  readonly #tails = new ChainBatch();
  #next = 0;
  count = 0;

  constructor(size: number) {
    this.#head = new Int32Array(size);
    this.#slots = new Int32Array(size);
    this.#taken = new Float64Array(size).fill(-1);
    this.#segments = new Int32Array(size);
    this.#offsets = Array.from({ length: size }, () => new Float64Array(0));
    this.#lengths = Array.from({ length: size }, () => new Int32Array(0));
  }

  /** Row `row` of `batch` went to the device as `id`. */
  add(id: number, batch: ChainBatch, row: number): void {
    this.#head[id] = batch.head[row]!;
    this.#slots[id] = batch.slots[row]!;
    this.#taken[id] = this.#next++;
    this.count++;
    const segments = batch.writeSegs[row]!;
    this.#segments[id] = segments;
    if (this.#offsets[id]!.length < segments) {
      this.#offsets[id] = new Float64Array(segments);
      this.#lengths[id] = new Int32Array(segments);
    }
    const first = batch.segFirst[row]! + batch.readSegs[row]!;
    for (let s = 0; s < segments; s++) {
      this.#offsets[id]![s] = batch.segOffset[first + s]!;
      this.#lengths[id]![s] = batch.segLen[first + s]!;
    }
  }

  /**
   * Takes chains `[from, ...)` that came back out again, as rows for `putUsed`: as many as fit.
   * What the device may have written beyond what it says is marked as well, if the queue logs: the
   * last byte. A block device puts its status there, also where it wrote nothing before it and says
   * so (virtio 1.2, 2.7.8.2: "MAY write more than len bytes").
   */
  collect(used: UsedBatch, from: number, q: DeviceQueue): ChainBatch {
    const done = this.#done;
    done.count = 0;
    done.segments = 0;
    this.#tails.count = 0;
    for (let i = from; i < used.count && done.count < done.capacity; i++) {
      const id = used.id[i]!;
      if (done.segments + this.#segments[id]! > done.segCapacity) break;
      this.#append(id, used.len[i]!);
      this.#taken[id] = -1;
      this.count--;
    }
    if (q.logged !== 0) logBuffers(q, this.#tails, 0, this.#tails.count);
    return done;
  }

  /**
   * Whether the chains that are out are the ones that were taken last. Only then can a ring's base
   * say what has to be done again.
   */
  get isSuffix(): boolean {
    if (this.count === 0) return true;
    let oldest = this.#next;
    for (const number of this.#taken) if (number >= 0 && number < oldest) oldest = number;
    return this.#next - oldest === this.count;
  }

  #append(id: number, written: number): void {
    const done = this.#done;
    const row = done.count++;
    const segments = this.#segments[id]!;
    const offsets = this.#offsets[id]!;
    const lengths = this.#lengths[id]!;
    done.head[row] = this.#head[id]!;
    done.slots[row] = this.#slots[id]!;
    done.segFirst[row] = done.segments;
    done.readSegs[row] = 0;
    done.writeSegs[row] = segments;
    done.readBytes[row] = 0;
    done.written[row] = written;
    let room = 0;
    for (let s = 0; s < segments; s++) {
      done.segOffset[done.segments] = offsets[s]!;
      done.segLen[done.segments++] = lengths[s]!;
      room += lengths[s]!;
    }
    done.writeBytes[row] = room;
    if (segments > 0) this.#appendTail(offsets[segments - 1]! + lengths[segments - 1]! - 1);
  }

  #appendTail(offset: number): void {
    const tails = this.#tails;
    const row = tails.count++;
    tails.segFirst[row] = row;
    tails.readSegs[row] = 0;
    tails.writeSegs[row] = 1;
    tails.written[row] = 1;
    tails.segOffset[row] = offset;
    tails.segLen[row] = 1;
  }
}
