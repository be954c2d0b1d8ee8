import type { FrameBatch } from '../switch/frame-batch.ts';
import { copySmall } from '../memory/copy.hot.ts';

/**
 * Between frames in columns and frames as a TAP with IFF_VNET_HDR and TUNSETVNETHDRSZ 12 has them:
 * a struct virtio_net_hdr_v1, little-endian (TUNSETVNETLE), then the frame.
 */

const VNET_BYTES = 12;
const FLAGS = 0; //        u8
const GSO_TYPE = 1; //     u8
const HDR_LEN = 2; //      u16
const GSO_SIZE = 4; //     u16
const CSUM_START = 6; //   u16
const CSUM_OFFSET = 8; //  u16
const NUM_BUFFERS = 10; // u16
const OFFLOAD_BITS = 3; // NEEDS_CSUM and DATA_VALID are the same bits on both sides
const NEEDS_CSUM = 1;
const HEADER_COPY_BYTES = 64;
const SLOT_BYTES = 96;
const SLOT_START = 16;

/** Appends the frame that was read to `at`, `lenBytes` bytes with its vnet header. */
export function appendRead(batch: FrameBatch, arena: DataView, at: number, lenBytes: number): void {
  const i = batch.count++;
  const frameLen = lenBytes - VNET_BYTES;
  const headerLen = frameLen < HEADER_COPY_BYTES ? frameLen : HEADER_COPY_BYTES;
  const headerAt = i * SLOT_BYTES + SLOT_START;
  copySmall(batch.headerView, headerAt, arena, at + VNET_BYTES, headerLen);
  batch.headerAt[i] = headerAt;
  batch.headerLen[i] = headerLen;
  batch.frameLen[i] = frameLen;
  batch.segFirst[i] = batch.segments;
  batch.segCount[i] = 0;
  if (frameLen > headerLen) {
    batch.segOffset[batch.segments] = at + VNET_BYTES + headerLen;
    batch.segLen[batch.segments++] = frameLen - headerLen;
    batch.segCount[i] = 1;
  }
  batch.offload[i] = arena.getUint8(at + FLAGS) & OFFLOAD_BITS;
  batch.gsoType[i] = arena.getUint8(at + GSO_TYPE);
  batch.gsoHeaderLen[i] = arena.getUint16(at + HDR_LEN, true);
  batch.gsoSize[i] = arena.getUint16(at + GSO_SIZE, true);
  batch.csumStart[i] = arena.getUint16(at + CSUM_START, true);
  batch.csumOffset[i] = arena.getUint16(at + CSUM_OFFSET, true);
}

/**
 * Puts frame `i` into the columns of one writev: its vnet header and our header copy, put together
 * at `headAt`, then its segments. Returns how many ranges, or 0 when there are more than fit.
 */
export function gatherWrite(
  batch: FrameBatch,
  i: number,
  arena: DataView,
  headAt: number,
  offsets: Float64Array,
  lengths: Int32Array,
): number {
  const segCount = batch.segCount[i];
  if (segCount + 1 > offsets.length) return 0;
  const offload = batch.offload[i];
  const gsoType = batch.gsoType[i];
  const needsCsum = (offload & NEEDS_CSUM) !== 0;
  // The hint is the guest's: the kernel refuses frames that are shorter.
  const hint = batch.gsoHeaderLen[i];
  const hdrLen = gsoType === 0 || hint > batch.frameLen[i] ? 0 : hint;
  arena.setUint8(headAt + FLAGS, offload);
  arena.setUint8(headAt + GSO_TYPE, gsoType);
  arena.setUint16(headAt + HDR_LEN, hdrLen, true);
  arena.setUint16(headAt + GSO_SIZE, gsoType === 0 ? 0 : batch.gsoSize[i], true);
  arena.setUint16(headAt + CSUM_START, needsCsum ? batch.csumStart[i] : 0, true);
  arena.setUint16(headAt + CSUM_OFFSET, needsCsum ? batch.csumOffset[i] : 0, true);
  arena.setUint16(headAt + NUM_BUFFERS, 0, true);
  const headerLen = batch.headerLen[i];
  copySmall(arena, headAt + VNET_BYTES, batch.headerView, batch.headerAt[i], headerLen);
  offsets[0] = headAt;
  lengths[0] = VNET_BYTES + headerLen;
  const first = batch.segFirst[i];
  for (let seg = 0; seg < segCount; seg++) {
    offsets[seg + 1] = batch.segOffset[first + seg];
    lengths[seg + 1] = batch.segLen[first + seg];
  }
  return segCount + 1;
}

const TYPE_VLAN = 0x8100;
const TYPE_IPV4 = 0x0800;
const TYPE_IPV6 = 0x86dd;

/**
 * The queue of a frame: by its addresses, those of IP, and the ports of what is no fragment. The
 * same for all frames of a flow, so that they stay in order.
 */
export function queueOf(batch: FrameBatch, i: number, queues: number): number {
  const { headerView: view } = batch;
  const at = batch.headerAt[i];
  const end = at + batch.headerLen[i];
  let hash = view.getInt32(at) ^ view.getInt32(at + 4) ^ view.getInt32(at + 8);
  let ip = at + 14;
  let type = view.getUint16(at + 12);
  if (type === TYPE_VLAN && end >= at + 18) {
    type = view.getUint16(at + 16);
    ip += 4;
  }
  let ports = 0;
  if (type === TYPE_IPV4 && ip + 20 <= end) {
    hash = mix(mix(hash, view.getInt32(ip + 12)), view.getInt32(ip + 16));
    const whole = (view.getUint16(ip + 6) & 0x3fff) === 0; // MF and the offset
    if (whole && hasPorts(view.getUint8(ip + 9))) ports = ip + (view.getUint8(ip) & 15) * 4;
  } else if (type === TYPE_IPV6 && ip + 40 <= end) {
    for (let word = ip + 8; word < ip + 40; word += 4) hash = mix(hash, view.getInt32(word));
    if (hasPorts(view.getUint8(ip + 6))) ports = ip + 40;
  }
  if (ports !== 0 && ports + 4 <= end) hash = mix(hash, view.getInt32(ports));
  return (mix(hash, 0) >>> 16) % queues;
}

function mix(hash: number, word: number): number {
  return Math.imul(hash ^ word ^ (hash >>> 15), 0x2c1b3c6d);
}

/** TCP and UDP. */
function hasPorts(protocol: number): boolean {
  return protocol === 6 || protocol === 17;
}
