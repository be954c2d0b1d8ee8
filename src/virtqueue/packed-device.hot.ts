/**
 * Device side of packed virtqueues. Virtio 1.2, 2.8 "Packed Virtqueues".
 *
 * There is no index to read: every descriptor says by its own flags whether it is available, and
 * an ordered read of each would cost more than all the rest. The first one is an ordered read; for
 * the others it depends on the processor. x86 performs loads in program order (and V8 keeps that
 * order), so reading a descriptor's flags before the rest of it is enough. Elsewhere a run of
 * descriptors is scouted first: all that look available, then a fence, then they are read again,
 * judged and kept. What was scouted decides nothing but how far the fence reaches.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import { fillRows } from './chain-segments.hot.ts';
import { logBuffers, logEvent, logUsedPacked } from './dirty-log.hot.ts';
import { noteBatchPacked, noteTakenPacked, noteUsedPacked } from './inflight-packed.hot.ts';
import { takeHintedPacked, takeUniformHintedPacked } from './iotlb-take.hot.ts';
import { retakeChain, takeChain } from './packed-chain.hot.ts';
import { takeTablesPacked } from './table-chains.hot.ts';

// Last word of a descriptor: id | flags << 16.
const NEXT = 1 << 16;
const WRITE = 1 << 17;
const INDIRECT = 1 << 18;
const SLOW = NEXT | INDIRECT;
const BOTH = 3; //  DeviceQueue.lastAllowed
const WRITE_ONLY = 2;
const AVAIL_BIT = 1 << 23;
const USED_BIT = 1 << 31;
const STATE = AVAIL_BIT | USED_BIT;

const HEAD = 0; // columns of ChainBatch.rows, ROW_STRIDE words apart
const SLOTS = 256;
const SEG_FIRST = 512;
const READ_SEGS = 768;
const WRITE_SEGS = 1024;
const READ_BYTES = 1280;
const WRITE_BYTES = 1536;
const WRITTEN = 1792;

/** Addresses are compared in units of 2^32 bytes, see `takeSimple`. */
const UNIT = 1 / 4294967296;

const UNIFORM_READ = 1; // ChainBatch.uniform
const NO_ROOM = 1; //  as in chain-segments.hot.ts
const DRAINED = 2; //  as in packed-chain.hot.ts
const MISSED = 3; //   as in chain-segments.hot.ts

const TAKEN = 0; // COUNTER_TAKEN
const USED = 1; //  COUNTER_USED

const EVENTS_ENABLE = 0; //  RING_EVENT_FLAGS_*
const EVENTS_DISABLE = 1;
const EVENTS_DESC = 2;

const FAULT_CHAIN_TOO_LONG = -5; // as in faults.ts; device-queue.test.ts holds them equal
const FAULT_BUFFER_ID = -13;

/** `takeChains` of a packed queue. */
export function takePacked(q: DeviceQueue, batch: ChainBatch, max: number): number {
  batch.count = 0;
  batch.segments = 0;
  batch.uniform = 0;
  batch.unfilled = 0;
  if (q.fault !== 0) return q.fault;
  q.missed = 0;
  if (q.tracked !== 0) {
    const state = q.inflight;
    state.retaken = state.againAt < state.againCount ? 1 : 0;
    if (state.retaken !== 0) return retakePacked(q, batch, max);
  }
  const slot = q.nextAvail;
  const limit = max < batch.capacity ? max : batch.capacity;
  let stop = 0;
  q.visited = 0;
  // Descriptors of length zero take no segment but time: they end a batch like segments do.
  while (batch.count < limit && q.visited <= batch.segCapacity) {
    // As many slots as the last batch would have needed for so many chains.
    const wanted = (limit - batch.count) * q.slotsPerChain;
    const visible = visibleSlots(q, wanted);
    if (visible === 0) break;
    if (batch.lazy !== 0 && batch.count === 0) {
      takeUniform(q, batch, limit, visible);
      if (q.iotlb !== 0 && batch.count < limit) {
        takeUniformHintedPacked(q, batch, limit, visible - batch.count);
      }
      if (batch.count >= limit) break;
      if (batch.count > 0) continue;
    }
    if (batch.unfilled !== 0) fillRows(batch, batch.count);
    batch.uniform = 0;
    stop = takeVisible(q, batch, limit, visible);
    if (stop !== 0 || visible < wanted) break;
  }
  const n = batch.count;
  if (n === 0) {
    if (stop === 0 || stop === DRAINED || stop === MISSED) return 0;
    // A chain that does not fit an empty batch never will.
    return (q.fault = stop === NO_ROOM ? FAULT_CHAIN_TOO_LONG : stop);
  }
  // A fault behind good chains: those are handed over, the next call meets it first.
  q.counters[TAKEN] += n;
  // More out than there are descriptors, or a buffer id that is out already.
  if (q.tracked !== 0 && !noteTakenPacked(q, batch, n, slot)) {
    batch.count = 0;
    return (q.fault = FAULT_BUFFER_ID);
  }
  return n;
}

/** Takes chains that a device before us had taken, from the copy that it kept. */
function retakePacked(q: DeviceQueue, batch: ChainBatch, max: number): number {
  const state = q.inflight;
  const { againAt, againCount } = state;
  const left = againCount - againAt;
  let limit = left < max ? left : max;
  if (limit > batch.capacity) limit = batch.capacity;
  let n = 0;
  let stop = 0;
  q.visited = 0;
  while (n < limit && q.visited <= batch.segCapacity) {
    const segments = batch.segments;
    stop = retakeChain(q, batch, n, againAt + n);
    if (stop !== 0) {
      batch.segments = segments;
      break;
    }
    n++;
  }
  if (n === 0) {
    if (stop === MISSED) return 0;
    return (q.fault = stop === NO_ROOM ? FAULT_CHAIN_TOO_LONG : stop);
  }
  batch.count = n;
  state.againAt = againAt + n;
  q.counters[TAKEN] += n;
  return n;
}

/** From `nextAvail` on, how many slots may be looked at: no more than `wanted`, 0 for none. */
function visibleSlots(q: DeviceQueue, wanted: number): number {
  const { desc, size } = q;
  let at = q.nextAvail;
  let want = q.availWrap === 1 ? AVAIL_BIT : USED_BIT;
  const word = Atomics.load(desc, (at << 2) + 3);
  if ((word & STATE) !== want) return 0;
  if (q.weakOrder === 0) return wanted;
  // 2.8.6: all descriptors of a list carry these bits, not only its head.
  let visible = 1;
  while (visible < wanted && visible < size) {
    if (++at === size) {
      at = 0;
      want ^= STATE;
    }
    if ((desc[(at << 2) + 3] & STATE) !== want) break;
    visible++;
  }
  // Loads before a release store and loads behind an acquire load stay in that order.
  Atomics.store(q.fence, 0, 0);
  Atomics.load(q.fence, 0);
  return visible;
}

/**
 * Takes the chains that begin within the next `visible` slots, until `batch` has `limit`, and moves
 * `nextAvail`. Returns 0, NO_ROOM, DRAINED, MISSED or a fault.
 */
function takeVisible(q: DeviceQueue, batch: ChainBatch, limit: number, visible: number): number {
  const size = q.size;
  const first = batch.count;
  let left = visible;
  let stop = 0;
  while (batch.count < limit && left > 0 && q.visited <= batch.segCapacity) {
    if (q.iotlb === 0) left -= takeSimple(q, batch, limit, left);
    else left -= takeHintedPacked(q, batch, limit, left);
    if (batch.count >= limit || left <= 0) break;
    if (q.iotlb === 0) {
      const tables = takeTablesPacked(q, batch, limit, left);
      left -= tables;
      if (tables > 0) continue;
    }
    const segments = batch.segments;
    stop = takeChain(q, batch, batch.count);
    if (stop !== 0) {
      batch.segments = segments;
      break;
    }
    const used = batch.rows[batch.count + SLOTS];
    batch.count++;
    left -= used;
    q.nextAvail += used;
    if (q.nextAvail >= size) {
      q.nextAvail -= size;
      q.availWrap ^= 1;
    }
  }
  const chains = batch.count - first;
  if (chains > 0) q.slotsPerChain = 1 + Math.trunc((visible - left - 1) / chains);
  return stop;
}

/**
 * Takes chains of one descriptor in the range of memory that was hit last, from the next `most`
 * slots, until `batch` has `limit`. Returns how many; the next is none, or anything else, which
 * `takeChain` reads again, judges, and keeps. Calls nothing, see its sister in
 * `split-device.hot.ts`.
 */
function takeSimple(q: DeviceQueue, batch: ChainBatch, limit: number, most: number): number {
  const { desc, size } = q;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const range = q.lastRange;
  const start = q.mapStart[range] * UNIT;
  const end = q.mapEnd[range] * UNIT;
  const delta = q.mapDelta[range] * UNIT;
  const first = batch.count;
  const stopRow = limit - first < most ? limit : first + most;
  let slot = q.nextAvail;
  let wrap = q.availWrap;
  let want = wrap === 1 ? AVAIL_BIT : USED_BIT;
  // With an IOTLB the range may be for one direction only: the other takes the slow path.
  const slow = q.lastAllowed === BOTH ? SLOW : SLOW | WRITE;
  const flip = q.lastAllowed === WRITE_ONLY ? WRITE : 0;
  let segs = batch.segments;
  let n = first;
  for (; n < stopRow; n++) {
    const at = slot << 2;
    const word = desc[at + 3]; // before the other words, see the top of this file
    if ((word & STATE) !== want) break;
    const id = word & 0xffff;
    const len = desc[at + 2];
    const address = desc[at + 1] + (desc[at] >>> 0) * UNIT;
    if (((word ^ flip) & slow) !== 0 || len <= 0 || segs >= segCapacity || id >= size) break;
    if (!(address >= start && address + len * UNIT <= end)) break;
    const write = (word >> 17) & 1;
    rows[n + HEAD] = id;
    rows[n + SLOTS] = 1;
    rows[n + SEG_FIRST] = segs;
    rows[n + READ_SEGS] = 1 - write;
    rows[n + WRITE_SEGS] = write;
    rows[n + READ_BYTES] = len & (write - 1);
    rows[n + WRITE_BYTES] = len & -write;
    rows[n + WRITTEN] = 0;
    segOffset[segs] = (address + delta) * 4294967296;
    segLen[segs] = len;
    segs++;
    if (++slot === size) {
      slot = 0;
      wrap ^= 1;
      want ^= STATE;
    }
  }
  batch.segments = segs;
  batch.count = n;
  q.nextAvail = slot;
  q.availWrap = wrap;
  return n - first;
}

/**
 * As `takeSimple`, for chains that all have the direction of the first; an empty batch becomes
 * uniform. See its sister in `split-device.hot.ts`.
 */
function takeUniform(q: DeviceQueue, batch: ChainBatch, limit: number, most: number): void {
  const { desc, size } = q;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const range = q.lastRange;
  const start = q.mapStart[range] * UNIT;
  const end = q.mapEnd[range] * UNIT;
  const delta = q.mapDelta[range] * UNIT;
  let stopRow = limit < most ? limit : most;
  if (stopRow > segCapacity) stopRow = segCapacity;
  let slot = q.nextAvail;
  let wrap = q.availWrap;
  let want = wrap === 1 ? AVAIL_BIT : USED_BIT;
  let direction = 0;
  let n = 0;
  for (; n < stopRow; n++) {
    const at = slot << 2;
    const word = desc[at + 3]; // before the other words, see the top of this file
    if (n === 0) {
      direction = word & WRITE;
      if ((q.lastAllowed & (direction === 0 ? 1 : 2)) === 0) break;
    }
    if ((word & (STATE | SLOW | WRITE)) !== (want | direction)) break;
    const id = word & 0xffff;
    const len = desc[at + 2];
    const address = desc[at + 1] + (desc[at] >>> 0) * UNIT;
    if (len <= 0 || id >= size) break;
    if (!(address >= start && address + len * UNIT <= end)) break;
    rows[n + HEAD] = id;
    rows[n + SLOTS] = 1;
    rows[n + WRITTEN] = 0;
    segOffset[n] = (address + delta) * 4294967296;
    segLen[n] = len;
    if (++slot === size) {
      slot = 0;
      wrap ^= 1;
      want ^= STATE;
    }
  }
  batch.segments = n;
  batch.count = n;
  batch.uniform = direction === 0 ? 1 : 2; // UNIFORM_*
  batch.unfilled = n > 0 ? 1 : 0;
  if (n > 0) q.slotsPerChain = 1;
  q.nextAvail = slot;
  q.availWrap = wrap;
}

/** `putUsed` of a packed queue: the first descriptor's flags are written last, and ordered. */
export function putUsedPacked(
  q: DeviceQueue,
  batch: ChainBatch,
  first: number,
  count: number,
): void {
  const { desc, size } = q;
  const rows = batch.rows;
  const end = first + count;
  let i = first;
  let covered = 0; // slots of the chains that the first entry stands for
  if (q.inOrder !== 0) {
    // 2.8.8: one descriptor with the last id stands for all, where every skipped buffer may be
    // taken as used completely. True for what was only read; bytes written need their entry.
    if (batch.uniform === 0) {
      while (i < end - 1 && rows[i + WRITE_BYTES] === 0) covered += rows[i++ + SLOTS];
      if (rows[i + WRITE_BYTES] !== 0) {
        i = first;
        covered = 0;
      }
    } else if (batch.uniform === UNIFORM_READ) {
      while (i < end - 1) covered += rows[i++ + SLOTS]; // lists have several
    }
  }
  if (q.logged !== 0) logBuffers(q, batch, first, count);
  if (q.tracked !== 0) noteBatchPacked(q, batch, first, count);
  const slotBefore = q.nextUsed;
  let slot = q.nextUsed;
  let wrap = q.usedWrap;
  let state = wrap === 1 ? STATE : 0;
  const firstAt = slot << 2;
  const firstLen = rows[i + WRITTEN];
  const firstWord = rows[i + HEAD] | state | (firstLen > 0 ? WRITE : 0);
  desc[firstAt + 2] = firstLen;
  let published = covered + rows[i + SLOTS];
  slot += published;
  for (i++; ; i++) {
    // More than one round only for a driver that makes descriptors available again unused.
    while (slot >= size) {
      slot -= size;
      wrap ^= 1;
      state ^= STATE;
    }
    if (i >= end) break;
    const at = slot << 2;
    const len = rows[i + WRITTEN];
    desc[at + 2] = len;
    desc[at + 3] = rows[i + HEAD] | state | (len > 0 ? WRITE : 0);
    const used = rows[i + SLOTS];
    published += used;
    slot += used;
  }
  // x86 performs stores in program order (and V8 keeps that order); `orderUsed` does the rest. With
  // a log this store is its fence, see `putUsedSplit`.
  if ((q.weakOrder | q.logged) === 0) desc[firstAt + 3] = firstWord;
  else Atomics.store(desc, firstAt + 3, firstWord);
  q.nextUsed = slot;
  q.usedWrap = wrap;
  q.sinceCall = q.sinceCall + published > 0x10000 ? 0x10000 : q.sinceCall + published;
  q.counters[USED] += count;
  if (q.tracked !== 0) noteUsedPacked(q, batch, first, count);
  if (q.logged !== 0) logUsedPacked(q, slotBefore, published);
}

/** `untakeChains` of a packed queue. */
export function untakePacked(q: DeviceQueue, batch: ChainBatch, from: number): void {
  let slot = q.nextAvail;
  for (let i = from; i < batch.count; i++) slot -= batch.slots[i];
  while (slot < 0) {
    slot += q.size;
    q.availWrap ^= 1;
  }
  q.nextAvail = slot;
}

export function hasAvailablePacked(q: DeviceQueue): boolean {
  if (q.tracked !== 0 && q.inflight.againAt < q.inflight.againCount) return true;
  const word = Atomics.load(q.desc, (q.nextAvail << 2) + 3);
  return (word & STATE) === (q.availWrap === 1 ? AVAIL_BIT : USED_BIT);
}

/** Does the driver want a call for the `q.sinceCall` slots before `q.nextUsed`? 2.8.10. */
export function wantsCallPacked(q: DeviceQueue): boolean {
  const event = Atomics.load(q.driverEvent, 0); // one read: position and flags belong together
  const flags = (event >> 16) & 3;
  if (flags === EVENTS_ENABLE) return true;
  if (flags === EVENTS_DISABLE) return false;
  if (flags !== EVENTS_DESC || q.eventIdx === 0) return true; // reserved: rather one too many
  // Asked less than once per round: one wrap bit cannot tell an event that was passed from one
  // that is to come.
  if (q.sinceCall > q.size) return true;
  let position = event & 0x7fff;
  if (((event >> 15) & 1) !== q.usedWrap) position -= q.size; // of the round before
  return ((q.nextUsed - position - 1) & 0xffff) < q.sinceCall;
}

export function disableKicksPacked(q: DeviceQueue): void {
  Atomics.store(q.deviceEvent, 0, EVENTS_DISABLE << 16);
  if (q.logged !== 0) logEvent(q, 0, 4);
}

export function enableKicksPacked(q: DeviceQueue): void {
  if (q.eventIdx === 0) Atomics.store(q.deviceEvent, 0, EVENTS_ENABLE << 16);
  else {
    const position = q.nextAvail | (q.availWrap << 15);
    Atomics.store(q.deviceEvent, 0, position | (EVENTS_DESC << 16));
  }
  if (q.logged !== 0) logEvent(q, 0, 4);
}
