/**
 * Requests of the block driver as promises: for control planes, tools and tests, a few at a time.
 * The bytes are copied on their way in and out; the workload (blk-workload.ts) works in the slots.
 */
import { VringError } from '../base/errors.ts';
import type { BlkGuest } from './blk-driver.ts';
import type { BlkQueue } from './blk-queue.ts';

export type BlkRequest = {
  /** VIRTIO_BLK_T_*; others are sent as they are. */
  readonly type: number;
  readonly sector: number;
  /** Data for the device; or how many bytes are wanted of it. Neither is no data. */
  readonly write?: Uint8Array;
  readonly readBytes?: number;
  /** Index of the queue. Default: they take turns. */
  readonly queue?: number;
};

export type BlkCompletion = {
  /** VIRTIO_BLK_S_*. */
  readonly status: number;
  /** `readBytes` of them; what the device did not write is what was there before. */
  readonly data: Uint8Array;
  /** Bytes that the device says it wrote, the status among them. */
  readonly writtenBytes: number;
  /** Of a zone append that went well: the sector that its data went to. */
  readonly appendSector: number;
};

/** Requests that wait for a slot. */
const MAX_WAITING = 4096;

type Pending = {
  readonly request: BlkRequest;
  readonly resolve: (completion: BlkCompletion) => void;
  readonly reject: (error: Error) => void;
};

const NO_BYTES = new Uint8Array(0);

export class BlkRequests {
  readonly #guest: BlkGuest;
  /** By queue and slot: what is under way. */
  readonly #underWay: (Pending | null)[][] = [];
  readonly #waiting: Pending[] = [];
  #nextQueue = 0;
  #pending = 0;
  #end: Error | null = null;

  constructor(guest: BlkGuest) {
    this.#guest = guest;
  }

  /** Under way or waiting. */
  get pending(): number {
    return this.#pending;
  }

  /**
   * Resolves with whatever status the device gives.
   * @throws VringError ERR_VRING_GUEST_REQUEST_SIZE; ERR_VRING_GUEST_BUSY; why the guest ended.
   */
  async send(request: BlkRequest): Promise<BlkCompletion> {
    if (this.#end !== null) throw this.#end;
    const bytes = request.write?.length ?? request.readBytes ?? 0;
    if (bytes > this.#guest.requestBytes) {
      const most = this.#guest.requestBytes;
      const text = `a request of ${bytes} bytes; at most ${most} fit, send several`;
      throw new VringError('ERR_VRING_GUEST_REQUEST_SIZE', text);
    }
    if (this.#waiting.length >= MAX_WAITING) {
      const text = `${MAX_WAITING} requests wait for room already; wait for some of them`;
      throw new VringError('ERR_VRING_GUEST_BUSY', text, { recovery: 'retry' });
    }
    return new Promise((resolve, reject) => {
      this.#pending++;
      this.#waiting.push({ request, resolve, reject });
      this.#advance();
    });
  }

  /** The `done` columns of a queue. */
  done(queue: BlkQueue): void {
    const table = this.#underWay[queue.index] ?? [];
    for (let i = 0; i < queue.doneCount; i++) {
      const slot = queue.doneSlot[i];
      const pending = table[slot] ?? null;
      if (pending === null) continue;
      table[slot] = null;
      this.#pending--;
      const { readBytes = 0 } = pending.request;
      pending.resolve({
        status: queue.doneStatus[i],
        data: readBytes > 0 ? queue.data(slot, readBytes).slice() : NO_BYTES,
        writtenBytes: queue.doneBytes[i],
        appendSector: queue.appendSector(slot),
      });
    }
    // Their slots are free when the caller is done with them.
    if (this.#waiting.length > 0) queueMicrotask(() => this.#advance());
  }

  /** The guest is over: nobody will answer. */
  end(error: Error): void {
    if (this.#end !== null) return;
    this.#end = error;
    const all = [...this.#underWay.flat(), ...this.#waiting.splice(0)];
    this.#underWay.length = 0;
    this.#pending = 0;
    for (const pending of all) pending?.reject(error);
  }

  /** What waits, into free slots. */
  #advance(): void {
    const { queues } = this.#guest;
    while (this.#waiting.length > 0 && this.#end === null) {
      const queue = this.#pick(queues, this.#waiting[0]!.request);
      if (queue === null) return;
      const pending = this.#waiting.shift()!;
      const slot = queue.takeSlot();
      const { type, sector, write, readBytes = 0 } = pending.request;
      queue.type[slot] = type;
      queue.sector[slot] = sector;
      queue.dataBytes[slot] = write?.length ?? readBytes;
      queue.toDevice[slot] = write === undefined ? 0 : 1;
      if (write !== undefined) queue.data(slot, write.length).set(write);
      (this.#underWay[queue.index] ??= [])[slot] = pending;
      queue.ready[queue.readyCount++] = slot;
      this.#guest.submit(queue);
    }
    for (const queue of queues) if (queue.readyCount > 0) this.#guest.submit(queue);
  }

  #pick(queues: readonly BlkQueue[], request: BlkRequest): BlkQueue | null {
    if (request.queue !== undefined) {
      const queue = queues[request.queue]!;
      return queue.free > 0 ? queue : null;
    }
    for (let i = 0; i < queues.length; i++) {
      const queue = queues[(this.#nextQueue + i) % queues.length]!;
      if (queue.free === 0) continue;
      this.#nextQueue = (this.#nextQueue + i + 1) % queues.length;
      return queue;
    }
    return null;
  }
}
