/** Private memory of the process as the bottom of a stack; the same bytes as a MemoryEngine's. */
import { arena, releaseRegion, retainRegion } from '../../sys/index.ts';
import type { MemoryEngineSpec } from '../memory-engine.ts';
import { SourceLayer } from './source-layer.ts';

export class MemoryLayer extends SourceLayer {
  readonly description: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly #bytes: Uint8Array;
  #handle: number;

  constructor(spec: MemoryEngineSpec) {
    super();
    this.description = `memory:${spec.sizeBytes}`;
    this.sizeBytes = spec.sizeBytes;
    this.readOnly = spec.readOnly;
    this.#bytes = arena().bytes.subarray(spec.offset, spec.offset + spec.sizeBytes);
    this.#handle = spec.handle;
    retainRegion(spec.handle);
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    into.set(this.#bytes.subarray(at, at + into.length));
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    this.#bytes.set(from, at);
  }

  async flush(): Promise<void> {}

  discard(at: number, sizeBytes: number): Promise<void> {
    return this.zero(at, sizeBytes);
  }

  async zero(at: number, sizeBytes: number): Promise<void> {
    this.#bytes.fill(0, at, at + sizeBytes);
  }

  override async close(): Promise<void> {
    if (this.#handle !== 0) releaseRegion(this.#handle);
    this.#handle = 0;
  }
}
