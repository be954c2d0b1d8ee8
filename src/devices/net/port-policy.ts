/**
 * What a port is tuned for, and when a source of its frames that was found empty goes to sleep.
 *
 * Theory of operation: a source that is polled costs processor time, one that sleeps costs its
 * driver a kick and the worker a wake-up. Polling an empty source (a *spin*) pays only if the next
 * frame comes before the spin ends. Sources of a `latency` port keep an average of the gaps between
 * their frames, longer ones capped so that a pause is forgotten soon, and spin as far as it pays:
 *
 * | policy       | spin                                    | calls                        |
 * |--------------|-----------------------------------------|------------------------------|
 * | `latency`    | four gaps, up to LATENCY_SPIN_MS, and   | when a batch is written      |
 * |              | never less than the worker's spin       |                              |
 * | `balanced`   | the worker's spin; none while frames    | at the end of the round      |
 * |              | come more seldom than that              |                              |
 * | `throughput` | as balanced                             | wait for more (call-hold.ts) |
 * | `power`      | none; rests                             | as throughput                |
 *
 * A source of a `power` port that was served and is empty again *rests* for REST_MS: it is neither
 * polled nor armed, and what comes meanwhile is served at once after it, without a kick. A rest
 * costs a wake-up by a timer, so one that served no more than a kick would have is not repeated for
 * the next RESTS_SKIPPED times.
 *
 * A transmit queue of the others spins as long as the worker is told to, but not while its frames
 * are farther apart than that, on average: at 10,000 frames a second next to no spin saw one, and
 * all of them cost four times what the wake-ups do. The average is of the time for each frame, not
 * of the gaps that sleeps and spins see: two guests that share two processors with the switch have
 * gaps that are other threads' turns, and many frames after each; they had half the rate when long
 * gaps ended the spins (docs/latency.md).
 *
 * A round of BUSY_FRAMES is followed by as many within microseconds. Looking for them all the time
 * takes the line of avail.idx from the driver with every look, which made it slower than we are, so
 * that we looked even more often: a reflecting port under testpmd then had batches of 35 frames
 * instead of 64, and three quarters of the rate. So an empty round after such a one is followed by
 * BUSY_LULL `pause`s, one microsecond, but where a `latency` port had frames.
 *
 * A worker sleeps when all its sources do: what one port spins, the others of its worker have, too.
 */
export const PORT_POLICIES = ['latency', 'balanced', 'throughput', 'power'] as const;
export type PortPolicy = (typeof PORT_POLICIES)[number];

export const DEFAULT_POLICY: PortPolicy = 'balanced';

/** Longest spin of a `latency` port, milliseconds: what a silence costs it at most, each time. */
export const LATENCY_SPIN_MS = 1;

/** How long a source of a `power` port rests, milliseconds: most that a frame waits for that. */
export const REST_MS = 0.1;

/** After a rest for one frame or none: times that the source is armed at once instead. */
export const RESTS_SKIPPED = 64;

/** See above. */
export const BUSY_FRAMES = 16;
export const BUSY_LULL = 50;

/** A spin as long as this many average gaps sees 98 % of frames that come at random times. */
const GAPS_PER_SPIN = 4;

/** One over the weight of the newest gap. */
const GAPS_AVERAGED = 4;

/** Most that a gap counts, in longest ones that pay: five short ones make up for a pause. */
const LONGEST_GAP = 4;

/** One over the weight of what came before the newest sleep, where spins end for seldom frames. */
const SLEEPS_AVERAGED = 8;

/** What the sources of one port have in common. */
export class PortPace {
  policy: PortPolicy;
  readonly counters = {
    /** An empty source was polled on, and a frame came. */
    spinsRewarded: 0,
    /** It was polled on until it was put to sleep. */
    spinsUnrewarded: 0,
    /** A source was put to sleep: its driver kicks for the next frame. */
    sleeps: 0,
    /** A source was left alone for a while instead, and looked at after that without a kick. */
    rests: 0,
  };

  constructor(policy: PortPolicy = DEFAULT_POLICY) {
    this.policy = policy;
  }

  /** Calls are gathered over rounds. */
  get holdsCalls(): boolean {
    return this.policy === 'throughput' || this.policy === 'power';
  }
}

/** One source: the average gap between its frames, and how long it is polled for the next one. */
export class SourcePace {
  /** An empty source is put to sleep so long after its last frame, milliseconds. */
  spinMs: number;
  /** `pause`s that an empty round after a full one of this source is worth. */
  lull = BUSY_LULL;
  /** It was found empty since its last frame, and is polled on. */
  spinning = false;

  readonly #port: PortPace;
  readonly #workerSpinMs: number;
  #gapMs = 0;
  #chainsBefore = 0;
  #rested = false;
  #restsSkipped = 0;
  /** Since it last slept. */
  #frames = 0;
  #elapsedMs = 0;
  /** The same before that, older sleeps with less weight. */
  #framesBefore = 0;
  #elapsedBeforeMs = 0;

  constructor(port: PortPace, workerSpinMs: number) {
    this.#port = port;
    this.#workerSpinMs = workerSpinMs;
    this.spinMs = 0;
    this.policyChanged();
  }

  /** Nothing is known of the gaps: it spins as the worker does. */
  policyChanged(): void {
    this.#gapMs = 0;
    this.#framesBefore = this.#elapsedBeforeMs = 0;
    this.lull = this.#port.policy === 'latency' ? 1 : BUSY_LULL;
    this.spinMs = this.#port.policy === 'power' ? 0 : this.#workerSpinMs;
  }

  /** A frame came while it was polled. */
  rewarded(gapMs: number): void {
    this.spinning = false;
    this.#port.counters.spinsRewarded++;
    this.#learn(gapMs);
  }

  /** It is empty, with so many chains served so far: does it rest instead of going to sleep? */
  rests(chains: number): boolean {
    const served = chains - this.#chainsBefore;
    this.#chainsBefore = chains;
    this.#frames += served;
    if (this.#rested && served <= 1) this.#restsSkipped = RESTS_SKIPPED;
    this.#rested = false;
    if (this.#port.policy !== 'power' || served === 0) return false;
    if (this.#restsSkipped > 0) {
      this.#restsSkipped--;
      return false;
    }
    this.#rested = true;
    this.#port.counters.rests++;
    return true;
  }

  /** It is put to sleep. */
  asleep(): void {
    this.#port.counters.sleeps++;
    if (this.spinning) this.#port.counters.spinsUnrewarded++;
    this.spinning = false;
    const { policy } = this.#port;
    if (policy === 'balanced' || policy === 'throughput') this.#endVainSpins();
  }

  /** A kick woke it, so long after its last frame. */
  woken(gapMs: number): void {
    this.#learn(gapMs);
  }

  #learn(gapMs: number): void {
    this.#elapsedMs += Math.min(gapMs, this.#workerSpinMs * LONGEST_GAP);
    if (this.#port.policy !== 'latency') return;
    const counted = Math.min(gapMs, LATENCY_SPIN_MS * LONGEST_GAP);
    this.#gapMs += (counted - this.#gapMs) / GAPS_AVERAGED;
    const pays = this.#gapMs <= LATENCY_SPIN_MS;
    const spinMs = pays ? Math.min(LATENCY_SPIN_MS, this.#gapMs * GAPS_PER_SPIN) : 0;
    this.spinMs = Math.max(this.#workerSpinMs, spinMs);
  }

  /** It spins on while a frame takes no longer than a spin, on average. Uplinks count no frames. */
  #endVainSpins(): void {
    if (this.#frames > 0) {
      const kept = 1 - 1 / SLEEPS_AVERAGED;
      this.#framesBefore = this.#framesBefore * kept + this.#frames;
      this.#elapsedBeforeMs = this.#elapsedBeforeMs * kept + this.#elapsedMs;
      const pays = this.#elapsedBeforeMs <= this.#framesBefore * this.#workerSpinMs;
      this.spinMs = pays ? this.#workerSpinMs : 0;
    }
    this.#frames = this.#elapsedMs = 0;
  }
}
