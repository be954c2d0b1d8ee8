/** For tests: a medium in a buffer that outlives its layers, and zones over it. */
import { EIO } from '../../sys/index.ts';
import { type Layer, LayerError } from '../layer/layer.ts';
import { SourceLayer } from '../layer/source-layer.ts';
import type { ZonedSpec } from '../stack/stack-spec.ts';
import { openZonedLayer } from './open-zoned.ts';
import type { ZonedLayer } from './zoned-layer.ts';

export const ZONE = 65536;

export class BufferLayer extends SourceLayer {
  readonly description = 'buffer';
  readonly readOnly: boolean;
  readonly bytes: Buffer;
  /** Called before each write; what it throws is how that fails. */
  onWrite: ((at: number, sizeBytes: number) => Promise<void> | void) | null = null;
  flushes = 0;
  /** Flushes from now on fail. */
  isLost = false;

  constructor(bytes: Buffer, readOnly = false) {
    super();
    this.bytes = bytes;
    this.readOnly = readOnly;
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    into.set(this.bytes.subarray(at, at + into.length));
  }

  async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    await this.onWrite?.(at, from.length);
    this.bytes.set(from, at);
    if (fua) await this.flush();
  }

  async flush(): Promise<void> {
    this.flushes++;
    if (this.isLost) throw new LayerError(EIO, 'the cache is lost');
  }

  async discard(at: number, sizeBytes: number): Promise<void> {
    this.bytes.fill(0xdd, at, at + sizeBytes); // what it reads as is not promised
  }

  async zero(at: number, sizeBytes: number): Promise<void> {
    this.bytes.fill(0, at, at + sizeBytes);
  }
}

export function openZoned(below: Layer, spec: Omit<ZonedSpec, 'kind'> = {}): Promise<ZonedLayer> {
  return openZonedLayer(below, { kind: 'zoned', ...spec }, { readOnly: false });
}

/** A medium of `zones` zones of 64 KiB, and one over it. */
export async function freshZoned(
  zones: number,
  spec: Omit<ZonedSpec, 'kind'> = {},
): Promise<{ layer: ZonedLayer; below: BufferLayer }> {
  const below = new BufferLayer(Buffer.alloc(2 ** 20 + zones * ZONE));
  return { layer: await openZoned(below, { zoneBytes: ZONE, ...spec }), below };
}

export const ONCE = { fua: false, again: false } as const;
export const AGAIN = { fua: false, again: true } as const;

export function filled(value: number, sizeBytes = 4096): Buffer {
  return Buffer.alloc(sizeBytes, value);
}
