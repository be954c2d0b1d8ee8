/** A split queue over an inflight region: what the device before it had taken and not used. */
import * as layout from '../wire/inflight.ts';
import type { DeviceQueue } from './device-queue.ts';
import { badRegion, isFresh, type Noted, readCounter, resubmit, seal } from './inflight-state.ts';

const { INFLIGHT_SPLIT_DESC: DESC, INFLIGHT_SPLIT_ENTRY_BYTES: ENTRY } = layout;

/**
 * Sets the positions of `q` and what it hands over first.
 * @throws VringError ERR_VRING_INFLIGHT: the region contradicts the ring.
 */
export function recoverSplit(q: DeviceQueue): void {
  const { inflight: state, size } = q;
  const { view } = state;
  if (isFresh(state, size)) {
    view.setUint16(layout.INFLIGHT_SPLIT_USED_IDX, q.nextUsed, true);
    seal(state, size);
    return;
  }
  finishLastBatch(q);
  const found: Noted[] = [];
  for (let entry = 0; entry < size; entry++) {
    const at = DESC + ENTRY * entry;
    if (view.getUint8(at + layout.INFLIGHT_SPLIT_INFLIGHT) === 0) continue;
    const counter = readCounter(view, at + layout.INFLIGHT_SPLIT_COUNTER);
    found.push({ entry, counter, id: entry, slots: 1 });
  }
  resubmit(state, found);
  state.lastBatchHead = view.getUint16(layout.INFLIGHT_SPLIT_LAST_BATCH_HEAD, true) % size;
  // Not from the base: a front-end whose back-end died knows only what was used.
  q.nextAvail = (q.nextUsed + found.length) & 0xffff;
}

/** The device died between publishing a batch and noting that it did. */
function finishLastBatch(q: DeviceQueue): void {
  const { view } = q.inflight;
  const { size, nextUsed } = q;
  const noted = view.getUint16(layout.INFLIGHT_SPLIT_USED_IDX, true);
  const batch = (nextUsed - noted) & 0xffff;
  if (batch > size) {
    throw badRegion(`it was left at used index ${noted}, the ring of ${size} is at ${nextUsed}`);
  }
  let head = view.getUint16(layout.INFLIGHT_SPLIT_LAST_BATCH_HEAD, true);
  for (let i = 0; i < batch; i++) {
    if (head >= size) throw badRegion(`descriptor ${head} of its last batch is none of ${size}`);
    const at = DESC + ENTRY * head;
    view.setUint8(at + layout.INFLIGHT_SPLIT_INFLIGHT, 0);
    head = view.getUint16(at + layout.INFLIGHT_SPLIT_NEXT, true);
  }
  view.setUint16(layout.INFLIGHT_SPLIT_USED_IDX, nextUsed, true);
}
