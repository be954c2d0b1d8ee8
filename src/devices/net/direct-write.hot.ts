/**
 * From frames straight into a receive queue: each into one writable descriptor. The sister of
 * `direct-read.hot.ts`, with the same rules.
 */
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';
import type { DeviceQueue } from '../../virtqueue/device-queue.ts';
import type { FrameBatch } from '../../switch/frame-batch.ts';
import type { CopyPlan } from '../../sys/arena.ts';

const PACKED = 1; //        DeviceQueue.format
const MAY_WRITE = 2; //     DeviceQueue.lastAllowed
const UNIFORM_WRITE = 2; // ChainBatch.uniform
const HEADS_ONLY = 2; //    ChainBatch.unfilled

const AVAIL_IDX = 1; //     u16 index in q.avail
const AVAIL_RING = 2;
const SPLIT_WRITE = 2;
const SPLIT_KIND = 7; //    NEXT | WRITE | INDIRECT
const PACKED_WRITE = 2 << 16;
const PACKED_KIND = 7 << 16;
const AVAIL_BIT = 1 << 23;
const USED_BIT = 1 << 31;
const STATE = AVAIL_BIT | USED_BIT;

const CHAIN_HEAD = 0; //    columns of ChainBatch.rows
const CHAIN_SLOTS = 256;
const CHAIN_PAGE_FIRST = 512;
const CHAIN_PAGE_LAST = 768;
const CHAIN_WRITTEN = 1792;
const HEADER_AT = 0; //     columns of FrameBatch.rows
const HEADER_LEN = 64;
const FRAME_LEN = 128;
const SEG_FIRST = 192;
const SEG_COUNT = 256;
const OFFLOAD = 320;
const GSO_TYPE = 384;

const BATCH = 64; //        as in base/limits.ts
const HDR_BYTES = 12; //    NET_HEADER_BYTES
const ONE_BUFFER = 0x10000; // num_buffers, in the header's third word

/** Addresses are compared in units of 2^32 bytes, see `virtqueue/split-device.hot.ts`. */
const UNIT = 1 / 4294967296;
/** Ranges of memory that are looked through; a guest with more of them has its buffers in few. */
const MAX_RANGES = 8;
/** Guest pages of 4096 bytes in such a unit. Those that int32 cannot number are in no log. */
const PAGES = 1048576;
const DESC_PER_LINE = 4;

const TAKEN = 0; //         COUNTER_TAKEN

/**
 * Takes a chain for each of the frames `list[0 .. count)`, at most 64, into rows of `chains` from
 * `at` on, and plans the copies, up to the first frame or chain that is anything else. Returns how
 * many: the caller copies and publishes. The queue is sound, has no inflight region, and no log
 * behind an IOTLB.
 */
export function writeDirect(
  q: DeviceQueue,
  chains: ChainBatch,
  at: number, //      row of `chains`
  plan: CopyPlan, //  room for two ranges per frame
  batch: FrameBatch,
  list: Int32Array,
  count: number,
  flagMask: number, // as for writeFrames
): number {
  q.missed = 0;
  if ((q.lastAllowed & MAY_WRITE) === 0) return 0;
  const n =
    q.format === PACKED
      ? writePacked(q, chains, at, plan, batch, list, count, flagMask)
      : writeSplit(q, chains, at, plan, batch, list, count, flagMask);
  chains.count = at + n;
  chains.segments = 0;
  chains.uniform = UNIFORM_WRITE;
  chains.unfilled = HEADS_ONLY;
  q.counters[TAKEN] += n;
  return n;
}

function writeSplit(
  q: DeviceQueue,
  chains: ChainBatch,
  firstRow: number,
  plan: CopyPlan,
  batch: FrameBatch,
  list: Int32Array,
  count: number,
  flagMask: number,
): number {
  const { avail, desc, nextAvail, size } = q;
  const pending = (Atomics.load(avail, AVAIL_IDX) - nextAvail) & 0xffff;
  if (pending > size) return 0;
  const wanted = pending < count ? pending : count;
  const limit = wanted < BATCH ? wanted : BATCH;
  const mask = size - 1;
  let touched = 0;
  for (let i = 0; i < limit; i += DESC_PER_LINE) {
    touched |= desc[(avail[AVAIL_RING + ((nextAvail + i) & mask)] & mask) << 2];
  }
  q.touched = touched;
  const chainRows = chains.rows;
  const { rows, headerWords, segOffset, segLen, headersAt } = batch;
  const { ranges } = plan;
  const capacity = plan.capacity & 0xffff;
  const { mapStart, mapEnd, mapDelta, mapPermission: permission, rangeHint } = q;
  const hintMask = rangeHint.length - 1; // -1: no IOTLB
  const mapCount = hintMask >= 0 || q.mapCount < MAX_RANGES ? q.mapCount : MAX_RANGES;
  let range = q.lastRange;
  let start = mapStart[range] * UNIT;
  let end = mapEnd[range] * UNIT;
  let delta = mapDelta[range] * UNIT;
  const plain = batch.plain !== 0;
  const logged = q.logged !== 0;
  let offloads = 0; // of all frames
  let r = plan.count & 0xffff;
  // Each array once before the loop, which is too long for V8 to peel: its checks are done then.
  chainRows[firstRow] = rows[0] ^ desc[0] ^ list[0] ^ segLen[0] ^ headerWords[0] ^ avail[0];
  ranges[r] = segOffset[0];
  let n = 0;
  for (; n < limit; n++) {
    const frame = list[n] & (BATCH - 1);
    const head = avail[AVAIL_RING + ((nextAvail + n) & mask)];
    if (head >= size) break;
    const at = head << 2;
    const tail = desc[at + 3]; // flags | next << 16
    const len = desc[at + 2];
    const address = desc[at + 1] + (desc[at] >>> 0) * UNIT;
    const total = (rows[frame + FRAME_LEN] + HDR_BYTES) | 0;
    const segments = rows[frame + SEG_COUNT];
    if ((tail & SPLIT_KIND) !== SPLIT_WRITE || len < total) break;
    if (!(address >= start && address + len * UNIT <= end)) {
      const hint = hintMask < 0 ? 0 : rangeHint[(address * PAGES) & hintMask];
      const behind = hintMask < 0 ? mapCount : hint < mapCount ? hint + 1 : 0;
      for (range = hint; range < behind; range++) {
        start = mapStart[range] * UNIT;
        end = mapEnd[range] * UNIT;
        if (address >= start && address + len * UNIT <= end) break;
      }
      if (range >= behind || (permission[range] & MAY_WRITE) === 0) {
        range = mapCount;
        break;
      }
      delta = mapDelta[range] * UNIT;
    }
    if (!plain) {
      if (rows[frame + GSO_TYPE] !== 0 || r + segments >= capacity) break;
      offloads |= rows[frame + OFFLOAD];
    }
    const to = (address + delta) * 4294967296;
    const header = (rows[frame + HEADER_AT] - HDR_BYTES) | 0;
    const word = header >> 2;
    headerWords[word] = 0;
    headerWords[word + 1] = 0;
    headerWords[word + 2] = ONE_BUFFER;
    const own = (rows[frame + HEADER_LEN] + HDR_BYTES) | 0;
    ranges[r] = headersAt + header;
    ranges[r + capacity] = to;
    ranges[r + 2 * capacity] = own;
    r++;
    if (segments !== 0) {
      const segment = rows[frame + SEG_FIRST];
      ranges[r] = segOffset[segment];
      ranges[r + capacity] = to + own;
      ranges[r + 2 * capacity] = segLen[segment];
      r++;
      if (segments !== 1) {
        let behind = to + own;
        for (let s = segment + 1; s < segment + segments; s++) {
          behind += segLen[s - 1];
          ranges[r] = segOffset[s];
          ranges[r + capacity] = behind;
          ranges[r + 2 * capacity] = segLen[s];
          r++;
        }
      }
    }
    const row = (n + firstRow) | 0;
    chainRows[row + CHAIN_HEAD] = head;
    chainRows[row + CHAIN_WRITTEN] = total;
    if (logged) {
      chainRows[row + CHAIN_PAGE_FIRST] = (address * PAGES) | 0;
      chainRows[row + CHAIN_PAGE_LAST] = ((address + (total - 1) * UNIT) * PAGES) | 0;
    }
  }
  plan.count = r;
  if ((offloads & flagMask) !== 0) writeOffloads(batch, list, n, flagMask);
  if (range < mapCount) {
    q.lastRange = range;
    q.lastAllowed = permission[range];
  }
  q.nextAvail = (nextAvail + n) & 0xffff;
  return n;
}

function writePacked(
  q: DeviceQueue,
  chains: ChainBatch,
  firstRow: number,
  plan: CopyPlan,
  batch: FrameBatch,
  list: Int32Array,
  count: number,
  flagMask: number,
): number {
  const { desc, size } = q;
  let slot = q.nextAvail;
  let wrap = q.availWrap;
  let want = (wrap === 1 ? AVAIL_BIT : USED_BIT) | PACKED_WRITE;
  if ((Atomics.load(desc, (slot << 2) + 3) & (STATE | PACKED_KIND)) !== want) return 0;
  const wanted = count < size ? count : size;
  const limit = wanted < BATCH ? wanted : BATCH;
  const chainRows = chains.rows;
  const { rows, headerWords, segOffset, segLen, headersAt } = batch;
  const { ranges } = plan;
  const capacity = plan.capacity & 0xffff;
  const { mapStart, mapEnd, mapDelta, mapPermission: permission, rangeHint } = q;
  const hintMask = rangeHint.length - 1; // -1: no IOTLB
  const mapCount = hintMask >= 0 || q.mapCount < MAX_RANGES ? q.mapCount : MAX_RANGES;
  let range = q.lastRange;
  let start = mapStart[range] * UNIT;
  let end = mapEnd[range] * UNIT;
  let delta = mapDelta[range] * UNIT;
  const plain = batch.plain !== 0;
  const logged = q.logged !== 0;
  let offloads = 0; // of all frames
  let r = plan.count & 0xffff;
  // Each array once before the loop, which is too long for V8 to peel: its checks are done then.
  chainRows[firstRow] = rows[0] ^ desc[0] ^ list[0] ^ segLen[0] ^ headerWords[0];
  ranges[r] = segOffset[0];
  let n = 0;
  for (; n < limit; n++) {
    const frame = list[n] & (BATCH - 1);
    const at = slot << 2;
    const tail = desc[at + 3]; // before the other words, see packed-device.hot.ts
    const id = tail & 0xffff;
    const len = desc[at + 2];
    const address = desc[at + 1] + (desc[at] >>> 0) * UNIT;
    const total = (rows[frame + FRAME_LEN] + HDR_BYTES) | 0;
    const segments = rows[frame + SEG_COUNT];
    if ((tail & (STATE | PACKED_KIND)) !== want || len < total || id >= size) break;
    if (!(address >= start && address + len * UNIT <= end)) {
      const hint = hintMask < 0 ? 0 : rangeHint[(address * PAGES) & hintMask];
      const behind = hintMask < 0 ? mapCount : hint < mapCount ? hint + 1 : 0;
      for (range = hint; range < behind; range++) {
        start = mapStart[range] * UNIT;
        end = mapEnd[range] * UNIT;
        if (address >= start && address + len * UNIT <= end) break;
      }
      if (range >= behind || (permission[range] & MAY_WRITE) === 0) {
        range = mapCount;
        break;
      }
      delta = mapDelta[range] * UNIT;
    }
    if (!plain) {
      if (rows[frame + GSO_TYPE] !== 0 || r + segments >= capacity) break;
      offloads |= rows[frame + OFFLOAD];
    }
    const to = (address + delta) * 4294967296;
    const header = (rows[frame + HEADER_AT] - HDR_BYTES) | 0;
    const word = header >> 2;
    headerWords[word] = 0;
    headerWords[word + 1] = 0;
    headerWords[word + 2] = ONE_BUFFER;
    const own = (rows[frame + HEADER_LEN] + HDR_BYTES) | 0;
    ranges[r] = headersAt + header;
    ranges[r + capacity] = to;
    ranges[r + 2 * capacity] = own;
    r++;
    if (segments !== 0) {
      const segment = rows[frame + SEG_FIRST];
      ranges[r] = segOffset[segment];
      ranges[r + capacity] = to + own;
      ranges[r + 2 * capacity] = segLen[segment];
      r++;
      if (segments !== 1) {
        let behind = to + own;
        for (let s = segment + 1; s < segment + segments; s++) {
          behind += segLen[s - 1];
          ranges[r] = segOffset[s];
          ranges[r + capacity] = behind;
          ranges[r + 2 * capacity] = segLen[s];
          r++;
        }
      }
    }
    const row = (n + firstRow) | 0;
    chainRows[row + CHAIN_HEAD] = id;
    chainRows[row + CHAIN_SLOTS] = 1;
    chainRows[row + CHAIN_WRITTEN] = total;
    if (logged) {
      chainRows[row + CHAIN_PAGE_FIRST] = (address * PAGES) | 0;
      chainRows[row + CHAIN_PAGE_LAST] = ((address + (total - 1) * UNIT) * PAGES) | 0;
    }
    if (++slot === size) {
      slot = 0;
      wrap ^= 1;
      want ^= STATE;
    }
  }
  plan.count = r;
  if ((offloads & flagMask) !== 0) writeOffloads(batch, list, n, flagMask);
  if (range < mapCount) {
    q.lastRange = range;
    q.lastAllowed = permission[range];
  }
  q.nextAvail = slot;
  q.availWrap = wrap;
  return n;
}

/**
 * Into the headers of frames `list[0 .. count)` what is left to the receiver: after the loop, which
 * has enough arrays, and before the copies.
 */
function writeOffloads(batch: FrameBatch, list: Int32Array, count: number, flagMask: number): void {
  const { rows, headerWords, csumStart, csumOffset, gsoHeaderLen } = batch;
  for (let k = 0; k < count; k++) {
    const frame = list[k];
    const offload = rows[frame + OFFLOAD] & flagMask;
    if (offload === 0) continue;
    const word = (rows[frame + HEADER_AT] - HDR_BYTES) >> 2;
    headerWords[word] = offload | (gsoHeaderLen[frame] << 16);
    headerWords[word + 1] = csumStart[frame] << 16;
    headerWords[word + 2] = ONE_BUFFER | csumOffset[frame];
  }
}
