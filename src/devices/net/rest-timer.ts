/**
 * Sources that rest: neither polled nor armed, so their drivers need not kick, until one timer
 * wakes them together. It is made for the first port whose sources may.
 */
import { assert } from '../../base/assert.ts';
import type { PlaneContext } from '../../runtime/data-plane.ts';
import { Timerfd } from '../../sys/timerfd.ts';
import { type PortPolicy, REST_MS } from './port-policy.ts';

/** Names the timer to the worker; sources count from 0 on. */
export const REST_TOKEN = 0x7fff_fffe;

export class RestTimer<S> {
  readonly #context: PlaneContext;
  readonly #resting: S[] = [];
  /** What the timer was set to for those. */
  #restMs = 0;
  #timer: Timerfd | null = null;

  constructor(context: PlaneContext) {
    this.#context = context;
  }

  /** A port has this policy from now on. @throws as `enable` */
  prepare(policy: PortPolicy | undefined): void {
    if (policy === 'power') this.enable();
  }

  /**
   * Sources may rest from now on.
   * @throws SysError EMFILE, ENOSPC: here, where somebody can be told, and not when a source rests.
   */
  enable(): void {
    if (this.#timer !== null) return;
    const timer = new Timerfd('rest of sources');
    try {
      this.#context.watch(timer.fd, REST_TOKEN);
    } catch (error) {
      timer.close();
      throw error;
    }
    this.#timer = timer;
  }

  /** Until so long from now, or less: all wake together. */
  add(source: S, restMs = REST_MS): void {
    assert(this.#timer !== null, 'a source that rests is of a port that may');
    if (this.#resting.length === 0 || restMs < this.#restMs) {
      this.#timer.set(restMs);
      this.#restMs = restMs;
    }
    this.#resting.push(source);
  }

  /** The rest is over; takes them out, those too that were removed or woken meanwhile. */
  end(): S[] {
    return this.#resting.splice(0);
  }

  /** Idempotent. */
  close(): void {
    this.#timer?.close();
    this.#timer = null;
  }
}
