/**
 * A disk with a volatile cache whose power can be cut: what was not flushed is in memory only, and
 * `control('cut')` decides by a seed what of it had reached the medium.
 *
 * Theory of operation. Writes go to `VolatileSectors` and complete; reads see them. A flush writes
 * the newest version of everything below and makes it durable; FUA does so for its own sectors. A
 * cut draws a fate for each unflushed request: all of its sectors had reached the medium, none,
 * or any of them. A sector has the last version that did. From then on every request fails with
 * EIO, and the disk is what was below: open that anew.
 *
 * Whatever writes below is serialised by `#writing`, so that an old version never lands on a newer
 * one. A flush that was under way when the power went fails: its caller knows nothing.
 */
import { ConfigError } from '../../base/errors.ts';
import { EIO } from '../../sys/index.ts';
import { type Extent, type Layer, LayerError, type ZeroOptions } from '../layer/layer.ts';
import { PassLayer } from '../layer/pass-layer.ts';
import { SeededRandom } from './random.ts';
import { copyVersions, runsOf, type Version, VolatileSectors } from './volatile-sectors.ts';

/** Over this the cache writes all back, as a disk's does; nothing is durable by that. */
const MAX_VOLATILE_BYTES = 64 * 2 ** 20;

export type CutResult = {
  readonly seed: number;
  /** Unflushed requests, by what of them had reached the medium. */
  readonly requests: number;
  readonly kept: number;
  readonly lost: number;
  readonly torn: number;
};

type Fate = 'kept' | 'lost' | 'torn';

export class PowerCutLayer extends PassLayer {
  readonly description: string;
  readonly #volatile = new VolatileSectors();
  #writing: Promise<void> = Promise.resolve();
  #requests = 0;
  #writeBacks = 0;
  #cut: CutResult | null = null;
  #isCut = false;
  #isWritingBack = false;

  constructor(below: Layer) {
    super(below);
    this.description = `volatile cache over ${below.description}`;
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    this.#demandPower();
    // What is destaged while we read below is in the first of both.
    const before = this.#volatile.snapshot(at, into.length);
    await this.below.read(at, into);
    copyVersions(before, at, into);
    copyVersions(this.#volatile.snapshot(at, into.length), at, into);
    this.#demandPower();
  }

  override async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    this.#demandPower();
    this.#volatile.put(this.#requests++, at, from);
    await this.#settle(at, from.length, fua);
  }

  override async zero(at: number, sizeBytes: number, { fua }: ZeroOptions): Promise<void> {
    this.#demandPower();
    this.#volatile.putZeros(this.#requests++, at, sizeBytes);
    await this.#settle(at, sizeBytes, fua);
  }

  override async flush(): Promise<void> {
    this.#demandPower();
    await this.#exclusively(async () => {
      await this.#destage(this.#volatile.snapshot());
      await this.below.flush();
      this.#demandPower();
    });
  }

  /** At once: whatever the range had, it may have anything now. */
  override async discard(at: number, sizeBytes: number): Promise<void> {
    this.#demandPower();
    await this.#exclusively(async () => {
      this.#volatile.drop(at, sizeBytes);
      await this.below.discard(at, sizeBytes);
    });
  }

  override async extents(at: number, sizeBytes: number): Promise<Extent[]> {
    if (this.#volatile.isEmpty) return this.below.extents(at, sizeBytes);
    return [{ at, sizeBytes, kind: 'data' }];
  }

  override async resize(sizeBytes: number): Promise<void> {
    await this.flush();
    await this.below.resize(sizeBytes);
  }

  /** `cut`, with `{ seed }`: once; afterwards it says again what it did. */
  override async control(name: string, payload: unknown): Promise<unknown> {
    if (name !== 'cut') return this.below.control(name, payload);
    const { seed = 1 } = (payload ?? {}) as { seed?: unknown };
    if (typeof seed !== 'number' || !Number.isInteger(seed)) {
      throw new ConfigError('seed', `is ${String(seed)}, expected a whole number`);
    }
    this.#isCut = true;
    return this.#exclusively(async () => (this.#cut ??= await this.#cutPower(seed)));
  }

  override counters(): Record<string, number> {
    return {
      ...this.below.counters(),
      volatileBytes: this.#volatile.sizeBytes,
      volatileWriteBacks: this.#writeBacks,
    };
  }

  /** An orderly end: the cache is written back. */
  override async close(): Promise<void> {
    if (!this.#isCut) await this.#exclusively(() => this.#destage(this.#volatile.snapshot()));
    await this.below.close();
  }

  async #settle(at: number, sizeBytes: number, fua: boolean): Promise<void> {
    if (fua) {
      await this.#exclusively(async () => {
        const versions = this.#volatile.snapshot(at, sizeBytes);
        await this.#destage(versions);
        await this.below.flush();
        this.#demandPower();
      });
    } else if (this.#volatile.sizeBytes > MAX_VOLATILE_BYTES && !this.#isWritingBack) {
      this.#isWritingBack = true;
      this.#writeBacks++;
      try {
        await this.#exclusively(() => this.#destage(this.#volatile.snapshot()));
      } finally {
        this.#isWritingBack = false;
      }
    }
  }

  async #destage(versions: ReadonlyMap<number, Version>): Promise<void> {
    for (const { at, bytes } of runsOf(versions)) {
      this.#demandPower();
      await this.below.write(at, bytes, false);
    }
    this.#volatile.forget(versions);
  }

  async #cutPower(seed: number): Promise<CutResult> {
    const random = new SeededRandom(seed);
    const fates = new Map<number, Fate>();
    for (const request of this.#volatile.requests) {
      const draw = random.next();
      fates.set(request, draw < 0.4 ? 'kept' : draw < 0.8 ? 'lost' : 'torn');
    }
    const isKept = (_: number, { request }: Version): boolean => {
      const fate = fates.get(request);
      return fate === 'torn' ? random.next() < 0.5 : fate === 'kept';
    };
    for (const { at, bytes } of runsOf(this.#volatile.choose(isKept))) {
      await this.below.write(at, bytes, false);
    }
    await this.below.flush();
    const count = (fate: Fate): number => [...fates.values()].filter((f) => f === fate).length;
    const [kept, lost, torn] = [count('kept'), count('lost'), count('torn')];
    return { seed, requests: fates.size, kept, lost, torn };
  }

  #exclusively<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#writing.then(work);
    this.#writing = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }

  #demandPower(): void {
    if (this.#isCut) throw new LayerError(EIO, `${this.description}: the power is cut`);
  }
}
