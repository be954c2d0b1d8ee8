/**
 * What drivers set by their control queues, for the other workers: the latest state of each port,
 * one message of it under way at most. Without that bound a driver that asks without end would
 * fill the main thread's mailbox faster than it is read.
 */
import type { PlaneContext } from '../../runtime/data-plane.ts';
import type { NetPort } from './net-port.ts';

const SENT = 1; //     they have not all heard of it
const OUTDATED = 2; // and it has changed since

export class DriverNews {
  readonly #emit: PlaneContext['emit'];
  readonly #portOf: (device: number) => NetPort | null;
  readonly #states: number[] = [];

  constructor(emit: PlaneContext['emit'], portOf: (device: number) => NetPort | null) {
    this.#emit = emit;
    this.#portOf = portOf;
  }

  /** The driver set something. */
  changed(device: number): void {
    if ((this.#states[device] ?? 0) === 0) this.#tell(device);
    else this.#states[device] = OUTDATED;
  }

  /** All have heard of the last message. */
  heard(device: number): void {
    const isOutdated = this.#states[device] === OUTDATED;
    this.#states[device] = 0;
    if (isOutdated) this.#tell(device);
  }

  /** Another worker goes on with the control queue, or nobody: it is told before that. */
  settle(device: number): void {
    if (this.#states[device] === OUTDATED) this.#tell(device);
  }

  #tell(device: number): void {
    const port = this.#portOf(device);
    if (port === null) return;
    this.#states[device] = SENT;
    // What each worker counted is its own.
    const state = { ...port.saveState(), counters: {} };
    this.#emit({ kind: 'driver-state', device, index: -1, state });
  }
}
