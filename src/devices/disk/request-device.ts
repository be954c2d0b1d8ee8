/**
 * What devices share that carry requests out by engines: rings whose batches are *flights*, how a
 * flight ends, what breaks a ring, and what is told of a medium that fails.
 */
import { PlaneIotlb } from '../../runtime/plane-iotlb.ts';
import type { PlaneContext, VringAttach } from '../../runtime/data-plane.ts';
import { IO_FLUSH, ioName, type IoDone } from '../../storage/index.ts';
import { arena, regionFaults, signalCall } from '../../sys/index.ts';
import { FAULT_MEMORY_GONE, FAULT_NOTIFY_BLOCKED } from '../../virtqueue/faults.ts';
import type { ErrorTally, LastError } from './failed-flush.ts';
import type { Flight } from './flight.ts';
import { RequestLatency } from './request-latency.ts';
import type { FlightVring } from './flight-vring.ts';

/** Errors of the medium are told so often; the others are counted. */
const IO_ERROR_EVENT_MS = 1000;

export type RequestDeviceOptions = {
  readonly device: number;
  readonly queues: number;
  readonly emit: PlaneContext['emit'];
};

export abstract class RequestDevice<
  Batch extends Flight,
  Vring extends FlightVring<Batch>,
> implements ErrorTally {
  readonly part = 0;
  readonly vrings: (Vring | null)[];
  readonly iotlb: PlaneIotlb<Vring>;
  errors = 0;
  lastError: LastError | null = null;
  faults = 0;
  failedFlush = 0;
  toldErrorMs = -Infinity;
  readonly latency = new RequestLatency();
  protected readonly arena = arena();
  /** Of rings that are detached, in the names of `counters`. */
  readonly #past: Record<string, number> = {};
  readonly #regionFaults = regionFaults();
  readonly #number: number;
  readonly #emit: PlaneContext['emit'];

  constructor({ device, queues, emit }: RequestDeviceOptions) {
    this.#number = device;
    this.#emit = emit;
    this.vrings = Array.from({ length: queues }, () => null);
    this.iotlb = new PlaneIotlb(device, this.vrings, emit);
  }

  abstract attach(attach: VringAttach): Vring;

  /** One batch of the ring, in the round that began at `nowMs`. Returns how many were taken. */
  abstract work(vring: Vring, nowMs: number): number;

  /**
   * Uses what an engine has completed, and gives it what waits. Returns how many requests. `part`
   * says which engine, where there are several.
   */
  abstract complete(part: number): number;

  /** When it returns no request is under way, and no address of a ring is in use. */
  abstract settle(): void;

  /** The session is over: what the driver had set is forgotten. */
  abstract reset(): void;

  /** Nothing can be done about the ring now; something else wakes it. */
  abstract waits(vring: Vring): boolean;

  /** Uses the rows of a flight that have completed, in runs. Returns how many. */
  protected abstract use(vring: Vring, flight: Batch): number;

  /** Who takes a ring away waits for its requests: what an engine holds back is to go now. */
  protected hurry(): void {}

  /** The ring's base, or null while its requests are under way. */
  detach(index: number): number | null {
    const vring = this.vrings[index];
    if (vring === null || vring === undefined) return 0;
    vring.draining = true;
    if (vring.busy > 0) this.hurry();
    if (vring.busy > 0) return null;
    this.vrings[index] = null;
    addCounters(this.#past, vring);
    return vring.detach();
  }

  /** What all rings have counted since the device was added. */
  totals(): Record<string, number> {
    const totals = { ...this.#past };
    for (const vring of this.vrings) if (vring !== null) addCounters(totals, vring);
    return totals;
  }

  setCallFd(vring: Vring, callFd: number): void {
    vring.callFd = callFd;
    if (callFd >= 0 && signalCall(callFd, vring.injectedQueue) < 0) {
      this.break(vring, FAULT_NOTIFY_BLOCKED);
    }
  }

  /** Uses what has completed of a flight; with its last row it is over. */
  protected land(vring: Vring, flight: Batch): void {
    flight.touched = false;
    if (vring.fault === 0 && !this.memoryGone(vring)) {
      if (this.use(vring, flight) > 0) vring.touched = true;
      if (!vring.notify()) this.break(vring, FAULT_NOTIFY_BLOCKED);
    } else {
      dropRows(flight);
    }
    if (flight.left > 0) return;
    vring.land(flight);
    if (vring.busy === 0) this.breakDue(vring);
  }

  /** The medium failed the request in this row; `tally`: of one part of the device. */
  protected failed(vring: Vring, done: IoDone, row: number, tally: ErrorTally = this): void {
    const [op, at, errno] = [ioName(done.op[row]!), done.at[row]!, -done.status[row]!];
    for (const each of new Set<ErrorTally>([this, tally])) {
      each.errors++;
      each.lastError = { op, at, errno };
    }
    if (done.op[row] === IO_FLUSH) tally.failedFlush = done.status[row]!;
    const nowMs = performance.now();
    if (nowMs - tally.toldErrorMs < IO_ERROR_EVENT_MS) return;
    tally.toldErrorMs = nowMs;
    const { part, errors: count } = tally;
    const [device, index] = [this.#number, vring.index];
    this.#emit({ kind: 'io-error', device, index, part, op, at, errno, count });
  }

  /** The owner of the memory truncated it: everything that was read from it is void. */
  protected memoryGone(vring: Vring): boolean {
    if (vring.fault === FAULT_MEMORY_GONE) return true;
    for (const region of vring.regions) {
      if (this.#regionFaults[region] === 0) continue;
      for (const other of this.vrings) other?.break(FAULT_MEMORY_GONE);
      this.faults++;
      this.#emit({ kind: 'fault', device: this.#number, index: -1, code: FAULT_MEMORY_GONE });
      return true;
    }
    return false;
  }

  /** A ring breaks when all in front of what broke it has been answered. */
  protected breakDue(vring: Vring): void {
    if (vring.dueFault !== 0) this.break(vring, vring.dueFault);
  }

  protected break(vring: Vring, code: number): void {
    if (vring.fault !== 0 || this.memoryGone(vring)) return;
    vring.break(code);
    this.faults++;
    this.#emit({ kind: 'fault', device: this.#number, index: vring.index, code });
  }
}

function addCounters(to: Record<string, number>, vring: FlightVring): void {
  for (const [name, count] of Object.entries(vring.counters())) to[name] = (to[name] ?? 0) + count;
}

/** The ring is broken: its chains stay as they are, for who resets it. */
function dropRows(flight: Flight): void {
  for (let row = 0; row < flight.count; row++) {
    if (flight.pending[row] !== 0) continue;
    flight.pending[row] = -1;
    flight.left--;
  }
}
