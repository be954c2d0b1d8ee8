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
  readonly ring: DriverQueue;
  readonly batch: DriverBatch;
  readonly used = new UsedBatch(BATCH);
  readonly kick: Fd;
  readonly call: Fd;
  readonly arena: DataView = arena().view;

  /** Arena offset and guest-physical address of each slot. */
  readonly slotOffset: Float64Array;
  readonly slotGpa: Float64Array;
  /** Slots that are not in the ring, a stack. */
  readonly freeSlots: Int32Array;
  freeCount: number;
  /** By chain id: the slot that is out under it. */
  readonly slotOfId: Int32Array;
  readonly segmentBytes: number;
  readonly slotBytes: number;

  /** Counters, read from outside. */
  chains = 0;
  kicks = 0;
  calls = 0;

  readonly #layout: RingLayout;
  readonly #uva: number;

  /** `at`: where in the guest's memory the queue's bytes start; a multiple of the page size. */
  constructor(plan: QueuePlan, memory: GuestMemory, at: number) {
    this.plan = plan;
    this.index = plan.index;
    const { ringBytes, tablesBytes, tableEntries, segments, layout } = areas(plan);
    const offset = memory.offset + at;
    const gpa = memory.baseGpa + at;
    this.#layout = layout;
    this.#uva = memory.baseUva + at;
    const tables = { offset: offset + ringBytes, gpa: gpa + ringBytes, entries: tableEntries };
    this.ring = new DriverQueue(
      {
        ...plan,
        descOffset: offset,
        availOffset: offset + layout.availAt,
        usedOffset: offset + layout.usedAt,
        ...(tableEntries > 0 ? { tables } : {}),
      },
      this.arena.buffer,
    );
    this.batch = new DriverBatch(BATCH, BATCH * segments);
    this.segmentBytes = plan.segmentBytes;
    this.slotBytes = plan.slotBytes;
    const stride = slotStride(plan.slotBytes);
    const first = ringBytes + tablesBytes;
    this.slotOffset = Float64Array.from(
      { length: plan.slots },
      (_, i) => offset + first + i * stride,
    );
    this.slotGpa = Float64Array.from({ length: plan.slots }, (_, i) => gpa + first + i * stride);
    this.freeSlots = Int32Array.from({ length: plan.slots }, (_, i) => plan.slots - 1 - i);
    this.freeCount = plan.slots;
    this.slotOfId = new Int32Array(plan.size);
    this.kick = createEventfd(`${plan.name} kick`);
    this.call = createEventfd(`${plan.name} call`);
  }

  /** What the back-end is told; `base` is where it starts or goes on. */
  vring(base: number): FrontendVring {
    return {
      size: this.plan.size,
      base,
      descUva: BigInt(this.#uva),
      availUva: BigInt(this.#uva + this.#layout.availAt),
      usedUva: BigInt(this.#uva + this.#layout.usedAt),
      kick: this.kick.number,
      call: this.call.number,
    };
  }

  /** Idempotent. The memory is not ours. */
  close(): void {
    this.kick.close();
    this.call.close();
  }
}

function areas(plan: QueuePlan) {
  const layout = ringLayout(plan.size, plan.packed, plan.eventIdx);
  const ringBytes = roundUp(layout.totalBytes, PAGE_BYTES);
  const segments = Math.ceil(plan.slotBytes / plan.segmentBytes) + 1; // header on its own
  const tableEntries = plan.indirect ? segments : 0;
  const tablesBytes = roundUp(tableBytes(plan.size, tableEntries), PAGE_BYTES);
  return { layout, ringBytes, tablesBytes, tableEntries, segments };
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}
