import { Flight } from '../disk/flight.ts';
import { FlightVring } from '../disk/flight-vring.ts';
import { MAX_FLIGHTS } from './limits.ts';

// Cells of `BlkVring.counts`; the first six are kinds of requests, `Flight.kind`.
export const COUNT_READ = 0;
export const COUNT_WRITE = 1;
export const COUNT_FLUSH = 2;
export const COUNT_DISCARD = 3;
export const COUNT_ZEROES = 4;
export const COUNT_OTHER = 5;
export const COUNT_UNSUPPORTED = 6;
export const COUNT_REJECTED = 7;
export const COUNT_FAILED = 8;
export const COUNT_READ_BYTES = 9;
export const COUNT_WRITTEN_BYTES = 10;
const COUNTS = 11;

/** One virtqueue of a block device as its worker sees it: the ring, and what is on its way. */
export class BlkVring extends FlightVring {
  readonly counts = new Float64Array(COUNTS);

  protected get maxFlights(): number {
    return MAX_FLIGHTS;
  }

  protected makeFlight(number: number): Flight {
    return new Flight(number);
  }

  override counters(): Record<string, number> {
    const { counts } = this;
    return {
      ...super.counters(),
      reads: counts[COUNT_READ]!,
      writes: counts[COUNT_WRITE]!,
      flushes: counts[COUNT_FLUSH]!,
      discards: counts[COUNT_DISCARD]!,
      writeZeroes: counts[COUNT_ZEROES]!,
      others: counts[COUNT_OTHER]!,
      /** Answered with UNSUPP. */
      unsupported: counts[COUNT_UNSUPPORTED]!,
      /** Answered with IOERR: the request was wrong. */
      rejected: counts[COUNT_REJECTED]!,
      /** Answered with IOERR: the medium failed. */
      failed: counts[COUNT_FAILED]!,
      readBytes: counts[COUNT_READ_BYTES]!,
      writtenBytes: counts[COUNT_WRITTEN_BYTES]!,
    };
  }
}
