/**
 * What is known of a range, in the memory of a request: IO_EXTENTS. Records of 16 bytes, in order
 * and without gaps: how many bytes, and of which kind; the first without bytes is behind the last.
 */
import { arena } from '../sys/index.ts';
import type { IoBatch } from './io-batch.ts';
import { type Extent, MAX_EXTENTS } from './layer/layer.ts';

const RECORD_BYTES = 16;
const KINDS = ['data', 'zero', 'hole'] as const;

/** Room for all that one request is answered with. */
export const EXTENTS_BYTES = RECORD_BYTES * (MAX_EXTENTS + 1);

export function writeExtents(batch: IoBatch, row: number, extents: readonly Extent[]): void {
  const first = batch.segFirst[row]!;
  if (batch.segCount[row] === 1) putExtents(batch.segOffset[first]!, batch.segLen[first]!, extents);
}

/** As many as there is room for. */
export function putExtents(offset: number, roomBytes: number, extents: readonly Extent[]): void {
  const { view } = arena();
  let at = offset;
  for (const { sizeBytes, kind } of extents.slice(0, Math.floor(roomBytes / RECORD_BYTES))) {
    view.setFloat64(at, sizeBytes, true);
    view.setFloat64(at + 8, KINDS.indexOf(kind), true);
    at += RECORD_BYTES;
  }
  if (offset + roomBytes - at >= RECORD_BYTES) view.setFloat64(at, 0, true);
}

/** What an engine put there of the range from `at` on; nothing where it knew nothing. */
export function readExtents(offset: number, roomBytes: number, at: number): Extent[] {
  const { view } = arena();
  const extents: Extent[] = [];
  let end = at;
  for (let place = 0; place + RECORD_BYTES <= roomBytes; place += RECORD_BYTES) {
    const sizeBytes = view.getFloat64(offset + place, true);
    if (sizeBytes === 0) break;
    extents.push({ at: end, sizeBytes, kind: KINDS[view.getFloat64(offset + place + 8, true)]! });
    end += sizeBytes;
  }
  return extents;
}
