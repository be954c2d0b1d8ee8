/**
 * Limits within a stack: what is below gets so many requests and bytes a second. At the top of a
 * stack the same is a `LimitEngine`, in the data plane's thread.
 */
import type { Layer, ZeroOptions } from '../layer/layer.ts';
import { PassLayer } from '../layer/pass-layer.ts';
import type { LimitSpec } from '../stack/stack-spec.ts';
import {
  checkRates,
  LimitCells,
  type Limited,
  LIMITED_FIRST,
  LIMITED_SECOND,
  RateLimits,
} from './rate-limits.ts';

/** A rate may be very small, a timer of Node has 31 bits. */
const MAX_WAIT_MS = 60_000;
/** Where others change the rates, and use them up: they are looked at so often. */
const MAX_SHARED_WAIT_MS = 100;

type Waiting = { readonly sizeBytes: number; readonly sinceMs: number; go(): void };

export class LimitLayer extends PassLayer {
  readonly description: string;
  readonly #cells: LimitCells;
  readonly #maxWaitMs: number;
  readonly #limits: RateLimits;
  /** In the order in which they came: nobody overtakes. */
  readonly #queue: Waiting[] = [];
  #timer: NodeJS.Timeout | null = null;
  /** How many want it so. */
  #hurries = 0;

  /** @throws ConfigError. */
  static of(below: Layer, spec: LimitSpec): LimitLayer {
    const cells = new LimitCells();
    cells.rates = checkRates(spec, 'limit');
    return new LimitLayer(below, cells, MAX_WAIT_MS, LIMITED_FIRST);
  }

  /** Beside a data plane whose `LimitEngine` has the same cells: both together have the rates. */
  static beside(below: Layer, cells: SharedArrayBuffer): LimitLayer {
    return new LimitLayer(below, new LimitCells(cells), MAX_SHARED_WAIT_MS, LIMITED_SECOND);
  }

  private constructor(below: Layer, cells: LimitCells, maxWaitMs: number, who: Limited) {
    super(below);
    this.description = `limit over ${below.description}`;
    this.#cells = cells;
    this.#maxWaitMs = maxWaitMs;
    this.#limits = new RateLimits(cells, who);
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

  /** What waits goes, and what comes, at its cost: those after it wait for longer. */
  override hurry(isHurried: boolean): void {
    this.#hurries += isHurried ? 1 : -1;
    if (isHurried) this.#serve();
    super.hurry(isHurried);
  }

  override counters(): Record<string, number> {
    return { ...this.below.counters(), ...this.#cells.counters };
  }

  #turn(sizeBytes: number): Promise<void> | void {
    const sinceMs = performance.now();
    if (this.#queue.length === 0 && this.#mayGo(sizeBytes, sinceMs)) return;
    this.#limits.count(1, 0);
    return new Promise((go) => {
      this.#queue.push({ sizeBytes, sinceMs, go });
      if (this.#timer === null) this.#serve();
    });
  }

  #mayGo(sizeBytes: number, nowMs: number): boolean {
    if (this.#hurries === 0) return this.#limits.admit(sizeBytes, nowMs);
    this.#limits.charge(sizeBytes, nowMs);
    return true;
  }

  #serve(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    const nowMs = performance.now();
    while (this.#queue.length > 0 && this.#mayGo(this.#queue[0]!.sizeBytes, nowMs)) {
      const { sinceMs, go } = this.#queue.shift()!;
      this.#limits.count(0, nowMs - sinceMs);
      go();
    }
    if (this.#queue.length === 0) return;
    this.#timer = setTimeout(
      () => this.#serve(),
      Math.min(this.#maxWaitMs, Math.ceil(this.#limits.waitMs)),
    );
  }
}
