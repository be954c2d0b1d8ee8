/**
 * Sources that rest: neither polled nor armed, so their drivers need not kick, until one timer
 * wakes them together. It is made when first somebody rests.
 */
import type { PlaneContext } from '../../runtime/data-plane.ts';
import { Timerfd } from '../../sys/timerfd.ts';
import { REST_MS } from './port-policy.ts';

/** Names the timer to the worker; sources count from 0 on. */
export const REST_TOKEN = 0x7fff_fffe;

export class RestTimer<S> {
  readonly #context: PlaneContext;
  readonly #resting: S[] = [];
  #timer: Timerfd | null = null;

  constructor(context: PlaneContext) {
    this.#context = context;
  }

  /** Until REST_MS from now, or less: who came first says when. */
  add(source: S): void {
    if (this.#timer === null) {
      this.#timer = new Timerfd('rest of sources');
      this.#context.watch(this.#timer.fd, REST_TOKEN);
    }
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
