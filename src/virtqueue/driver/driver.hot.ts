/**
 * The driver side of a virtqueue, batch-wise, for both formats. Nothing here throws or allocates;
 * a device that breaks virtio makes `reapUsed` return a negative FAULT_USED_* from then on.
 */
import type { DriverBatch, UsedBatch } from './driver-batch.ts';
import type { DriverQueue } from './driver-queue.ts';
import {
  addPacked,
  disableCallsPacked,
  enableCallsPacked,
  hasUsedPacked,
  publishPacked,
  reapPacked,
  wantsKickPacked,
} from './packed-driver.hot.ts';
import {
  addSplit,
  disableCallsSplit,
  enableCallsSplit,
  hasUsedSplit,
  publishSplit,
  reapSplit,
  wantsKickSplit,
} from './split-driver.hot.ts';

/**
 * Writes rows `[first, first + count)` into the ring, in order, without showing them to the device
 * yet. Returns how many fitted; their ids are in `batch.id`.
 */
export function addChains(
  q: DriverQueue,
  batch: DriverBatch,
  first: number,
  count: number,
): number {
  return q.packed === 0 ? addSplit(q, batch, first, count) : addPacked(q, batch, first, count);
}

/** Shows the device everything that was added since the last time. */
export function publish(q: DriverQueue): void {
  if (q.unpublished === 0) return;
  if (q.packed === 0) publishSplit(q);
  else publishPacked(q);
  if (q.sinceKick > 0x10000) q.sinceKick = 0x10000;
}

/** After `publish`: does the device want a kick? One answer, and the question is asked once. */
export function needsKick(q: DriverQueue): boolean {
  if (q.sinceKick === 0) return false;
  const wants = q.packed === 0 ? wantsKickSplit(q) : wantsKickPacked(q);
  q.sinceKick = 0;
  return wants;
}

/**
 * Collects up to `max` chains that came back. Returns how many, or a FAULT_USED_*. Good entries in
 * front of a broken one are handed over; the next call returns the fault.
 */
export function reapUsed(q: DriverQueue, into: UsedBatch, max: number): number {
  return q.packed === 0 ? reapSplit(q, into, max) : reapPacked(q, into, max);
}

/** Has anything come back that was not reaped? */
export function hasUsed(q: DriverQueue): boolean {
  if (q.batchId >= 0) return true;
  return q.packed === 0 ? hasUsedSplit(q) : hasUsedPacked(q);
}

/** Asks the device not to call. It may do so all the same. */
export function disableCalls(q: DriverQueue): void {
  if (q.packed === 0) disableCallsSplit(q);
  else disableCallsPacked(q);
}

/** Asks the device to call for the next used chain. True: some came back meanwhile. */
export function enableCalls(q: DriverQueue): boolean {
  if (q.packed === 0) enableCallsSplit(q);
  else enableCallsPacked(q);
  return hasUsed(q);
}
