import type { DriverBatch } from './driver-batch.ts';
import type { DriverQueue } from './driver-queue.ts';

/**
 * Writes the indirect table of id `id` for row `row`: descriptors in order, linked by `next` in
 * split rings, unlinked in packed ones. Virtio 1.2, 2.7.5.3 and 2.8.7.
 */
export function writeTable(q: DriverQueue, batch: DriverBatch, row: number, id: number): void {
  const arena = q.arena;
  const first = batch.segFirst[row];
  const firstWritable = first + batch.readSegs[row];
  const end = firstWritable + batch.writeSegs[row];
  let at = q.tableBase[0] + 16 * q.tableEntries * id;
  for (let s = first; s < end; s++) {
    const gpa = batch.segGpa[s];
    const write = s >= firstWritable ? 2 : 0; // VIRTQ_DESC_F_WRITE
    arena.setInt32(at, gpa | 0, true);
    arena.setInt32(at + 4, (gpa / 4294967296) | 0, true);
    arena.setInt32(at + 8, batch.segLen[s], true);
    if (q.packed !== 0) arena.setInt32(at + 12, write << 16, true);
    else if (s + 1 < end) arena.setInt32(at + 12, write | 1 | ((s + 1 - first) << 16), true);
    else arena.setInt32(at + 12, write, true);
    at += 16;
  }
}

/** Bytes that the device may write into row `row`, at most 2^31 - 1. */
export function writableBytes(batch: DriverBatch, row: number): number {
  const first = batch.segFirst[row] + batch.readSegs[row];
  const end = first + batch.writeSegs[row];
  let total = 0;
  for (let s = first; s < end; s++) total += batch.segLen[s];
  return total < 0x7fffffff ? total : 0x7fffffff;
}
