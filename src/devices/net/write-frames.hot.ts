/**
 * From frames of the switch into chains of a receive queue (device to driver): the one copy.
 *
 * The start of a frame comes from our own header copy, the rest straight from where the source
 * guest has it. Ranges are collected and moved by one native call before anything is published.
 * Virtio 1.2, 5.1.6.3.1 "Device Requirements: Setting Up Receive Buffers" and 5.1.6.4.
 */
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';
import type { DeviceQueue } from '../../virtqueue/device-queue.ts';
import type { FrameBatch } from '../../switch/frame-batch.ts';
import type { CopyPlan } from '../../sys/arena.ts';
import { fillRows } from '../../virtqueue/chain-segments.hot.ts';
import { putUsed, takeChains, untakeChains } from '../../virtqueue/device.hot.ts';
import { writeDirect } from './direct-write.hot.ts';

const FAULT_CHAIN_DIRECTION = -14; // as in virtqueue/faults.ts; net-port.test.ts holds them equal
const FAULT_CHAIN_SHORT = -15;

const UNIFORM_WRITE = 2;
const CHAIN_SEG_FIRST = 512; // columns of ChainBatch.rows
const READ_SEGS = 768;
const WRITE_SEGS = 1024;
const WRITTEN = 1792;
const HEADER_AT = 0; //         columns of FrameBatch.rows
const HEADER_LEN = 64;
const FRAME_LEN = 128;
const SEG_FIRST = 192;
const SEG_COUNT = 256;
const OFFLOAD = 320;
const GSO_TYPE = 384;

/** Ranges that one frame adds at most: each boundary in source or target starts a new one. */
const PLAN_RESERVE = 1300; // MAX_CHAIN_DESCRIPTORS + BATCH_SEGMENTS, rounded up

/** What became of a list of frames; reused by the caller. */
export class WriteResult {
  delivered = 0;
  /** Dropped: the driver has posted no more buffers. */
  noBuffers = 0;
  /** Dropped: longer than the driver's buffer (no MRG_RXBUF). */
  tooLong = 0;
}

/**
 * Writes frames `list[0 .. count)` into the queue, in order, and publishes them. Returns 0 or a
 * negative fault, after which the queue is broken; `result` says what happened to the frames.
 */
export function writeFrames(
  q: DeviceQueue,
  chains: ChainBatch,
  plan: CopyPlan,
  batch: FrameBatch,
  list: Int32Array,
  count: number,
  hdrLen: number,
  mergeable: boolean,
  flagMask: number, // VIRTIO_NET_HDR_F_* that the driver understands: 0 without GUEST_CSUM
  direct: boolean, //  nothing goes with the queue that `writeDirect` does not know of
  result: WriteResult,
): number {
  let k = 0;
  if (direct && hdrLen === 12 && q.fault === 0) {
    k = writeDirect(q, chains, 0, plan, batch, list, count, flagMask);
    plan.run();
    putUsed(q, chains, 0, k);
    result.delivered = k;
    if (k === count) return 0;
  }
  let next = 0; // first chain of `chains` that is still free
  const left = count - k;
  let have = takeChains(q, chains, left < chains.capacity ? left : chains.capacity);
  if (have < 0) return have;
  let fault = 0;
  for (;;) {
    const simple = writeSimple(chains, next, have, plan, batch, list, k, count, hdrLen, flagMask);
    k += simple;
    next += simple;
    result.delivered += simple;
    if (k === count) break;
    // A frame that is not simple: several segments or buffers, a full plan, or no buffer left.
    const frame = list[k];
    const total = hdrLen + batch.frameLen[frame];
    let used = next < have ? fitChains(chains, next, have, total, mergeable) : 0;
    if (used === 0) {
      // Publish what is filled, give back what is not enough, and look at the ring once more.
      have = refill(q, chains, plan, next, have, count - k, mergeable);
      if (have < 0) return have;
      next = 0;
      used = have === 0 ? 0 : fitChains(chains, 0, have, total, mergeable);
      if (used === 0) {
        result.noBuffers += count - k;
        break;
      }
    }
    if (used === TOO_LONG) {
      result.tooLong++;
      k++;
      continue;
    }
    if (used < 0) {
      fault = used; // what was filled before is still published: the plan must not outlive us
      break;
    }
    if (plan.count + PLAN_RESERVE > plan.capacity) plan.run();
    writeHeader(batch, frame, hdrLen, used, flagMask);
    scatterFrame(chains, next, used, plan, batch, frame, hdrLen, total);
    next += used;
    k++;
    result.delivered++;
  }
  if (plan.count > 0) plan.run();
  if (next < have) untakeChains(q, chains, next);
  if (next > 0) putUsed(q, chains, 0, next);
  return fault;
}

/**
 * Frames `list[from .. count)` as long as each fits one contiguous buffer, has at most one segment
 * behind its header copy and needs no offload: nearly all. Returns how many that were. Columns are
 * locals, for the reason given in read-frames.hot.ts.
 */
function writeSimple(
  chains: ChainBatch,
  next: number,
  have: number,
  plan: CopyPlan,
  batch: FrameBatch,
  list: Int32Array,
  from: number,
  count: number,
  hdrLen: number,
  flagMask: number,
): number {
  const { rows: chainRows, segOffset: chainOffset, segLen: chainLen } = chains;
  const { rows, headerWords, segOffset, segLen, headersAt } = batch;
  const { ranges, capacity } = plan;
  if (hdrLen !== 12) return 0;
  const uniform = chains.uniform === UNIFORM_WRITE;
  if (chains.unfilled !== 0 && !uniform) return 0; // `fitChains` judges them
  const plain = batch.plain !== 0;
  let n = plan.count;
  let k = from;
  let chain = next;
  for (; k < count && chain < have && n + 2 <= capacity; k++, chain++) {
    const frame = list[k];
    const total = 12 + rows[frame + FRAME_LEN];
    const segments = rows[frame + SEG_COUNT];
    let buffer = chain;
    if (!uniform) {
      if (chainRows[chain + READ_SEGS] !== 0 || chainRows[chain + WRITE_SEGS] === 0) break;
      buffer = chainRows[chain + CHAIN_SEG_FIRST];
    }
    if (chainLen[buffer] < total) break;
    if (!plain) {
      if (segments > 1) break;
      if (((rows[frame + OFFLOAD] & flagMask) | rows[frame + GSO_TYPE]) !== 0) break;
    }
    const at = rows[frame + HEADER_AT] - 12;
    const word = at >> 2;
    headerWords[word] = 0;
    headerWords[word + 1] = 0;
    headerWords[word + 2] = 0x10000; // num_buffers 1
    const to = chainOffset[buffer];
    const own = 12 + rows[frame + HEADER_LEN];
    ranges[n] = headersAt + at;
    ranges[n + capacity] = to;
    ranges[n + 2 * capacity] = own;
    n++;
    if (segments !== 0) {
      const segment = rows[frame + SEG_FIRST];
      ranges[n] = segOffset[segment];
      ranges[n + capacity] = to + own;
      ranges[n + 2 * capacity] = segLen[segment];
      n++;
    }
    chainRows[chain + WRITTEN] = total;
  }
  plan.count = n;
  return k - from;
}

const TOO_LONG = -100; // not a fault: this frame is dropped, the chain stays

/** How many chains from `next` on hold `total` bytes; 0: not enough in the batch. */
function fitChains(
  chains: ChainBatch,
  next: number,
  have: number,
  total: number,
  mergeable: boolean,
): number {
  if (chains.unfilled !== 0) fillRows(chains, have);
  let room = 0;
  for (let i = next; i < have; i++) {
    if (chains.readSegs[i] !== 0) return FAULT_CHAIN_DIRECTION;
    if (chains.writeBytes[i] === 0) return FAULT_CHAIN_SHORT;
    room += chains.writeBytes[i];
    if (room >= total) return i - next + 1;
    if (!mergeable) return TOO_LONG;
  }
  return 0;
}

/** Publishes chains [0, next), returns the others, takes as many as there may be. */
function refill(
  q: DeviceQueue,
  chains: ChainBatch,
  plan: CopyPlan,
  next: number,
  have: number,
  frames: number,
  mergeable: boolean,
): number {
  if (plan.count > 0) plan.run();
  if (next < have) untakeChains(q, chains, next);
  if (next > 0) putUsed(q, chains, 0, next);
  const want = mergeable || frames > chains.capacity ? chains.capacity : frames;
  return takeChains(q, chains, want);
}

/** Puts the virtio-net header in front of our copy of the frame's start. */
function writeHeader(
  batch: FrameBatch,
  frame: number,
  hdrLen: number,
  numBuffers: number,
  flagMask: number,
): void {
  const headers = batch.headerView;
  const at = batch.headerAt[frame] - hdrLen;
  const offload = batch.offload[frame] & flagMask;
  const gso = batch.gsoType[frame];
  headers.setUint16(at, offload | (gso << 8), true);
  if (offload === 0 && gso === 0) {
    headers.setUint32(at + 2, 0, true);
    headers.setUint32(at + 6, 0, true);
  } else {
    headers.setUint16(at + 2, batch.gsoHeaderLen[frame], true);
    headers.setUint16(at + 4, gso === 0 ? 0 : batch.gsoSize[frame], true);
    headers.setUint16(at + 6, batch.csumStart[frame], true);
    headers.setUint16(at + 8, batch.csumOffset[frame], true);
  }
  if (hdrLen === 12) headers.setUint16(at + 10, numBuffers, true);
}

/** A frame into several segments, of one chain or of `used` mergeable buffers. */
function scatterFrame(
  chains: ChainBatch,
  next: number,
  used: number,
  plan: CopyPlan,
  batch: FrameBatch,
  frame: number,
  hdrLen: number,
  total: number,
): void {
  // Source cursor: our header copy is source segment -1.
  let source = -1;
  let sourceAt = 0;
  let sourceLen = hdrLen + batch.headerLen[frame];
  const ownAt = batch.headersAt + batch.headerAt[frame] - hdrLen;
  const firstSource = batch.segFirst[frame];
  let left = total;
  for (let c = next; c < next + used; c++) {
    const room = chains.writeBytes[c] < left ? chains.writeBytes[c] : left;
    chains.written[c] = room;
    left -= room;
    let chainLeft = room;
    for (let s = chains.segFirst[c]; chainLeft > 0; s++) {
      let to = chains.segOffset[s];
      let segLeft = chains.segLen[s] < chainLeft ? chains.segLen[s] : chainLeft;
      chainLeft -= segLeft;
      while (segLeft > 0) {
        if (sourceAt === sourceLen) {
          source++;
          sourceAt = 0;
          sourceLen = batch.segLen[firstSource + source];
        }
        const len = segLeft < sourceLen - sourceAt ? segLeft : sourceLen - sourceAt;
        const from = source < 0 ? ownAt : batch.segOffset[firstSource + source];
        const n = plan.count++;
        plan.source[n] = from + sourceAt;
        plan.target[n] = to;
        plan.length[n] = len;
        to += len;
        sourceAt += len;
        segLeft -= len;
      }
    }
  }
}
