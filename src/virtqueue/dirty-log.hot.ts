/**
 * Marks what a device has written in the dirty log. Specification, "Migration".
 *
 * The front-end fetches and clears bits while we set them, and copies a page after it has cleared
 * its bit. So a bit that is seen set counts only when what was written is visible by then: one
 * full fence between the last write and the first look at the log, for all chains of a batch. Only
 * clear bits are then set, by an atomic `or`: in a running migration most are set already.
 *
 * Buffers are marked before their used entries are published, the ring after it.
 *
 * Pages are numbered in int32, which no argument boxes; `DirtyLog` cuts a log that would need more.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import type { DirtyLog } from './dirty-log.ts';

const SEG_FIRST = 512; // columns of ChainBatch.rows
const READ_SEGS = 768;
const WRITTEN = 1792;
const PAGE_FIRST = 512; // of a batch that has no segments, guest pages
const PAGE_LAST = 768;

const UNIFORM_READ = 1;
const NO_SEGMENTS = 2; // ChainBatch.unfilled

const USED_PAGES = 0; // cells of DirtyLog.cells: address / 4096
const DESC_PAGES = 1;
const OUTSIDE = 2;

const PAGE = 1 / 4096;
/** Pages from here on have no bit in any log. */
const NO_PAGE = 2147483647;

/** What was written into rows `[first, first + count)`, which are about to be published. */
export function logBuffers(q: DeviceQueue, batch: ChainBatch, first: number, count: number): void {
  const lazy = batch.unfilled !== 0;
  if (lazy && batch.uniform === UNIFORM_READ) return;
  Atomics.exchange(q.fence, 0, 0);
  let i = first;
  const end = first + count;
  if (batch.unfilled === NO_SEGMENTS) {
    const { rows } = batch;
    while (i < end) {
      i = skipMarked(q, rows, i, end);
      if (i === end) break;
      logPages(q, rows[i + PAGE_FIRST], rows[i + PAGE_LAST]);
      i++;
    }
    return;
  }
  while (i < end) {
    if (lazy) i = skipLogged(q, batch, i, end);
    if (i < end) logRow(q, batch, i++, lazy);
  }
}

/**
 * The next row, from `row` on, that is not in the range of memory that was hit last, on pages that
 * are marked: nearly none is, once most bits are set. For batches whose chains are one segment.
 * Calls nothing, see `takeSimple`.
 */
function skipLogged(q: DeviceQueue, batch: ChainBatch, row: number, end: number): number {
  const { rows, segOffset } = batch;
  const log = q.log;
  const bits = log.bits;
  const range = log.last;
  const from = log.start[range];
  const behind = log.end[range];
  const shift = log.delta[range] * PAGE;
  // Then every page of the range has a bit.
  if (q.weakOrder !== 0 || !(behind * PAGE + shift <= bits.length << 3)) return row;
  let i = row;
  for (; i < end; i++) {
    const offset = segOffset[i];
    const behindIt = offset + rows[i + WRITTEN];
    if (!(offset >= from && behindIt <= behind)) break;
    const page = (offset * PAGE + shift) | 0;
    const last = ((behindIt - 1) * PAGE + shift) | 0;
    if (((bits[page >> 3] >> (page & 7)) & 1) === 0) break;
    if (last > page && (((bits[last >> 3] >> (last & 7)) & 1) === 0 || last > page + 1)) break;
  }
  return i;
}

/** The next row, from `row` on, whose pages are not known to be marked. Calls nothing. */
function skipMarked(q: DeviceQueue, rows: Int32Array, row: number, end: number): number {
  const { bits } = q.log;
  if (q.weakOrder !== 0) return row;
  const pages = bits.length << 3;
  let i = row;
  for (; i < end; i++) {
    const page = rows[i + PAGE_FIRST];
    const last = rows[i + PAGE_LAST];
    if (page >>> 0 >= pages || ((bits[page >> 3] >> (page & 7)) & 1) === 0) break;
    if (page === last) continue;
    if (last !== page + 1 || last >= pages || ((bits[last >> 3] >> (last & 7)) & 1) === 0) break;
  }
  return i;
}

/** One row, whatever it is. */
function logRow(q: DeviceQueue, batch: ChainBatch, row: number, lazy: boolean): void {
  const { rows, segLen } = batch;
  let left = rows[row + WRITTEN];
  for (let s = lazy ? row : rows[row + SEG_FIRST] + rows[row + READ_SEGS]; left > 0; s++) {
    const len = segLen[s];
    logSegment(q, q.log, batch.segOffset, s, len < left ? len : left);
    left -= len;
  }
}

/** The first `len` bytes of segment `s`; it lies in guest memory. */
function logSegment(
  q: DeviceQueue,
  log: DirtyLog,
  segOffset: Float64Array,
  s: number,
  len: number,
): void {
  const { start, end, delta, count } = log;
  let at = segOffset[s];
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
    const gpa = at + delta[range];
    logPages(q, pageOf(gpa * PAGE), pageOf((gpa + here - 1) * PAGE));
    at += here;
    left -= here;
  }
}

/** Used entries `[from, from + count)` of a split ring, and its index, were published. */
export function logUsedSplit(q: DeviceQueue, from: number, count: number): void {
  // The index was published by a sequentially consistent store: that was the fence.
  const at = from & (q.size - 1);
  const behind = at + count;
  const wraps = behind > q.size;
  logEvent(q, 2, 2);
  logEvent(q, 4 + 8 * at, 8 * (wraps ? q.size - at : count));
  if (wraps) logEvent(q, 4, 8 * (behind - q.size));
}

/** Slots `[from, from + count)` of a packed ring were passed, and used entries are among them. */
export function logUsedPacked(q: DeviceQueue, from: number, count: number): void {
  const ring = q.log.cells[DESC_PAGES];
  if (ring < 0) return;
  const behind = from + count;
  const wraps = behind > q.size;
  const last = ring + (16 * (wraps ? q.size : behind) - 1) * PAGE;
  logPages(q, pageOf(ring + 16 * from * PAGE), pageOf(last));
  if (!wraps) return;
  const rest = behind - q.size < q.size ? behind - q.size : q.size;
  logPages(q, pageOf(ring), pageOf(ring + (16 * rest - 1) * PAGE));
}

/** `bytes` bytes at `at` in the used ring (packed: device event suppression) were written. */
export function logEvent(q: DeviceQueue, at: number, bytes: number): void {
  const used = q.log.cells[USED_PAGES];
  if (used < 0) return; // else: stored by Atomics.store, the fence
  logPages(q, pageOf(used + at * PAGE), pageOf(used + (at + bytes - 1) * PAGE));
}

/**
 * All that a device writes of the ring: when a queue is made. A device before it may have been
 * killed between a write and its mark, and recovery writes, too.
 */
export function logRing(q: DeviceQueue): void {
  Atomics.exchange(q.fence, 0, 0);
  if (q.packed !== 0) {
    logUsedPacked(q, 0, q.size);
    logEvent(q, 0, 4);
  } else logEvent(q, 0, 4 + 8 * q.size + (q.eventIdx !== 0 ? 2 : 0));
}

/** Number of the page, from its address over 4096. */
function pageOf(page: number): number {
  return page < NO_PAGE ? page | 0 : NO_PAGE;
}

/** Guest pages `[first, last]`. */
function logPages(q: DeviceQueue, first: number, last: number): void {
  const log = q.log;
  const bits = log.bits;
  const size = bits.length;
  const weak = q.weakOrder;
  for (let page = first; page <= last; page++) {
    const byte = page >>> 3; // a page that int32 cannot number is negative, or counts as another
    if (byte >= size) {
      log.cells[OUTSIDE] += last - page + 1;
      return;
    }
    const bit = 1 << (page & 7);
    // x86 has no load that passes an older fence; elsewhere only an ordered one may not.
    const known = weak === 0 ? bits[byte] : Atomics.load(bits, byte);
    if ((known & bit) === 0) Atomics.or(bits, byte, bit);
  }
}
