/**
 * The device side of a virtqueue, batch-wise, for both formats: what a device calls. Nothing here
 * throws; a driver that breaks virtio makes `takeChains` return a negative FAULT_* from then on.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import {
  disableKicksBigEndian,
  enableKicksBigEndian,
  hasAvailableBigEndian,
  putUsedBigEndian,
  takeBigEndian,
  wantsCallBigEndian,
} from './big-endian.hot.ts';
import { noteUntakenPacked } from './inflight-packed.hot.ts';
import { noteUntakenSplit } from './inflight-split.hot.ts';
import {
  disableKicksPacked,
  enableKicksPacked,
  hasAvailablePacked,
  putUsedPacked,
  takePacked,
  untakePacked,
  wantsCallPacked,
} from './packed-device.hot.ts';
import {
  disableKicksSplit,
  enableKicksSplit,
  hasAvailableSplit,
  putUsedSplit,
  takeSplit,
  untakeSplit,
  wantsCallSplit,
} from './split-device.hot.ts';

const SPLIT = 0; //            DeviceQueue.format; 2 is the split format of the other byte order
const PACKED = 1;

const TAKEN = 0; //            COUNTER_TAKEN
const CALLS = 2; //            COUNTER_CALLS
const CALLS_SUPPRESSED = 3; // COUNTER_CALLS_SUPPRESSED

/**
 * Takes up to `max` available chains, oldest first, into `batch`, whose old content is dropped.
 * Returns how many, or a FAULT_*. A batch without room for a chain's segments ends before it.
 * Good chains in front of a broken one are handed over; the next call returns the fault.
 */
export function takeChains(q: DeviceQueue, batch: ChainBatch, max: number): number {
  if (q.format === SPLIT) return takeSplit(q, batch, max);
  return q.format === PACKED ? takePacked(q, batch, max) : takeBigEndian(q, batch, max);
}

/**
 * Gives the chains from row `from` on back, unused: the next `takeChains` sees them again. Only
 * for the batch that was taken last.
 */
export function untakeChains(q: DeviceQueue, batch: ChainBatch, from: number): void {
  if (from >= batch.count) return;
  if (q.tracked !== 0 && q.inflight.retaken !== 0) {
    q.inflight.againAt -= batch.count - from;
  } else if (q.packed === 0) {
    if (q.tracked !== 0) noteUntakenSplit(q, batch, from);
    untakeSplit(q, batch, from);
  } else {
    if (q.tracked !== 0) noteUntakenPacked(q, batch, from);
    untakePacked(q, batch, from);
  }
  q.counters[TAKEN] -= batch.count - from;
  batch.segments = batch.unfilled !== 0 ? from : batch.segFirst[from];
  batch.count = from;
}

/**
 * Returns rows `[first, first + count)` to the driver with `batch.written` bytes each, published
 * at once. With IN_ORDER the caller does this in the order in which chains were taken.
 */
export function putUsed(q: DeviceQueue, batch: ChainBatch, first: number, count: number): void {
  if (count <= 0) return;
  if (q.format === SPLIT) putUsedSplit(q, batch, first, count);
  else if (q.format === PACKED) putUsedPacked(q, batch, first, count);
  else putUsedBigEndian(q, batch, first, count);
}

/**
 * After `putUsed`: does the driver want a call for what was published since the last question?
 * One answer for all of it, and the question is asked once.
 */
export function needsCall(q: DeviceQueue): boolean {
  orderUsed(q);
  return needsCallOrdered(q);
}

/**
 * What was published is visible to the driver before its wish is read, or both sides would wait for
 * each other (2.7.7.1, 2.8.10). Once for all queues of a round: on x86 it waits until everything
 * that was written before has reached the caches, and the wishes of two queues are only fetched at
 * once if nothing of the kind stands between.
 */
export function orderUsed(q: DeviceQueue): void {
  Atomics.store(q.fence, 0, 0);
}

/** `needsCall`, after `orderUsed`. */
export function needsCallOrdered(q: DeviceQueue): boolean {
  if (q.sinceCall === 0) return false;
  const wants = wantsCall(q);
  // A ring that was just started may hold used entries of a device before us, which the driver
  // was perhaps never told of: with EVENT_IDX the first answer is yes, as in Linux' vhost.
  const needs = wants || (q.callKnown === 0 && q.eventIdx !== 0);
  q.callKnown = 1;
  q.sinceCall = 0;
  q.counters[needs ? CALLS : CALLS_SUPPRESSED]++;
  return needs;
}

function wantsCall(q: DeviceQueue): boolean {
  if (q.format === SPLIT) return wantsCallSplit(q);
  return q.format === PACKED ? wantsCallPacked(q) : wantsCallBigEndian(q);
}

/** Asks the driver not to kick. It may do so all the same. */
export function disableKicks(q: DeviceQueue): void {
  if (q.format === SPLIT) disableKicksSplit(q);
  else if (q.format === PACKED) disableKicksPacked(q);
  else disableKicksBigEndian(q);
}

/**
 * Asks the driver to kick for the next chain. True: chains became available meanwhile, perhaps
 * without a kick, so take them before sleeping.
 */
export function enableKicks(q: DeviceQueue): boolean {
  if (q.format === SPLIT) enableKicksSplit(q);
  else if (q.format === PACKED) enableKicksPacked(q);
  else enableKicksBigEndian(q);
  return hasAvailable(q);
}

/** Is there anything to take? Also true for a driver whose index makes no sense. */
export function hasAvailable(q: DeviceQueue): boolean {
  if (q.format === SPLIT) return hasAvailableSplit(q);
  return q.format === PACKED ? hasAvailablePacked(q) : hasAvailableBigEndian(q);
}
