import type { Extent } from './layer.ts';
import { SourceLayer } from './source-layer.ts';

/** Reads as zeros and forgets what is written: for measurements, and tests of what is above. */
export class NullLayer extends SourceLayer {
  readonly description: string;
  readonly readOnly: boolean;
  sizeBytes: number;

  constructor(sizeBytes: number, readOnly: boolean) {
    super();
    this.description = `null:${sizeBytes}`;
    this.sizeBytes = sizeBytes;
    this.readOnly = readOnly;
  }

  async read(_at: number, into: Uint8Array): Promise<void> {
    into.fill(0);
  }

  async write(): Promise<void> {}
  async flush(): Promise<void> {}
  async discard(): Promise<void> {}
  async zero(): Promise<void> {}

  override async extents(at: number, sizeBytes: number): Promise<Extent[]> {
    return [{ at, sizeBytes, kind: 'hole' }];
  }

  override async resize(sizeBytes: number): Promise<void> {
    this.sizeBytes = sizeBytes;
  }
}
