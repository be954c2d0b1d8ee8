/**
 * What the back-end mapped into its device's shared memory regions. Maps stay inside their region,
 * never overlap, and are gone with a reset. Section "SHMEM_MAP".
 */
import { MAX_SHMEM_MAPS } from './limits.ts';

/** One map: part of a file at a place of a region. Bytes. */
export type ShmemMapping = {
  readonly shmId: number;
  readonly shmOffset: number;
  readonly sizeBytes: number;
  readonly fdOffset: number;
  readonly writable: boolean;
};

/** Who makes the maps visible to the guest. */
export interface ShmemHandler {
  /** The fd is lent for the call. False refuses. */
  map(mapping: ShmemMapping, fd: number): boolean;
  unmap(mapping: ShmemMapping): void;
}

export class ShmemMaps {
  readonly #handler: ShmemHandler;
  /** Size of each region by id; from GET_SHMEM_CONFIG. */
  readonly #sizes: readonly number[];
  #maps: ShmemMapping[] = [];

  constructor(handler: ShmemHandler, sizes: readonly bigint[]) {
    this.#handler = handler;
    this.#sizes = sizes.map(Number);
  }

  get maps(): readonly ShmemMapping[] {
    return this.#maps;
  }

  /** Null when it is mapped, else what is wrong with it. */
  map(mapping: ShmemMapping, fd: number): string | null {
    const outside = this.#outside(mapping);
    if (outside !== null) return outside;
    const taken = this.#maps.find((each) => overlaps(each, mapping));
    if (taken !== undefined) return `overlaps the map at ${taken.shmOffset} + ${taken.sizeBytes}`;
    if (this.#maps.length >= MAX_SHMEM_MAPS) return `more than ${MAX_SHMEM_MAPS} maps`;
    if (!this.#handler.map(mapping, fd)) return 'refused by the front-end';
    this.#maps.push(mapping);
    return null;
  }

  /** Only whole maps are taken back. */
  unmap({ shmId, shmOffset, sizeBytes }: ShmemMapping): string | null {
    const at = this.#maps.findIndex(
      (each) =>
        each.shmId === shmId && each.shmOffset === shmOffset && each.sizeBytes === sizeBytes,
    );
    if (at < 0) return `nothing is mapped at ${shmOffset} + ${sizeBytes} of region ${shmId}`;
    const [gone] = this.#maps.splice(at, 1);
    this.#handler.unmap(gone!);
    return null;
  }

  /** A reset, or the end of the session. */
  clear(): void {
    const maps = this.#maps;
    this.#maps = [];
    for (const each of maps) this.#handler.unmap(each);
  }

  #outside({ shmId, shmOffset, sizeBytes }: ShmemMapping): string | null {
    const size = this.#sizes[shmId] ?? 0;
    if (size === 0) return `region ${shmId} does not exist`;
    if (shmOffset + sizeBytes <= size) return null;
    return `${shmOffset} + ${sizeBytes} is outside of region ${shmId} (${size} bytes)`;
  }
}

function overlaps(a: ShmemMapping, b: ShmemMapping): boolean {
  if (a.shmId !== b.shmId) return false;
  return a.shmOffset < b.shmOffset + b.sizeBytes && b.shmOffset < a.shmOffset + a.sizeBytes;
}
