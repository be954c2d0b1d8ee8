import type { FrameBatch } from '../../switch/frame-batch.ts';

/**
 * Which of several queues a frame goes to: a symmetric hash over addresses and ports of the header
 * copy, so that the frames of one connection stay in one queue, in both directions alike.
 */
const ETHERTYPE_IPV4 = 0x0800;
const ETHERTYPE_IPV6 = 0x86dd;
const ETHERTYPE_VLAN = 0x8100;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;

/** A hash below 2^31 of the frame that starts at `at`; `len` bytes of it are in `headers`. */
export function flowHash(headers: DataView, at: number, len: number): number {
  let type = headers.getUint16(at + 12);
  let l3 = at + 14;
  if (type === ETHERTYPE_VLAN && len >= 18) {
    type = headers.getUint16(at + 16);
    l3 = at + 18;
  }
  const end = at + len;
  let hash = 0;
  let l4 = 0;
  let protocol = 0;
  if (type === ETHERTYPE_IPV4 && l3 + 20 <= end) {
    hash = headers.getUint32(l3 + 12) ^ headers.getUint32(l3 + 16);
    const fragment = headers.getUint16(l3 + 6) & 0x3fff;
    protocol = fragment === 0 ? headers.getUint8(l3 + 9) : 0;
    l4 = l3 + (headers.getUint8(l3) & 0x0f) * 4;
  } else if (type === ETHERTYPE_IPV6 && l3 + 40 <= end) {
    for (let i = 8; i < 40; i += 4) hash ^= headers.getUint32(l3 + i);
    protocol = headers.getUint8(l3 + 6);
    l4 = l3 + 40;
  } else {
    // Not IP: the two MAC addresses. The symmetric part is the exclusive-or of their low words.
    hash = headers.getUint32(at + 2) ^ headers.getUint32(at + 8);
  }
  if ((protocol === PROTOCOL_TCP || protocol === PROTOCOL_UDP) && l4 + 4 <= end) {
    // Mixed, not just added: a port that counts with an address must not cancel it out.
    hash = Math.imul(hash, 0x9e3779b1) ^ headers.getUint16(l4) ^ headers.getUint16(l4 + 2);
  }
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return (hash ^ (hash >>> 13)) & 0x7fff_ffff;
}

/** Sorts frames `list[0 .. count)` into one list for each of `queues` queues, by their flows. */
export function spreadFlows(
  batch: FrameBatch,
  list: Int32Array,
  count: number,
  queues: number,
  lists: readonly Int32Array[],
  counts: Int32Array,
): void {
  const { headerView, headerAt, headerLen } = batch;
  for (let q = 0; q < queues; q++) counts[q] = 0;
  for (let k = 0; k < count; k++) {
    const i = list[k];
    const q = flowHash(headerView, headerAt[i], headerLen[i]) % queues;
    lists[q][counts[q]++] = i;
  }
}
