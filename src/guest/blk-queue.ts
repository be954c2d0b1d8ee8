/**
 * One request queue of the guest's block driver: a ring, and a slot for each request that can be
 * under way. State only; what works on it is in blk-driver.hot.ts.
 *
 * A slot has a cache line for what the driver and the device tell each other (header, status), in
 * the `GuestQueue`, and apart from it its data, on pages of its own: buffers of a file system are
 * aligned, and a back-end that reads past its cache wants them so. What a slot is used for stays in
 * its columns until it is released, so that requests can be put into another ring, too.
 */
import { assert } from '../base/assert.ts';
import { BATCH, MAX_CHAIN_DESCRIPTORS } from '../base/limits.ts';
import type { GuestMemory } from '../memory/index.ts';
import type { FrontendVring } from '../vhost-user/index.ts';
import { PACKED_BASE_FRESH } from '../wire/virtio.ts';
import { GuestQueue, queueBytes, type QueuePlan, type RingFormat } from './guest-queue.ts';

const PAGE_BYTES = 4096;
/** Header of 16 bytes; at 24 the sector of an append, at 32 the status byte. */
const SLOT_BYTES = 64;
const APPEND_SECTOR_AT = 24;
/** Descriptors of a request beside those of its data. */
export const BLK_OVERHEAD_SEGMENTS = 2;

export type BlkQueuePlan = RingFormat & {
  /** Index of the vring. */
  readonly index: number;
  /** Most bytes of data of one request. */
  readonly dataBytes: number;
  /** Longest piece of data that one descriptor covers. */
  readonly segmentBytes: number;
};

/** Guest memory that the queue needs. */
export function blkQueueBytes(plan: BlkQueuePlan): number {
  return queueBytes(ringPlan(plan)) + slotsOf(plan) * dataStride(plan);
}

export class BlkQueue {
  readonly plan: BlkQueuePlan;
  readonly queue: GuestQueue;
  readonly slots: number;
  readonly segmentBytes: number;
  readonly dataStride: number;
  /** Arena offset of the first slot's data, and all data as words. */
  readonly dataOffset: number;
  readonly words: Int32Array;

  /** Of each slot: VIRTIO_BLK_T_*, sector, bytes of data, and whether the driver gives them. */
  readonly type: Int32Array;
  readonly sector: Float64Array;
  readonly dataBytes: Int32Array;
  readonly toDevice: Uint8Array;
  /** Of each slot: number of the request, -1 while it is not in the ring. */
  readonly order: Float64Array;
  /** Arena offset and guest-physical address of its data. */
  readonly slotData: Float64Array;
  readonly dataGpa: Float64Array;

  /** Filled, and waiting for room in the ring; oldest first. */
  readonly ready: Int32Array;
  readyCount = 0;
  /** Requests that were put into the ring. */
  submitted = 0;
  /** Requests in the ring. */
  outstanding = 0;

  /** Those that the last `reapBlk` took out: slot, status byte, what the device says it wrote. */
  readonly doneSlot = new Int32Array(BATCH);
  readonly doneStatus = new Int32Array(BATCH);
  readonly doneBytes = new Int32Array(BATCH);
  doneCount = 0;
  /** Requests whose `used.len` was not what their type and status say. */
  wrongLengths = 0;
  /** Requests that were put into the ring again, because their device was gone. */
  repeated = 0;

  constructor(plan: BlkQueuePlan, memory: GuestMemory, at: number) {
    this.plan = plan;
    const inner = ringPlan(plan);
    this.queue = new GuestQueue(inner, memory, at);
    this.slots = inner.slots | 0;
    this.segmentBytes = plan.segmentBytes | 0;
    this.dataStride = dataStride(plan);
    const dataAt = at + queueBytes(inner);
    this.dataOffset = memory.offset + dataAt;
    const wordCount = (this.slots * this.dataStride) / 4;
    this.words = new Int32Array(this.queue.arena.buffer, this.dataOffset, wordCount);
    const numbers = (first: number) =>
      Float64Array.from({ length: this.slots }, (_, i) => first + i * this.dataStride);
    this.slotData = numbers(this.dataOffset);
    this.dataGpa = numbers(memory.baseGpa + dataAt);
    this.type = new Int32Array(this.slots);
    this.sector = new Float64Array(this.slots);
    this.dataBytes = new Int32Array(this.slots);
    this.toDevice = new Uint8Array(this.slots);
    this.order = new Float64Array(this.slots).fill(-1);
    this.ready = new Int32Array(this.slots);
  }

  get index(): number {
    return this.plan.index;
  }

  /** Slots that a request can be made in. */
  get free(): number {
    return this.queue.freeCount;
  }

  /** A slot to be filled, then to be put at the end of `ready`. There is one: see `free`. */
  takeSlot(): number {
    const { queue } = this;
    assert(queue.freeCount > 0, 'a free slot');
    return queue.freeSlots[--queue.freeCount]!;
  }

  /** Data of a slot. */
  data(slot: number, lenBytes: number): Uint8Array {
    return new Uint8Array(this.queue.arena.buffer, this.slotData[slot], lenBytes);
  }

  /** Of a zone append that came back well: where its data went. */
  appendSector(slot: number): number {
    const { arena, slotOffset } = this.queue;
    return Number(arena.getBigUint64(slotOffset[slot] + APPEND_SECTOR_AT, true));
  }

  vring(base: number, gpaAddresses: boolean): FrontendVring {
    return this.queue.vring(base, gpaAddresses);
  }

  /** The base of a ring that nobody has touched. */
  get freshBase(): number {
    return this.plan.packed ? PACKED_BASE_FRESH : 0;
  }

  /**
   * The device is gone and remembers nothing: an empty ring, and what was in the old one is ready
   * again in the order in which it was made, before what is new. `submitReady` puts it in.
   */
  startAnew(): void {
    const slots: number[] = [];
    for (let slot = 0; slot < this.slots; slot++) if (this.order[slot]! >= 0) slots.push(slot);
    slots.sort((a, b) => this.order[a]! - this.order[b]!);
    this.repeated += slots.length;
    for (const slot of slots) this.order[slot] = -1;
    const all = [...slots, ...this.ready.subarray(0, this.readyCount)];
    this.ready.set(all);
    this.readyCount = all.length;
    this.outstanding = 0;
    this.queue.ring.reset();
  }

  /** Idempotent. The memory is not ours. */
  close(): void {
    this.queue.close();
  }
}

function ringPlan(plan: BlkQueuePlan): QueuePlan {
  return {
    ...plan,
    name: `requestq${plan.index}`,
    slots: slotsOf(plan),
    slotBytes: SLOT_BYTES,
    deviceWrites: true,
    segments: Math.min(segmentsOf(plan), MAX_CHAIN_DESCRIPTORS),
  };
}

/** Without tables, the shortest request takes three descriptors of the ring (a flush two). */
function slotsOf(plan: BlkQueuePlan): number {
  return plan.indirect ? plan.size : Math.max(1, Math.floor(plan.size / 3));
}

function segmentsOf(plan: BlkQueuePlan): number {
  return Math.ceil(plan.dataBytes / plan.segmentBytes) + BLK_OVERHEAD_SEGMENTS;
}

function dataStride(plan: BlkQueuePlan): number {
  return Math.ceil(plan.dataBytes / PAGE_BYTES) * PAGE_BYTES;
}
