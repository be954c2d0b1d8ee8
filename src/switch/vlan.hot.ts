import type { FrameBatch } from './frame-batch.ts';

/** Edits of the VLAN tag in our copy of a frame's header. The rest of the frame stays in place. */

const TPID_CTAG = 0x8100;
const TPID_AT = 12;
const TCI_AT = 14;
const TAG_BYTES = 4;
const TAG_PRESENT = 0x10; // in the `tagged` column
const PRIORITY = 0x0f;

/** Puts a tag of the frame's VLAN and priority behind the addresses; uses headroom of the slot. */
export function pushTag(batch: FrameBatch, i: number): void {
  const view = batch.headerView;
  const from = batch.headerAt[i];
  const to = from - TAG_BYTES;
  // Upwards copy of 12 bytes: each word is read before the write that reaches it.
  view.setUint32(to, view.getUint32(from));
  view.setUint32(to + 4, view.getUint32(from + 4));
  view.setUint32(to + 8, view.getUint32(from + 8));
  view.setUint16(to + TPID_AT, TPID_CTAG);
  view.setUint16(to + TCI_AT, ((batch.tagged[i] & PRIORITY) << 12) | batch.vlan[i]);
  batch.tagged[i] |= TAG_PRESENT;
  shiftStart(batch, i, to, TAG_BYTES);
}

/** Takes the tag out; what the frame is, stays in its `vlan` and `tagged` columns. */
export function popTag(batch: FrameBatch, i: number): void {
  const view = batch.headerView;
  const from = batch.headerAt[i];
  const to = from + TAG_BYTES;
  view.setUint32(to + 8, view.getUint32(from + 8));
  view.setUint32(to + 4, view.getUint32(from + 4));
  view.setUint32(to, view.getUint32(from));
  batch.tagged[i] &= PRIORITY;
  shiftStart(batch, i, to, -TAG_BYTES);
}

function shiftStart(batch: FrameBatch, i: number, headerAt: number, grownBytes: number): void {
  batch.headerAt[i] = headerAt;
  batch.headerLen[i] += grownBytes;
  batch.frameLen[i] += grownBytes;
  if ((batch.offload[i] & 1) !== 0) batch.csumStart[i] += grownBytes;
  if (batch.gsoHeaderLen[i] !== 0) batch.gsoHeaderLen[i] += grownBytes;
}
