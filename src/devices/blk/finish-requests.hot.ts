/** From completed requests of an engine back to used chains. */
import type { IoDone } from '../../storage/io-batch.ts';
import { putUsed } from '../../virtqueue/device.hot.ts';
import { latencyBucket } from '../disk/latency.hot.ts';
import type { RequestLatency } from '../disk/request-latency.ts';
import type { BlkVring } from './blk-vring.ts';
import type { Flight } from '../disk/flight.ts';

const S_IOERR = 1; // VIRTIO_BLK_S_*
const S_UNSUPP = 2;
const EOPNOTSUPP = -95; // the same on every architecture that Node runs on

const ZONE_STATUS = -5000; // IO_ZONE_INVALID and the others, less VIRTIO_BLK_S_ZONE_*

const USED = -1; // Flight.pending
const COUNT_WRITE = 1; // BlkVring.counts
const COUNT_DISCARD = 3;
const COUNT_ZEROES = 4;
const COUNT_REJECTED = 7;
const COUNT_FAILED = 8;
const COUNT_READ_BYTES = 9;
const COUNT_WRITTEN_BYTES = 10;
const LATENCY_BUCKETS = 27; // request-latency.ts

/** Enters one completion into its flight. Returns 1 if it is an error. */
export function noteDone(done: IoDone, row: number, flight: Flight): number {
  const at = done.id[row]! & 0xff;
  const result = done.status[row]!;
  flight.pending[at]!--;
  flight.touched = true;
  if (result === 0) return 0;
  if (result <= ZONE_STATUS) {
    flight.status[at] = ZONE_STATUS - result;
    flight.kind[at] = COUNT_REJECTED; // the driver's mistake, not the medium's
    return 0;
  }
  const status = result === EOPNOTSUPP ? S_UNSUPP : S_IOERR;
  if (flight.status[at] !== S_IOERR) flight.status[at] = status;
  flight.kind[at] = COUNT_FAILED;
  return 1;
}

/**
 * Uses the rows of a flight that have completed, in runs: status byte, length, ring. Returns how
 * many. `tookMs`: since its chains were taken.
 */
export function useRows(
  vring: BlkVring,
  flight: Flight,
  arena: DataView,
  latency: RequestLatency,
  tookMs: number,
): number {
  const chains = flight.chains;
  const pending = flight.pending;
  const count = flight.count;
  let used = 0;
  for (let row = 0; row < count; row++) {
    if (pending[row] !== 0) continue;
    const first = row;
    for (; row < count && pending[row] === 0; row++) {
      arena.setUint8(flight.statusAt[row]!, flight.status[row]!);
      // The status is the last byte, so all in front of it counts as written, as in QEMU.
      chains.written[row] = chains.writeBytes[row]!;
      pending[row] = USED;
      countRow(vring.counts, flight, row);
    }
    putUsed(vring.queue, chains, first, row - first);
    noteTimes(latency, flight.kind, first, row, tookMs);
    used += row - first;
  }
  flight.left -= used;
  flight.touched = false;
  return used;
}

function countRow(counts: Float64Array, flight: Flight, row: number): void {
  const kind = flight.kind[row]!;
  counts[kind]!++;
  if (kind > COUNT_WRITE) return;
  counts[kind === COUNT_WRITE ? COUNT_WRITTEN_BYTES : COUNT_READ_BYTES]! += flight.bytes[row]!;
}

/** Rows [first, end) took so long. Those refused, failed or not of the medium are not counted. */
function noteTimes(
  latency: RequestLatency,
  kinds: Int32Array,
  first: number,
  end: number,
  tookMs: number,
): void {
  const buckets = latency.buckets;
  const sumMs = latency.sumMs;
  const bucket = latencyBucket(tookMs);
  for (let row = first; row < end;) {
    const kind = kinds[row]!;
    const run = row; // neighbours are of one kind, mostly
    while (row < end && kinds[row] === kind) row++;
    if (kind > COUNT_ZEROES) continue;
    const op = kind === COUNT_ZEROES ? COUNT_DISCARD : kind;
    buckets[op * LATENCY_BUCKETS + bucket]! += row - run;
    sumMs[op]! += tookMs * (row - run);
  }
}
