/** Memory of our own in the arena: bounce buffers, frames of ports without a guest. */
import { mapPrivateAt, type RegionHandle, regionGeneration, releaseRegion } from '../sys/index.ts';
import { type ArenaRange, reserveRange } from './arena-range.ts';

/** Zeros that nobody else can see or truncate. Allocated in the main thread. */
export class PrivateMemory {
  readonly offset: number;
  readonly sizeBytes: number;
  /** For `retainRegion` by threads that may outlive this object. */
  readonly handle: RegionHandle;
  #range: ArenaRange | null;
  #generation: number;

  /** @throws MemoryError ERR_VRING_MEMORY_ARENA; SysError ENOMEM. */
  static allocate(sizeBytes: number): PrivateMemory {
    const range = reserveRange(sizeBytes);
    try {
      return new PrivateMemory(range, mapPrivateAt(range.offset, sizeBytes));
    } catch (error) {
      range.close();
      throw error;
    }
  }

  /** Use `allocate`. */
  constructor(range: ArenaRange, handle: RegionHandle) {
    this.offset = range.offset;
    this.sizeBytes = range.sizeBytes;
    this.handle = handle;
    this.#range = range;
    this.#generation = regionGeneration(handle);
  }

  /** Idempotent. The memory stays while another thread retains it. */
  close(): void {
    const range = this.#range;
    this.#range = null;
    if (range === null) return;
    releaseRegion(this.handle);
    range.closeAfter(this.handle, this.#generation);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
