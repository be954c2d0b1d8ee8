import type { Extent, Layer, ZeroOptions } from './layer.ts';

const SECTOR_BYTES = 512;

/** A layer that changes nothing: what stands on another begins with it and overrides some. */
export abstract class PassLayer implements Layer {
  readonly below: Layer;

  constructor(below: Layer) {
    this.below = below;
  }

  abstract get description(): string;

  get sizeBytes(): number {
    return this.below.sizeBytes;
  }

  get readOnly(): boolean {
    return this.below.readOnly;
  }

  get blockBytes(): number {
    return this.below.blockBytes ?? SECTOR_BYTES;
  }

  read(at: number, into: Uint8Array): Promise<void> {
    return this.below.read(at, into);
  }

  write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    return this.below.write(at, from, fua);
  }

  flush(): Promise<void> {
    return this.below.flush();
  }

  discard(at: number, sizeBytes: number): Promise<void> {
    return this.below.discard(at, sizeBytes);
  }

  zero(at: number, sizeBytes: number, options: ZeroOptions): Promise<void> {
    return this.below.zero(at, sizeBytes, options);
  }

  extents(at: number, sizeBytes: number): Promise<Extent[]> {
    return this.below.extents(at, sizeBytes);
  }

  measure(): Promise<number> {
    return this.below.measure();
  }

  resize(sizeBytes: number): Promise<void> {
    return this.below.resize(sizeBytes);
  }

  control(name: string, payload: unknown): Promise<unknown> {
    return this.below.control(name, payload);
  }

  hurry(isHurried: boolean): void {
    this.below.hurry(isHurried);
  }

  counters(): Record<string, number> {
    return this.below.counters();
  }

  close(): Promise<void> {
    return this.below.close();
  }
}
