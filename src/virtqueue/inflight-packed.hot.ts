/**
 * The steps by which a packed queue notes what it has taken. Specification, "Inflight I/O
 * tracking", "For packed virtqueue". See `inflight-state.ts`.
 *
 * Used descriptors overwrite the ring in the order of use, so a copy of every descriptor that is
 * out is kept, in a list of entries taken from a free list. used_idx, old_used_idx and their wrap
 * counters share eight bytes and are written by one store: the specification's order of single
 * writes has a gap where a position of one round would be read with the counter of another.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import type { InflightState } from './inflight-state.ts';

const FREE_HEAD = 12; // QueueRegionPacked, as in wire/inflight.ts
const OLD_FREE_HEAD = 14;
const DESC = 32;
const ENTRY = 32;
const NEXT = 2; //       DescStatePacked; `inflight` is its first byte
const LAST = 4;
const NUM = 6;
const COUNTER = 8;
const ID_AND_FLAGS = 16; // id, flags: the last word of the ring's descriptor
const LEN = 20;
const ADDR = 24;

const NOT_OUT = 0xffff; // as in inflight-state.ts

const HEAD = 0; // columns of ChainBatch.rows, ROW_STRIDE words apart
const SLOTS = 256;

/**
 * The chains of a batch whose first descriptor is at `slot`, before the device sees them. False:
 * the driver has more out than it has descriptors, or a buffer id twice; nothing more can be noted.
 */
export function noteTakenPacked(
  q: DeviceQueue,
  batch: ChainBatch,
  count: number,
  slot: number,
): boolean {
  const { desc, inflight: state, size } = q;
  const { view, counter, nextFree, entryOf, lastOf } = state;
  const rows = batch.rows;
  let at = slot;
  for (let i = 0; i < count; i++) {
    const slots = rows[i + SLOTS];
    const id = rows[i + HEAD];
    if (slots > state.freeCount || entryOf[id] !== NOT_OUT) return false;
    const first = state.freeHead;
    const head = DESC + ENTRY * first;
    let last = first;
    view.setUint16(head + NUM, 0, true);
    view.setUint32(head + COUNTER, counter[0] % 4294967296, true);
    view.setUint32(head + COUNTER + 4, counter[0] / 4294967296, true);
    counter[0]++;
    view.setUint8(head, 1);
    for (let s = 1; s <= slots; s++) {
      const entry = DESC + ENTRY * state.freeHead;
      const from = at << 2;
      if (s === slots) {
        last = state.freeHead;
        view.setUint16(head + LAST, last, true);
      }
      view.setUint16(head + NUM, s, true);
      view.setInt32(entry + ADDR, desc[from], true);
      view.setInt32(entry + ADDR + 4, desc[from + 1], true);
      view.setInt32(entry + LEN, desc[from + 2], true);
      view.setInt32(entry + ID_AND_FLAGS, desc[from + 3], true);
      state.freeHead = nextFree[state.freeHead];
      view.setUint16(FREE_HEAD, state.freeHead, true);
      if (++at === size) at = 0;
    }
    view.setUint16(OLD_FREE_HEAD, state.freeHead, true);
    state.freeCount -= slots;
    entryOf[id] = first;
    lastOf[id] = last;
  }
  return true;
}

/** Chains that go back unused, the one taken last first. */
export function noteUntakenPacked(q: DeviceQueue, batch: ChainBatch, from: number): void {
  const state = q.inflight;
  for (let i = batch.count - 1; i >= from; i--) {
    const entry = free(state, batch.rows[i + HEAD], batch.rows[i + SLOTS]);
    // In this order: an entry of the free list may be marked, a marked one may not be lost.
    state.view.setUint16(OLD_FREE_HEAD, entry, true);
    state.view.setUint8(DESC + ENTRY * entry, 0);
    state.entryOf[batch.rows[i + HEAD]] = NOT_OUT;
  }
}

/** The batch that is about to be published. */
export function noteBatchPacked(
  q: DeviceQueue,
  batch: ChainBatch,
  first: number,
  count: number,
): void {
  const state = q.inflight;
  const end = first + count;
  let used = q.nextUsed;
  let wrap = q.usedWrap;
  for (let i = first; i < end; i++) {
    const slots = batch.rows[i + SLOTS];
    free(state, batch.rows[i + HEAD], slots);
    used += slots;
    if (used >= q.size) {
      used -= q.size;
      wrap ^= 1;
    }
  }
  setPositions(state, used, wrap, q.nextUsed, q.usedWrap);
}

/** It was published, and the queue's position is behind it. */
export function noteUsedPacked(
  q: DeviceQueue,
  batch: ChainBatch,
  first: number,
  count: number,
): void {
  const state = q.inflight;
  const { view, entryOf } = state;
  const end = first + count;
  for (let i = first; i < end; i++) {
    const id = batch.rows[i + HEAD];
    view.setUint8(DESC + ENTRY * entryOf[id], 0);
    entryOf[id] = NOT_OUT;
  }
  view.setUint16(OLD_FREE_HEAD, state.freeHead, true);
  setPositions(state, q.nextUsed, q.usedWrap, q.nextUsed, q.usedWrap);
}

/** Puts the entries of a chain in front of the free list; the first of them. */
function free(state: InflightState, id: number, slots: number): number {
  const { view, nextFree, entryOf, lastOf } = state;
  const entry = entryOf[id];
  const last = lastOf[id];
  view.setUint16(DESC + ENTRY * last + NEXT, state.freeHead, true);
  nextFree[last] = state.freeHead;
  view.setUint16(FREE_HEAD, entry, true);
  state.freeHead = entry;
  state.freeCount += slots;
  return entry;
}

/** used_idx, old_used_idx and their wrap counters, by one store. */
export function setPositions(
  state: InflightState,
  used: number,
  wrap: number,
  oldUsed: number,
  oldWrap: number,
): void {
  state.positionWords[0] = used | (oldUsed << 16);
  state.positionWords[1] = wrap | (oldWrap << 8);
  // Never a NaN, whose bits would not survive: the upper word is below 2^9.
  state.positions[0] = state.positionCell[0];
}
