import type { FrameBatch } from '../switch/frame-batch.ts';

/** The worker's end of a capture ring; see capture-ring.ts for the layout. */

const HEAD_BYTES = 64;
const WRITE = 0;
const READ = 1;
const SEEN = 2;
const LOST = 3;
const RECORD_BYTES = 24;

/**
 * Appends frame `i` of a batch, cut at `snapLen` bytes, or counts it as lost. `position` is where
 * the ring's writer stands; returns where it stands afterwards. The caller publishes that.
 */
export function captureFrame(
  head: Int32Array,
  ring: DataView,
  position: number,
  batch: FrameBatch,
  i: number,
  arena: DataView,
  snapLen: number,
  direction: number,
  seconds: number,
  nanoseconds: number,
): number {
  const ringBytes = ring.byteLength - HEAD_BYTES;
  const original = batch.frameLen[i];
  const captured = original < snapLen ? original : snapLen;
  const size = (RECORD_BYTES + captured + 7) & ~7;
  head[SEEN]++;
  const used = (position - Atomics.load(head, READ)) >>> 0;
  if (used + size > ringBytes) {
    head[LOST]++;
    return position;
  }
  const mask = ringBytes - 1;
  // Records start on 8 bytes and the ring is a multiple of them: no word crosses its end.
  ring.setUint32(HEAD_BYTES + (position & mask), size, true);
  ring.setUint32(HEAD_BYTES + ((position + 4) & mask), direction, true);
  ring.setUint32(HEAD_BYTES + ((position + 8) & mask), original, true);
  ring.setUint32(HEAD_BYTES + ((position + 12) & mask), captured, true);
  ring.setUint32(HEAD_BYTES + ((position + 16) & mask), seconds, true);
  ring.setUint32(HEAD_BYTES + ((position + 20) & mask), nanoseconds, true);
  let at = position + RECORD_BYTES;
  const header = batch.headerLen[i];
  let left = captured;
  let piece = header < left ? header : left;
  putBytes(ring, at, mask, batch.headerView, batch.headerAt[i], piece);
  left -= piece;
  at += piece;
  const end = batch.segFirst[i] + batch.segCount[i];
  for (let seg = batch.segFirst[i]; seg < end && left > 0; seg++) {
    piece = batch.segLen[seg] < left ? batch.segLen[seg] : left;
    putBytes(ring, at, mask, arena, batch.segOffset[seg], piece);
    left -= piece;
    at += piece;
  }
  return (position + size) | 0;
}

/** Makes the records in front of `position` visible to the reader. */
export function publishCapture(head: Int32Array, position: number): void {
  Atomics.store(head, WRITE, position);
}

function putBytes(
  ring: DataView,
  at: number,
  mask: number,
  source: DataView,
  from: number,
  lenBytes: number,
): void {
  const start = at & mask;
  let k = 0;
  if (start + lenBytes <= mask + 1) {
    const target = HEAD_BYTES + start;
    for (; k + 4 <= lenBytes; k += 4) ring.setInt32(target + k, source.getInt32(from + k));
    for (; k < lenBytes; k++) ring.setUint8(target + k, source.getUint8(from + k));
    return;
  }
  for (; k < lenBytes; k++) {
    ring.setUint8(HEAD_BYTES + ((at + k) & mask), source.getUint8(from + k));
  }
}
