import type { FrameBatch } from './frame-batch.ts';
import { popTag, pushTag } from './vlan.hot.ts';

/** The last look before `transmit`: tags as the port wants them, and what it cannot take as is. */

const NEEDS_CSUM = 1;
const GSO_ECN = 0x80;
const ACCEPT_CSUM = 1;
const ACCEPT_ECN = 8;
const TAG_PRESENT = 0x10; // 4 times the bytes of a tag

/**
 * Edits tags of frames `list[from .. count)` and stops before the first that the port cannot take
 * as it is. Returns that position, or `count`. `untagged` is the VLAN that leaves without a tag; 0:
 * every frame leaves tagged; -1: tags stay as they are.
 */
export function plainRun(
  batch: FrameBatch,
  list: Int32Array,
  from: number,
  count: number,
  accepts: number,
  maxFrameBytes: number,
  untagged: number,
): number {
  const { vlan, tagged, gsoType, frameLen, offload } = batch;
  const csumTodo = NEEDS_CSUM & ~accepts;
  for (let k = from; k < count; k++) {
    const i = list[k];
    if (untagged >= 0) {
      if (vlan[i] === untagged) {
        if ((tagged[i] & TAG_PRESENT) !== 0) popTag(batch, i);
      } else if ((tagged[i] & TAG_PRESENT) === 0) pushTag(batch, i);
    }
    if (gsoType[i] === 0) {
      // As everywhere, an 802.1Q tag comes on top of the MTU.
      if (frameLen[i] - ((tagged[i] & TAG_PRESENT) >>> 2) > maxFrameBytes) return k;
      if ((offload[i] & csumTodo) !== 0) return k;
    } else if (!acceptsGso(gsoType[i], accepts)) return k;
  }
  return count;
}

/** True when a receiver with these ACCEPT_* bits cuts frames of this type up itself. */
export function acceptsGso(gsoType: number, accepts: number): boolean {
  if ((accepts & ACCEPT_CSUM) === 0) return false;
  if ((gsoType & GSO_ECN) !== 0 && (accepts & ACCEPT_ECN) === 0) return false;
  const kind = gsoType & ~GSO_ECN;
  if (kind === 1) return (accepts & 2) !== 0; //  GSO_TCPV4, ACCEPT_TSO4
  if (kind === 4) return (accepts & 4) !== 0; //  GSO_TCPV6, ACCEPT_TSO6
  if (kind === 5) return (accepts & 32) !== 0; // GSO_UDP_L4, ACCEPT_USO
  if (kind === 3) return (accepts & 16) !== 0; // GSO_UDP, ACCEPT_UFO
  return false;
}

/** Bytes of the first `count` frames of a list. */
export function listBytes(batch: FrameBatch, list: Int32Array, count: number): number {
  let bytes = 0;
  for (let k = 0; k < count; k++) bytes += batch.frameLen[list[k]];
  return bytes;
}

/** How many frames of a list were sent to this port alone, not flooded. */
export function unicastCount(batch: FrameBatch, list: Int32Array, count: number): number {
  let unicast = 0;
  for (let k = 0; k < count; k++) if (batch.destination[list[k]] >= 0) unicast++;
  return unicast;
}
