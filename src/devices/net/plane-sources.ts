import type { PlaneContext } from '../../runtime/data-plane.ts';
import { hasAvailable } from '../../virtqueue/device.hot.ts';
import type { NetVring } from './net-vring.ts';
import type { SourcePace } from './port-policy.ts';

/** Something that is polled while awake; `token` names its descriptor to the worker. */
export type Source = {
  readonly token: number;
  readonly port: number;
  readonly kind: 'transmitq' | 'receiveq' | 'control' | 'uplink';
  readonly vring: NetVring | null;
  /** Found empty, it is looked at again before it is armed: for how long, its pace says. */
  readonly spins: boolean;
  readonly pace: SourcePace;
  /** Where its work is counted, for the balance of workers. */
  readonly loadSlot: number;
  /** Position in `awake`, -1 asleep. */
  awakeAt: number;
  lastWorkMs: number;
};

/**
 * Sources that `peek` looks at. Beside 62 to 254 idle ports each costs 20 to 60 ns, most of it
 * cache misses: 0.6 to 2 per cent of a worker that peeks every 50 us, and 1.0 to 2.4 with 64 of
 * them (`npm run bench:scale -- idle`). What is not reached in time is heard by its kick, within
 * the worker's RARE_CHECK_MS.
 */
const PEEKED = 16;

/** The sources of a net plane: found by token, and those of them that are awake in a list. */
export class PlaneSources {
  /** In no order; changed by `wake`, `toSleep` and `remove` only. */
  readonly awake: Source[] = [];
  readonly #byToken: (Source | null)[] = [];
  readonly #freeTokens: number[] = [];
  #uplinksAsleep = 0;
  #peekedAt = 0;

  at(token: number): Source | null {
    return this.#byToken[token] ?? null;
  }

  /** Asleep at first. */
  add(parts: Omit<Source, 'token' | 'awakeAt' | 'lastWorkMs'>): Source {
    const token = this.#freeTokens.pop() ?? this.#byToken.length;
    const { port, kind, vring, spins, pace, loadSlot } = parts;
    const [awakeAt, lastWorkMs] = [-1, 0];
    const source: Source = { token, port, kind, vring, spins, pace, loadSlot, awakeAt, lastWorkMs };
    this.#byToken[token] = source;
    if (kind === 'uplink') this.#uplinksAsleep++;
    return source;
  }

  remove(source: Source): void {
    if (source.awakeAt >= 0) this.toSleep(source);
    if (source.kind === 'uplink') this.#uplinksAsleep--;
    this.#byToken[source.token] = null;
    this.#freeTokens.push(source.token);
  }

  /** @throws SysError where the kernel watches no more; neither source nor ring is left then. */
  watchKicks(source: Source, vring: NetVring, { watch }: Pick<PlaneContext, 'watch'>): void {
    if (vring.kickFd < 0) return;
    try {
      watch(vring.kickFd, source.token);
    } catch (thrown) {
      this.remove(source);
      vring.detach();
      throw thrown;
    }
  }

  /** Polled from now on; its driver need not kick. */
  wake(source: Source, nowMs: number): void {
    if (source.awakeAt < 0) source.pace.woken(nowMs - source.lastWorkMs);
    source.lastWorkMs = nowMs;
    if (source.awakeAt >= 0) return;
    if (source.vring?.started === true) source.vring.pauseKicks();
    source.awakeAt = this.awake.push(source) - 1;
    if (source.kind === 'uplink') this.#uplinksAsleep--;
  }

  /**
   * Wakes what has something among the next sleeping transmit queues, up to PEEKED; its kick is
   * heard later, and changes nothing. True: only control queues are left to be heard, no uplink and
   * no first kick of a receive queue, before which frames for it are dropped.
   */
  peek(nowMs: number): boolean {
    const all = this.#byToken;
    let isCalm = this.#uplinksAsleep === 0;
    for (let left = Math.min(PEEKED, all.length); left > 0; left--) {
      this.#peekedAt = this.#peekedAt + 1 < all.length ? this.#peekedAt + 1 : 0;
      const source = all[this.#peekedAt];
      if (source === null || source.awakeAt >= 0) continue;
      const { kind, vring } = source;
      if (vring === null || kind === 'control') continue;
      if (kind === 'receiveq') {
        if (!vring.started && vring.fault === 0) isCalm = false;
        continue;
      }
      // A ring that waits for a translation is woken by it, one that was not started by its kick.
      if (!vring.started || vring.fault !== 0 || vring.queue.missed !== 0) continue;
      if (hasAvailable(vring.queue)) this.wake(source, nowMs);
    }
    return isCalm;
  }

  /** The last one takes its place, so who goes through the list goes from its end. */
  toSleep(source: Source): void {
    const last = this.awake.pop() as Source;
    if (last !== source) {
      this.awake[source.awakeAt] = last;
      last.awakeAt = source.awakeAt;
    }
    source.awakeAt = -1;
    if (source.kind === 'uplink') this.#uplinksAsleep++;
  }
}
