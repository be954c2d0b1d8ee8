import { PlaneVring } from '../../runtime/plane-vring.ts';
import { Flight } from './flight.ts';
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
export class BlkVring extends PlaneVring {
  readonly flights: Flight[] = [];
  readonly counts = new Float64Array(COUNTS);
  /** Being detached: nothing more is taken. */
  draining = false;
  /** What the ring breaks with once nothing is on its way; 0 while it is sound. */
  dueFault = 0;
  readonly #free: Flight[] = [];

  get busy(): number {
    return this.flights.length - this.#free.length;
  }

  /** As many batches are on their way as may be. */
  get isFull(): boolean {
    return this.#free.length === 0 && this.flights.length === MAX_FLIGHTS;
  }

  /** Room for one more batch; null: as many are on their way as may be. */
  board(): Flight | null {
    const flight = this.#free.pop();
    if (flight !== undefined) return flight;
    if (this.flights.length === MAX_FLIGHTS) return null;
    const made = new Flight(this.flights.length);
    this.flights.push(made);
    return made;
  }

  land(flight: Flight): void {
    this.#free.push(flight);
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
