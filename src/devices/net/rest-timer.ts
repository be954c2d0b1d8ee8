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
  #timer: Timerfd | null = null;

  constructor(context: PlaneContext) {
    this.#context = context;
  }

  /**
   * A port has this policy from now on.
   * @throws SysError EMFILE, ENOSPC: here, where somebody can be told, and not when a source rests.
   */
  prepare(policy: PortPolicy | undefined): void {
    if (policy !== 'power' || this.#timer !== null) return;
    const timer = new Timerfd('rest of sources');
    try {
      this.#context.watch(timer.fd, REST_TOKEN);
    } catch (error) {
      timer.close();
      throw error;
    }
    this.#timer = timer;
  }

  /** Until REST_MS from now, or less: who came first says when. */
  add(source: S): void {
    assert(this.#timer !== null, 'a source that rests is of a port that may');
    if (this.#resting.length === 0) this.#timer.set(REST_MS);
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
