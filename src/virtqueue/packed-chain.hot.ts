/**
 * Chains of packed virtqueues that are more than one descriptor: lists, indirect tables, and both
 * from the copy that an inflight region keeps. Virtio 1.2, 2.8.6 and 2.8.7.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import { addBuffer, findTable, finishRow } from './chain-segments.hot.ts';

// Last word of a descriptor: id | flags << 16.
const NEXT = 1 << 16;
const WRITE = 1 << 17;
const INDIRECT = 1 << 18;
const AVAIL_BIT = 1 << 23;
const USED_BIT = 1 << 31;
const STATE = AVAIL_BIT | USED_BIT;

const MAX_BYTES = 0x7fffffff;
const MAX_CHAIN = 256; // MAX_CHAIN_DESCRIPTORS
const DRAINED = 2; //     the next descriptor is not available
const MISSED = 3; //      as in chain-segments.hot.ts

const FAULT_CHAIN_TOO_LONG = -5; // as in faults.ts; device-queue.test.ts holds them equal
const FAULT_INDIRECT_NEXT = -9;
const FAULT_INDIRECT_FEATURE = -10;
const FAULT_DESC_ORDER = -11;
const FAULT_DESC_LENGTH = -12;
const FAULT_BUFFER_ID = -13;

const DESC = 32; //         QueueRegionPacked, as in wire/inflight.ts
const ENTRY = 32;
const ID_AND_FLAGS = 16; // DescStatePacked: the last word of the ring's descriptor
const LEN = 20;
const ADDR = 24;

/**
 * One chain of any shape into row `row`: a list, or one indirect table. Returns 0, NO_ROOM,
 * DRAINED, MISSED or a fault.
 */
export function takeChain(q: DeviceQueue, batch: ChainBatch, row: number): number {
  const { arena, size } = q;
  const firstSeg = batch.segments;
  const ring = q.descAt[0];
  const limit = size < MAX_CHAIN ? size : MAX_CHAIN;
  let visited = 0; //         buffers of this chain
  let index = q.nextAvail;
  let word = arena.getInt32(ring + 16 * index + 12, true);
  if ((word & STATE) !== (q.availWrap === 1 ? AVAIL_BIT : USED_BIT)) return DRAINED;
  let writeSeg = -1; //       first writable segment
  let readBytes = 0;
  let bytes = 0; //           of the current direction
  for (;;) {
    const at = ring + 16 * index;
    const lo = arena.getInt32(at, true);
    const hi = arena.getInt32(at + 4, true);
    const len = arena.getInt32(at + 8, true);
    if ((word & INDIRECT) !== 0) {
      // 2.8.19: unlike in a split ring, a table never continues or follows a list.
      if (q.indirect !== 0 && ((word & NEXT) !== 0 || visited !== 0)) return FAULT_INDIRECT_NEXT;
      return takeTable(q, batch, row, lo, hi, len, word & 0xffff);
    }
    if ((word & WRITE) !== 0 && writeSeg < 0) {
      writeSeg = batch.segments;
      readBytes = bytes;
      bytes = 0;
    } else if ((word & WRITE) === 0 && writeSeg >= 0) return FAULT_DESC_ORDER;
    const result = addBuffer(q, batch, lo, hi, len, (word & WRITE) === 0 ? 1 : 2);
    if (result !== 0) return result;
    bytes += len;
    if (bytes > MAX_BYTES) return FAULT_DESC_LENGTH;
    visited++;
    if ((word & NEXT) === 0) break;
    if (visited >= limit) return FAULT_CHAIN_TOO_LONG;
    if (++index === size) index = 0;
    word = arena.getInt32(ring + 16 * index + 12, true);
  }
  // 2.8.6: the id is that of the last descriptor.
  const id = word & 0xffff;
  if (id >= size) return FAULT_BUFFER_ID;
  q.visited += visited;
  finishRow(batch, row, id, visited, firstSeg, writeSeg, readBytes, bytes);
  return 0;
}

/** A chain that is an indirect table; its id stands in the ring. */
function takeTable(
  q: DeviceQueue,
  batch: ChainBatch,
  row: number,
  tableLo: number,
  tableHi: number,
  tableLen: number,
  id: number,
): number {
  if (q.indirect === 0) return FAULT_INDIRECT_FEATURE;
  const entries = findTable(q, tableLo, tableHi, tableLen);
  if (entries <= 0) return entries === 0 ? MISSED : entries;
  if (entries > MAX_CHAIN) return FAULT_CHAIN_TOO_LONG;
  const arena = q.arena;
  const table = q.tableAt[0];
  const firstSeg = batch.segments;
  let writeSeg = -1;
  let readBytes = 0;
  let bytes = 0;
  for (let index = 0; index < entries; index++) {
    const at = table + 16 * index;
    // 2.8.7: WRITE is all that counts of the flags inside a table.
    const word = arena.getInt32(at + 12, true);
    const lo = arena.getInt32(at, true);
    const hi = arena.getInt32(at + 4, true);
    const len = arena.getInt32(at + 8, true);
    if ((word & WRITE) !== 0 && writeSeg < 0) {
      writeSeg = batch.segments;
      readBytes = bytes;
      bytes = 0;
    } else if ((word & WRITE) === 0 && writeSeg >= 0) return FAULT_DESC_ORDER;
    const result = addBuffer(q, batch, lo, hi, len, (word & WRITE) === 0 ? 1 : 2);
    if (result !== 0) return result;
    bytes += len;
    if (bytes > MAX_BYTES) return FAULT_DESC_LENGTH;
  }
  if (id >= q.size) return FAULT_BUFFER_ID;
  q.visited += entries;
  finishRow(batch, row, id, 1, firstSeg, writeSeg, readBytes, bytes);
  return 0;
}

/**
 * A chain that a device before us had taken, the one at `place` of `again`, from its copy in the
 * inflight region: the ring may hold used descriptors where it was. Returns what `takeChain` does.
 */
export function retakeChain(q: DeviceQueue, batch: ChainBatch, row: number, place: number): number {
  const { view, nextFree, again, againId, againSlots } = q.inflight;
  const firstSeg = batch.segments;
  // Judged when the region was read; the region may say something else by now.
  const first = again[place];
  const id = againId[place];
  const num = againSlots[place];
  let entry = first;
  let word = 0;
  let writeSeg = -1;
  let readBytes = 0;
  let bytes = 0;
  for (let visited = 0; visited < num; visited++) {
    const at = DESC + ENTRY * entry;
    word = view.getInt32(at + ID_AND_FLAGS, true);
    const lo = view.getInt32(at + ADDR, true);
    const hi = view.getInt32(at + ADDR + 4, true);
    const len = view.getInt32(at + LEN, true);
    if ((word & INDIRECT) !== 0) {
      if (num !== 1) return FAULT_INDIRECT_NEXT;
      return takeTable(q, batch, row, lo, hi, len, id);
    }
    if ((word & WRITE) !== 0 && writeSeg < 0) {
      writeSeg = batch.segments;
      readBytes = bytes;
      bytes = 0;
    } else if ((word & WRITE) === 0 && writeSeg >= 0) return FAULT_DESC_ORDER;
    const result = addBuffer(q, batch, lo, hi, len, (word & WRITE) === 0 ? 1 : 2);
    if (result !== 0) return result;
    bytes += len;
    if (bytes > MAX_BYTES) return FAULT_DESC_LENGTH;
    entry = nextFree[entry];
    if (entry >= nextFree.length) entry = first; // the end of the list: not looked at any more
  }
  q.visited += num;
  finishRow(batch, row, id, num, firstSeg, writeSeg, readBytes, bytes);
  return 0;
}
