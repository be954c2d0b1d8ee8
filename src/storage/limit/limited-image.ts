/** A disk with limits at the top of its stack: they hold in the data plane's thread. */
import type { DiskImage } from '../disk-image.ts';
import type { ZoneShape } from '../zoned/zone-types.ts';
import type { LimitEngineSpec } from './limit-engine.ts';
import { checkRates, type LimitCells } from './rate-limits.ts';

export class LimitedImage implements DiskImage {
  readonly #image: DiskImage;
  readonly #cells: LimitCells;

  /** Owns `image`, whose exports have the same cells. */
  constructor(image: DiskImage, cells: LimitCells) {
    this.#image = image;
    this.#cells = cells;
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

  get zones(): ZoneShape | null {
    return this.#image.zones ?? null;
  }

  get spec(): LimitEngineSpec {
    return { kind: 'limit', cells: this.#cells.buffer, inner: this.#image.spec };
  }

  get failure(): Error | null {
    return this.#image.failure ?? null;
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
