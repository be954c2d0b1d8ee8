/** From completed requests of engines back to used chains. */
import type { IoDone } from '../../storage/io-batch.ts';
import { putUsed } from '../../virtqueue/device.hot.ts';
import { latencyBucket } from '../disk/latency.hot.ts';
import type { CommandRules } from './command-rules.ts';
import type { Lun } from './lun.ts';
import { respondSlowly } from './respond-slowly.ts';
import { senseOfErrno } from './sense.ts';
import type { ScsiFlight, ScsiVring } from './scsi-vring.ts';

const USED = -1; // Flight.pending
const CHECK_CONDITION = 0x02;
const TASK_SET_FULL = 0x28;
const RESPONSE_BYTES = 12; // virtio_scsi_cmd_resp without sense
const IO_READ = 0;

const COUNT_READ = 0; // ScsiVring.counts
const COUNT_WRITE = 1;
const COUNT_UNMAP = 3;
const COUNT_CHECK = 5;
const COUNT_FULL = 6;
const COUNT_RESPONSE = 7;
const COUNT_READ_BYTES = 8;
const COUNT_WRITTEN_BYTES = 9;
const LATENCY_BUCKETS = 27; // request-latency.ts

/** Enters one completion into its flight. Returns 1 if it is an error. */
export function noteDone(done: IoDone, row: number, flight: ScsiFlight, lun: Lun): number {
  const at = done.id[row]! & 0xff;
  const result = done.status[row]!;
  if (--flight.pending[at]! === 0) lun.underWay--;
  flight.touched = true;
  if (result === 0) return 0;
  if (flight.status[at] !== CHECK_CONDITION) {
    flight.status[at] = CHECK_CONDITION;
    flight.sense[at] = senseOfErrno(result, done.op[row] === IO_READ);
    flight.information[at] = done.at[row]! / lun.blockBytes;
    // Nothing of it is promised to have been moved.
    flight.residual[at] = flight.residual[at]! + flight.bytes[at]!;
    flight.bytes[at] = 0;
  }
  return 1;
}

/**
 * Uses the rows of a flight that have completed, in runs. Returns how many. `tookMs`: since its
 * chains were taken.
 */
export function useCommands(
  vring: ScsiVring,
  flight: ScsiFlight,
  rules: CommandRules,
  arena: DataView,
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
      respond(flight, row, rules, arena);
      pending[row] = USED;
      countRow(vring.counts, flight, row);
      const index = flight.lun[row]!;
      const lun = index < 0 ? null : rules.luns[index]!;
      if (lun !== null) countRow(lun.counts, flight, row);
    }
    putUsed(vring.queue, chains, first, row - first);
    noteTimes(rules, flight, first, row, tookMs);
    used += row - first;
  }
  flight.left -= used;
  flight.touched = false;
  return used;
}

function respond(flight: ScsiFlight, row: number, rules: CommandRules, arena: DataView): void {
  const chains = flight.chains;
  const isRead = chains.writeBytes[row]! > rules.responseBytes;
  if (flight.aborted[row] !== 0) {
    flight.response[row] = flight.aborted[row]!;
    flight.status[row] = 0;
  }
  chains.written[row] = rules.responseBytes + (isRead ? flight.bytes[row]! : 0);
  const seg = chains.segFirst[row]! + chains.readSegs[row]!;
  const needsSense = flight.status[row] === CHECK_CONDITION && flight.response[row] === 0;
  if (needsSense || chains.segLen[seg]! < rules.responseBytes) {
    respondSlowly(flight, row, rules, arena, needsSense);
    return;
  }
  const at = chains.segOffset[seg]!;
  arena.setInt32(at, 0, true);
  arena.setInt32(at + 4, flight.residual[row]!, true);
  arena.setInt32(at + 8, (flight.status[row]! << 16) | (flight.response[row]! << 24), true);
  const end = at + rules.responseBytes;
  let to = at + RESPONSE_BYTES;
  for (; to + 8 <= end; to += 8) arena.setFloat64(to, 0);
  for (; to < end; to++) arena.setUint8(to, 0);
}

/**
 * Rows [first, end) took so long. Those refused, failed or not of the medium are not counted. The
 * first kinds of rows are the ops of a RequestLatency, in its order.
 */
function noteTimes(
  rules: CommandRules,
  flight: ScsiFlight,
  first: number,
  end: number,
  tookMs: number,
): void {
  const bucket = latencyBucket(tookMs);
  const kinds = flight.kind;
  const indices = flight.lun;
  const luns = rules.luns;
  for (let row = first; row < end;) {
    const kind = kinds[row]!;
    const index = indices[row]!;
    let count = 0;
    let bytes = 0;
    // Neighbours are of one kind and one unit, mostly.
    for (; row < end && kinds[row] === kind && indices[row] === index; row++) {
      if (flight.status[row] !== 0 || flight.response[row] !== 0) continue;
      count++;
      bytes += flight.bytes[row]!;
    }
    if (kind > COUNT_UNMAP || count === 0 || index < 0) continue;
    const lun = luns[index]!;
    if (lun === null) continue;
    lun.latency.buckets[kind * LATENCY_BUCKETS + bucket]! += count;
    lun.latency.sumMs[kind]! += tookMs * count;
    lun.movedBytes[kind]! += bytes;
  }
}

function countRow(counts: Float64Array, flight: ScsiFlight, row: number): void {
  const kind = flight.kind[row]!;
  counts[kind]!++;
  if (flight.response[row] !== 0) counts[COUNT_RESPONSE]!++;
  else if (flight.status[row] === CHECK_CONDITION) counts[COUNT_CHECK]!++;
  else if (flight.status[row] === TASK_SET_FULL) counts[COUNT_FULL]!++;
  else if (kind === COUNT_READ) counts[COUNT_READ_BYTES]! += flight.bytes[row]!;
  else if (kind === COUNT_WRITE) counts[COUNT_WRITTEN_BYTES]! += flight.bytes[row]!;
}
