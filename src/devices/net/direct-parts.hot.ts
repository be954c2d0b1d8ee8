/**
 * From a transmit queue straight to frames, where a frame may be in several parts: a list of
 * descriptors or an indirect table, as drivers have them that put the virtio-net header apart
 * (Linux without room in front of a packet, DPDK) or send pages (Linux' TCP), among chains of one
 * descriptor. The sister of `direct-read.hot.ts`, which is faster where there are only such.
 *
 * As there, what is kept of a descriptor are the very words that were judged, nothing is called,
 * and what is anything else ends the run: `takeChains` reads that again and judges it. The two
 * formats differ by so little here that one loop serves both: what costs is in the parts. Lines of
 * the ring and of tables are not touched ahead: 310 against 320 ns per frame under DPDK's testpmd.
 */
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';
import type { DeviceQueue } from '../../virtqueue/device-queue.ts';
import type { FrameBatch } from '../../switch/frame-batch.ts';
import type { CopyPlan } from '../../sys/arena.ts';

const PACKED = 1; //       DeviceQueue.format
const MAY_READ = 1; //     DeviceQueue.lastAllowed
const UNIFORM_READ = 1; // ChainBatch.uniform
const HEADS_ONLY = 2; //   ChainBatch.unfilled

const NEXT = 1; //         VIRTQ_DESC_F_*
const WRITE = 2;
const INDIRECT = 4;
const AVAIL_IDX = 1; //    u16 index in q.avail
const AVAIL_RING = 2;
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
const COPY_BYTES = 76; //  NET_HEADER_BYTES + HEADER_COPY_BYTES
const FRAME_MAX = 65553; // MAX_FRAME_BYTES
const CHAIN_MAX = 65565; // with the virtio-net header

/** Linux sends at most 19: header, linear part and 17 pages. */
const MAX_PARTS = 24;

/** Addresses are compared in units of 2^32 bytes, see `virtqueue/split-device.hot.ts`. */
const UNIT = 1 / 4294967296;
const MAX_RANGES = 8; //   as in direct-read.hot.ts

const TAKEN = 0; //        COUNTER_TAKEN

/**
 * Takes up to `batch.capacity` chains, plans the copies of their headers, and fills `batch` as
 * `readFrames` does before it copies. Returns how many, n, or ~n where a chain of another shape
 * follows. The queue is sound and has no inflight region; with an IOTLB there is always another.
 */
export function readParts(
  q: DeviceQueue,
  chains: ChainBatch,
  plan: CopyPlan, // empty; room for MAX_PARTS ranges per frame
  batch: FrameBatch,
): number {
  q.missed = 0;
  if (q.iotlb !== 0 || (q.lastAllowed & MAY_READ) === 0) return ~0;
  let limit = q.size < BATCH ? q.size : BATCH;
  if (q.format === PACKED) {
    const state = q.availWrap === 1 ? AVAIL_BIT : USED_BIT;
    if ((Atomics.load(q.desc, (q.nextAvail << 2) + 3) & STATE) !== state) limit = 0;
  } else {
    const pending = (Atomics.load(q.avail, AVAIL_IDX) - q.nextAvail) & 0xffff;
    if (pending > q.size) return ~0;
    if (pending < limit) limit = pending;
  }
  const found = walk(q, chains, plan, batch, limit);
  const n = found < 0 ? ~found : found;
  batch.count = n;
  chains.count = n;
  chains.segments = 0;
  chains.uniform = UNIFORM_READ;
  chains.unfilled = HEADS_ONLY;
  q.counters[TAKEN] += n;
  return found;
}

function walk(
  q: DeviceQueue,
  chains: ChainBatch,
  plan: CopyPlan,
  batch: FrameBatch,
  limit: number,
): number {
  const { avail, desc, arena, size, indirect, mapStart, mapEnd, mapDelta, mapPermission } = q;
  const packed = q.format === PACKED;
  const flagsAt = packed ? 16 : 0; // in the last word of a descriptor
  const mask = size - 1;
  const chainRows = chains.rows;
  const { rows, segOffset, segLen } = batch;
  const { ranges } = plan;
  const capacity = plan.capacity & 0xffff;
  const mostSegments = batch.segCapacity - MAX_PARTS;
  const mapCount = q.mapCount < MAX_RANGES ? q.mapCount : MAX_RANGES;
  const slots = batch.headersAt + SLOT_START - HDR_BYTES;
  let range = q.lastRange;
  let start = mapStart[range] * UNIT;
  let end = mapEnd[range] * UNIT;
  let delta = mapDelta[range] * UNIT;
  let tableStart = start; // the range that the last table was in
  let tableEnd = end;
  let tableDelta = delta;
  let slot = q.nextAvail; // split: of the first chain
  let want = q.availWrap === 1 ? AVAIL_BIT : USED_BIT;
  // Each array once before the loop, which is too long for V8 to peel: its checks are done then.
  chainRows[0] = rows[0] = desc[0];
  ranges[0] = segOffset[0] = 0;
  segLen[0] = 0;
  let r = 0;
  let segments = 0;
  let bytes = 0;
  let longest = 0;
  let shortest = FRAME_MAX;
  let several = 0; // some frame has several segments
  let other = 0;
  let n = 0;
  for (; n < limit && segments <= mostSegments; n++) {
    let index = packed ? slot : avail[AVAIL_RING + ((slot + n) & mask)];
    other = 1;
    if (index >= size) break;
    const head = index << 2;
    let word = desc[head + 3]; // before the other words, see packed-device.hot.ts
    let len = desc[head + 2];
    let address = desc[head + 1] + (desc[head] >>> 0) * UNIT;
    let id = packed ? word & 0xffff : index;
    if (packed && (word & STATE) !== want) {
      other = 0;
      break;
    }
    const target = slots + n * SLOT_BYTES;
    const firstRange = r;
    const firstSeg = segments;
    let at = 0; // of a table's entry
    let entries = 0;
    let copied = 0;
    let total = 0;
    let parts = 0;
    if (((word >>> flagsAt) & INDIRECT) !== 0) {
      entries = len >> 4;
      if (((word >>> flagsAt) & NEXT) !== 0 || indirect === 0) break;
      if ((len & 15) !== 0 || entries <= 0 || entries > MAX_PARTS) break;
      if (!(address >= tableStart && address + len * UNIT <= tableEnd)) {
        let k = 0;
        for (; k < mapCount; k++) {
          tableStart = mapStart[k] * UNIT;
          tableEnd = mapEnd[k] * UNIT;
          if (address >= tableStart && address + len * UNIT <= tableEnd) break;
        }
        if (k === mapCount || (mapPermission[k] & MAY_READ) === 0) break;
        tableDelta = mapDelta[k] * UNIT;
      }
      at = (address + tableDelta) * 4294967296;
      word = arena.getInt32(at + 12, true);
      len = arena.getInt32(at + 8, true);
      address = arena.getInt32(at + 4, true) + arena.getUint32(at, true) * UNIT;
    }
    for (;;) {
      // In a split ring's table entries follow each other in all that drivers make. 2.8.7: WRITE
      // is all that counts of the flags inside a packed ring's.
      const flags = (word >>> flagsAt) & 7;
      parts++;
      const isLast = entries === 0 ? (flags & NEXT) === 0 : parts === entries;
      if (entries === 0 || packed) {
        if ((flags & (entries === 0 ? WRITE | INDIRECT : WRITE)) !== 0) break;
      } else if (isLast ? flags !== 0 : word !== (NEXT | (parts << 16))) break;
      if ((len - 1) >>> 0 >= CHAIN_MAX) break;
      if (!(address >= start && address + len * UNIT <= end)) {
        for (range = 0; range < mapCount; range++) {
          start = mapStart[range] * UNIT;
          end = mapEnd[range] * UNIT;
          if (address >= start && address + len * UNIT <= end) break;
        }
        if (range === mapCount || (mapPermission[range] & MAY_READ) === 0) {
          range = mapCount;
          break;
        }
        delta = mapDelta[range] * UNIT;
      }
      const from = (address + delta) * 4294967296;
      const room = COPY_BYTES - copied;
      const take = len < room ? len : room;
      if (take > 0) {
        ranges[r] = from;
        ranges[r + capacity] = target + copied;
        ranges[r + 2 * capacity] = take;
        r++;
        copied += take;
      }
      if (len > take) {
        segOffset[segments] = from + take;
        segLen[segments++] = len - take;
      }
      total = (total + len) | 0;
      if (isLast) {
        other = 0;
        break;
      }
      if (total > CHAIN_MAX) break;
      if (entries !== 0) {
        at += 16;
        word = arena.getInt32(at + 12, true);
        len = arena.getInt32(at + 8, true);
        address = arena.getInt32(at + 4, true) + arena.getUint32(at, true) * UNIT;
        continue;
      }
      if (parts === MAX_PARTS || parts === size) break;
      index = packed ? index + 1 : word >>> 16;
      if (index >= size) {
        if (!packed) break;
        index = 0;
      }
      const next = index << 2;
      word = desc[next + 3];
      len = desc[next + 2];
      address = desc[next + 1] + (desc[next] >>> 0) * UNIT;
      if (packed) id = word & 0xffff; // 2.8.6: that of the last descriptor
    }
    const lenBytes = (total - HDR_BYTES) | 0;
    if (other !== 0 || lenBytes >>> 0 > FRAME_MAX || id >= size) {
      other = 1;
      r = firstRange;
      segments = firstSeg;
      break;
    }
    chainRows[n + CHAIN_HEAD] = id;
    chainRows[n + CHAIN_WRITTEN] = 0;
    rows[n + HEADER_AT] = n * SLOT_BYTES + SLOT_START;
    rows[n + HEADER_LEN] = copied - HDR_BYTES;
    rows[n + FRAME_LEN] = lenBytes;
    rows[n + SEG_FIRST] = firstSeg;
    rows[n + SEG_COUNT] = segments - firstSeg;
    rows[n + OFFLOAD] = 0;
    rows[n + GSO_TYPE] = 0;
    several |= (segments - firstSeg) >> 1;
    bytes = (bytes + lenBytes) | 0;
    if (lenBytes > longest) longest = lenBytes;
    if (lenBytes < shortest) shortest = lenBytes;
    if (packed) {
      const used = entries === 0 ? parts : 1;
      chainRows[n + CHAIN_SLOTS] = used;
      slot += used;
      if (slot >= size) {
        slot -= size;
        want ^= STATE;
      }
    }
  }
  plan.count = r;
  batch.segments = segments;
  batch.bytes = bytes;
  batch.longest = longest;
  batch.shortest = shortest;
  batch.plain = several === 0 ? 1 : 0;
  if (range < mapCount) {
    q.lastRange = range;
    q.lastAllowed = mapPermission[range];
  }
  if (packed) {
    q.nextAvail = slot;
    q.availWrap = want === AVAIL_BIT ? 1 : 0;
  } else q.nextAvail = (slot + n) & 0xffff;
  return other === 0 ? n : ~n;
}
