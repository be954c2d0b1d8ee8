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
import { copySmall } from '../../memory/copy.hot.ts';
import type { CopyPlan } from '../../sys/arena.ts';

const FAULT_CHAIN_DIRECTION = -14; // as in virtqueue/faults.ts; net-port.test.ts holds them equal
const FAULT_CHAIN_SHORT = -15;

const SLOT_BYTES = 96; //   HEADER_SLOT_BYTES
const SLOT_START = 16; //   HEADER_SLOT_START
const COPY_BYTES = 64; //   HEADER_COPY_BYTES
const FRAME_MAX = 65553; // MAX_FRAME_BYTES

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
 * the number of frames or a negative fault: the driver broke the queue.
 */
export function readFrames(
  arena: DataView,
  chains: ChainBatch,
  plan: CopyPlan, // empty; room for a range per chain
  batch: FrameBatch,
  hdrLen: number, //  bytes of the virtio-net header: 12, or 10 for a legacy driver
  allowed: number, // HOST_* bits that were negotiated
): number {
  const found = collectFrames(arena, chains, plan, batch, hdrLen);
  if (found <= 0) return found;
  plan.run();
  return judgeHeaders(batch, found, hdrLen, allowed);
}

/**
 * First pass: where frames are. Returns how many, or a fault. Columns are read into locals before
 * the loop: a call in the loop would make the engine load and check each of them anew per access.
 */
function collectFrames(
  arena: DataView,
  chains: ChainBatch,
  plan: CopyPlan,
  batch: FrameBatch,
  hdrLen: number,
): number {
  const { count, readBytes, writeSegs, readSegs } = chains;
  const { segFirst: chainFirst, segOffset: chainOffset, segLen: chainLen } = chains;
  const { segFirst, segCount, segOffset, segLen, headerAt, headerLen, frameLen } = batch;
  const { source, target, length } = plan;
  const slots = batch.headersAt + SLOT_START - hdrLen;
  let ranges = 0;
  let frames = 0;
  let segments = 0;
  for (let i = 0; i < count; i++) {
    if (writeSegs[i] !== 0) return FAULT_CHAIN_DIRECTION;
    const bytes = readBytes[i] - hdrLen;
    if (bytes < 0) return FAULT_CHAIN_SHORT;
    if (bytes > FRAME_MAX) continue;
    const copied = bytes < COPY_BYTES ? bytes : COPY_BYTES;
    const need = hdrLen + copied;
    const first = chainFirst[i];
    const firstLen = chainLen[first];
    const segmentsBefore = segments;
    if (firstLen >= need) {
      const from = chainOffset[first];
      source[ranges] = from;
      target[ranges] = slots + frames * SLOT_BYTES;
      length[ranges++] = need;
      if (firstLen > need) {
        segOffset[segments] = from + need;
        segLen[segments++] = firstLen - need;
      }
      const end = first + readSegs[i];
      for (let s = first + 1; s < end; s++) {
        segOffset[segments] = chainOffset[s];
        segLen[segments++] = chainLen[s];
      }
    } else {
      const at = frames * SLOT_BYTES + SLOT_START - hdrLen;
      segments = gatherFrame(arena, chains, i, batch, at, need, segments);
    }
    segFirst[frames] = segmentsBefore;
    segCount[frames] = segments - segmentsBefore;
    headerAt[frames] = frames * SLOT_BYTES + SLOT_START;
    headerLen[frames] = copied;
    frameLen[frames] = bytes;
    frames++;
  }
  plan.count = ranges;
  batch.count = frames;
  batch.segments = segments;
  return frames;
}

/** Second pass: the virtio-net headers. Frames that are refused are closed up over. */
function judgeHeaders(batch: FrameBatch, count: number, hdrLen: number, allowed: number): number {
  const { headerView, offload, gsoType } = batch;
  let kept = 0;
  for (let i = 0; i < count; i++) {
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

/** The first `need` bytes of chain `i` lie in several segments. Returns the new segment count. */
function gatherFrame(
  arena: DataView,
  chains: ChainBatch,
  i: number,
  batch: FrameBatch,
  at: number,
  need: number,
  segments: number,
): number {
  const first = chains.segFirst[i];
  const end = first + chains.readSegs[i];
  let done = 0;
  for (let s = first; s < end; s++) {
    const offset = chains.segOffset[s];
    const len = chains.segLen[s];
    const take = len < need - done ? len : need - done;
    if (take > 0) copySmall(batch.headerView, at + done, arena, offset, take);
    done += take;
    if (take < len) {
      batch.segOffset[segments] = offset + take;
      batch.segLen[segments++] = len - take;
    }
  }
  return segments;
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
