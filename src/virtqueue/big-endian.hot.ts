/**
 * Device side of split virtqueues of the other byte order: a legacy driver (no VERSION_1) of a
 * big-endian guest, which the front-end tells of by SET_VRING_ENDIAN. Virtio 1.2, 2.7.1 "Driver
 * Requirements: Virtqueues" of legacy interfaces: guest-native numbers.
 *
 * A path of its own, so that the others have no test of it in their loops. It works word by word
 * and is not tuned: such guests are rare. A device must know that its own headers are big-endian,
 * too, and opts in by the protocol feature CROSS_ENDIAN.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import { addBuffer, findTable, finishRow } from './chain-segments.hot.ts';
import { logBuffers, logEvent, logUsedSplit } from './dirty-log.hot.ts';
import { noteBatchSplit, noteTakenSplit, noteUsedSplit } from './inflight-split.hot.ts';

const NEXT = 1; //     VIRTQ_DESC_F_NEXT
const WRITE = 2; //    VIRTQ_DESC_F_WRITE
const INDIRECT = 4; // VIRTQ_DESC_F_INDIRECT

const AVAIL_FLAGS = 0; // u16 index in q.avail
const AVAIL_IDX = 1;
const AVAIL_RING = 2;
const USED_FLAGS = 0; //  u16 index in q.usedCells
const USED_IDX = 1;
const USED_RING = 1; //   i32 index in q.used

const HEAD = 0; // columns of ChainBatch.rows, ROW_STRIDE words apart
const WRITTEN = 1792;

const MAX_CHAIN = 256; // MAX_CHAIN_DESCRIPTORS
const NO_ROOM = 1; //     as in chain-segments.hot.ts
const MISSED = 3;
const MAX_BYTES = 0x7fffffff;

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

/** `takeChains`. */
export function takeBigEndian(q: DeviceQueue, batch: ChainBatch, max: number): number {
  batch.count = 0;
  batch.segments = 0;
  batch.uniform = 0;
  batch.unfilled = 0;
  if (q.fault !== 0) return q.fault;
  q.missed = 0;
  const state = q.inflight;
  state.retaken = state.againAt < state.againCount ? 1 : 0;
  let pending = state.againCount - state.againAt;
  if (state.retaken === 0) {
    pending = (swap16(Atomics.load(q.avail, AVAIL_IDX)) - q.nextAvail) & 0xffff;
    if (pending > q.size) return (q.fault = FAULT_AVAIL_IDX);
  }
  if (pending === 0) return 0;
  let limit = pending < max ? pending : max;
  if (limit > batch.capacity) limit = batch.capacity;
  let n = 0;
  let stop = 0;
  q.visited = 0;
  while (n < limit && q.visited <= batch.segCapacity) {
    const segments = batch.segments;
    const at = AVAIL_RING + ((q.nextAvail + n) & (q.size - 1));
    const head = state.retaken === 0 ? swap16(q.avail[at]) : state.again[state.againAt + n];
    stop = takeChain(q, batch, n, head);
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
  q.counters[TAKEN] += n;
  if (state.retaken !== 0) {
    state.againAt += n;
    return n;
  }
  q.nextAvail = (q.nextAvail + n) & 0xffff;
  if (q.tracked !== 0) noteTakenSplit(q, batch, n);
  return n;
}

/** One chain of any shape into row `row`, as its sister in split-device.hot.ts. */
function takeChain(q: DeviceQueue, batch: ChainBatch, row: number, head: number): number {
  const { arena, size } = q;
  const firstSeg = batch.segments;
  if (head >= size) return FAULT_HEAD;
  let table = q.descAt[0];
  let entries = size;
  let inTable = 0;
  let visited = 0;
  let total = 0;
  let index = head;
  let writeSeg = -1;
  let readBytes = 0;
  let bytes = 0;
  for (;;) {
    const at = table + 16 * index;
    const hi = arena.getInt32(at, false);
    const lo = arena.getInt32(at + 4, false);
    const len = arena.getInt32(at + 8, false);
    const tail = arena.getInt32(at + 12, false); // flags << 16 | next
    const flags = tail >>> 16;
    if ((flags & INDIRECT) !== 0) {
      if (inTable !== 0) return FAULT_INDIRECT_NESTED;
      if (q.indirect === 0) return FAULT_INDIRECT_FEATURE;
      if ((flags & NEXT) !== 0) return FAULT_INDIRECT_NEXT;
      entries = findTable(q, lo, hi, len);
      if (entries <= 0) return entries === 0 ? MISSED : entries;
      table = q.tableAt[0];
      inTable = 1;
      visited = 0;
      index = 0;
      continue;
    }
    if ((flags & WRITE) !== 0 && writeSeg < 0) {
      writeSeg = batch.segments;
      readBytes = bytes;
      bytes = 0;
    } else if ((flags & WRITE) === 0 && writeSeg >= 0) return FAULT_DESC_ORDER;
    const result = addBuffer(q, batch, lo, hi, len, (flags & WRITE) === 0 ? 1 : 2);
    if (result !== 0) return result;
    bytes += len;
    if (bytes > MAX_BYTES) return FAULT_DESC_LENGTH;
    if ((flags & NEXT) === 0) break;
    if (++visited >= entries) return FAULT_CHAIN_LOOP;
    if (++total >= MAX_CHAIN) return FAULT_CHAIN_TOO_LONG;
    index = tail & 0xffff;
    if (index >= entries) return FAULT_DESC_NEXT;
  }
  q.visited += total + 1;
  finishRow(batch, row, head, 1, firstSeg, writeSeg, readBytes, bytes);
  return 0;
}

/** `putUsed`. A legacy driver knows no IN_ORDER: every chain has its entry. */
export function putUsedBigEndian(
  q: DeviceQueue,
  batch: ChainBatch,
  first: number,
  count: number,
): void {
  const { used, size } = q;
  const rows = batch.rows;
  const nextUsed = q.nextUsed;
  if (q.logged !== 0) logBuffers(q, batch, first, count);
  if (q.tracked !== 0) noteBatchSplit(q, batch, first, count);
  for (let i = 0; i < count; i++) {
    const entry = USED_RING + (((nextUsed + i) & (size - 1)) << 1);
    used[entry] = swap32(rows[first + i + HEAD]);
    used[entry + 1] = swap32(rows[first + i + WRITTEN]);
  }
  const nowUsed = (nextUsed + count) & 0xffff;
  Atomics.store(q.usedCells, USED_IDX, swap16(nowUsed));
  q.nextUsed = nowUsed;
  q.sinceCall = q.sinceCall + count > 0xffff ? 0x10000 : q.sinceCall + count;
  q.counters[USED] += count;
  if (q.tracked !== 0) noteUsedSplit(q, batch, first, count);
  if (q.logged !== 0) logUsedSplit(q, nextUsed, count);
}

export function hasAvailableBigEndian(q: DeviceQueue): boolean {
  if (q.inflight.againAt < q.inflight.againCount) return true;
  return swap16(Atomics.load(q.avail, AVAIL_IDX)) !== q.nextAvail;
}

export function wantsCallBigEndian(q: DeviceQueue): boolean {
  if (q.eventIdx === 0) return (swap16(Atomics.load(q.avail, AVAIL_FLAGS)) & 1) === 0;
  const event = swap16(Atomics.load(q.avail, AVAIL_RING + q.size)); // used_event
  return ((q.nextUsed - event - 1) & 0xffff) < q.sinceCall;
}

export function disableKicksBigEndian(q: DeviceQueue): void {
  if (q.eventIdx !== 0) return;
  Atomics.store(q.usedCells, USED_FLAGS, swap16(1)); // NO_NOTIFY
  if (q.logged !== 0) logEvent(q, 0, 2);
}

export function enableKicksBigEndian(q: DeviceQueue): void {
  if (q.eventIdx === 0) {
    Atomics.store(q.usedCells, USED_FLAGS, 0);
    if (q.logged !== 0) logEvent(q, 0, 2);
  } else {
    Atomics.store(q.usedCells, 2 + 4 * q.size, swap16(q.nextAvail)); // avail_event
    if (q.logged !== 0) logEvent(q, 4 + 8 * q.size, 2);
  }
}

function swap16(value: number): number {
  return ((value & 0xff) << 8) | (value >> 8);
}

function swap32(value: number): number {
  return (swap16(value & 0xffff) << 16) | swap16(value >>> 16);
}
