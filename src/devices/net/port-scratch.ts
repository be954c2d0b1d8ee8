import { assert } from '../../base/assert.ts';
import { BATCH, BATCH_SEGMENTS } from '../../base/limits.ts';
import type { FrameBatch } from '../../switch/frame-batch.ts';
import { CopyPlan } from '../../sys/arena.ts';
import { ChainBatch, ROW_STRIDE } from '../../virtqueue/chain-batch.ts';
import { COUNTER_TAKEN } from '../../virtqueue/device-queue.ts';
import { putUsed } from '../../virtqueue/device.hot.ts';
import { NET_HEADER_BYTES } from '../../wire/virtio-net.ts';
import { writeDirect } from './direct-write.hot.ts';
import type { NetVring } from './net-vring.ts';
import { WriteResult } from './write-frames.hot.ts';

/** Room for the ranges of a batch and of the largest single frame behind it. */
const PLAN_CAPACITY = 4096;
/** More frames than that for one queue are worth a copy of their own: 16 cost the same, 8 less. */
const SPREAD_MAX = 12;
/** Queues that can wait; each has at least one row of `waiting`. */
const MAX_WAITING = ROW_STRIDE;
/** Two ranges for each row: what a plan must have room for besides. */
const PLAN_RESERVE = 2 * ROW_STRIDE;

/**
 * What ports need while they are at work, and no longer: one for all ports of a thread. (170 KiB
 * each pushed the rings of the others out of the cache.)
 *
 * It also joins the copies of a batch whose frames go to several queues. One that takes a few is
 * *waiting* after `spread`: its chains are taken and its copies planned. `settle` makes all copies
 * by one native call, which fetches ahead, and publishes. Until then neither what the plan reads,
 * the header slots and the source's memory, nor the waiting queues may be touched. With a call per
 * queue, a frame cost 570 ns with 128 ports that send to each other, and 350 so.
 */
export class PortScratch {
  /** Somebody calls `settle` after each batch: queues may wait. */
  readonly isShared: boolean;
  /** From `receive` to `release`. */
  readonly readChains = new ChainBatch(BATCH, BATCH_SEGMENTS, true);
  /** Within `transmit`. */
  readonly writeChains = new ChainBatch(BATCH, BATCH_SEGMENTS, true);
  readonly controlChains = new ChainBatch();
  /** Empty where `waitingCount` is 0. */
  readonly plan = new CopyPlan(PLAN_CAPACITY);
  readonly result = new WriteResult();
  readonly filtered = new Int32Array(BATCH);

  /** Queues that wait. */
  waitingCount = 0;
  readonly #vrings: (NetVring | null)[] = Array.from({ length: MAX_WAITING }, () => null);
  /** Where the rows of each end. */
  readonly #ends = new Int32Array(MAX_WAITING);
  readonly #waiting = new ChainBatch(ROW_STRIDE, 1);

  constructor(isShared = false) {
    this.isShared = isShared;
  }

  /** Frames `list[0 .. count)` to the queue. False: nothing was done, they want `writeFrames`. */
  spread(
    vring: NetVring,
    batch: FrameBatch,
    list: Int32Array,
    count: number,
    hdrLen: number,
    flagMask: number,
  ): boolean {
    if (count > SPREAD_MAX || vring.direct === 0 || hdrLen !== NET_HEADER_BYTES) return false;
    // Frames of the switch's scratch or parked ones: their memory is used again before `settle`.
    if (batch.plain === 0) return false;
    let at = this.waitingCount === 0 ? 0 : this.#ends[this.waitingCount - 1];
    if (at + count > ROW_STRIDE) {
      this.settle();
      at = 0;
    }
    const { plan } = this;
    const { queue } = vring;
    const { nextAvail, availWrap } = queue;
    const planned = plan.count;
    if (queue.fault !== 0) return false;
    const taken = writeDirect(queue, this.#waiting, at, plan, batch, list, count, flagMask);
    if (taken !== count) {
      plan.count = planned;
      queue.nextAvail = nextAvail;
      queue.availWrap = availWrap;
      queue.counters[COUNTER_TAKEN] -= taken;
      return false;
    }
    this.#vrings[this.waitingCount] = vring;
    this.#ends[this.waitingCount++] = at + count;
    return true;
  }

  /** Copies and publishes what waits. */
  settle(): void {
    const { waitingCount } = this;
    if (waitingCount === 0) return;
    this.waitingCount = 0;
    this.plan.run();
    let first = 0;
    for (let k = 0; k < waitingCount; k++) {
      const vring = this.#vrings[k] as NetVring;
      this.#vrings[k] = null;
      const end = this.#ends[k];
      putUsed(vring.queue, this.#waiting, first, end - first);
      first = end;
    }
  }
}

assert(PLAN_CAPACITY >= 2 * PLAN_RESERVE, 'what waits leaves room in the plan');
