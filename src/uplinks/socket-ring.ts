import { type ArenaRange, reserveRange } from '../memory/index.ts';
import {
  type Fd,
  mapRegionAt,
  type RegionHandle,
  regionGeneration,
  releaseRegion,
} from '../sys/index.ts';

/**
 * A ring that the kernel shares with us, in the arena: frames in it are segments like those of a
 * guest, and its words are read and written with Atomics. Mapped by the main thread.
 */
export class SocketRing {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly #handle: RegionHandle;
  readonly #generation: number;
  #range: ArenaRange | null;

  /**
   * `at`: where in the socket's address space it is, 0 or XDP_PGOFF_*.
   * @throws MemoryError ERR_VRING_MEMORY_ARENA; SysError EINVAL, ENOMEM, EAGAIN.
   */
  static map(fd: Fd, sizeBytes: number, at: number): SocketRing {
    const range = reserveRange(sizeBytes);
    try {
      return new SocketRing(range, mapRegionAt(range.offset, sizeBytes, fd.number, at));
    } catch (error) {
      range.close();
      throw error;
    }
  }

  /** Use `map`. */
  constructor(range: ArenaRange, handle: RegionHandle) {
    this.offset = range.offset;
    this.sizeBytes = range.sizeBytes;
    this.#range = range;
    this.#handle = handle;
    this.#generation = regionGeneration(handle);
  }

  /** Idempotent. The worker does not use it any more. */
  close(): void {
    const range = this.#range;
    this.#range = null;
    if (range === null) return;
    releaseRegion(this.#handle);
    range.closeAfter(this.#handle, this.#generation);
  }
}
