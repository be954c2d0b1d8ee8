import { VringError } from '../../base/errors.ts';
import type { Extent, Layer, ZeroOptions } from './layer.ts';

/** What the bottoms of stacks have in common. */
export abstract class SourceLayer implements Layer {
  abstract readonly description: string;
  abstract readonly sizeBytes: number;
  abstract readonly readOnly: boolean;

  abstract read(at: number, into: Uint8Array): Promise<void>;
  abstract write(at: number, from: Uint8Array, fua: boolean): Promise<void>;
  abstract flush(): Promise<void>;
  abstract discard(at: number, sizeBytes: number): Promise<void>;
  abstract zero(at: number, sizeBytes: number, options: ZeroOptions): Promise<void>;

  /** Nothing is known. */
  async extents(at: number, sizeBytes: number): Promise<Extent[]> {
    return [{ at, sizeBytes, kind: 'data' }];
  }

  async measure(): Promise<number> {
    return this.sizeBytes;
  }

  async resize(sizeBytes: number): Promise<void> {
    if (sizeBytes === this.sizeBytes) return;
    const text = `${this.description} keeps its ${this.sizeBytes} bytes`;
    throw new VringError('ERR_VRING_DISK_RESIZE', text);
  }

  async control(name: string, _payload: unknown): Promise<unknown> {
    const text = `${this.description} has nothing that does ${name}; look at its layers`;
    throw new VringError('ERR_VRING_DISK_CONTROL', text);
  }

  hurry(_isHurried: boolean): void {}

  counters(): Record<string, number> {
    return {};
  }

  async close(): Promise<void> {}
}
