/**
 * Where a queue marks the guest pages that it writes: the dirty log of a migration. Specification,
 * "Migration". Cells only; `dirty-log.hot.ts` works on them.
 */
import { MAX_LOG_BYTES } from '../base/limits.ts';
import type { AddressMap } from '../memory/address-map.ts';

/** The log as one ring uses it; offsets are arena offsets. */
export type QueueLog = {
  /** Bit n of the bitmap is the guest page n of 4096 bytes. */
  readonly offset: number;
  readonly sizeBytes: number;
  /** Guest-physical address of the used ring (packed: device event suppression); -1: not logged. */
  readonly usedGpa: number;
  /** Guest-physical memory: says which page an arena offset is in. */
  readonly gpa: AddressMap;
};

// Cells of `DirtyLog.cells`.
export const LOG_USED_PAGES = 0;
export const LOG_DESC_PAGES = 1;
export const LOG_OUTSIDE = 2;

/** What one bit stands for. */
const PAGE_BYTES = 4096;

/** One hidden class, also for queues without a log. */
export class DirtyLog {
  readonly bits: Uint8Array;
  /** Ranges of guest memory by where they are in the arena, sorted. */
  readonly start: Float64Array;
  readonly end: Float64Array;
  /** Guest-physical address minus arena offset. */
  readonly delta: Float64Array;
  readonly count: number;
  /** Range that the last buffer was in. */
  last = 0;
  /**
   * LOG_* cells: guest addresses of the used ring and the descriptor ring over 4096, -1 for not
   * logged; pages without a bit.
   */
  readonly cells = new Float64Array(3);

  constructor(buffer: ArrayBufferLike, log: QueueLog | null, descOffset: number, packed: boolean) {
    const map = log?.gpa;
    const ranges = Array.from({ length: map?.count ?? 0 }, (_, i) => ({
      start: map!.start[i]! + map!.delta[i]!,
      end: map!.end[i]! + map!.delta[i]!,
      delta: -map!.delta[i]!,
    })).sort((a, b) => a.start - b.start);
    this.count = ranges.length | 0;
    // Never empty: one impossible range, as in DeviceQueue.
    this.start = Float64Array.from([...ranges.map((range) => range.start), Infinity]);
    this.end = Float64Array.from([...ranges.map((range) => range.end), -Infinity]);
    this.delta = Float64Array.from([...ranges.map((range) => range.delta), 0]);
    const bytes = Math.min(log?.sizeBytes ?? 0, MAX_LOG_BYTES);
    this.bits = log === null ? new Uint8Array(0) : new Uint8Array(buffer, log.offset, bytes);
    const usedGpa = log?.usedGpa ?? -1;
    this.cells[LOG_USED_PAGES] = usedGpa < 0 ? -1 : usedGpa / PAGE_BYTES;
    // A packed ring's used entries are its descriptors, whose address no message names.
    const ring = ranges.find((range) => descOffset >= range.start && descOffset < range.end);
    const known = packed && usedGpa >= 0 && ring !== undefined;
    this.cells[LOG_DESC_PAGES] = known ? (descOffset + ring.delta) / PAGE_BYTES : -1;
  }

  /** Pages that were written and have no bit in the log. */
  get outside(): number {
    return this.cells[LOG_OUTSIDE]!;
  }
}
