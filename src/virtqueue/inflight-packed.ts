/** A packed queue over an inflight region: what the device before it had taken and not used. */
import * as layout from '../wire/inflight.ts';
import type { DeviceQueue } from './device-queue.ts';
import { setPositions } from './inflight-packed.hot.ts';
import { badRegion, isFresh, type Noted, readCounter, resubmit, seal } from './inflight-state.ts';

const { INFLIGHT_PACKED_DESC: DESC, INFLIGHT_PACKED_ENTRY_BYTES: ENTRY } = layout;

/** What is known of an entry: nothing (0), it is in the free list, or in a chain. */
const FREE = 1;
const TAKEN = 2;

/** AVAIL and USED of a descriptor's last word. */
const AVAIL_BIT = 1 << 23;
const USED_BIT = 1 << 31;

/**
 * Sets the positions of `q` and what it hands over first.
 * @throws VringError ERR_VRING_INFLIGHT: the region contradicts itself or the ring.
 */
export function recoverPacked(q: DeviceQueue): void {
  const { inflight: state, size } = q;
  const { view, nextFree } = state;
  if (isFresh(state, size)) {
    makeRegion(q);
    return;
  }
  const entries = view.getUint16(layout.INFLIGHT_DESC_NUM, true);
  if (entries > nextFree.length) {
    throw badRegion(`it is of ${entries} descriptors and has room for ${nextFree.length}`);
  }
  rollBack(q, entries);
  for (let entry = 0; entry < entries; entry++) {
    // A number that is none of an entry ends the list, as `entries` itself does.
    const next = view.getUint16(DESC + ENTRY * entry + layout.INFLIGHT_PACKED_NEXT, true);
    nextFree[entry] = Math.min(next, entries);
  }
  const isKnown = walkFreeList(q, entries);
  let slots = 0;
  const found: Noted[] = [];
  for (let entry = 0; entry < entries; entry++) {
    const at = DESC + ENTRY * entry;
    if (isKnown[entry] === FREE || view.getUint8(at) === 0) continue;
    const chain = readChain(q, entry, entries, isKnown);
    slots += chain.slots;
    if (slots > size) throw badRegion(`its chains have more descriptors than the ring of ${size}`);
    const counter = readCounter(view, at + layout.INFLIGHT_PACKED_COUNTER);
    found.push({ entry, counter, ...chain });
  }
  resubmit(state, found);
  // Each chain's used entry takes as many slots as the chain had: what is out is ahead of us.
  const avail = q.nextUsed + slots;
  q.nextAvail = avail % size;
  q.availWrap = q.usedWrap ^ (avail >= size ? 1 : 0);
}

function makeRegion(q: DeviceQueue): void {
  const { inflight: state, size } = q;
  const { view, nextFree } = state;
  for (let entry = 0; entry < size; entry++) {
    nextFree[entry] = entry + 1;
    view.setUint16(DESC + ENTRY * entry + layout.INFLIGHT_PACKED_NEXT, entry + 1, true);
  }
  state.freeCount = size;
  setPositions(state, q.nextUsed, q.usedWrap, q.nextUsed, q.usedWrap);
  seal(state, size);
}

/** The device died with a batch half published, or with half a chain noted. */
function rollBack(q: DeviceQueue, entries: number): void {
  const { inflight: state, size } = q;
  const { view } = state;
  let used = view.getUint16(layout.INFLIGHT_PACKED_USED_IDX, true);
  let wrap = view.getUint8(layout.INFLIGHT_PACKED_USED_WRAP) & 1;
  const oldUsed = view.getUint16(layout.INFLIGHT_PACKED_OLD_USED_IDX, true);
  const oldWrap = view.getUint8(layout.INFLIGHT_PACKED_OLD_USED_WRAP) & 1;
  let freeHead = view.getUint16(layout.INFLIGHT_PACKED_FREE_HEAD, true);
  const oldFreeHead = view.getUint16(layout.INFLIGHT_PACKED_OLD_FREE_HEAD, true);
  if (used >= size || oldUsed >= size) {
    throw badRegion(`it was left at slots ${oldUsed} and ${used}, the ring has ${size}`);
  }
  if (freeHead > entries || oldFreeHead > entries) {
    throw badRegion(`its free entries begin at ${freeHead} or ${oldFreeHead} of ${entries}`);
  }
  // The counters count, too: a batch of a whole ring ends where it began.
  if (used !== oldUsed || wrap !== oldWrap) {
    const word = Atomics.load(q.desc, 4 * oldUsed + 3);
    const available = oldWrap === 1 ? AVAIL_BIT : USED_BIT;
    const published = (word & (AVAIL_BIT | USED_BIT)) !== available;
    if (!published) {
      unuse(q, oldUsed, oldWrap, used, wrap);
      [used, wrap, freeHead] = [oldUsed, oldWrap, oldFreeHead];
    }
  } else {
    freeHead = oldFreeHead;
  }
  view.setUint16(layout.INFLIGHT_PACKED_OLD_FREE_HEAD, freeHead, true);
  setPositions(state, used, wrap, used, wrap);
  view.setUint16(layout.INFLIGHT_PACKED_FREE_HEAD, freeHead, true);
  state.freeHead = freeHead;
  q.nextUsed = used;
  q.usedWrap = wrap;
}

/**
 * Takes back what a batch wrote behind its first descriptor, which was to publish it: another batch
 * may be shorter, and the driver would find the old one's used descriptors behind it.
 */
function unuse(q: DeviceQueue, from: number, fromWrap: number, to: number, toWrap: number): void {
  let [slot, wrap] = [from, fromWrap];
  do {
    const at = 4 * slot + 3;
    const state = wrap === 1 ? AVAIL_BIT : USED_BIT;
    Atomics.store(q.desc, at, (q.desc[at]! & ~(AVAIL_BIT | USED_BIT)) | state);
    if (++slot === q.size) [slot, wrap] = [0, wrap ^ 1];
  } while (slot !== to || wrap !== toWrap);
}

/** Counts the free entries; what is marked among them is a chain that was half noted. */
function walkFreeList(q: DeviceQueue, entries: number): Uint8Array {
  const { inflight: state } = q;
  const { view, nextFree } = state;
  const isFree = new Uint8Array(entries);
  let entry = state.freeHead;
  for (; entry < entries; entry = nextFree[entry]!) {
    if (isFree[entry] === FREE) throw badRegion(`its free entries come back to ${entry}`);
    isFree[entry] = FREE;
    view.setUint8(DESC + ENTRY * entry, 0);
    state.freeCount++;
  }
  return isFree;
}

/**
 * A chain that is out: checks its entries, which `isKnown` has of no other chain and not of the
 * free list, and learns its buffer id.
 */
function readChain(
  q: DeviceQueue,
  first: number,
  entries: number,
  isKnown: Uint8Array,
): { readonly id: number; readonly slots: number } {
  const { inflight: state, size } = q;
  const { view, nextFree, entryOf, lastOf } = state;
  const at = DESC + ENTRY * first;
  const num = view.getUint16(at + layout.INFLIGHT_PACKED_NUM, true);
  const last = view.getUint16(at + layout.INFLIGHT_PACKED_LAST, true);
  if (num < 1 || num > size) throw badRegion(`entry ${first} is a chain of ${num} descriptors`);
  let entry = first;
  for (let n = 1; ; n++) {
    if (isKnown[entry] !== 0) throw badRegion(`the chain at entry ${first} shares ${entry}`);
    isKnown[entry] = TAKEN;
    if (n === num || nextFree[entry]! >= entries) break;
    entry = nextFree[entry]!;
  }
  if (entry !== last || last >= entries) {
    throw badRegion(`the chain at entry ${first} ends at ${entry}, expected ${last}`);
  }
  // 2.8.6: the id is that of the last descriptor.
  const id = view.getUint16(DESC + ENTRY * last + layout.INFLIGHT_PACKED_ID, true);
  if (id >= size) throw badRegion(`entry ${last} has buffer id ${id}, the ring has ${size}`);
  const other = entryOf[id]!;
  if (other < entries) throw badRegion(`entries ${other} and ${first} have buffer id ${id}`);
  entryOf[id] = first;
  lastOf[id] = last;
  return { id, slots: num };
}
