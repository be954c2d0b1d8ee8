/**
 * Device side of split virtqueues. Virtio 1.2, 2.7 "Split Virtqueues".
 *
 * Guest memory is hostile: every word is read once, the copy is judged and the copy is kept. The
 * one ordered read of a batch is that of avail.idx: what the driver wrote before it published the
 * index is visible after it; the one ordered write is that of used.idx.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import { addBuffer, findTable, startChain } from './chain-segments.hot.ts';

const NEXT = 1; //     VIRTQ_DESC_F_NEXT
const WRITE = 2; //    VIRTQ_DESC_F_WRITE
const INDIRECT = 4; // VIRTQ_DESC_F_INDIRECT
const SLOW = NEXT | INDIRECT;

const AVAIL_FLAGS = 0; // u16 index in q.avail
const AVAIL_IDX = 1;
const AVAIL_RING = 2;
const USED_FLAGS = 0; //  u16 index in q.usedCells
const USED_IDX = 1;
const USED_RING = 1; //   i32 index in q.used

const MAX_CHAIN = 256; // MAX_CHAIN_DESCRIPTORS
const NO_ROOM = 1; //     as in chain-segments.hot.ts

const TAKEN = 0; // COUNTER_TAKEN
const USED = 1; //  COUNTER_USED

const FAULT_AVAIL_IDX = -1; // as in faults.ts; device-queue.test.ts holds them equal
const FAULT_HEAD = -2;
const FAULT_DESC_NEXT = -4;
const FAULT_CHAIN_TOO_LONG = -5;
const FAULT_CHAIN_LOOP = -6;
const FAULT_INDIRECT_NESTED = -7;
const FAULT_INDIRECT_NEXT = -9;
const FAULT_INDIRECT_FEATURE = -10;
const FAULT_DESC_ORDER = -11;

/** `takeChains` of a split queue. */
export function takeSplit(q: DeviceQueue, batch: ChainBatch, max: number): number {
  batch.count = 0;
  batch.segments = 0;
  if (q.fault !== 0) return q.fault;
  const { avail, desc, nextAvail, size } = q;
  const pending = (Atomics.load(avail, AVAIL_IDX) - nextAvail) & 0xffff;
  if (pending === 0) return 0;
  // More than a ring's worth: idx jumped ahead, or moved back. 2.7.13.3.1.
  if (pending > size) return (q.fault = FAULT_AVAIL_IDX);

  let limit = pending < max ? pending : max;
  if (limit > batch.capacity) limit = batch.capacity;
  const { head: heads, slots, segFirst, readSegs, writeSegs, readBytes, writeBytes } = batch;
  const { written, segOffset, segLen, segCapacity } = batch;
  const mask = size - 1;
  let range = q.lastRange;
  let start = q.mapStart[range];
  let end = q.mapEnd[range];
  let delta = q.mapDelta[range];
  let segs = 0;
  let n = 0;
  let stop = 0;
  for (; n < limit; n++) {
    const head = avail[AVAIL_RING + ((nextAvail + n) & mask)];
    if (head >= size) {
      stop = FAULT_HEAD;
      break;
    }
    const at = head << 2;
    const tail = desc[at + 3]; // flags | next << 16
    const len = desc[at + 2];
    const address = (desc[at] >>> 0) + desc[at + 1] * 4294967296;
    heads[n] = head;
    if (
      (tail & SLOW) !== 0 ||
      len <= 0 ||
      segs >= segCapacity ||
      !(address >= start && address + len <= end)
    ) {
      // Everything but `tail` is read again there, judged there, and kept from there.
      batch.segments = segs;
      stop = takeChain(q, batch, n, head, tail);
      if (stop !== 0) break;
      segs = batch.segments;
      range = q.lastRange;
      start = q.mapStart[range];
      end = q.mapEnd[range];
      delta = q.mapDelta[range];
      continue;
    }
    const write = (tail >> 1) & 1;
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
  batch.segments = segs;
  if (n === 0) {
    // A chain that does not fit an empty batch never will.
    return (q.fault = stop === NO_ROOM ? FAULT_CHAIN_TOO_LONG : stop);
  }
  // A fault behind good chains: those are handed over, the next call meets it first.
  batch.count = n;
  q.nextAvail = (nextAvail + n) & 0xffff;
  q.counters[TAKEN] += n;
  return n;
}

/** One chain of any shape into row `row`. Returns 0, NO_ROOM or a fault. */
function takeChain(
  q: DeviceQueue,
  batch: ChainBatch,
  row: number,
  head: number,
  headTail: number, // our copy of the head's last word
): number {
  startChain(batch, row);
  const { desc, size } = q;
  const limit = size < MAX_CHAIN ? size : MAX_CHAIN;
  let at = head << 2;
  let tail = headTail;
  let writeSeen = 0;
  for (let n = 1; ; n++) {
    if ((tail & INDIRECT) !== 0) {
      if (q.indirect === 0) return FAULT_INDIRECT_FEATURE;
      if ((tail & NEXT) !== 0) return FAULT_INDIRECT_NEXT;
      // 2.7.5.3.2: plain descriptors may come first, and WRITE is ignored here.
      const entries = findTable(q, desc[at], desc[at + 1], desc[at + 2]);
      if (entries < 0) return entries;
      return takeTable(q, batch, row, entries, MAX_CHAIN - (n - 1), writeSeen);
    }
    const write = (tail & WRITE) >> 1;
    if (write < writeSeen) return FAULT_DESC_ORDER;
    writeSeen = write;
    const result = addBuffer(q, batch, row, desc[at], desc[at + 1], desc[at + 2], write);
    if (result !== 0) return result;
    if ((tail & NEXT) === 0) return 0;
    // More descriptors than exist is a loop; for longer rings we stop before we can tell.
    if (n >= limit) return n >= size ? FAULT_CHAIN_LOOP : FAULT_CHAIN_TOO_LONG;
    const next = tail >>> 16;
    if (next >= size) return FAULT_DESC_NEXT;
    at = next << 2;
    tail = desc[at + 3];
  }
}

/** The chain inside an indirect table, which starts at its entry 0. */
function takeTable(
  q: DeviceQueue,
  batch: ChainBatch,
  row: number,
  entries: number,
  budget: number, // descriptors that this chain may still have
  writeSeenBefore: number,
): number {
  const arena = q.arena;
  const table = q.tableAt[0];
  let writeSeen = writeSeenBefore;
  let index = 0;
  for (let n = 1; ; n++) {
    if (n > budget) return FAULT_CHAIN_TOO_LONG;
    const at = table + 16 * index;
    const tail = arena.getInt32(at + 12, true);
    if ((tail & INDIRECT) !== 0) return FAULT_INDIRECT_NESTED;
    const write = (tail & WRITE) >> 1;
    if (write < writeSeen) return FAULT_DESC_ORDER;
    writeSeen = write;
    const lo = arena.getInt32(at, true);
    const hi = arena.getInt32(at + 4, true);
    const result = addBuffer(q, batch, row, lo, hi, arena.getInt32(at + 8, true), write);
    if (result !== 0) return result;
    if ((tail & NEXT) === 0) return 0;
    if (n >= entries) return FAULT_CHAIN_LOOP;
    index = tail >>> 16;
    if (index >= entries) return FAULT_DESC_NEXT;
  }
}

/** `putUsed` of a split queue. */
export function putUsedSplit(q: DeviceQueue, batch: ChainBatch, first: number, count: number): void {
  const { used, size } = q;
  const { head, written, writeBytes } = batch;
  const end = first + count;
  const mask = size - 1;
  const nextUsed = q.nextUsed;
  let i = first;
  if (q.inOrder !== 0) {
    // 2.7.9: one entry with the last head stands for all, where every skipped buffer may be
    // taken as used completely. True for what was only read; bytes written need their entry.
    while (i < end && writeBytes[i] === 0) i++;
    if (i === end) i = end - 1;
    else i = first;
  }
  let at = nextUsed;
  for (; i < end; i++) {
    const entry = USED_RING + ((at & mask) << 1);
    used[entry] = head[i];
    used[entry + 1] = written[i];
    at++;
  }
  const nowUsed = (nextUsed + count) & 0xffff;
  Atomics.store(q.usedCells, USED_IDX, nowUsed);
  q.nextUsed = nowUsed;
  q.sinceCall = q.sinceCall + count > 0xffff ? 0x10000 : q.sinceCall + count;
  q.counters[USED] += count;
}

/** `untakeChains` of a split queue. */
export function untakeSplit(q: DeviceQueue, batch: ChainBatch, from: number): void {
  q.nextAvail = (q.nextAvail - (batch.count - from)) & 0xffff;
}

export function hasAvailableSplit(q: DeviceQueue): boolean {
  return Atomics.load(q.avail, AVAIL_IDX) !== q.nextAvail;
}

/** Does the driver want a call for the `q.sinceCall` entries before `q.nextUsed`? 2.7.7. */
export function wantsCallSplit(q: DeviceQueue): boolean {
  if (q.eventIdx === 0) return (Atomics.load(q.avail, AVAIL_FLAGS) & 1) === 0; // NO_INTERRUPT
  const event = Atomics.load(q.avail, AVAIL_RING + q.size); // used_event
  // 2.7.7.1, vring_need_event: has used.idx moved past the event within these entries?
  return ((q.nextUsed - event - 1) & 0xffff) < q.sinceCall;
}

export function disableKicksSplit(q: DeviceQueue): void {
  // 2.7.10.2: with EVENT_IDX flags stay 0, and avail_event, left behind, keeps the driver silent
  // but for one kick in 65536 entries.
  if (q.eventIdx === 0) Atomics.store(q.usedCells, USED_FLAGS, 1); // NO_NOTIFY
}

export function enableKicksSplit(q: DeviceQueue): void {
  if (q.eventIdx === 0) Atomics.store(q.usedCells, USED_FLAGS, 0);
  else Atomics.store(q.usedCells, 2 + 4 * q.size, q.nextAvail); // avail_event
}
