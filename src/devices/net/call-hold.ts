/**
 * Calls that are not made yet: of ports whose policy prefers few calls to early ones.
 *
 * Theory of operation: when a ring of such a port was written to, its call waits for more until
 * the first of these:
 *
 * - it has waited for CALL_HOLD_MS, looked at once per round: the bound is that and one round;
 * - a quarter of the ring waits to be seen by the driver, who needs the buffers;
 * - no source is awake, and the worker would sleep: what comes next is a kick away;
 * - the ring is detached, the plane stands still, or the port's policy changes.
 *
 * The driver is then asked once for all of it whether it wants the call (`needsCall`), which is
 * what EVENT_IDX and the packed ring's event suppression are made for. A driver that answers what
 * it gets and waits for the answer to that gains nothing from a hold, and loses CALL_HOLD_MS in
 * each turn: a hold that gathered nothing is not repeated for the next HOLDS_SKIPPED calls.
 */
import type { PlaneVring } from '../../runtime/plane-vring.ts';

/** Longest that a call waits for more, milliseconds; a round of the worker comes on top. */
export const CALL_HOLD_MS = 0.05;

/** The part of a ring that may be used without its driver being called: one over this. */
const RING_PART = 4;

/** After a hold that gathered nothing: calls that are made at once before the next is tried. */
export const HOLDS_SKIPPED = 64;

/** What is known of the calls of a ring. */
export class RingCalls {
  waits = false;
  /** When the hold began; -1: in this round. */
  sinceMs = -1;
  /** Rounds of this hold that wrote to the ring after its first. */
  gathered = 0;
  /** `sinceCall` of the ring when it was last looked at. */
  seen = 0;
  skipped = 0;

  /** Calls that waited, and further ones that they spared at most (the driver may want fewer). */
  callsHeld = 0;
  callsCoalesced = 0;
}

/** What the hold needs of a ring. */
export type HeldVring = Pick<PlaneVring, 'touched'> & {
  readonly queue: { readonly sinceCall: number; readonly size: number };
  readonly held: RingCalls;
};

/** Who calls the driver of a ring. */
export interface Caller<V extends HeldVring> {
  call(vring: V): void;
}

export class CallHold<V extends HeldVring> {
  readonly #vrings: V[] = [];
  readonly #callers: Caller<V>[] = [];
  /** Nothing is held: no round will come that ends it. */
  #closed = false;

  /** Rings whose call waits. */
  get count(): number {
    return this.#vrings.length;
  }

  /**
   * The ring was written to since its driver was last called: in this round, or, where a call waits
   * already and another ring of the port was, in an earlier one. False: it is to be called now.
   */
  holds(vring: V, caller: Caller<V>): boolean {
    const { held, queue } = vring;
    if (this.#closed || queue.sinceCall * RING_PART >= queue.size) return false;
    if (held.waits) {
      if (queue.sinceCall !== held.seen) {
        held.gathered++;
        held.callsCoalesced++;
      }
      held.seen = queue.sinceCall;
      return true;
    }
    if (held.skipped > 0) {
      held.skipped--;
      return false;
    }
    held.waits = true;
    held.sinceMs = -1;
    held.gathered = 0;
    held.seen = queue.sinceCall;
    held.callsHeld++;
    this.#vrings.push(vring);
    this.#callers.push(caller);
    return true;
  }

  /** A round is over. `isLast`: the worker would sleep now. */
  endRound(nowMs: number, isLast: boolean): void {
    for (let i = this.#vrings.length - 1; i >= 0; i--) {
      const { held, touched } = this.#vrings[i];
      if (held.sinceMs < 0) held.sinceMs = nowMs;
      if (!isLast && touched && nowMs - held.sinceMs < CALL_HOLD_MS) continue;
      // One that was cut short says nothing of what would have come.
      if (!isLast && touched && held.gathered === 0) held.skipped = HOLDS_SKIPPED;
      this.#letGo(i);
    }
  }

  /** All calls now: their plane is about to stand still, or a policy changes. */
  release(): void {
    for (let i = this.#vrings.length - 1; i >= 0; i--) this.#letGo(i);
  }

  /** Nothing is held until `open`. */
  close(): void {
    this.#closed = true;
    this.release();
  }

  open(): void {
    this.#closed = false;
  }

  #letGo(i: number): void {
    const vring = this.#vrings[i];
    const caller = this.#callers[i];
    const last = this.#vrings.length - 1;
    this.#vrings[i] = this.#vrings[last];
    this.#callers[i] = this.#callers[last];
    this.#vrings.pop();
    this.#callers.pop();
    vring.held.waits = false;
    if (vring.touched) caller.call(vring); // not called meanwhile, for a full ring
  }
}
