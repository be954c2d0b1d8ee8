import { checkSize, type DiskImage, MAX_DISK_BYTES, noControl } from './disk-image.ts';
import type { NullEngineSpec } from './null-engine.ts';

/**
 * A disk of a size and nothing else: see null-engine.ts.
 * @throws ConfigError: no size of a disk.
 */
export function createNullImage(sizeBytes: number, readOnly = false): DiskImage {
  checkSize('null', sizeBytes, MAX_DISK_BYTES);
  return new NullImage(sizeBytes, readOnly);
}

class NullImage implements DiskImage {
  readonly readOnly: boolean;
  sizeBytes: number;

  constructor(sizeBytes: number, readOnly: boolean) {
    this.sizeBytes = sizeBytes;
    this.readOnly = readOnly;
  }

  get description(): string {
    return `null:${this.sizeBytes}`;
  }

  get spec(): NullEngineSpec {
    return { kind: 'null', sizeBytes: this.sizeBytes, readOnly: this.readOnly };
  }

  async measure(): Promise<number> {
    return this.sizeBytes;
  }

  async resize(sizeBytes: number): Promise<void> {
    checkSize('size', sizeBytes, MAX_DISK_BYTES);
    this.sizeBytes = sizeBytes;
  }

  async control(name: string): Promise<unknown> {
    throw noControl(this, name);
  }

  async counters(): Promise<Record<string, number>> {
    return {};
  }

  async close(): Promise<void> {}
}
