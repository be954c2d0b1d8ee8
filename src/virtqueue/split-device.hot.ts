/**
 * Device side of split virtqueues. Virtio 1.2, 2.7 "Split Virtqueues".
 *
 * Guest memory is hostile: every word is read once, the copy is judged and the copy is kept. The
 * one ordered read of a batch is that of avail.idx: what the driver wrote before it published the
 * index is visible after it; the one ordered write is that of used.idx.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import { addBuffer, fillRows, findTable, finishRow } from './chain-segments.hot.ts';
import { logBuffers, logEvent, logUsedSplit } from './dirty-log.hot.ts';
import { takeHintedSplit, takeUniformHintedSplit } from './iotlb-take.hot.ts';
import { noteBatchSplit, noteTakenSplit, noteUsedSplit } from './inflight-split.hot.ts';
import { takeTablesSplit } from './table-chains.hot.ts';

const NEXT = 1; //     VIRTQ_DESC_F_NEXT
const WRITE = 2; //    VIRTQ_DESC_F_WRITE
const INDIRECT = 4; // VIRTQ_DESC_F_INDIRECT
const SLOW = NEXT | INDIRECT;
const BOTH = 3; //     DeviceQueue.lastAllowed; its 2 is WRITE

const AVAIL_FLAGS = 0; // u16 index in q.avail
const AVAIL_IDX = 1;
const AVAIL_RING = 2;
const USED_FLAGS = 0; //  u16 index in q.usedCells
const USED_IDX = 1;
const USED_RING = 1; //   i32 index in q.used

const HEAD = 0; // columns of ChainBatch.rows, ROW_STRIDE words apart
const SEG_FIRST = 512;
const READ_SEGS = 768;
const WRITE_SEGS = 1024;
const READ_BYTES = 1280;
const WRITE_BYTES = 1536;
const WRITTEN = 1792;

const UNIFORM_READ = 1; // ChainBatch.uniform

const MAX_CHAIN = 256; // MAX_CHAIN_DESCRIPTORS
const NO_ROOM = 1; //     as in chain-segments.hot.ts
const MISSED = 3;

const MAX_BYTES = 0x7fffffff;
/** Addresses are compared in units of 2^32 bytes, see `takeSimple`. */
const UNIT = 1 / 4294967296;

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
const FAULT_DESC_LENGTH = -12;

/** `takeChains` of a split queue. */
export function takeSplit(q: DeviceQueue, batch: ChainBatch, max: number): number {
  batch.count = 0;
  batch.segments = 0;
  batch.uniform = 0;
  batch.unfilled = 0;
  if (q.fault !== 0) return q.fault;
  q.missed = 0;
  if (q.tracked !== 0) {
    const state = q.inflight;
    state.retaken = state.againAt < state.againCount ? 1 : 0;
    if (state.retaken !== 0) return retakeSplit(q, batch, max);
  }
  const nextAvail = q.nextAvail;
  const pending = (Atomics.load(q.avail, AVAIL_IDX) - nextAvail) & 0xffff;
  if (pending === 0) return 0;
  // More than a ring's worth: idx jumped ahead, or moved back. 2.7.13.3.1.
  if (pending > q.size) return (q.fault = FAULT_AVAIL_IDX);
  let limit = pending < max ? pending : max;
  if (limit > batch.capacity) limit = batch.capacity;
  let n = 0;
  let stop = 0;
  q.visited = 0;
  if (batch.lazy !== 0) {
    n = takeUniform(q, batch, limit);
    if (n < limit && q.iotlb !== 0) n = takeUniformHintedSplit(q, batch, n, limit);
    if (n < limit) {
      if (n > 0) fillRows(batch, n);
      batch.uniform = 0;
    }
  }
  // Descriptors of length zero take no segment but time: they end a batch like segments do.
  while (n < limit && q.visited <= batch.segCapacity) {
    if (q.iotlb === 0) n = takeSimple(q, batch, n, limit);
    else n = takeHintedSplit(q, batch, n, limit);
    if (n >= limit) break;
    if (q.iotlb === 0) {
      const simple = n;
      n = takeTablesSplit(q, batch, n, limit);
      if (n > simple) continue;
    }
    const segments = batch.segments;
    const head = q.avail[AVAIL_RING + ((q.nextAvail + n) & (q.size - 1))];
    stop = takeChain(q, batch, n, head);
    if (stop !== 0) {
      batch.segments = segments;
      break;
    }
    n++;
  }
  if (n === 0) {
    if (stop === MISSED) return 0;
    // A chain that does not fit an empty batch never will.
    return (q.fault = stop === NO_ROOM ? FAULT_CHAIN_TOO_LONG : stop);
  }
  // A fault behind good chains: those are handed over, the next call meets it first.
  batch.count = n;
  q.nextAvail = (nextAvail + n) & 0xffff;
  q.counters[TAKEN] += n;
  if (q.tracked !== 0) noteTakenSplit(q, batch, n);
  return n;
}

/**
 * Takes chains that a device before us had taken: their heads are no longer in the avail ring, but
 * their descriptors are the driver's no more than before.
 */
function retakeSplit(q: DeviceQueue, batch: ChainBatch, max: number): number {
  const state = q.inflight;
  const { again, againAt, againCount } = state;
  const left = againCount - againAt;
  let limit = left < max ? left : max;
  if (limit > batch.capacity) limit = batch.capacity;
  let n = 0;
  let stop = 0;
  q.visited = 0;
  while (n < limit && q.visited <= batch.segCapacity) {
    const segments = batch.segments;
    stop = takeChain(q, batch, n, again[againAt + n]);
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

/**
 * Takes chains of one descriptor in the range of memory that was hit last, into the rows from
 * `row` up to `limit`. Returns the row of the first chain that is anything else: `takeChain` reads
 * that again, judges it, and keeps what it read.
 *
 * It calls nothing, so that V8 loads what it needs of each array once and not per access. Addresses
 * are counted in units of 4 GiB, `hi + lo / 2^32`: exact below 2^53 bytes, and out of every range
 * above. With integers V8 speculates that the sum is a safe integer, checks that in ten
 * instructions, and throws the code away for a guest that proves it wrong (9.5 against 7.1 ns).
 */
function takeSimple(q: DeviceQueue, batch: ChainBatch, row: number, limit: number): number {
  const { avail, desc, nextAvail, size } = q;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const mask = size - 1;
  const range = q.lastRange;
  const start = q.mapStart[range] * UNIT;
  const end = q.mapEnd[range] * UNIT;
  const delta = q.mapDelta[range] * UNIT;
  // With an IOTLB the range may be for one direction only: the other takes the slow path.
  const slow = q.lastAllowed === BOTH ? SLOW : SLOW | WRITE;
  const flip = q.lastAllowed === WRITE ? WRITE : 0;
  let segs = batch.segments;
  let n = row;
  for (; n < limit; n++) {
    const head = avail[AVAIL_RING + ((nextAvail + n) & mask)];
    if (head >= size) break;
    const at = head << 2;
    const tail = desc[at + 3]; // flags | next << 16
    const len = desc[at + 2];
    const address = desc[at + 1] + (desc[at] >>> 0) * UNIT;
    if (((tail ^ flip) & slow) !== 0 || len <= 0 || segs >= segCapacity) break;
    if (!(address >= start && address + len * UNIT <= end)) break;
    const write = (tail >> 1) & 1;
    rows[n + HEAD] = head;
    rows[n + SEG_FIRST] = segs;
    rows[n + READ_SEGS] = 1 - write;
    rows[n + WRITE_SEGS] = write;
    rows[n + READ_BYTES] = len & (write - 1);
    rows[n + WRITE_BYTES] = len & -write;
    rows[n + WRITTEN] = 0;
    segOffset[segs] = (address + delta) * 4294967296;
    segLen[segs] = len;
    segs++;
  }
  batch.segments = segs;
  return n;
}

/**
 * As `takeSimple`, from row 0 on, for chains that all have the direction of the first: row by row
 * there is nothing to say of them then but the head (6 against 9 ns).
 */
function takeUniform(q: DeviceQueue, batch: ChainBatch, limit: number): number {
  const { avail, desc, nextAvail, size } = q;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const mask = size - 1;
  const range = q.lastRange;
  const start = q.mapStart[range] * UNIT;
  const end = q.mapEnd[range] * UNIT;
  const delta = q.mapDelta[range] * UNIT;
  const most = limit < segCapacity ? limit : segCapacity;
  let direction = 0;
  let n = 0;
  for (; n < most; n++) {
    const head = avail[AVAIL_RING + ((nextAvail + n) & mask)];
    if (head >= size) break;
    const at = head << 2;
    const tail = desc[at + 3]; // flags | next << 16
    const len = desc[at + 2];
    const address = desc[at + 1] + (desc[at] >>> 0) * UNIT;
    if (n === 0) {
      direction = tail & WRITE;
      if ((q.lastAllowed & (direction === 0 ? 1 : 2)) === 0) break;
    }
    if ((tail & (SLOW | WRITE)) !== direction || len <= 0) break;
    if (!(address >= start && address + len * UNIT <= end)) break;
    rows[n + HEAD] = head;
    rows[n + WRITTEN] = 0;
    segOffset[n] = (address + delta) * 4294967296;
    segLen[n] = len;
  }
  batch.segments = n;
  batch.uniform = direction === 0 ? 1 : 2; // UNIFORM_*
  batch.unfilled = n > 0 ? 1 : 0;
  return n;
}

/**
 * One chain of any shape into row `row`: a list, an indirect table, or a list that ends in one
 * (2.7.5.3.2). Returns 0, NO_ROOM, MISSED or a fault.
 */
function takeChain(q: DeviceQueue, batch: ChainBatch, row: number, head: number): number {
  const { arena, size } = q;
  const firstSeg = batch.segments;
  if (head >= size) return FAULT_HEAD;
  let table = q.descAt[0]; // arena offset of the table that we are in
  let entries = size;
  let inTable = 0;
  let visited = 0; //         descriptors seen in this table
  let total = 0; //           buffers seen before this one
  let index = head;
  let writeSeg = -1; //       first writable segment
  let readBytes = 0;
  let bytes = 0; //           of the current direction
  for (;;) {
    const at = table + 16 * index;
    const tail = arena.getInt32(at + 12, true); // flags | next << 16
    const lo = arena.getInt32(at, true);
    const hi = arena.getInt32(at + 4, true);
    const len = arena.getInt32(at + 8, true);
    if ((tail & INDIRECT) !== 0) {
      if (inTable !== 0) return FAULT_INDIRECT_NESTED;
      if (q.indirect === 0) return FAULT_INDIRECT_FEATURE;
      if ((tail & NEXT) !== 0) return FAULT_INDIRECT_NEXT;
      entries = findTable(q, lo, hi, len); // WRITE is ignored here
      if (entries <= 0) return entries === 0 ? MISSED : entries;
      table = q.tableAt[0];
      inTable = 1;
      visited = 0;
      index = 0;
      continue;
    }
    if ((tail & WRITE) !== 0 && writeSeg < 0) {
      writeSeg = batch.segments;
      readBytes = bytes;
      bytes = 0;
    } else if ((tail & WRITE) === 0 && writeSeg >= 0) return FAULT_DESC_ORDER;
    const result = addBuffer(q, batch, lo, hi, len, (tail & WRITE) === 0 ? 1 : 2);
    if (result !== 0) return result;
    bytes += len;
    if (bytes > MAX_BYTES) return FAULT_DESC_LENGTH;
    if ((tail & NEXT) === 0) break;
    // More descriptors than the table has is a loop; in long ones we stop before we can tell.
    if (++visited >= entries) return FAULT_CHAIN_LOOP;
    if (++total >= MAX_CHAIN) return FAULT_CHAIN_TOO_LONG;
    index = tail >>> 16;
    if (index >= entries) return FAULT_DESC_NEXT;
  }
  q.visited += total + 1;
  finishRow(batch, row, head, 1, firstSeg, writeSeg, readBytes, bytes);
  return 0;
}

/** `putUsed` of a split queue. */
export function putUsedSplit(
  q: DeviceQueue,
  batch: ChainBatch,
  first: number,
  count: number,
): void {
  const { used, size } = q;
  const rows = batch.rows;
  const end = first + count;
  const mask = size - 1;
  const nextUsed = q.nextUsed;
  if (q.logged !== 0) logBuffers(q, batch, first, count);
  if (q.tracked !== 0) noteBatchSplit(q, batch, first, count);
  let i = first;
  if (q.inOrder !== 0) {
    // 2.7.9: one entry with the last head stands for all, where every skipped buffer may be
    // taken as used completely. True for what was only read; bytes written need their entry.
    if (batch.uniform !== 0) i = batch.uniform === UNIFORM_READ ? end - 1 : first;
    else {
      while (i < end && rows[i + WRITE_BYTES] === 0) i++;
      if (i === end) i = end - 1;
      else i = first;
    }
  }
  let at = nextUsed;
  for (; i < end; i++) {
    const entry = USED_RING + ((at & mask) << 1);
    used[entry] = rows[i + HEAD];
    used[entry + 1] = rows[i + WRITTEN];
    at++;
  }
  const nowUsed = (nextUsed + count) & 0xffff;
  // x86 performs stores in program order (and V8 keeps that order); `orderUsed` does the rest. With
  // a log this store is its fence: a page whose bit is set may be copied before we are seen.
  if ((q.weakOrder | q.logged) === 0) q.usedCells[USED_IDX] = nowUsed;
  else Atomics.store(q.usedCells, USED_IDX, nowUsed);
  q.nextUsed = nowUsed;
  q.sinceCall = q.sinceCall + count > 0xffff ? 0x10000 : q.sinceCall + count;
  q.counters[USED] += count;
  if (q.tracked !== 0) noteUsedSplit(q, batch, first, count);
  if (q.logged !== 0) logUsedSplit(q, nextUsed, count);
}

/** `untakeChains` of a split queue. */
export function untakeSplit(q: DeviceQueue, batch: ChainBatch, from: number): void {
  q.nextAvail = (q.nextAvail - (batch.count - from)) & 0xffff;
}

export function hasAvailableSplit(q: DeviceQueue): boolean {
  if (q.tracked !== 0 && q.inflight.againAt < q.inflight.againCount) return true;
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
  if (q.eventIdx !== 0) return;
  Atomics.store(q.usedCells, USED_FLAGS, 1); // NO_NOTIFY
  if (q.logged !== 0) logEvent(q, 0, 2);
}

export function enableKicksSplit(q: DeviceQueue): void {
  if (q.eventIdx === 0) {
    Atomics.store(q.usedCells, USED_FLAGS, 0);
    if (q.logged !== 0) logEvent(q, 0, 2);
  } else {
    Atomics.store(q.usedCells, 2 + 4 * q.size, q.nextAvail); // avail_event
    if (q.logged !== 0) logEvent(q, 4 + 8 * q.size, 2);
  }
}
