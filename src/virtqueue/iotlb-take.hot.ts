/**
 * Chains of one descriptor behind an IOTLB whose entries are many: pages that change from chain to
 * chain, where the range that was hit last says nothing. A hint remembers the entry of each page,
 * by the low bits of its number; it is checked like any other range, so a stale one costs time.
 * Sisters of `takeSimple` in split-device.hot.ts and packed-device.hot.ts.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';

const WRITE = 2; // VIRTQ_DESC_F_WRITE
const SLOW = 5; //  VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_INDIRECT
const AVAIL_BIT = 1 << 23; // packed: in the last word of a descriptor, id | flags << 16
const USED_BIT = 1 << 31;
const STATE = AVAIL_BIT | USED_BIT;

const AVAIL_RING = 2;

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
const PAGE_SHIFT = 12;

/**
 * Goes on where `takeUniform` of a split queue ended, at row `row`: chains of the same direction,
 * whose rows stay unfilled. Returns the row of the first that is anything else.
 */
export function takeUniformHintedSplit(
  q: DeviceQueue,
  batch: ChainBatch,
  row: number,
  limit: number,
): number {
  const { avail, desc, nextAvail, size, rangeHint, mapStart, mapEnd, mapDelta, mapCount } = q;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const permission = q.mapPermission;
  const mask = size - 1;
  const hintMask = rangeHint.length - 1;
  const most = limit < segCapacity ? limit : segCapacity;
  let direction = batch.uniform === 2 ? WRITE : 0; // UNIFORM_WRITE
  let n = row;
  for (; n < most; n++) {
    const head = avail[AVAIL_RING + ((nextAvail + n) & mask)];
    if (head >= size) break;
    const at = head << 2;
    const flags = desc[at + 3] & 0xffff;
    const len = desc[at + 2];
    const lo = desc[at];
    const address = desc[at + 1] + (lo >>> 0) * UNIT;
    if (n === 0) direction = flags & WRITE;
    if ((flags & (SLOW | WRITE)) !== direction || len <= 0) break;
    const range = rangeHint[(lo >>> PAGE_SHIFT) & hintMask];
    if (range >= mapCount || (permission[range] & (1 + (direction >> 1))) === 0) break;
    if (!(address >= mapStart[range] * UNIT && address + len * UNIT <= mapEnd[range] * UNIT)) break;
    rows[n + HEAD] = head;
    rows[n + WRITTEN] = 0;
    segOffset[n] = (address + mapDelta[range] * UNIT) * 4294967296;
    segLen[n] = len;
  }
  batch.segments = n;
  batch.uniform = direction === 0 ? 1 : 2; // UNIFORM_*
  batch.unfilled = n > 0 ? 1 : 0;
  return n;
}

/** From row `row` up to `limit`; the row of the first chain that is anything else. */
export function takeHintedSplit(
  q: DeviceQueue,
  batch: ChainBatch,
  row: number,
  limit: number,
): number {
  const { avail, desc, nextAvail, size, rangeHint, mapStart, mapEnd, mapDelta, mapCount } = q;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const permission = q.mapPermission;
  const mask = size - 1;
  const hintMask = rangeHint.length - 1;
  let segs = batch.segments;
  let n = row;
  for (; n < limit; n++) {
    const head = avail[AVAIL_RING + ((nextAvail + n) & mask)];
    if (head >= size) break;
    const at = head << 2;
    const flags = desc[at + 3] & 0xffff;
    const len = desc[at + 2];
    const lo = desc[at];
    const address = desc[at + 1] + (lo >>> 0) * UNIT;
    if ((flags & SLOW) !== 0 || len <= 0 || segs >= segCapacity) break;
    const range = rangeHint[(lo >>> PAGE_SHIFT) & hintMask];
    if (range >= mapCount) break;
    if (!(address >= mapStart[range] * UNIT && address + len * UNIT <= mapEnd[range] * UNIT)) break;
    const write = (flags & WRITE) >> 1;
    if ((permission[range] & (1 << write)) === 0) break;
    rows[n + HEAD] = head;
    rows[n + SEG_FIRST] = segs;
    rows[n + READ_SEGS] = 1 - write;
    rows[n + WRITE_SEGS] = write;
    rows[n + READ_BYTES] = len & (write - 1);
    rows[n + WRITE_BYTES] = len & -write;
    rows[n + WRITTEN] = 0;
    segOffset[segs] = (address + mapDelta[range] * UNIT) * 4294967296;
    segLen[segs] = len;
    segs++;
  }
  batch.segments = segs;
  return n;
}

/** From the next `most` slots, until `batch` has `limit`; how many. */
export function takeHintedPacked(
  q: DeviceQueue,
  batch: ChainBatch,
  limit: number,
  most: number,
): number {
  const { desc, size, rangeHint, mapStart, mapEnd, mapDelta, mapCount } = q;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const permission = q.mapPermission;
  const hintMask = rangeHint.length - 1;
  const first = batch.count;
  const stopRow = limit - first < most ? limit : first + most;
  let slot = q.nextAvail;
  let wrap = q.availWrap;
  let want = wrap === 1 ? AVAIL_BIT : USED_BIT;
  let segs = batch.segments;
  let n = first;
  for (; n < stopRow; n++) {
    const at = slot << 2;
    const word = desc[at + 3]; // before the other words, see packed-device.hot.ts
    if ((word & STATE) !== want) break;
    const id = word & 0xffff;
    const flags = word >>> 16;
    const len = desc[at + 2];
    const lo = desc[at];
    const address = desc[at + 1] + (lo >>> 0) * UNIT;
    if ((flags & SLOW) !== 0 || len <= 0 || segs >= segCapacity || id >= size) break;
    const range = rangeHint[(lo >>> PAGE_SHIFT) & hintMask];
    if (range >= mapCount) break;
    if (!(address >= mapStart[range] * UNIT && address + len * UNIT <= mapEnd[range] * UNIT)) break;
    const write = (flags & WRITE) >> 1;
    if ((permission[range] & (1 << write)) === 0) break;
    rows[n + HEAD] = id;
    rows[n + SLOTS] = 1;
    rows[n + SEG_FIRST] = segs;
    rows[n + READ_SEGS] = 1 - write;
    rows[n + WRITE_SEGS] = write;
    rows[n + READ_BYTES] = len & (write - 1);
    rows[n + WRITE_BYTES] = len & -write;
    rows[n + WRITTEN] = 0;
    segOffset[segs] = (address + mapDelta[range] * UNIT) * 4294967296;
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

/** As `takeUniformHintedSplit`, for the next `most` slots of a packed queue. */
export function takeUniformHintedPacked(
  q: DeviceQueue,
  batch: ChainBatch,
  limit: number,
  most: number,
): void {
  const { desc, size, rangeHint, mapStart, mapEnd, mapDelta, mapCount } = q;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const permission = q.mapPermission;
  const hintMask = rangeHint.length - 1;
  const first = batch.count;
  let stopRow = limit - first < most ? limit : first + most;
  if (stopRow > segCapacity) stopRow = segCapacity;
  let slot = q.nextAvail;
  let wrap = q.availWrap;
  let want = wrap === 1 ? AVAIL_BIT : USED_BIT;
  let direction = batch.uniform === 2 ? WRITE : 0; // UNIFORM_WRITE
  let n = first;
  for (; n < stopRow; n++) {
    const at = slot << 2;
    const word = desc[at + 3]; // before the other words, see packed-device.hot.ts
    if ((word & STATE) !== want) break;
    const id = word & 0xffff;
    const flags = word >>> 16;
    const len = desc[at + 2];
    const lo = desc[at];
    const address = desc[at + 1] + (lo >>> 0) * UNIT;
    if (n === 0) direction = flags & WRITE;
    if ((flags & (SLOW | WRITE)) !== direction || len <= 0 || id >= size) break;
    const range = rangeHint[(lo >>> PAGE_SHIFT) & hintMask];
    if (range >= mapCount || (permission[range] & (1 + (direction >> 1))) === 0) break;
    if (!(address >= mapStart[range] * UNIT && address + len * UNIT <= mapEnd[range] * UNIT)) break;
    rows[n + HEAD] = id;
    rows[n + SLOTS] = 1;
    rows[n + WRITTEN] = 0;
    segOffset[n] = (address + mapDelta[range] * UNIT) * 4294967296;
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
