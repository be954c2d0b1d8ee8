/**
 * From chains of a transmit queue (driver to device) to frames of the switch.
 *
 * The virtio-net header and the start of the frame are copied once into the frame's header slot;
 * what is judged here and in the switch is that copy. The rest of the frame stays in the guest.
 * Virtio 1.2, 5.1.6.2 "Packet Transmission".
 *
 * Two passes over a batch. The first looks at chains only and collects the copies; one native call
 * then makes them all, fetching ahead, since the lines of a frame are in the other core's cache;
 * the second judges the copies.
 */
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';
import type { FrameBatch } from '../../switch/frame-batch.ts';
import type { CopyPlan } from '../../sys/arena.ts';
import { fillRows } from '../../virtqueue/chain-segments.hot.ts';

const FAULT_CHAIN_DIRECTION = -14; // as in virtqueue/faults.ts; net-port.test.ts holds them equal
const FAULT_CHAIN_SHORT = -15;

const SLOT_BYTES = 96; //   HEADER_SLOT_BYTES
const SLOT_START = 16; //   HEADER_SLOT_START
const COPY_BYTES = 64; //   HEADER_COPY_BYTES
const SLOT_WORDS = 24;
const FRAME_MAX = 65553; // MAX_FRAME_BYTES
const HDR_BYTES = 12; //    NET_HEADER_BYTES

const UNIFORM_READ = 1;
const CHAIN_SEG_FIRST = 512; // columns of ChainBatch.rows
const READ_SEGS = 768;
const WRITE_SEGS = 1024;
const READ_BYTES = 1280;
const HEADER_AT = 0; //         columns of FrameBatch.rows
const HEADER_LEN = 64;
const FRAME_LEN = 128;
const SEG_FIRST = 192;
const SEG_COUNT = 256;
const OFFLOAD = 320;
const GSO_TYPE = 384;

const HDR_NEEDS_CSUM = 1; // VIRTIO_NET_HDR_F_NEEDS_CSUM
const HDR_DATA_VALID = 2; // VIRTIO_NET_HDR_F_DATA_VALID
const GSO_TCPV4 = 1;
const GSO_UDP = 3;
const GSO_TCPV6 = 4;
const GSO_UDP_L4 = 5;
const GSO_ECN = 0x80;

/** Offloads that the driver may ask for: features it acknowledged, one bit each. */
export const HOST_CSUM = 1;
export const HOST_TSO4 = 2;
export const HOST_TSO6 = 4;
export const HOST_ECN = 8;
export const HOST_UFO = 16;
export const HOST_USO = 32;

/**
 * Turns `chains` into frames of `batch`. Frames whose header asks for offloads that were
 * not negotiated are left out, so `chains.count - batch.count` of them were rejected. Returns
 * the number of frames or a negative fault: the driver broke the queue. `plan` is empty after it.
 */
export function readFrames(
  chains: ChainBatch,
  plan: CopyPlan, // empty; room for a range per segment
  batch: FrameBatch,
  hdrLen: number, //  bytes of the virtio-net header: 12, or 10 for a legacy driver
  allowed: number, // HOST_* bits that were negotiated
): number {
  batch.plain = 1;
  if (chains.unfilled !== 0 && chains.uniform !== UNIFORM_READ) fillRows(chains, chains.count);
  const simple = collectSimple(chains, plan, batch, hdrLen);
  let found = simple;
  if (simple < chains.count) {
    if (chains.unfilled !== 0) fillRows(chains, chains.count);
    found = collectFrames(chains, plan, batch, hdrLen, simple);
  }
  if (found <= 0) {
    plan.count = 0; // ports share it: what is left would be copied with the next one's frames
    return found;
  }
  return copyHeaders(plan, batch, found, hdrLen, allowed);
}

/** Makes the copies of `found` frames and judges their virtio-net headers: the second pass. */
export function copyHeaders(
  plan: CopyPlan,
  batch: FrameBatch,
  found: number,
  hdrLen: number,
  allowed: number,
): number {
  plan.run();
  if (batch.plain !== 0 && hdrLen === HDR_BYTES && allZero(batch, found)) return found;
  batch.plain = 0;
  return judgeHeaders(batch, found, hdrLen, allowed);
}

/**
 * First pass: chains from the first on that are one readable segment with the whole header copy
 * in it, nearly all. Returns how many. It calls nothing and keeps to few arrays, so that V8 has
 * their pointers in registers (7 against 12 ns per frame).
 */
function collectSimple(
  chains: ChainBatch,
  plan: CopyPlan,
  batch: FrameBatch,
  hdrLen: number,
): number {
  const { count, rows: chainRows, segOffset: chainOffset, segLen: chainLen } = chains;
  const { rows, segOffset, segLen, segCapacity } = batch;
  const { ranges, capacity } = plan;
  const uniform = chains.uniform === UNIFORM_READ;
  const slots = batch.headersAt + SLOT_START - hdrLen;
  let segments = 0;
  let bytes = 0;
  let longest = 0;
  let shortest = FRAME_MAX;
  let i = 0;
  for (; i < count && segments < segCapacity; i++) {
    let segment = i;
    if (!uniform) {
      if (chainRows[i + WRITE_SEGS] !== 0 || chainRows[i + READ_SEGS] !== 1) break;
      segment = chainRows[i + CHAIN_SEG_FIRST];
    }
    const from = chainOffset[segment];
    const lenBytes = chainLen[segment] - hdrLen;
    if (lenBytes < 0 || lenBytes > FRAME_MAX) break;
    const copied = lenBytes < COPY_BYTES ? lenBytes : COPY_BYTES;
    const need = hdrLen + copied;
    ranges[i] = from;
    ranges[i + capacity] = slots + i * SLOT_BYTES;
    ranges[i + 2 * capacity] = need;
    rows[i + HEADER_AT] = i * SLOT_BYTES + SLOT_START;
    rows[i + HEADER_LEN] = copied;
    rows[i + FRAME_LEN] = lenBytes;
    rows[i + SEG_FIRST] = segments;
    rows[i + SEG_COUNT] = 0;
    rows[i + OFFLOAD] = 0;
    rows[i + GSO_TYPE] = 0;
    bytes += lenBytes;
    if (lenBytes > longest) longest = lenBytes;
    if (lenBytes < shortest) shortest = lenBytes;
    if (lenBytes > copied) {
      rows[i + SEG_COUNT] = 1;
      segOffset[segments] = from + need;
      segLen[segments++] = lenBytes - copied;
    }
  }
  plan.count = i;
  batch.count = i;
  batch.segments = segments;
  batch.bytes = bytes;
  batch.longest = longest;
  batch.shortest = shortest;
  return i;
}

/**
 * First pass, chains of any shape from `start` on. Returns how many frames are in the batch. What
 * is copied of a frame may be in several segments: the virtio-net header often has its own.
 */
function collectFrames(
  chains: ChainBatch,
  plan: CopyPlan,
  batch: FrameBatch,
  hdrLen: number,
  start: number,
): number {
  const { count, rows: chainRows, segOffset: chainOffset, segLen: chainLen } = chains;
  const { segOffset, segLen, rows } = batch;
  const { ranges, capacity } = plan;
  const slots = batch.headersAt + SLOT_START - hdrLen;
  const most = hdrLen + COPY_BYTES;
  let r = plan.count;
  let frames = batch.count;
  let segments = batch.segments;
  let sum = batch.bytes;
  let several = 0;
  for (let i = start; i < count; i++) {
    if (chainRows[i + WRITE_SEGS] !== 0) return FAULT_CHAIN_DIRECTION;
    const bytes = chainRows[i + READ_BYTES] - hdrLen;
    if (bytes < 0) return FAULT_CHAIN_SHORT;
    if (bytes > FRAME_MAX) continue;
    const first = segments;
    const end = chainRows[i + CHAIN_SEG_FIRST] + chainRows[i + READ_SEGS];
    const target = slots + frames * SLOT_BYTES;
    let done = 0;
    for (let s = chainRows[i + CHAIN_SEG_FIRST]; s < end; s++) {
      const from = chainOffset[s];
      const len = chainLen[s];
      const take = len < most - done ? len : most - done;
      if (take > 0) {
        ranges[r] = from;
        ranges[r + capacity] = target + done;
        ranges[r + 2 * capacity] = take;
        r++;
        done += take;
      }
      if (take < len) {
        segOffset[segments] = from + take;
        segLen[segments++] = len - take;
      }
    }
    rows[frames + HEADER_AT] = frames * SLOT_BYTES + SLOT_START;
    rows[frames + HEADER_LEN] = done - hdrLen;
    rows[frames + FRAME_LEN] = bytes;
    rows[frames + SEG_FIRST] = first;
    rows[frames + SEG_COUNT] = segments - first;
    rows[frames + OFFLOAD] = 0;
    rows[frames + GSO_TYPE] = 0;
    if (segments - first > 1) several = 1;
    sum += bytes;
    if (bytes > batch.longest) batch.longest = bytes;
    if (bytes < batch.shortest) batch.shortest = bytes;
    frames++;
  }
  if (several !== 0) batch.plain = 0;
  plan.count = r;
  batch.bytes = sum;
  batch.count = frames;
  batch.segments = segments;
  return frames;
}

/** Does no virtio-net header of 12 bytes ask for anything? */
function allZero(batch: FrameBatch, count: number): boolean {
  const words = batch.headerWords;
  let flags = 0; // | gso_type << 8 | hdr_len << 16
  for (let i = 0; i < count; i++) flags |= words[i * SLOT_WORDS + 1];
  return (flags & 0xffff) === 0;
}

/**
 * Second pass, headers of 12 bytes from the first on that leave a checksum to us or nothing: what
 * Linux sends, nearly always. Returns how many. Calls nothing.
 */
function judgeChecksums(batch: FrameBatch, count: number, allowed: number): number {
  const { headerWords, rows, gsoSize, gsoHeaderLen, csumStart, csumOffset } = batch;
  const known = (allowed & HOST_CSUM) === 0 ? HDR_DATA_VALID : HDR_DATA_VALID | HDR_NEEDS_CSUM;
  let i = 0;
  for (; i < count; i++) {
    const word = i * SLOT_WORDS + 1;
    const first = headerWords[word]; // flags | gso_type << 8 | hdr_len << 16
    if ((first & (0xff00 | HDR_NEEDS_CSUM) & ~known) !== 0) break;
    rows[i + OFFLOAD] = first & known;
    rows[i + GSO_TYPE] = 0;
    if ((first & 0xff) === 0) continue;
    const second = headerWords[word + 1]; // gso_size | csum_start << 16
    gsoHeaderLen[i] = first >>> 16;
    gsoSize[i] = second;
    csumStart[i] = second >>> 16;
    csumOffset[i] = headerWords[word + 2];
  }
  return i;
}

/** Second pass: the virtio-net headers. Frames that are refused are closed up over. */
function judgeHeaders(batch: FrameBatch, count: number, hdrLen: number, allowed: number): number {
  const { headerView, offload, gsoType } = batch;
  const simple = hdrLen === HDR_BYTES ? judgeChecksums(batch, count, allowed) : 0;
  let kept = simple;
  for (let i = simple; i < count; i++) {
    const at = i * SLOT_BYTES + SLOT_START - hdrLen;
    const flags = headerView.getUint16(at, true); // flags | gso_type << 8
    if (kept !== i) moveFrame(batch, i, kept);
    if (flags === 0) {
      offload[kept] = 0;
      gsoType[kept] = 0;
    } else if (!readOffload(headerView, at, batch, kept, allowed)) {
      continue;
    }
    kept++;
  }
  batch.count = kept;
  return kept;
}

/** Frame `from` becomes frame `to`; its header stays in its slot. */
function moveFrame(batch: FrameBatch, from: number, to: number): void {
  batch.headerAt[to] = batch.headerAt[from];
  batch.headerLen[to] = batch.headerLen[from];
  batch.frameLen[to] = batch.frameLen[from];
  batch.segFirst[to] = batch.segFirst[from];
  batch.segCount[to] = batch.segCount[from];
}

/**
 * The offload fields of a header copy. False: they ask for what was not negotiated. Whether they
 * fit the frame is the switch's business (`switch/ingress.hot.ts`), as uplinks have them, too.
 */
function readOffload(
  headers: DataView,
  at: number,
  batch: FrameBatch,
  frame: number,
  allowed: number,
): boolean {
  const flags = headers.getUint8(at) & (HDR_NEEDS_CSUM | HDR_DATA_VALID);
  const gso = headers.getUint8(at + 1);
  if (flags & HDR_NEEDS_CSUM && (allowed & HOST_CSUM) === 0) return false;
  if (gso !== 0) {
    const type = gso & ~GSO_ECN;
    let feature = 0;
    if (type === GSO_TCPV4) feature = HOST_TSO4;
    else if (type === GSO_TCPV6) feature = HOST_TSO6;
    else if (type === GSO_UDP) feature = HOST_UFO;
    else if (type === GSO_UDP_L4) feature = HOST_USO;
    if ((allowed & feature) === 0) return false;
    if (gso & GSO_ECN && (allowed & HOST_ECN) === 0) return false;
  }
  batch.offload[frame] = flags;
  batch.gsoType[frame] = gso;
  batch.gsoSize[frame] = headers.getUint16(at + 4, true);
  batch.gsoHeaderLen[frame] = headers.getUint16(at + 2, true);
  batch.csumStart[frame] = headers.getUint16(at + 6, true);
  batch.csumOffset[frame] = headers.getUint16(at + 8, true);
  return true;
}
