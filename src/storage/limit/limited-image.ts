/** A disk with limits at the top of its stack: they hold in the data plane's thread. */
import type { DiskImage } from '../disk-image.ts';
import type { LimitSpec } from '../stack/stack-spec.ts';
import type { LimitEngineSpec } from './limit-engine.ts';
import { checkRates, LimitCells } from './rate-limits.ts';

export class LimitedImage implements DiskImage {
  readonly #image: DiskImage;
  readonly #cells = new LimitCells();

  /** Owns `image`. @throws ConfigError. */
  constructor(image: DiskImage, spec: LimitSpec) {
    this.#image = image;
    this.#cells.rates = checkRates(spec, 'limit');
  }

  get description(): string {
    return `limit over ${this.#image.description}`;
  }

  get readOnly(): boolean {
    return this.#image.readOnly;
  }

  get sizeBytes(): number {
    return this.#image.sizeBytes;
  }

  get spec(): LimitEngineSpec {
    return { kind: 'limit', cells: this.#cells.buffer, inner: this.#image.spec };
  }

  measure(): Promise<number> {
    return this.#image.measure();
  }

  resize(sizeBytes: number): Promise<void> {
    return this.#image.resize(sizeBytes);
  }

  /** `limits`: `Rates`, within 100 ms. */
  async control(name: string, payload: unknown): Promise<unknown> {
    if (name !== 'limits') return this.#image.control(name, payload);
    this.#cells.rates = checkRates(payload, 'limits');
    return undefined;
  }

  async counters(): Promise<Record<string, number>> {
    return { ...(await this.#image.counters()), ...this.#cells.counters };
  }

  close(): Promise<void> {
    return this.#image.close();
  }
}
