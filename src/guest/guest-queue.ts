/**
 * One data queue of the guest: a driver-side ring and the buffers that travel through it. State
 * only; what works on it is in net-driver.hot.ts.
 *
 * Buffers are *slots* of equal size, one behind the other in guest memory: a slot holds one
 * virtio-net header and one frame. A slot longer than a segment is described by several
 * descriptors, as real guests do with their pages; its memory stays contiguous.
 */
import { BATCH } from '../base/limits.ts';
import { arena, createEventfd, type Fd } from '../sys/index.ts';
import {
  DriverBatch,
  DriverQueue,
  UsedBatch,
  ringLayout,
  tableBytes,
  type RingLayout,
} from '../virtqueue/driver/index.ts';
import type { GuestMemory } from '../memory/index.ts';
import type { FrontendVring } from '../vhost-user/index.ts';
import { adoptDriverState } from './driver-state.ts';
import { DIRECT, type AddressSpace } from './iommu.ts';

const PAGE_BYTES = 4096;

export type RingFormat = {
  readonly size: number;
  readonly packed: boolean;
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  readonly inOrder: boolean;
};

export type QueuePlan = RingFormat & {
  /** `receiveq1`, for errors. */
  readonly name: string;
  /** Index of the vring. */
  readonly index: number;
  readonly slots: number;
  /** Bytes that one slot has to hold, header included. */
  readonly slotBytes: number;
  /** Longest piece of a slot that one descriptor covers. */
  readonly segmentBytes: number;
  /** Whether the slots are written by the device. */
  readonly deviceWrites: boolean;
  /** Most descriptors of one chain. Default: the pieces of a slot, and its header apart. */
  readonly segments?: number;
};

/** Slots are an odd number of cache lines apart, so that they do not all share a cache set. */
export function slotStride(slotBytes: number): number {
  return (Math.ceil(slotBytes / 64) | 1) * 64;
}

/** Guest memory that the queue needs. */
export function queueBytes(plan: QueuePlan): number {
  const { ringBytes, tablesBytes } = areas(plan);
  return roundUp(ringBytes + tablesBytes + plan.slots * slotStride(plan.slotBytes), PAGE_BYTES);
}

export class GuestQueue {
  readonly plan: QueuePlan;
  /** Of the vring. The control queue's is known only after the configuration was read. */
  index: number;
  /** Replaced when the memory moves. */
  ring: DriverQueue;
  readonly batch: DriverBatch;
  readonly used = new UsedBatch(BATCH);
  readonly kick: Fd;
  readonly call: Fd;
  readonly arena: DataView = arena().view;

  /** Arena offset and device address of each slot: guest-physical, or the IOMMU's. */
  readonly slotOffset: Float64Array;
  readonly slotGpa: Float64Array;
  /** Slots that are not in the ring, a stack. */
  readonly freeSlots: Int32Array;
  freeCount: number;
  /** By chain id: the slot that is out under it. */
  readonly slotOfId: Int32Array;
  readonly segmentBytes: number;
  readonly slotBytes: number;

  /** How often all slots were taken back: slots that were taken out before are not out any more. */
  epoch = 0;

  /** Counters, read from outside. */
  chains = 0;
  kicks = 0;
  calls = 0;

  readonly #layout: RingLayout;
  /** Where the queue's bytes start in the guest's memory. */
  readonly #at: number;
  readonly #tablesAddress: number;
  /** The ring's own address where it is not a user address: an IOVA. */
  readonly #ringAddress: number | null;
  #memory: GuestMemory;

  /** `at`: where in the guest's memory the queue's bytes start; a multiple of the page size. */
  constructor(plan: QueuePlan, memory: GuestMemory, at: number, space: AddressSpace = DIRECT) {
    this.plan = plan;
    this.index = plan.index;
    const { ringBytes, tablesBytes, segments, layout } = areas(plan);
    const offset = memory.offset + at;
    const gpa = memory.baseGpa + at;
    const writable = plan.deviceWrites;
    this.#layout = layout;
    this.#memory = memory;
    this.#at = at;
    this.#ringAddress = space.platform ? space.map(gpa, ringBytes, true) : null;
    this.#tablesAddress =
      tablesBytes > 0 ? space.map(gpa + ringBytes, tablesBytes, false) : gpa + ringBytes;
    this.ring = this.#makeRing(memory);
    this.batch = new DriverBatch(BATCH, BATCH * segments);
    this.segmentBytes = plan.segmentBytes;
    this.slotBytes = plan.slotBytes;
    const stride = slotStride(plan.slotBytes);
    const first = ringBytes + tablesBytes;
    this.slotOffset = Float64Array.from(
      { length: plan.slots },
      (_, i) => offset + first + i * stride,
    );
    this.slotGpa = Float64Array.from({ length: plan.slots }, (_, i) =>
      space.map(gpa + first + i * stride, plan.slotBytes, writable),
    );
    this.freeSlots = Int32Array.from({ length: plan.slots }, (_, i) => plan.slots - 1 - i);
    this.freeCount = plan.slots;
    this.slotOfId = new Int32Array(plan.size);
    this.kick = createEventfd(`${plan.name} kick`);
    this.call = createEventfd(`${plan.name} call`);
  }

  /**
   * What the back-end is told; `base` is where it starts or goes on. `gpaAddresses`: it takes
   * guest-physical addresses (GPA_ADDRESSES), not user addresses.
   */
  vring(base: number, gpaAddresses = false): FrontendVring {
    const { baseGpa, baseUva } = this.#memory;
    const start = this.#ringAddress ?? (gpaAddresses ? baseGpa : baseUva) + this.#at;
    return {
      size: this.plan.size,
      base,
      descUva: BigInt(start),
      availUva: BigInt(start + this.#layout.availAt),
      usedUva: BigInt(start + this.#layout.usedAt),
      kick: this.kick.number,
      call: this.call.number,
    };
  }

  /** Guest-physical address of the used ring (packed: device event suppression). */
  get usedGpa(): number {
    return this.#memory.baseGpa + this.#at + this.#layout.usedAt;
  }

  /**
   * What only the driver writes, and the ring, which both write: [start, end) in the guest's
   * memory. Received frames are not in it.
   */
  get driverBytes(): readonly [start: number, end: number] {
    const { ringBytes, tablesBytes } = areas(this.plan);
    const own = this.plan.deviceWrites ? ringBytes + tablesBytes : queueBytes(this.plan);
    return [this.#at, this.#at + own];
  }

  /** [start, end) of everything that is the queue's. */
  get allBytes(): readonly [start: number, end: number] {
    return [this.#at, this.#at + queueBytes(this.plan)];
  }

  /** All slots are free and the ring is as new: its device is gone, and what was in it with it. */
  startAnew(): void {
    this.epoch++;
    this.ring.reset();
    const { slots } = this.plan;
    for (let i = 0; i < slots; i++) this.freeSlots[i] = slots - 1 - i;
    this.freeCount = slots;
  }

  /**
   * Prepares the same queue in a copy of its memory, whose ring is zeroed now and copied later.
   * What is returned makes the move: the driver goes on in the copy.
   */
  prepareMove(copy: GuestMemory): () => void {
    const ring = this.#makeRing(copy);
    return () => {
      adoptDriverState(ring, this.ring);
      const delta = copy.offset - this.#memory.offset;
      for (let i = 0; i < this.slotOffset.length; i++) this.slotOffset[i] += delta;
      this.ring = ring;
      this.#memory = copy;
    };
  }

  /** Idempotent. The memory is not ours. */
  close(): void {
    this.kick.close();
    this.call.close();
  }

  #makeRing(memory: GuestMemory): DriverQueue {
    const { ringBytes, tableEntries } = areas(this.plan);
    const offset = memory.offset + this.#at;
    const tables = {
      offset: offset + ringBytes,
      gpa: this.#tablesAddress,
      entries: tableEntries,
    };
    return new DriverQueue(
      {
        ...this.plan,
        descOffset: offset,
        availOffset: offset + this.#layout.availAt,
        usedOffset: offset + this.#layout.usedAt,
        ...(tableEntries > 0 ? { tables } : {}),
      },
      this.arena.buffer,
    );
  }
}

function areas(plan: QueuePlan) {
  const layout = ringLayout(plan.size, plan.packed, plan.eventIdx);
  const ringBytes = roundUp(layout.totalBytes, PAGE_BYTES);
  const pieces = Math.ceil(plan.slotBytes / plan.segmentBytes);
  const segments = plan.segments ?? pieces + 1; // header on its own
  const tableEntries = plan.indirect ? segments : 0;
  const tablesBytes = roundUp(tableBytes(plan.size, tableEntries), PAGE_BYTES);
  return { layout, ringBytes, tablesBytes, tableEntries, segments };
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}
