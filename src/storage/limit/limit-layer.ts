/**
 * Limits within a stack: what is below gets so many requests and bytes a second. At the top of a
 * stack the same is a `LimitEngine`, in the data plane's thread.
 */
import type { Layer, ZeroOptions } from '../layer/layer.ts';
import { PassLayer } from '../layer/pass-layer.ts';
import type { LimitSpec } from '../stack/stack-spec.ts';
import { checkRates, LimitCells, RateLimits } from './rate-limits.ts';

/** A rate may be very small, a timer of Node has 31 bits. */
const MAX_WAIT_MS = 60_000;

type Waiting = { readonly sizeBytes: number; readonly sinceMs: number; go(): void };

export class LimitLayer extends PassLayer {
  readonly description: string;
  readonly #cells = new LimitCells();
  readonly #limits: RateLimits;
  /** In the order in which they came: nobody overtakes. */
  readonly #queue: Waiting[] = [];
  #timer: NodeJS.Timeout | null = null;

  /** @throws ConfigError. */
  constructor(below: Layer, spec: LimitSpec) {
    super(below);
    this.description = `limit over ${below.description}`;
    this.#cells.rates = checkRates(spec, 'limit');
    this.#limits = new RateLimits(this.#cells);
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    await this.#turn(into.length);
    await this.below.read(at, into);
  }

  override async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    await this.#turn(from.length);
    await this.below.write(at, from, fua);
  }

  override async discard(at: number, sizeBytes: number): Promise<void> {
    await this.#turn(0);
    await this.below.discard(at, sizeBytes);
  }

  override async zero(at: number, sizeBytes: number, options: ZeroOptions): Promise<void> {
    await this.#turn(0);
    await this.below.zero(at, sizeBytes, options);
  }

  /** `limits`: `Rates`, from now on; those that are left out are none. */
  override async control(name: string, payload: unknown): Promise<unknown> {
    if (name !== 'limits') return this.below.control(name, payload);
    this.#cells.rates = checkRates(payload, 'limits');
    this.#serve();
    return undefined;
  }

  override counters(): Record<string, number> {
    return { ...this.below.counters(), ...this.#cells.counters };
  }

  #turn(sizeBytes: number): Promise<void> | void {
    const sinceMs = performance.now();
    if (this.#queue.length === 0 && this.#limits.admit(sizeBytes, sinceMs)) return;
    this.#cells.count(1, 0);
    return new Promise((go) => {
      this.#queue.push({ sizeBytes, sinceMs, go });
      if (this.#timer === null) this.#serve();
    });
  }

  #serve(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    const nowMs = performance.now();
    while (this.#queue.length > 0 && this.#limits.admit(this.#queue[0]!.sizeBytes, nowMs)) {
      const { sinceMs, go } = this.#queue.shift()!;
      this.#cells.count(0, nowMs - sinceMs);
      go();
    }
    if (this.#queue.length === 0) return;
    this.#timer = setTimeout(
      () => this.#serve(),
      Math.min(MAX_WAIT_MS, Math.ceil(this.#limits.waitMs)),
    );
  }
}
