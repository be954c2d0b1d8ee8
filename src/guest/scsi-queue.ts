/**
 * One queue of the guest's SCSI driver: a ring, and a slot for each request that can be under way.
 * Requests are promises; this driver is for people and tests, not for the last microsecond.
 *
 * A slot holds what the driver says, what the device answers, and the data, one behind the other.
 */
import { VringError } from '../base/errors.ts';
import type { GuestMemory } from '../memory/index.ts';
import { signalEventfd } from '../sys/index.ts';
import { addChains, needsKick, publish, reapUsed } from '../virtqueue/driver/index.ts';
import { faultName } from '../virtqueue/index.ts';
import { PACKED_BASE_FRESH } from '../wire/virtio.ts';
import { GuestQueue, queueBytes, type QueuePlan, type RingFormat } from './guest-queue.ts';

/** Where the answer is in a slot, and where the data is. */
const ANSWER_AT = 320;
const DATA_AT = 640;

export type ScsiQueuePlan = RingFormat & {
  readonly name: string;
  readonly index: number;
  /** Most bytes of data of one request. */
  readonly dataBytes: number;
};

/** What came back: the answer, and what of the data the device says it wrote. */
export type QueueAnswer = { readonly answer: Uint8Array; readonly data: Uint8Array };

type Pending = {
  readonly slot: number;
  readonly answerBytes: number;
  resolve(answer: QueueAnswer): void;
  reject(error: Error): void;
};

export function scsiQueueBytes(plan: ScsiQueuePlan): number {
  return queueBytes(ringPlan(plan));
}

export class ScsiQueue {
  readonly queue: GuestQueue;
  readonly dataBytes: number;
  readonly #pending = new Map<number, Pending>();
  /** Requests that wait for a slot. */
  readonly #waiting: (() => void)[] = [];
  #failure: Error | null = null;

  constructor(plan: ScsiQueuePlan, memory: GuestMemory, at: number) {
    this.queue = new GuestQueue(ringPlan(plan), memory, at);
    this.dataBytes = plan.dataBytes;
  }

  get freshBase(): number {
    return this.queue.plan.packed ? PACKED_BASE_FRESH : 0;
  }

  get underWay(): number {
    return this.#pending.size;
  }

  /**
   * Resolves when the device has used it. `out` and `inBytes` are the data, one of them as a rule.
   * @throws VringError ERR_VRING_GUEST_REQUEST_SIZE; what ends the guest.
   */
  async request(
    header: Uint8Array,
    out: Uint8Array,
    answerBytes: number,
    inBytes: number,
  ): Promise<QueueAnswer> {
    if (out.length + inBytes > this.dataBytes) {
      const text = `${out.length + inBytes} bytes of data; a request has ${this.dataBytes} at most`;
      throw new VringError('ERR_VRING_GUEST_REQUEST_SIZE', text);
    }
    while (this.queue.freeCount === 0 && this.#failure === null) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    if (this.#failure !== null) throw this.#failure;
    return new Promise((resolve, reject) => {
      this.#put(header, out, inBytes, { answerBytes, resolve, reject });
    });
  }

  /** Takes what came back. Returns how many; a device that breaks the ring ends the queue. */
  reap(): number {
    const { queue } = this;
    const { used } = queue;
    const count = reapUsed(queue.ring, used, used.capacity);
    if (count < 0) {
      const name = faultName(count);
      const text = `${queue.plan.name}: ${name}`;
      this.fail(new VringError(`ERR_VRING_GUEST_${name}`, text, { recovery: 'reset' }));
      return 0;
    }
    for (let i = 0; i < count; i++) this.#done(used.id[i]!, used.len[i]!);
    return count;
  }

  /** All that is under way rejects. */
  fail(error: Error): void {
    this.#failure ??= error;
    for (const pending of this.#pending.values()) pending.reject(this.#failure);
    this.#pending.clear();
    for (const wake of this.#waiting.splice(0)) wake();
  }

  close(): void {
    this.queue.close();
  }

  #put(header: Uint8Array, out: Uint8Array, inBytes: number, rest: Omit<Pending, 'slot'>): void {
    const { queue } = this;
    const slot = queue.freeSlots[--queue.freeCount]!;
    const gpa = queue.slotGpa[slot]!;
    const bytes = new Uint8Array(queue.arena.buffer, queue.slotOffset[slot]!, queue.slotBytes);
    bytes.set(header);
    bytes.fill(0xff, ANSWER_AT, ANSWER_AT + rest.answerBytes);
    bytes.set(out, DATA_AT);
    const piece = (at: number, len: number) => ({ gpa: gpa + at, len });
    const readable = header.length > 0 ? [piece(0, header.length)] : [];
    if (out.length > 0) readable.push(piece(DATA_AT, out.length));
    const writable = [piece(ANSWER_AT, rest.answerBytes)];
    if (inBytes > 0) writable.push(piece(DATA_AT + out.length, inBytes));
    queue.batch.clear();
    queue.batch.addChain(readable, writable, true);
    addChains(queue.ring, queue.batch, 0, 1); // there is room for every slot
    this.#pending.set(queue.batch.id[0]!, { slot, ...rest });
    publish(queue.ring);
    queue.chains++;
    if (!needsKick(queue.ring)) return;
    queue.kicks++;
    signalEventfd(queue.kick.number);
  }

  #done(id: number, len: number): void {
    const { queue } = this;
    const pending = this.#pending.get(id);
    if (pending === undefined) return; // failed meanwhile
    this.#pending.delete(id);
    const { slot, answerBytes } = pending;
    const bytes = new Uint8Array(queue.arena.buffer, queue.slotOffset[slot]!, queue.slotBytes);
    const answer = bytes.slice(ANSWER_AT, ANSWER_AT + answerBytes);
    const data = bytes.slice(DATA_AT, DATA_AT + Math.max(0, len - answerBytes));
    queue.freeSlots[queue.freeCount++] = slot;
    pending.resolve({ answer, data });
    this.#waiting.shift()?.();
  }
}

function ringPlan(plan: ScsiQueuePlan): QueuePlan {
  const slotBytes = DATA_AT + plan.dataBytes;
  return {
    ...plan,
    slots: plan.indirect ? plan.size : Math.max(1, Math.floor(plan.size / 4)),
    slotBytes,
    segmentBytes: slotBytes,
    deviceWrites: true,
    segments: 4,
  };
}
