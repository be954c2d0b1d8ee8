import { BATCH } from '../../base/limits.ts';
import { Flight } from '../disk/flight.ts';
import { FlightVring } from '../disk/flight-vring.ts';
import { MAX_FLIGHTS } from './limits.ts';

// Cells of `ScsiVring.counts`; the first five are kinds of requests, `Flight.kind`.
export const COUNT_READ = 0;
export const COUNT_WRITE = 1;
export const COUNT_FLUSH = 2;
export const COUNT_UNMAP = 3;
export const COUNT_OTHER = 4;
/** In place of a kind: the row was taken, and is not being carried out yet. */
export const KIND_TAKEN = -1;
/** Ended with CHECK CONDITION, whatever its kind. */
export const COUNT_CHECK = 5;
/** Ended with TASK SET FULL. */
export const COUNT_FULL = 6;
/** Ended with a response other than OK. */
export const COUNT_RESPONSE = 7;
export const COUNT_READ_BYTES = 8;
export const COUNT_WRITTEN_BYTES = 9;
/** Of the control queue, and of the event queue. */
export const COUNT_TASKS = 10;
export const COUNT_EVENTS = 11;
export const COUNTS = 12;

/** `ScsiFlight.lun`: no such unit of the target, the REPORT LUNS unit, no such target. */
export const LUN_NONE = -1;
export const LUN_WELL_KNOWN = -2;
export const LUN_NO_TARGET = -3;

/** A batch of commands; on the control queue, of task management requests. */
export class ScsiFlight extends Flight {
  /** Index of the unit, or LUN_*. */
  readonly lun = new Int32Array(BATCH);
  readonly tagLo = new Int32Array(BATCH);
  readonly tagHi = new Int32Array(BATCH);
  /** VIRTIO_SCSI_S_*. */
  readonly response = new Int32Array(BATCH);
  /**
   * Not 0: the response that replaces it when the request ends, because a task function said so.
   */
  readonly aborted = new Int32Array(BATCH);
  /** With CHECK CONDITION: what of wire/scsi.ts, its LBA and field, `encodeSense`. */
  readonly sense = new Int32Array(BATCH);
  readonly information = new Float64Array(BATCH);
  readonly field = new Int32Array(BATCH);
  readonly residual = new Int32Array(BATCH);
}

/** By name: of a ring, or of a unit. */
export function namedCounts(counts: Float64Array): Record<string, number> {
  return {
    reads: counts[COUNT_READ]!,
    writes: counts[COUNT_WRITE]!,
    flushes: counts[COUNT_FLUSH]!,
    unmaps: counts[COUNT_UNMAP]!,
    others: counts[COUNT_OTHER]!,
    checks: counts[COUNT_CHECK]!,
    taskSetFull: counts[COUNT_FULL]!,
    responses: counts[COUNT_RESPONSE]!,
    readBytes: counts[COUNT_READ_BYTES]!,
    writtenBytes: counts[COUNT_WRITTEN_BYTES]!,
  };
}

/** One virtqueue of a SCSI device as its worker sees it. */
export class ScsiVring extends FlightVring<ScsiFlight> {
  readonly counts = new Float64Array(COUNTS);

  protected get maxFlights(): number {
    return MAX_FLIGHTS;
  }

  protected makeFlight(number: number): ScsiFlight {
    return new ScsiFlight(number);
  }

  override counters(): Record<string, number> {
    const { counts } = this;
    return {
      ...super.counters(),
      ...namedCounts(counts),
      tasks: counts[COUNT_TASKS]!,
      events: counts[COUNT_EVENTS]!,
    };
  }
}
