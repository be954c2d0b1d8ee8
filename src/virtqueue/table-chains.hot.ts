/**
 * Chains that are an indirect table each, as Linux makes them for every request of a disk: all of
 * table and buffers in the range of memory that was hit last. Virtio 1.2, 2.7.5.3 and 2.8.7.
 *
 * As `takeSimple`, these loops call nothing and judge nothing: the first chain that is anything
 * else is left to `takeChain`, which reads it again and keeps what it read.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';

const BOTH = 3; // DeviceQueue.lastAllowed
const AVAIL_RING = 2;

/** Larger tables and buffers take the slow path; the bytes of a chain stay below 2^31. */
const MAX_ENTRIES = 128;
const MAX_BUFFER = 0xff_ffff;

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

const NEXT = 1; //     VIRTQ_DESC_F_*
const WRITE = 2;
const INDIRECT = 4;

const PACKED_NEXT = 1 << 16; // the last word of a packed descriptor: id | flags << 16
const PACKED_INDIRECT = 1 << 18;
const AVAIL_BIT = 1 << 23;
const USED_BIT = 1 << 31;
const STATE = AVAIL_BIT | USED_BIT;

/** Into the rows from `row` up to `limit`. Returns the row of the first chain that is not one. */
export function takeTablesSplit(
  q: DeviceQueue,
  batch: ChainBatch,
  row: number,
  limit: number,
): number {
  if (q.indirect === 0 || q.lastAllowed !== BOTH) return row;
  const { avail, desc, nextAvail, size, arena } = q;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const mask = size - 1;
  const range = q.lastRange;
  const start = q.mapStart[range] * UNIT;
  const end = q.mapEnd[range] * UNIT;
  const delta = q.mapDelta[range] * UNIT;
  let segs = batch.segments;
  let n = row;
  for (; n < limit; n++) {
    const head = avail[AVAIL_RING + ((nextAvail + n) & mask)];
    if (head >= size) break;
    const slot = head << 2;
    if ((desc[slot + 3] & (NEXT | INDIRECT)) !== INDIRECT) break;
    const tableLen = desc[slot + 2];
    const table = desc[slot + 1] + (desc[slot] >>> 0) * UNIT;
    const entries = tableLen >> 4;
    if ((tableLen & 15) !== 0 || entries <= 0 || entries > MAX_ENTRIES) break;
    if (!(table >= start && table + tableLen * UNIT <= end) || segs + entries > segCapacity) break;
    let at = (table + delta) * 4294967296;
    let readBytes = 0;
    let writeBytes = 0;
    let writeSegs = 0;
    let i = 0;
    for (; i < entries; i++) {
      const tail = arena.getInt32(at + 12, true); // flags | next << 16
      const len = arena.getInt32(at + 8, true);
      const address = arena.getInt32(at + 4, true) + arena.getUint32(at, true) * UNIT;
      const write = (tail >> 1) & 1;
      if (i + 1 < entries) {
        if ((tail & ~WRITE) !== (NEXT | ((i + 1) << 16))) break;
      } else if ((tail & (NEXT | INDIRECT)) !== 0) break;
      if (len <= 0 || len > MAX_BUFFER || (writeSegs !== 0 && write === 0)) break;
      if (!(address >= start && address + len * UNIT <= end)) break;
      segOffset[segs + i] = (address + delta) * 4294967296;
      segLen[segs + i] = len;
      readBytes += len & (write - 1);
      writeBytes += len & -write;
      writeSegs += write;
      at += 16;
    }
    if (i < entries) break;
    rows[n + HEAD] = head;
    rows[n + SLOTS] = 1;
    rows[n + SEG_FIRST] = segs;
    rows[n + READ_SEGS] = entries - writeSegs;
    rows[n + WRITE_SEGS] = writeSegs;
    rows[n + READ_BYTES] = readBytes;
    rows[n + WRITE_BYTES] = writeBytes;
    rows[n + WRITTEN] = 0;
    segs += entries;
  }
  q.visited += segs - batch.segments;
  batch.segments = segs;
  return n;
}

/**
 * From the next `most` slots, until `batch` has `limit`; moves `nextAvail`. Returns how many.
 */
export function takeTablesPacked(
  q: DeviceQueue,
  batch: ChainBatch,
  limit: number,
  most: number,
): number {
  if (q.indirect === 0 || q.lastAllowed !== BOTH) return 0;
  const { desc, size, arena } = q;
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
  let segs = batch.segments;
  let n = first;
  for (; n < stopRow; n++) {
    const word = desc[(slot << 2) + 3]; // before the other words, see packed-device.hot.ts
    if ((word & STATE) !== want) break;
    if ((word & (PACKED_NEXT | PACKED_INDIRECT)) !== PACKED_INDIRECT) break;
    const id = word & 0xffff;
    const tableLen = desc[(slot << 2) + 2];
    const table = desc[(slot << 2) + 1] + (desc[slot << 2] >>> 0) * UNIT;
    const entries = tableLen >> 4;
    if ((tableLen & 15) !== 0 || entries <= 0 || entries > MAX_ENTRIES || id >= size) break;
    if (!(table >= start && table + tableLen * UNIT <= end) || segs + entries > segCapacity) break;
    let at = (table + delta) * 4294967296;
    let readBytes = 0;
    let writeBytes = 0;
    let writeSegs = 0;
    let i = 0;
    for (; i < entries; i++) {
      // 2.8.7: WRITE is all that counts of the flags inside a table.
      const write = (arena.getInt32(at + 12, true) >> 17) & 1;
      const len = arena.getInt32(at + 8, true);
      const address = arena.getInt32(at + 4, true) + arena.getUint32(at, true) * UNIT;
      if (len <= 0 || len > MAX_BUFFER || (writeSegs !== 0 && write === 0)) break;
      if (!(address >= start && address + len * UNIT <= end)) break;
      segOffset[segs + i] = (address + delta) * 4294967296;
      segLen[segs + i] = len;
      readBytes += len & (write - 1);
      writeBytes += len & -write;
      writeSegs += write;
      at += 16;
    }
    if (i < entries) break;
    rows[n + HEAD] = id;
    rows[n + SLOTS] = 1;
    rows[n + SEG_FIRST] = segs;
    rows[n + READ_SEGS] = entries - writeSegs;
    rows[n + WRITE_SEGS] = writeSegs;
    rows[n + READ_BYTES] = readBytes;
    rows[n + WRITE_BYTES] = writeBytes;
    rows[n + WRITTEN] = 0;
    segs += entries;
    if (++slot === size) {
      slot = 0;
      wrap ^= 1;
      want ^= STATE;
    }
  }
  q.visited += segs - batch.segments;
  batch.segments = segs;
  batch.count = n;
  q.nextAvail = slot;
  q.availWrap = wrap;
  return n - first;
}
