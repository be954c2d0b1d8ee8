/** The front-end's end of the dirty log: which pages did the back-end write since the last look? */
import type { GuestMemory } from '../memory/index.ts';
import { SharedRegion } from '../memory/index.ts';
import { arena, createMemfd, type Fd } from '../sys/index.ts';

export const PAGE_BYTES = 4096;

export class DirtyPages {
  /** To be sent with SET_LOG_BASE; it covers all guest-physical memory up to the region's end. */
  readonly fd: Fd;
  readonly sizeBytes: number;
  readonly #region: SharedRegion;
  readonly #words: Int32Array;
  readonly #firstPage: number;
  readonly #pages: number;

  constructor({ baseGpa, sizeBytes }: GuestMemory) {
    const lastPage = Math.ceil((baseGpa + sizeBytes) / PAGE_BYTES);
    this.#firstPage = Math.floor(baseGpa / PAGE_BYTES);
    this.#pages = lastPage - this.#firstPage;
    // One bit each, rounded up to whole pages of the log itself.
    this.sizeBytes = Math.ceil(lastPage / 8 / PAGE_BYTES) * PAGE_BYTES;
    this.fd = createMemfd('vring-dirty-log', this.sizeBytes);
    try {
      const where = { guestPhysAddr: 0n, userAddr: 0n, fdOffset: 0n };
      const size = { sizeBytes: BigInt(this.sizeBytes) };
      this.#region = SharedRegion.map(this.fd.number, { ...where, ...size }, 'dirty log');
    } catch (error) {
      this.fd.close();
      throw error;
    }
    this.#words = new Int32Array(arena().buffer, this.#region.offset, this.sizeBytes / 4);
  }

  /** Pages of the memory, counted from its start, that were marked; the marks are cleared. */
  take(): number[] {
    const pages: number[] = [];
    const last = this.#firstPage + this.#pages;
    for (let word = this.#firstPage >> 5; word << 5 < last; word++) {
      if (this.#words[word] === 0) continue;
      const bits = Atomics.exchange(this.#words, word, 0);
      for (let bit = 0; bit < 32; bit++) {
        const page = (word << 5) + bit - this.#firstPage;
        if ((bits >>> bit) & 1 && page >= 0 && page < this.#pages) pages.push(page);
      }
    }
    return pages;
  }

  /** Idempotent. */
  close(): void {
    this.#region.close();
    this.fd.close();
  }
}
