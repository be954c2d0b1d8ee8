import type { FrameBatch } from './frame-batch.ts';

/**
 * Which VLAN is a received frame in, is it a frame at all, and do its offload fields fit it: the
 * uncommon half of judging a batch. What is plain and untagged never gets here (forward.hot.ts).
 */

// The same numbers are in frame-batch.ts, counters.ts and base/limits.ts.
const FLOOD = -1;
const DROP = -2;
const DROP_SHORT = DROP - 13;
const DROP_LONG = DROP - 14;
const DROP_OFFLOAD_HEADER = DROP - 15;
const DROP_VLAN_TAGGED = DROP - 16;
const DROP_VLAN_UNTAGGED = DROP - 17;
const DROP_VLAN_NOT_ALLOWED = DROP - 18;
const MIN_FRAME_BYTES = 14;
const MIN_TAGGED_BYTES = 18;
const MAX_FRAME_BYTES = 65553;
// An Ethernet and an IPv4 header: a checksum further in front could overwrite what we judged.
const MIN_CSUM_START = 34;
const MAX_CSUM_START = 65531; // a tag pushed in front moves it by 4, and the column has 16 bits
const NEEDS_CSUM = 1;
const GSO_ECN = 0x80;
const TYPE_AT = 12;
const TCI_AT = 14;
const TYPE_CTAG = 0x8100;
const TAG_PRESENT = 0x10;
const VID_MASK = 0xfff;
const VID_RESERVED = 4095;

/**
 * VLAN of frame `i` under the port's rules (see VlanRules), or the drop. Sets `tagged`; a priority
 * tag gets the number of the VLAN that it belongs to.
 */
export function admitFrame(
  batch: FrameBatch,
  i: number,
  untagged: number,
  access: boolean,
  allowed: Uint32Array,
): number {
  batch.tagged[i] = 0;
  const problem = checkFrame(batch, i);
  if (problem !== FLOOD) return problem;
  const untaggedFate = untagged === 0 ? DROP_VLAN_UNTAGGED : untagged;
  const view = batch.headerView;
  const at = batch.headerAt[i];
  if (view.getUint16(at + TYPE_AT) !== TYPE_CTAG) return untaggedFate;
  if (batch.frameLen[i] < MIN_TAGGED_BYTES) return DROP_SHORT;
  const tci = view.getUint16(at + TCI_AT);
  const vid = tci & VID_MASK;
  batch.tagged[i] = TAG_PRESENT | (tci >>> 12);
  if (vid === 0) {
    view.setUint16(at + TCI_AT, tci | untagged);
    return untaggedFate;
  }
  if (access) return DROP_VLAN_TAGGED;
  if (vid === VID_RESERVED) return DROP_VLAN_NOT_ALLOWED;
  return (allowed[vid >>> 5] & (1 << (vid & 31))) === 0 ? DROP_VLAN_NOT_ALLOWED : vid;
}

/** FLOOD, or the drop for a frame that is none, or whose offload fields point outside it. */
export function checkFrame(batch: FrameBatch, i: number): number {
  const lenBytes = batch.frameLen[i];
  if (lenBytes < MIN_FRAME_BYTES) return DROP_SHORT;
  if (lenBytes > MAX_FRAME_BYTES) return DROP_LONG;
  if (batch.gsoType[i] === 0 && (batch.offload[i] & NEEDS_CSUM) === 0) return FLOOD;
  return checkOffload(batch, i) ? FLOOD : DROP_OFFLOAD_HEADER;
}

/** The fields of virtio-net's header are the guest's: a receiver must be able to rely on them. */
function checkOffload(batch: FrameBatch, i: number): boolean {
  const start = batch.csumStart[i];
  if ((batch.offload[i] & NEEDS_CSUM) !== 0) {
    if (start < MIN_CSUM_START || start > MAX_CSUM_START) return false;
    if (start + batch.csumOffset[i] + 2 > batch.frameLen[i]) return false;
  }
  const type = batch.gsoType[i];
  if (type === 0) return true;
  const kind = type & ~GSO_ECN;
  if (kind !== 1 && kind !== 3 && kind !== 4 && kind !== 5) return false;
  if (batch.gsoSize[i] === 0) return false;
  // Virtio 1.2, 5.1.6.2.1: a segmented frame has its checksum still to be filled in.
  return (batch.offload[i] & NEEDS_CSUM) !== 0;
}
