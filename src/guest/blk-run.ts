/**
 * One phase of the block workload: keeps `depth` requests under way in every queue for as long as
 * it is told, as fast as one thread can, and counts what comes back.
 *
 * Theory of operation: rounds over all queues, each takes a batch out of the ring, judges it, and
 * fills up again. Rounds go on for SLICE_MS, then the event loop has its turn (signals, the
 * back-end's socket). A round that found nothing lets the thread sleep until the back-end calls,
 * unless it polls.
 */
import { VringError } from '../base/errors.ts';
import { yieldThread } from '../sys/index.ts';
import {
  VIRTIO_BLK_SECTOR_BYTES,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from '../wire/virtio-blk.ts';
import {
  OP_DISCARD,
  OP_FLUSH,
  OP_NAMES,
  OP_READ,
  OP_WRITE,
  OP_ZERO,
  type BlkChooser,
  type Choice,
} from './blk-chooser.ts';
import type { BlkGuest } from './blk-driver.ts';
import type { BlkJournal } from './blk-journal.ts';
import type { BlkQueue } from './blk-queue.ts';
import { LatencyHistogram } from './latency-histogram.ts';
import { recordLatency } from './latency.hot.ts';

const SLICE_MS = 2;
const IDLE_WAIT_MS = 100;
const RANGE_BYTES = 16; // virtio_blk_discard_write_zeroes
const TYPES: readonly number[] = [
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_WRITE_ZEROES,
];

export type RunLimits = {
  /** Requests under way in each queue. */
  readonly depth: number;
  readonly seconds: number;
  readonly requests: number;
  readonly bytes: number;
  /** Requests per second. */
  readonly rate: number;
  /** Never sleep while something is under way. */
  readonly poll: boolean;
  /** Nothing came back for so long, with somebody there: an error. */
  readonly stallSeconds: number;
  readonly signal: AbortSignal | null;
};

/** What came back, by kind of request. */
export class OpTally {
  readonly latency = new LatencyHistogram();
  /** By status; those above 2 are together. */
  readonly statuses = new Float64Array(4);
  bytes = 0;
}

/** What a slot is used for. */
class SlotNotes {
  readonly op: Uint8Array;
  readonly offset: Float64Array;
  readonly bytes: Float64Array;
  readonly generation: Int32Array;
  readonly sinceMs: Float64Array;

  constructor(slots: number) {
    this.op = new Uint8Array(slots);
    this.offset = new Float64Array(slots);
    this.bytes = new Float64Array(slots);
    this.generation = new Int32Array(slots);
    this.sinceMs = new Float64Array(slots);
  }
}

export class BlkRun {
  readonly tallies = OP_NAMES.map(() => new OpTally());
  startedAt = 0;
  lastDoneAt = 0;
  readonly #guest: BlkGuest;
  readonly #chooser: BlkChooser;
  readonly #journal: BlkJournal | null;
  readonly #limits: RunLimits;
  readonly #notes: readonly SlotNotes[];
  readonly #underWay: Int32Array;
  readonly #choice: Choice = { op: OP_READ, offset: 0, bytes: 0 };
  #quietSince = 0;
  #issued = 0;
  #issuedBytes = 0;
  #ending = false;

  constructor(guest: BlkGuest, chooser: BlkChooser, journal: BlkJournal | null, limits: RunLimits) {
    this.#guest = guest;
    this.#chooser = chooser;
    this.#journal = journal;
    this.#limits = limits;
    this.#notes = guest.queues.map((queue) => new SlotNotes(queue.slots));
    this.#underWay = new Int32Array(guest.queues.length);
  }

  /**
   * Until a limit is reached, or the signal comes, and what is under way is done.
   * @throws VringError ERR_VRING_GUEST_STALLED; why the guest ended.
   */
  async run(): Promise<void> {
    const guest = this.#guest;
    const release = guest.claim((queue) => this.#done(queue));
    this.startedAt = this.lastDoneAt = this.#quietSince = performance.now();
    try {
      while (!guest.ended) {
        const work = this.#slice();
        if (this.#ending && this.#pending === 0) return;
        this.#checkStall();
        const idle = work === 0 && (!this.#limits.poll || guest.searching || this.#pending === 0);
        if (idle) await this.#sleep();
        else await new Promise((resolve) => setImmediate(resolve));
      }
      throw guest.failure ?? new VringError('ERR_VRING_CLOSED', 'the guest was closed');
    } finally {
      release();
    }
  }

  get #pending(): number {
    let sum = 0;
    for (const count of this.#underWay) sum += count;
    return sum;
  }

  /** Rounds for a while, or until there is nothing to do. Returns the work of the last round. */
  #slice(): number {
    const { queues } = this.#guest;
    const { poll } = this.#limits;
    let now = performance.now();
    const end = now + SLICE_MS;
    let work = 0;
    do {
      work = 0;
      for (const queue of queues) {
        work += this.#guest.reap(queue);
        if (!this.#ending) work += this.#issue(queue, now);
      }
      if (work === 0) {
        if (!poll) return 0;
        yieldThread(); // the back-end may need this very core
      }
      now = performance.now();
    } while (now < end && !this.#guest.ended);
    return work;
  }

  /** Fills the queue up. Returns how many requests were made. */
  #issue(queue: BlkQueue, now: number): number {
    const { depth, seconds, requests, bytes, signal } = this.#limits;
    const elapsed = (now - this.startedAt) / 1000;
    if (elapsed >= seconds || signal?.aborted === true) this.#ending = true;
    const budget = this.#limits.rate === Infinity ? Infinity : elapsed * this.#limits.rate;
    let made = 0;
    while (!this.#ending && this.#underWay[queue.index]! < depth && queue.free > 0) {
      if (this.#issued >= budget) break;
      if (!this.#chooser.choose(this.#choice)) {
        if (this.#chooser.exhausted) this.#ending = true;
        break;
      }
      this.#make(queue, now);
      made++;
      this.#issued++;
      this.#issuedBytes += this.#choice.bytes;
      if (this.#issued >= requests || this.#issuedBytes >= bytes) this.#ending = true;
    }
    if (queue.readyCount > 0) this.#guest.submit(queue);
    return made;
  }

  #make(queue: BlkQueue, now: number): void {
    const { op, offset, bytes } = this.#choice;
    const slot = queue.takeSlot();
    const notes = this.#notes[queue.index]!;
    notes.op[slot] = op;
    notes.offset[slot] = offset;
    notes.bytes[slot] = bytes;
    notes.sinceMs[slot] = now;
    queue.type[slot] = TYPES[op]!;
    queue.sector[slot] = op <= OP_WRITE ? offset / VIRTIO_BLK_SECTOR_BYTES : 0;
    queue.toDevice[slot] = op === OP_READ ? 0 : 1;
    queue.dataBytes[slot] = op <= OP_WRITE ? bytes : op === OP_FLUSH ? 0 : RANGE_BYTES;
    if (op > OP_FLUSH) writeRange(queue, slot, offset, bytes);
    const journal = this.#journal;
    if (journal !== null && op !== OP_FLUSH) {
      const first = journal.unitAt(offset);
      const count = bytes / journal.region.unitBytes;
      journal.begin(first, count);
      if (op === OP_WRITE) {
        notes.generation[slot] = journal.write(queue.words, wordOf(queue, slot), first, count);
      }
    }
    queue.ready[queue.readyCount++] = slot;
    this.#underWay[queue.index]!++;
  }

  #done(queue: BlkQueue): void {
    const now = performance.now();
    const notes = this.#notes[queue.index]!;
    this.lastDoneAt = this.#quietSince = now;
    for (let i = 0; i < queue.doneCount; i++) {
      const slot = queue.doneSlot[i]!;
      const status = queue.doneStatus[i]!;
      const tally = this.tallies[notes.op[slot]!]!;
      recordLatency(tally.latency, now - notes.sinceMs[slot]!);
      tally.statuses[status < 3 ? status : 3]!++;
      if (status === 0) tally.bytes += notes.bytes[slot]!;
      if (this.#journal !== null) this.#judge(this.#journal, queue, slot, status);
    }
    this.#underWay[queue.index]! -= queue.doneCount;
  }

  #judge(journal: BlkJournal, queue: BlkQueue, slot: number, status: number): void {
    const notes = this.#notes[queue.index]!;
    const op = notes.op[slot]!;
    if (op === OP_FLUSH) return;
    const first = journal.unitAt(notes.offset[slot]!);
    const count = notes.bytes[slot]! / journal.region.unitBytes;
    journal.end(first, count);
    if (op === OP_READ) {
      if (status === 0) journal.check(queue.words, wordOf(queue, slot), first, count);
    } else if (status !== 0 || op === OP_DISCARD) journal.forget(first, count);
    else if (op === OP_ZERO) journal.zeroed(first, count);
    else journal.acknowledge(first, count, notes.generation[slot]!);
  }

  /** Until the back-end calls, or the rate allows the next request, or the time is over. */
  async #sleep(): Promise<void> {
    const { rate, seconds } = this.#limits;
    const elapsedMs = performance.now() - this.startedAt;
    let waitMs = Math.min(IDLE_WAIT_MS, Math.max(0, seconds * 1000 - elapsedMs));
    if (rate !== Infinity && !this.#ending) {
      const dueMs = ((this.#issued + 1) / rate) * 1000;
      waitMs = Math.min(waitMs, Math.max(0, dueMs - elapsedMs));
    }
    await this.#guest.waitForCalls(this.#ending ? IDLE_WAIT_MS : Math.ceil(waitMs));
  }

  #checkStall(): void {
    const guest = this.#guest;
    const now = performance.now();
    if (guest.searching || !guest.running || this.#pending === 0) this.#quietSince = now;
    if (now - this.#quietSince < this.#limits.stallSeconds * 1000) return;
    const text =
      `${guest.backend.description}: ${this.#pending} requests are under way, and none was ` +
      `answered for ${this.#limits.stallSeconds} s`;
    throw new VringError('ERR_VRING_GUEST_STALLED', text, { recovery: 'reset' });
  }
}

/** Index in `queue.words` of a slot's data. */
function wordOf(queue: BlkQueue, slot: number): number {
  return (slot * queue.dataStride) / 4;
}

/** One range, little-endian: sector, sectors, no flags. */
function writeRange(queue: BlkQueue, slot: number, offset: number, bytes: number): void {
  const at = wordOf(queue, slot);
  const sector = offset / VIRTIO_BLK_SECTOR_BYTES;
  queue.words[at] = sector | 0;
  queue.words[at + 1] = (sector / 2 ** 32) | 0;
  queue.words[at + 2] = bytes / VIRTIO_BLK_SECTOR_BYTES;
  queue.words[at + 3] = 0;
}
