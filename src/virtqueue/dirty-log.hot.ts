/**
 * Marks what a device has written in the dirty log. Specification, "Migration".
 *
 * The front-end fetches and clears bits while we set them, and copies a page after it has cleared
 * its bit. So a bit that is seen set counts only when what was written is visible by then: one
 * full fence between the last write and the first look at the log, for all chains of a batch. Only
 * clear bits are then set, by an atomic `or`: in a running migration most are set already.
 *
 * Buffers are marked before their used entries are published, the ring after it.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import type { DirtyLog } from './dirty-log.ts';
import { fillRows } from './chain-segments.hot.ts';

const SEG_FIRST = 512; // columns of ChainBatch.rows
const READ_SEGS = 768;
const WRITTEN = 1792;

const UNIFORM_READ = 1;

const USED_GPA = 0; // cells of DirtyLog.cells
const DESC_GPA = 1;
const OUTSIDE = 2;

const PAGES_PER_BYTE_OF_GUEST = 1 / 4096;

/** What was written into rows `[first, first + count)`, which are about to be published. */
export function logBuffers(q: DeviceQueue, batch: ChainBatch, first: number, count: number): void {
  if (batch.unfilled !== 0) {
    if (batch.uniform === UNIFORM_READ) return;
    fillRows(batch, batch.count);
  }
  const { rows, segOffset, segLen } = batch;
  const log = q.log;
  const end = first + count;
  Atomics.exchange(q.fence, 0, 0);
  for (let i = first; i < end; i++) {
    let left = rows[i + WRITTEN];
    for (let s = rows[i + SEG_FIRST] + rows[i + READ_SEGS]; left > 0; s++) {
      const len = segLen[s];
      logRange(q, log, segOffset[s], len < left ? len : left);
      left -= len;
    }
  }
}

/** Used entries `[from, from + count)` of a split ring, and its index, were published. */
export function logUsedSplit(q: DeviceQueue, from: number, count: number): void {
  const used = q.log.cells[USED_GPA];
  if (used < 0) return;
  // The index was published by a sequentially consistent store: that was the fence.
  const at = from & (q.size - 1);
  const behind = at + count;
  logPages(q, used + 2, 2);
  if (behind <= q.size) {
    logPages(q, used + 4 + 8 * at, 8 * count);
  } else {
    logPages(q, used + 4 + 8 * at, 8 * (q.size - at));
    logPages(q, used + 4, 8 * (behind - q.size));
  }
}

/** Slots `[from, from + count)` of a packed ring were passed, and used entries are among them. */
export function logUsedPacked(q: DeviceQueue, from: number, count: number): void {
  const ring = q.log.cells[DESC_GPA];
  if (ring < 0) return;
  const behind = from + count;
  if (behind <= q.size) {
    logPages(q, ring + 16 * from, 16 * count);
  } else {
    logPages(q, ring + 16 * from, 16 * (q.size - from));
    logPages(q, ring, 16 * (behind - q.size < q.size ? behind - q.size : q.size));
  }
}

/** `bytes` bytes at `at` in the used ring (packed: device event suppression) were written. */
export function logEvent(q: DeviceQueue, at: number, bytes: number): void {
  const used = q.log.cells[USED_GPA];
  if (used >= 0) logPages(q, used + at, bytes); // stored by Atomics.store: the fence
}

/** An arena range that lies in guest memory. */
function logRange(q: DeviceQueue, log: DirtyLog, offset: number, len: number): void {
  const { start, end, delta, count } = log;
  let at = offset;
  let left = len;
  while (left > 0) {
    let range = log.last;
    if (!(at >= start[range] && at < end[range])) {
      range = 0;
      while (range < count && !(at >= start[range] && at < end[range])) range++;
      if (range === count) {
        log.cells[OUTSIDE]++;
        return;
      }
      log.last = range;
    }
    const room = end[range] - at;
    const here = left < room ? left : room;
    logPages(q, at + delta[range], here);
    at += here;
    left -= here;
  }
}

/** Guest-physical [gpa, gpa + len), which is not empty. */
function logPages(q: DeviceQueue, gpa: number, len: number): void {
  const log = q.log;
  const { bits } = log;
  const size = bits.length;
  const weak = q.weakOrder;
  const last = Math.floor((gpa + len - 1) * PAGES_PER_BYTE_OF_GUEST);
  for (let page = Math.floor(gpa * PAGES_PER_BYTE_OF_GUEST); page <= last; page++) {
    const byte = Math.floor(page * 0.125);
    if (!(byte < size)) {
      log.cells[OUTSIDE] += last - page + 1;
      return;
    }
    const bit = 1 << (page - 8 * byte);
    // x86 has no load that passes an older fence; elsewhere only an ordered one may not.
    const known = weak === 0 ? bits[byte] : Atomics.load(bits, byte);
    if ((known & bit) === 0) Atomics.or(bits, byte, bit);
  }
}
