/**
 * The steps by which a split queue notes what it has taken. Specification, "Inflight I/O
 * tracking", "For split virtqueue". See `inflight-state.ts`.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';

const LAST_BATCH_HEAD = 12; // QueueRegionSplit, as in wire/inflight.ts
const USED_IDX = 14;
const DESC = 16;
const ENTRY = 16;
const NEXT = 6; //             DescStateSplit; `inflight` is its first byte
const COUNTER = 8;

/** The heads of a batch, before the device sees them. */
export function noteTakenSplit(q: DeviceQueue, batch: ChainBatch, count: number): void {
  const { view, counter } = q.inflight;
  const heads = batch.rows; // the first column
  let order = counter[0];
  for (let i = 0; i < count; i++) {
    const at = DESC + ENTRY * heads[i];
    view.setUint32(at + COUNTER, order % 4294967296, true);
    view.setUint32(at + COUNTER + 4, order / 4294967296, true);
    order++;
    view.setUint8(at, 1);
  }
  counter[0] = order;
}

/** Chains that go back unused, the one taken last first: what is noted stays without gaps. */
export function noteUntakenSplit(q: DeviceQueue, batch: ChainBatch, from: number): void {
  const view = q.inflight.view;
  for (let i = batch.count - 1; i >= from; i--) view.setUint8(DESC + ENTRY * batch.rows[i], 0);
}

/** The batch that is about to be published, as a list. */
export function noteBatchSplit(
  q: DeviceQueue,
  batch: ChainBatch,
  first: number,
  count: number,
): void {
  const state = q.inflight;
  const view = state.view;
  let last = state.lastBatchHead;
  for (let i = first; i < first + count; i++) {
    const head = batch.rows[i];
    view.setUint16(DESC + ENTRY * head + NEXT, last, true);
    view.setUint16(LAST_BATCH_HEAD, head, true);
    last = head;
  }
  state.lastBatchHead = last;
}

/** It was published. */
export function noteUsedSplit(
  q: DeviceQueue,
  batch: ChainBatch,
  first: number,
  count: number,
): void {
  const view = q.inflight.view;
  for (let i = first; i < first + count; i++) view.setUint8(DESC + ENTRY * batch.rows[i], 0);
  view.setUint16(USED_IDX, q.nextUsed, true);
}
