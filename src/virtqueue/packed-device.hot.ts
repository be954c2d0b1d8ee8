/**
 * Device side of packed virtqueues. Virtio 1.2, 2.8 "Packed Virtqueues".
 *
 * There is no index to read: every descriptor says by its own flags whether it is available, and
 * an ordered read of each would cost more than all the rest. So a run of single-descriptor chains
 * is scouted with plain reads, then one ordered read of the *last* available head makes everything
 * visible that the driver wrote before it, and the run is read again, judged and kept. The scout
 * decides nothing but how far that ordered read reaches.
 *
 * A chain of several descriptors ends a run: its flags beyond the head are only meaningful after
 * an ordered read of its own head.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import { addBuffer, findTable, startChain } from './chain-segments.hot.ts';

// Last word of a descriptor: id | flags << 16.
const NEXT = 1 << 16;
const WRITE = 1 << 17;
const INDIRECT = 1 << 18;
const SLOW = NEXT | INDIRECT;
const AVAIL_BIT = 1 << 23;
const USED_BIT = 1 << 31;
const STATE = AVAIL_BIT | USED_BIT;

const MAX_CHAIN = 256; // MAX_CHAIN_DESCRIPTORS
const NO_ROOM = 1; //     as in chain-segments.hot.ts

const TAKEN = 0; // COUNTER_TAKEN
const USED = 1; //  COUNTER_USED

const EVENTS_ENABLE = 0; //  RING_EVENT_FLAGS_*
const EVENTS_DISABLE = 1;
const EVENTS_DESC = 2;

const FAULT_CHAIN_TOO_LONG = -5; // as in faults.ts; device-queue.test.ts holds them equal
const FAULT_INDIRECT_NEXT = -9;
const FAULT_INDIRECT_FEATURE = -10;
const FAULT_DESC_ORDER = -11;
const FAULT_BUFFER_ID = -13;

/** `takeChains` of a packed queue. */
export function takePacked(q: DeviceQueue, batch: ChainBatch, max: number): number {
  batch.count = 0;
  batch.segments = 0;
  if (q.fault !== 0) return q.fault;
  const limit = max < batch.capacity ? max : batch.capacity;
  let n = 0;
  let stop = 0;
  while (n < limit) {
    const run = scoutRun(q, limit - n);
    if (run === 0) break;
    stop = takeRun(q, batch, n, run);
    const took = batch.count - n;
    n = batch.count;
    if (stop !== 0 || took < run) break;
  }
  if (n === 0 && stop !== 0) {
    // A chain that does not fit an empty batch never will.
    return (q.fault = stop === NO_ROOM ? FAULT_CHAIN_TOO_LONG : stop);
  }
  // A fault behind good chains: those are handed over, the next call meets it first.
  q.counters[TAKEN] += n;
  return n;
}

/**
 * How many chains from `nextAvail` on can be read now. All but the last are single descriptors,
 * and the ordered read of the last head has been done.
 */
function scoutRun(q: DeviceQueue, max: number): number {
  const { desc, size } = q;
  let at = q.nextAvail;
  let want = q.availWrap === 1 ? AVAIL_BIT : USED_BIT;
  const first = (at << 2) + 3;
  let word = Atomics.load(desc, first);
  if ((word & STATE) !== want) return 0;
  let last = first;
  let run = 1;
  while (run < max && (word & NEXT) === 0) {
    if (++at === size) {
      at = 0;
      want ^= STATE;
    }
    const next = (at << 2) + 3;
    if (next === first) break; // the whole ring
    word = desc[next];
    if ((word & STATE) !== want) break;
    last = next;
    run++;
  }
  if (last !== first) Atomics.load(desc, last);
  return run;
}

/**
 * Takes up to `run` chains into the rows from `row` on and moves `nextAvail`. Returns 0, NO_ROOM
 * or a fault; `batch.count` says how far it came.
 */
function takeRun(q: DeviceQueue, batch: ChainBatch, row: number, run: number): number {
  const { desc, size } = q;
  const { head: heads, slots, segFirst, readSegs, writeSegs, readBytes, writeBytes } = batch;
  const { written, segOffset, segLen, segCapacity } = batch;
  let slot = q.nextAvail;
  let wrap = q.availWrap;
  let want = wrap === 1 ? AVAIL_BIT : USED_BIT;
  let range = q.lastRange;
  let start = q.mapStart[range];
  let end = q.mapEnd[range];
  let delta = q.mapDelta[range];
  let segs = batch.segments;
  let n = row;
  let stop = 0;
  for (const stopRow = row + run; n < stopRow; n++) {
    const at = slot << 2;
    const word = desc[at + 3];
    if ((word & STATE) !== want) break; // taken back: only a hostile driver does that
    const id = word & 0xffff;
    const len = desc[at + 2];
    const address = (desc[at] >>> 0) + desc[at + 1] * 4294967296;
    let used = 1; // slots of this chain
    if (
      (word & SLOW) !== 0 ||
      len <= 0 ||
      segs >= segCapacity ||
      !(address >= start && address + len <= end)
    ) {
      // Everything but `word` is read again there, judged there, and kept from there.
      batch.segments = segs;
      stop = takeChain(q, batch, n, slot, word);
      if (stop !== 0) break;
      segs = batch.segments;
      used = slots[n];
      range = q.lastRange;
      start = q.mapStart[range];
      end = q.mapEnd[range];
      delta = q.mapDelta[range];
    } else {
      if (id >= size) {
        stop = FAULT_BUFFER_ID;
        break;
      }
      const write = (word >> 17) & 1;
      heads[n] = id;
      slots[n] = 1;
      segFirst[n] = segs;
      readSegs[n] = 1 - write;
      writeSegs[n] = write;
      readBytes[n] = write === 0 ? len : 0;
      writeBytes[n] = write === 0 ? 0 : len;
      written[n] = 0;
      segOffset[segs] = address + delta;
      segLen[segs] = len;
      segs++;
    }
    slot += used;
    if (slot >= size) {
      slot -= size;
      wrap ^= 1;
      want ^= STATE;
    }
  }
  batch.segments = segs;
  batch.count = n;
  q.nextAvail = slot;
  q.availWrap = wrap;
  return stop;
}

/** One chain of any shape into row `row`. Returns 0, NO_ROOM or a fault. */
function takeChain(
  q: DeviceQueue,
  batch: ChainBatch,
  row: number,
  slot: number,
  headWord: number, // our copy of the head's last word
): number {
  startChain(batch, row);
  const { desc, size } = q;
  const limit = size < MAX_CHAIN ? size : MAX_CHAIN;
  let at = slot;
  let word = headWord;
  if ((word & INDIRECT) !== 0) {
    if (q.indirect === 0) return FAULT_INDIRECT_FEATURE;
    // 2.8.19.1: unlike in a split ring, a table never continues or follows a list.
    if ((word & NEXT) !== 0) return FAULT_INDIRECT_NEXT;
    const id = word & 0xffff;
    if (id >= size) return FAULT_BUFFER_ID;
    batch.head[row] = id;
    const entries = findTable(q, desc[at << 2], desc[(at << 2) + 1], desc[(at << 2) + 2]);
    return entries < 0 ? entries : takeTable(q, batch, row, entries);
  }
  let writeSeen = 0;
  for (let n = 1; ; n++) {
    const write = (word & WRITE) >> 17;
    if (write < writeSeen) return FAULT_DESC_ORDER;
    writeSeen = write;
    const words = at << 2;
    const result = addBuffer(q, batch, row, desc[words], desc[words + 1], desc[words + 2], write);
    if (result !== 0) return result;
    if ((word & NEXT) === 0) {
      const id = word & 0xffff; // 2.8.6: the id is that of the last descriptor
      if (id >= size) return FAULT_BUFFER_ID;
      batch.head[row] = id;
      batch.slots[row] = n;
      return 0;
    }
    if (n >= limit) return FAULT_CHAIN_TOO_LONG;
    if (++at === size) at = 0;
    word = desc[(at << 2) + 3];
    if ((word & INDIRECT) !== 0) return FAULT_INDIRECT_NEXT;
  }
}

/** All entries of an indirect table, in order. 2.8.7: flags other than WRITE, and ids, are ignored. */
function takeTable(q: DeviceQueue, batch: ChainBatch, row: number, entries: number): number {
  if (entries > MAX_CHAIN) return FAULT_CHAIN_TOO_LONG;
  const arena = q.arena;
  const table = q.tableAt[0];
  let writeSeen = 0;
  for (let i = 0; i < entries; i++) {
    const at = table + 16 * i;
    const write = (arena.getInt32(at + 12, true) & WRITE) >> 17;
    if (write < writeSeen) return FAULT_DESC_ORDER;
    writeSeen = write;
    const lo = arena.getInt32(at, true);
    const hi = arena.getInt32(at + 4, true);
    const result = addBuffer(q, batch, row, lo, hi, arena.getInt32(at + 8, true), write);
    if (result !== 0) return result;
  }
  return 0;
}

/** `putUsed` of a packed queue: the first descriptor's flags are written last, and ordered. */
export function putUsedPacked(q: DeviceQueue, batch: ChainBatch, first: number, count: number): void {
  const { desc, size } = q;
  const { head, slots, written, writeBytes } = batch;
  const end = first + count;
  let i = first;
  let total = 0; // slots
  if (q.inOrder !== 0) {
    // 2.8.8: one descriptor with the last id stands for all, where every skipped buffer may be
    // taken as used completely. True for what was only read; bytes written need their entry.
    while (i < end && writeBytes[i] === 0) total += slots[i++];
    if (i === end) {
      i = end - 1;
      total -= slots[i];
    } else {
      i = first;
      total = 0;
    }
  }
  const firstAt = (q.nextUsed << 2) + 3;
  let firstWord = 0;
  let slot = q.nextUsed;
  let wrap = q.usedWrap;
  for (let k = i; k < end; k++) {
    const len = written[k];
    const at = slot << 2;
    const word = head[k] | (wrap === 1 ? STATE : 0) | (len > 0 ? WRITE : 0);
    desc[at + 2] = len;
    if (k === i) firstWord = word;
    else desc[at + 3] = word;
    const used = slots[k] + (k === i ? total : 0); // and those that this entry stands for
    q.sinceCall += used;
    slot += used;
    // More than one round only for a driver that makes descriptors available again unused.
    while (slot >= size) {
      slot -= size;
      wrap ^= 1;
    }
  }
  Atomics.store(desc, firstAt, firstWord);
  q.nextUsed = slot;
  q.usedWrap = wrap;
  if (q.sinceCall > 0x10000) q.sinceCall = 0x10000;
  q.counters[USED] += count;
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
  let position = event & 0x7fff;
  if (((event >> 15) & 1) !== q.usedWrap) position -= q.size; // of the round before
  return ((q.nextUsed - position - 1) & 0xffff) < q.sinceCall;
}

export function disableKicksPacked(q: DeviceQueue): void {
  Atomics.store(q.deviceEvent, 0, EVENTS_DISABLE << 16);
}

export function enableKicksPacked(q: DeviceQueue): void {
  if (q.eventIdx === 0) Atomics.store(q.deviceEvent, 0, EVENTS_ENABLE << 16);
  else {
    const position = q.nextAvail | (q.availWrap << 15);
    Atomics.store(q.deviceEvent, 0, position | (EVENTS_DESC << 16));
  }
}
