import type { FrameBatch } from './frame-batch.ts';

/**
 * Checksums and segmentation in software, over a copy of the frame in our scratch memory: what is
 * summed is what is delivered, whatever the guest writes into its own memory meanwhile.
 * See offload.ts for the theory of operation. Offsets are arena offsets.
 */

const SLOT_BYTES = 96;
const SLOT_START = 16;
const HEADER_COPY_BYTES = 64;

// Words of a plan: what a frame to be cut up looks like. The same numbers are in offload.ts.
const PLAN_L3 = 0; //       bytes before the IP header
const PLAN_L4 = 1; //       bytes before the TCP or UDP header
const PLAN_HEADER = 2; //   bytes before the payload
const PLAN_PAYLOAD = 3; //  bytes of payload
const PLAN_SIZE = 4; //     payload bytes per segment
const PLAN_SEGMENTS = 5; // how many
const PLAN_V6 = 6; //       1 for IPv6
const PLAN_TCP = 7; //      1 for TCP
const PLAN_PARTIAL = 8; //  1: the receiver finishes checksums, leave the pseudo header's sum

const TYPE_CTAG = 0x8100;
const TYPE_IPV4 = 0x0800;
const TYPE_IPV6 = 0x86dd;
const PROTO_TCP = 6;
const PROTO_UDP = 17;
const FRAGMENT_BITS = 0x3fff; // more fragments, and the offset
const IPV6_EXTENSIONS_MAX = 8;

export const PLAN_WORDS = 9;
export const PLAN_OK = 0;
export const PLAN_BAD_HEADERS = -1;
export const PLAN_BAD_SIZE = -2;
export const PLAN_BAD_TYPE = -3;

/**
 * Copies a whole frame to `target`, its header from our copy. Returns how many bytes that is, or -1
 * if the columns contradict each other.
 */
export function gatherFrame(
  batch: FrameBatch,
  i: number,
  view: DataView,
  arena: Uint8Array,
  target: number,
): number {
  const lenBytes = batch.frameLen[i];
  const headerAt = batch.headerAt[i];
  const headerLen = batch.headerLen[i];
  copyBytes(view, target, batch.headerView, headerAt, headerLen);
  let filled = headerLen;
  const end = batch.segFirst[i] + batch.segCount[i];
  for (let seg = batch.segFirst[i]; seg < end; seg++) {
    const segLen = batch.segLen[seg];
    if (filled + segLen > lenBytes) return -1;
    const from = batch.segOffset[seg];
    arena.copyWithin(target + filled, from, from + segLen);
    filled += segLen;
  }
  return filled === lenBytes ? filled : -1;
}

/**
 * One's complement sum of 16-bit words as this machine reads them (little-endian), folded to 16
 * bits. RFC 1071: the order of bytes does not matter as long as the result is stored the same way.
 */
export function sumWords(view: DataView, at: number, lenBytes: number): number {
  let low = 0;
  let high = 0;
  const end = at + lenBytes;
  let p = at;
  // Both stay below 2^31: 64 KiB are 4097 rounds of at most 4 * 0xffff each. Four words a round
  // took 190 ns for 1448 bytes, two took 230, sums of doubles 230 to 300.
  for (; p + 16 <= end; p += 16) {
    const a = view.getInt32(p, true);
    const b = view.getInt32(p + 4, true);
    const c = view.getInt32(p + 8, true);
    const d = view.getInt32(p + 12, true);
    low = (low + (a & 0xffff) + (b & 0xffff) + (c & 0xffff) + (d & 0xffff)) | 0;
    high = (high + (a >>> 16) + (b >>> 16) + (c >>> 16) + (d >>> 16)) | 0;
  }
  for (; p + 2 <= end; p += 2) low += view.getUint16(p, true);
  if (p < end) low += view.getUint8(p);
  return foldSum((low & 0xffff) + (low >>> 16) + (high & 0xffff) + (high >>> 16));
}

/** A short copy by words: headers. */
function copyBytes(
  target: DataView,
  to: number,
  source: DataView,
  from: number,
  lenBytes: number,
): void {
  let k = 0;
  for (; k + 4 <= lenBytes; k += 4) target.setInt32(to + k, source.getInt32(from + k));
  for (; k < lenBytes; k++) target.setUint8(to + k, source.getUint8(from + k));
}

/** Folds a sum of a few 16-bit values to 16 bits. */
export function foldSum(sum: number): number {
  const once = (sum & 0xffff) + (sum >>> 16);
  return (once & 0xffff) + (once >>> 16);
}

/** Fills in the checksum of the frame at `frameAt`; its field holds the pseudo header's sum. */
export function finishChecksum(
  view: DataView,
  frameAt: number,
  lenBytes: number,
  csumStart: number,
  csumOffset: number,
): void {
  const sum = ~sumWords(view, frameAt + csumStart, lenBytes - csumStart) & 0xffff;
  // Zero means "no checksum" to UDP; all ones is the same number in one's complement.
  view.setUint16(frameAt + csumStart + csumOffset, sum === 0 ? 0xffff : sum, true);
}

/** Appends the frame that lies at `at`: its start into a header slot, the rest as a segment. */
export function appendFrame(out: FrameBatch, view: DataView, at: number, lenBytes: number): number {
  const i = out.count++;
  const headerLen = lenBytes < HEADER_COPY_BYTES ? lenBytes : HEADER_COPY_BYTES;
  const slot = i * SLOT_BYTES + SLOT_START;
  copyBytes(out.headerView, slot, view, at, headerLen);
  out.headerAt[i] = slot;
  out.headerLen[i] = headerLen;
  out.frameLen[i] = lenBytes;
  out.segFirst[i] = out.segments;
  out.segCount[i] = 0;
  out.offload[i] = 0;
  out.gsoType[i] = 0;
  out.gsoSize[i] = 0;
  out.gsoHeaderLen[i] = 0;
  out.csumStart[i] = 0;
  out.csumOffset[i] = 0;
  if (headerLen < lenBytes) appendSegment(out, i, at + headerLen, lenBytes - headerLen);
  return i;
}

/** Appends one more range of bytes to frame `i`, the last of the batch. */
export function appendSegment(out: FrameBatch, i: number, at: number, lenBytes: number): void {
  out.segOffset[out.segments] = at;
  out.segLen[out.segments] = lenBytes;
  out.segments++;
  out.segCount[i]++;
}

/**
 * Reads the headers of the frame at `frameAt` and fills `plan`: where they end, how many segments
 * there will be. `kind` is the GSO type without its ECN flag. Returns PLAN_OK or a PLAN_BAD_*.
 */
export function planSegments(
  view: DataView,
  frameAt: number,
  lenBytes: number,
  kind: number,
  gsoSize: number,
  maxHeaderBytes: number,
  maxSegments: number,
  plan: Int32Array,
): number {
  if (kind !== 1 && kind !== 4 && kind !== 5) return PLAN_BAD_TYPE;
  const tagged = view.getUint16(frameAt + 12) === TYPE_CTAG;
  const l3 = tagged ? 18 : 14;
  if (lenBytes < l3 + 20) return PLAN_BAD_HEADERS;
  const type = view.getUint16(frameAt + l3 - 2);
  const protocol = kind === 5 ? PROTO_UDP : PROTO_TCP;
  plan[PLAN_L3] = l3;
  plan[PLAN_V6] = type === TYPE_IPV6 ? 1 : 0;
  plan[PLAN_TCP] = kind === 5 ? 0 : 1;
  let l4 = -1;
  if (type === TYPE_IPV4 && kind !== 4) l4 = ipv4End(view, frameAt, l3, protocol);
  else if (type === TYPE_IPV6 && kind !== 1) l4 = ipv6End(view, frameAt, l3, lenBytes, protocol);
  if (l4 < 0 || l4 + 8 > lenBytes) return PLAN_BAD_HEADERS;
  let header = l4 + 8;
  if (kind !== 5) {
    if (l4 + 20 > lenBytes) return PLAN_BAD_HEADERS;
    const tcpBytes = (view.getUint8(frameAt + l4 + 12) >>> 4) * 4;
    if (tcpBytes < 20) return PLAN_BAD_HEADERS;
    header = l4 + tcpBytes;
  }
  if (header > lenBytes || header > maxHeaderBytes) return PLAN_BAD_HEADERS;
  if (gsoSize === 0) return PLAN_BAD_SIZE;
  const payload = lenBytes - header;
  const segments = payload === 0 ? 1 : Math.ceil(payload / gsoSize);
  if (segments > maxSegments) return PLAN_BAD_SIZE;
  plan[PLAN_L4] = l4;
  plan[PLAN_HEADER] = header;
  plan[PLAN_PAYLOAD] = payload;
  plan[PLAN_SIZE] = gsoSize;
  plan[PLAN_SEGMENTS] = segments;
  return PLAN_OK;
}

/** Bytes before what the IPv4 header carries, or -1: no IPv4, a fragment, another protocol. */
function ipv4End(view: DataView, frameAt: number, l3: number, protocol: number): number {
  const ip = frameAt + l3;
  const versionIhl = view.getUint8(ip);
  const headerBytes = (versionIhl & 0xf) * 4;
  if (versionIhl >>> 4 !== 4 || headerBytes < 20) return -1;
  if ((view.getUint16(ip + 6) & FRAGMENT_BITS) !== 0) return -1;
  return view.getUint8(ip + 9) === protocol ? l3 + headerBytes : -1;
}

/**
 * The same for IPv6. Hop-by-hop and destination options are stepped over. A routing header is not:
 * the pseudo header would need the final destination.
 */
function ipv6End(
  view: DataView,
  frameAt: number,
  l3: number,
  lenBytes: number,
  protocol: number,
): number {
  if (lenBytes < l3 + 40 || view.getUint8(frameAt + l3) >>> 4 !== 6) return -1;
  let next = view.getUint8(frameAt + l3 + 6);
  let at = l3 + 40;
  for (let depth = 0; depth <= IPV6_EXTENSIONS_MAX; depth++) {
    if (next === protocol) return at;
    if (next !== 0 && next !== 60) return -1;
    if (at + 8 > lenBytes) return -1;
    next = view.getUint8(frameAt + at);
    at += (view.getUint8(frameAt + at + 1) + 1) * 8;
  }
  return -1;
}

/**
 * Appends segment `n` of the planned frame at `frameAt`. Its header is built at `headerAt` (own
 * scratch memory, at least PLAN_HEADER bytes); its payload stays where the frame's copy has it.
 */
export function appendGsoSegment(
  out: FrameBatch,
  view: DataView,
  plan: Int32Array,
  frameAt: number,
  headerAt: number,
  n: number,
): void {
  const headerBytes = plan[PLAN_HEADER];
  const skip = n * plan[PLAN_SIZE];
  const left = plan[PLAN_PAYLOAD] - skip;
  const payload = left < plan[PLAN_SIZE] ? left : plan[PLAN_SIZE];
  const payloadAt = frameAt + headerBytes + skip;
  copyBytes(view, headerAt, view, frameAt, headerBytes);
  editIpHeader(view, plan, headerAt, payload, n);
  const l4 = headerAt + plan[PLAN_L4];
  const l4Bytes = headerBytes - plan[PLAN_L4] + payload;
  const last = n === plan[PLAN_SEGMENTS] - 1;
  const field =
    plan[PLAN_TCP] !== 0 ? editTcp(view, l4, n, skip, last) : editUdp(view, l4, l4Bytes);
  const pseudo = pseudoSum(view, plan, headerAt, l4Bytes);
  if (plan[PLAN_PARTIAL] !== 0) {
    view.setUint16(l4 + field, pseudo, true);
  } else {
    view.setUint16(l4 + field, 0);
    const l4HeaderBytes = headerBytes - plan[PLAN_L4];
    const parts = sumWords(view, l4, l4HeaderBytes) + sumWords(view, payloadAt, payload);
    const sum = ~foldSum(pseudo + parts) & 0xffff;
    view.setUint16(l4 + field, sum === 0 ? 0xffff : sum, true);
  }
  const i = appendFrame(out, view, headerAt, headerBytes);
  out.frameLen[i] = headerBytes + payload;
  if (payload > 0) appendSegment(out, i, payloadAt, payload);
  if (plan[PLAN_PARTIAL] !== 0) {
    out.offload[i] = 1; // OFFLOAD_NEEDS_CSUM
    out.csumStart[i] = plan[PLAN_L4];
    out.csumOffset[i] = field;
  }
}

/** Lengths; for IPv4 also the next identification, and the header checksum. */
function editIpHeader(
  view: DataView,
  plan: Int32Array,
  headerAt: number,
  payload: number,
  n: number,
): void {
  const ip = headerAt + plan[PLAN_L3];
  const behindL3 = plan[PLAN_HEADER] - plan[PLAN_L3] + payload;
  if (plan[PLAN_V6] !== 0) {
    view.setUint16(ip + 4, behindL3 - 40);
    return;
  }
  view.setUint16(ip + 2, behindL3);
  view.setUint16(ip + 4, (view.getUint16(ip + 4) + n) & 0xffff);
  view.setUint16(ip + 10, 0);
  const sum = ~sumWords(view, ip, plan[PLAN_L4] - plan[PLAN_L3]) & 0xffff;
  view.setUint16(ip + 10, sum, true);
}

/** Sequence number and flags of segment `n`. Returns where the checksum is. */
function editTcp(view: DataView, l4: number, n: number, skip: number, last: boolean): number {
  view.setUint32(l4 + 4, (view.getUint32(l4 + 4) + skip) >>> 0);
  let flags = view.getUint8(l4 + 13);
  if (!last) flags &= ~0x09; //  FIN and PSH belong to the last byte
  if (n !== 0) flags &= ~0x80; // CWR is said once, RFC 3168, 6.1.2
  view.setUint8(l4 + 13, flags);
  return 16;
}

function editUdp(view: DataView, l4: number, l4Bytes: number): number {
  view.setUint16(l4 + 4, l4Bytes);
  return 6;
}

/** Sum of the pseudo header, as `sumWords` counts. */
function pseudoSum(view: DataView, plan: Int32Array, headerAt: number, l4Bytes: number): number {
  const ip = headerAt + plan[PLAN_L3];
  const addresses = plan[PLAN_V6] !== 0 ? sumWords(view, ip + 8, 32) : sumWords(view, ip + 12, 8);
  const protocol = plan[PLAN_TCP] !== 0 ? 6 : 17;
  const lengthSwapped = ((l4Bytes & 0xff) << 8) | (l4Bytes >>> 8);
  return foldSum(addresses + (protocol << 8) + lengthSwapped);
}
