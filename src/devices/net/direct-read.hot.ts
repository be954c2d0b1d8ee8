/**
 * From a transmit queue straight to frames: chains of one descriptor, in one of a few ranges of
 * memory, behind a virtio-net header of 12 bytes: what drivers send nearly always. No `ChainBatch`
 * is between ring and frame, it only keeps the heads for `putUsed`.
 *
 * A descriptor is judged by the very words that are kept, as in `virtqueue/split-device.hot.ts`
 * and `packed-device.hot.ts`; what is not as above ends the run, and `takeChains` reads it again
 * and judges it. Nothing is called, and each array is used once before the loop: V8 checks maps,
 * lengths and pointers of arrays then, and not for every frame.
 *
 * Before the loop of a split ring, its lines are touched. They are in the other core's cache, 140
 * ns away for one and 6 ns each for many at once, if nothing else stands between the reads.
 */
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';
import type { DeviceQueue } from '../../virtqueue/device-queue.ts';
import type { FrameBatch } from '../../switch/frame-batch.ts';
import type { CopyPlan } from '../../sys/arena.ts';

const PACKED = 1; //       DeviceQueue.format
const MAY_READ = 1; //     DeviceQueue.lastAllowed
const UNIFORM_READ = 1; // ChainBatch.uniform
const HEADS_ONLY = 2; //   ChainBatch.unfilled

const AVAIL_IDX = 1; //    u16 index in q.avail
const AVAIL_RING = 2;
const SPLIT_OTHER = 7; //  NEXT | WRITE | INDIRECT
const PACKED_OTHER = 7 << 16;
const AVAIL_BIT = 1 << 23;
const USED_BIT = 1 << 31;
const STATE = AVAIL_BIT | USED_BIT;

const CHAIN_HEAD = 0; //   columns of ChainBatch.rows
const CHAIN_SLOTS = 256;
const CHAIN_WRITTEN = 1792;
const HEADER_AT = 0; //    columns of FrameBatch.rows
const HEADER_LEN = 64;
const FRAME_LEN = 128;
const SEG_FIRST = 192;
const SEG_COUNT = 256;
const OFFLOAD = 320;
const GSO_TYPE = 384;

const BATCH = 64; //       as in base/limits.ts
const HDR_BYTES = 12; //   NET_HEADER_BYTES
const SLOT_BYTES = 96; //  HEADER_SLOT_BYTES
const SLOT_START = 16; //  HEADER_SLOT_START
const COPY_BYTES = 64; //  HEADER_COPY_BYTES
const FRAME_MAX = 65553; // MAX_FRAME_BYTES

/** Addresses are compared in units of 2^32 bytes, see `virtqueue/split-device.hot.ts`. */
const UNIT = 1 / 4294967296;
/**
 * Ranges of memory that are looked through; a guest with more of them has its buffers in few.
 * Behind an IOTLB only the entry is looked at that the page was found in before, see
 * `virtqueue/iotlb-take.hot.ts`.
 */
const MAX_RANGES = 8;
/** Guest pages of 4096 bytes in such a unit: by their low bits goes `DeviceQueue.rangeHint`. */
const PAGES = 1048576;
const DESC_PER_LINE = 4;

const TAKEN = 0; //        COUNTER_TAKEN

/**
 * Takes up to `batch.capacity` such chains, plans the copies of their headers, and fills `batch`
 * as `readFrames` does before it copies. Returns how many, n, or ~n where a chain of another shape
 * follows. The queue is sound, has no inflight region, and no log behind an IOTLB.
 */
export function readDirect(
  q: DeviceQueue,
  chains: ChainBatch,
  plan: CopyPlan, // empty; room for a range per frame
  batch: FrameBatch,
): number {
  q.missed = 0;
  if ((q.lastAllowed & MAY_READ) === 0) return ~0;
  const found =
    q.format === PACKED ? readPacked(q, chains, plan, batch) : readSplit(q, chains, plan, batch);
  const n = found < 0 ? ~found : found;
  plan.count = n;
  batch.count = n;
  chains.count = n;
  chains.segments = 0;
  chains.uniform = UNIFORM_READ;
  chains.unfilled = HEADS_ONLY;
  q.counters[TAKEN] += n;
  return found;
}

function readSplit(q: DeviceQueue, chains: ChainBatch, plan: CopyPlan, batch: FrameBatch): number {
  const { avail, desc, nextAvail, size } = q;
  const pending = (Atomics.load(avail, AVAIL_IDX) - nextAvail) & 0xffff;
  if (pending > size) return ~0;
  const limit = pending < BATCH ? pending : BATCH;
  const mask = size - 1;
  let touched = 0;
  for (let i = 0; i < limit; i += DESC_PER_LINE) {
    touched |= desc[(avail[AVAIL_RING + ((nextAvail + i) & mask)] & mask) << 2];
  }
  q.touched = touched;
  const chainRows = chains.rows;
  const { rows, segOffset, segLen } = batch;
  const { ranges } = plan;
  const capacity = plan.capacity & 0xffff;
  const { mapStart, mapEnd, mapDelta, mapPermission: permission, rangeHint } = q;
  const hintMask = rangeHint.length - 1; // -1: no IOTLB
  const mapCount = hintMask >= 0 || q.mapCount < MAX_RANGES ? q.mapCount : MAX_RANGES;
  let range = q.lastRange;
  let start = mapStart[range] * UNIT;
  let end = mapEnd[range] * UNIT;
  let delta = mapDelta[range] * UNIT;
  const slots = batch.headersAt + SLOT_START - HDR_BYTES;
  // Each array once before the loop, which is too long for V8 to peel: its checks are done then.
  chainRows[0] = rows[0] = desc[0] ^ avail[0];
  ranges[0] = segOffset[0] = 0;
  segLen[0] = 0;
  let segments = 0;
  let bytes = 0;
  let longest = 0;
  let shortest = FRAME_MAX;
  let n = 0;
  for (; n < limit; n++) {
    const head = avail[AVAIL_RING + ((nextAvail + n) & mask)];
    if (head >= size) break;
    const at = head << 2;
    const tail = desc[at + 3]; // flags | next << 16
    const len = desc[at + 2];
    const address = desc[at + 1] + (desc[at] >>> 0) * UNIT;
    const lenBytes = (len - HDR_BYTES) | 0;
    if ((tail & SPLIT_OTHER) !== 0 || lenBytes >>> 0 > FRAME_MAX) break;
    if (!(address >= start && address + len * UNIT <= end)) {
      const hint = hintMask < 0 ? 0 : rangeHint[(address * PAGES) & hintMask];
      const behind = hintMask < 0 ? mapCount : hint < mapCount ? hint + 1 : 0;
      for (range = hint; range < behind; range++) {
        start = mapStart[range] * UNIT;
        end = mapEnd[range] * UNIT;
        if (address >= start && address + len * UNIT <= end) break;
      }
      if (range >= behind || (permission[range] & MAY_READ) === 0) {
        range = mapCount;
        break;
      }
      delta = mapDelta[range] * UNIT;
    }
    const from = (address + delta) * 4294967296;
    const copied = lenBytes < COPY_BYTES ? lenBytes : COPY_BYTES;
    const need = HDR_BYTES + copied;
    ranges[n] = from;
    ranges[n + capacity] = slots + n * SLOT_BYTES;
    ranges[n + 2 * capacity] = need;
    chainRows[n + CHAIN_HEAD] = head;
    chainRows[n + CHAIN_WRITTEN] = 0;
    rows[n + HEADER_AT] = n * SLOT_BYTES + SLOT_START;
    rows[n + HEADER_LEN] = copied;
    rows[n + FRAME_LEN] = lenBytes;
    rows[n + SEG_FIRST] = segments;
    rows[n + SEG_COUNT] = 0;
    rows[n + OFFLOAD] = 0;
    rows[n + GSO_TYPE] = 0;
    bytes = (bytes + lenBytes) | 0;
    if (lenBytes > longest) longest = lenBytes;
    if (lenBytes < shortest) shortest = lenBytes;
    if (lenBytes > copied) {
      rows[n + SEG_COUNT] = 1;
      segOffset[segments] = from + need;
      segLen[segments++] = lenBytes - copied;
    }
  }
  batch.segments = segments;
  batch.bytes = bytes;
  batch.longest = longest;
  batch.shortest = shortest;
  if (range < mapCount) {
    q.lastRange = range;
    q.lastAllowed = permission[range];
  }
  q.nextAvail = (nextAvail + n) & 0xffff;
  return n < limit ? ~n : n;
}

function readPacked(q: DeviceQueue, chains: ChainBatch, plan: CopyPlan, batch: FrameBatch): number {
  const { desc, size } = q;
  let slot = q.nextAvail;
  let wrap = q.availWrap;
  let want = wrap === 1 ? AVAIL_BIT : USED_BIT;
  if ((Atomics.load(desc, (slot << 2) + 3) & STATE) !== want) return 0;
  const limit = size < BATCH ? size : BATCH;
  const chainRows = chains.rows;
  const { rows, segOffset, segLen } = batch;
  const { ranges } = plan;
  const capacity = plan.capacity & 0xffff;
  const { mapStart, mapEnd, mapDelta, mapPermission: permission, rangeHint } = q;
  const hintMask = rangeHint.length - 1; // -1: no IOTLB
  const mapCount = hintMask >= 0 || q.mapCount < MAX_RANGES ? q.mapCount : MAX_RANGES;
  let range = q.lastRange;
  let start = mapStart[range] * UNIT;
  let end = mapEnd[range] * UNIT;
  let delta = mapDelta[range] * UNIT;
  const slots = batch.headersAt + SLOT_START - HDR_BYTES;
  // Each array once before the loop, which is too long for V8 to peel: its checks are done then.
  chainRows[0] = rows[0] = desc[0];
  ranges[0] = segOffset[0] = 0;
  segLen[0] = 0;
  let segments = 0;
  let bytes = 0;
  let longest = 0;
  let shortest = FRAME_MAX;
  let other = 0;
  let n = 0;
  for (; n < limit; n++) {
    const at = slot << 2;
    const word = desc[at + 3]; // before the other words, see packed-device.hot.ts
    const id = word & 0xffff;
    const len = desc[at + 2];
    const address = desc[at + 1] + (desc[at] >>> 0) * UNIT;
    const lenBytes = (len - HDR_BYTES) | 0;
    if ((word & STATE) !== want) break;
    other = 1;
    if ((word & PACKED_OTHER) !== 0 || id >= size || lenBytes >>> 0 > FRAME_MAX) break;
    if (!(address >= start && address + len * UNIT <= end)) {
      const hint = hintMask < 0 ? 0 : rangeHint[(address * PAGES) & hintMask];
      const behind = hintMask < 0 ? mapCount : hint < mapCount ? hint + 1 : 0;
      for (range = hint; range < behind; range++) {
        start = mapStart[range] * UNIT;
        end = mapEnd[range] * UNIT;
        if (address >= start && address + len * UNIT <= end) break;
      }
      if (range >= behind || (permission[range] & MAY_READ) === 0) {
        range = mapCount;
        break;
      }
      delta = mapDelta[range] * UNIT;
    }
    other = 0;
    const from = (address + delta) * 4294967296;
    const copied = lenBytes < COPY_BYTES ? lenBytes : COPY_BYTES;
    const need = HDR_BYTES + copied;
    ranges[n] = from;
    ranges[n + capacity] = slots + n * SLOT_BYTES;
    ranges[n + 2 * capacity] = need;
    chainRows[n + CHAIN_HEAD] = id;
    chainRows[n + CHAIN_SLOTS] = 1;
    chainRows[n + CHAIN_WRITTEN] = 0;
    rows[n + HEADER_AT] = n * SLOT_BYTES + SLOT_START;
    rows[n + HEADER_LEN] = copied;
    rows[n + FRAME_LEN] = lenBytes;
    rows[n + SEG_FIRST] = segments;
    rows[n + SEG_COUNT] = 0;
    rows[n + OFFLOAD] = 0;
    rows[n + GSO_TYPE] = 0;
    bytes = (bytes + lenBytes) | 0;
    if (lenBytes > longest) longest = lenBytes;
    if (lenBytes < shortest) shortest = lenBytes;
    if (lenBytes > copied) {
      rows[n + SEG_COUNT] = 1;
      segOffset[segments] = from + need;
      segLen[segments++] = lenBytes - copied;
    }
    if (++slot === size) {
      slot = 0;
      wrap ^= 1;
      want ^= STATE;
    }
  }
  batch.segments = segments;
  batch.bytes = bytes;
  batch.longest = longest;
  batch.shortest = shortest;
  if (range < mapCount) {
    q.lastRange = range;
    q.lastAllowed = permission[range];
  }
  q.nextAvail = slot;
  q.availWrap = wrap;
  return other === 0 ? n : ~n;
}
