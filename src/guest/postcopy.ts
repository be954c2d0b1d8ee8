/**
 * The source of a postcopy migration: pages of the guest's old memory, brought to the new back-end
 * when it waits for them, and in the background. Specification, "Post-copy".
 */
import type { BackendMemoryRegion } from '../base/vhost-backend.ts';
import { SysError } from '../base/errors.ts';
import type { GuestMemory } from '../memory/index.ts';
import {
  copyUserfault,
  pollFd,
  readUserfault,
  wakeUserfault,
  type Fd,
  type Poll,
} from '../sys/index.ts';
import type { VhostUserFrontend } from '../vhost-user/index.ts';
import { PAGE_BYTES } from './dirty-pages.ts';

/** Pages brought in one go, so that faults are answered in between. */
const PAGES_PER_TURN = 32;

export class PostcopySource {
  /** Pages that somebody waited for. */
  faults = 0;
  readonly #target: VhostUserFrontend;
  readonly #uffd: Fd;
  readonly #memory: GuestMemory;
  #poll: Poll | null = null;
  /** Where the back-end mapped the region, in its own address space. */
  #base = 0n;

  /** Owns `uffd`. The memory is the old one, and must stay until `bringAll` is done. */
  constructor(target: VhostUserFrontend, uffd: Fd, memory: GuestMemory) {
    this.#target = target;
    this.#uffd = uffd;
    this.#memory = memory;
  }

  /** Shares the new memory; from then on the back-end's page faults are answered. */
  async share(region: BackendMemoryRegion): Promise<void> {
    await this.#target.migration.listenPostcopy();
    await this.#target.memory.setTableForPostcopy([region], ([mapped]) => {
      this.#base = mapped!.backendAddr;
      this.#poll = pollFd(this.#uffd.number, { read: true }, () => this.#answer());
    });
  }

  /** Brings every page that is not there, `pauseMs` before each bundle, then ends postcopy. */
  async bringAll(pauseMs: number): Promise<void> {
    const pages = this.#memory.sizeBytes / PAGE_BYTES;
    let brought = true;
    for (let page = 0; page < pages; page++) {
      if (page % PAGES_PER_TURN === 0) {
        // Faults are answered in between. What the driver itself wrote is there: no pause for it.
        const waitMs = brought ? pauseMs : 0;
        await new Promise((resolve) => setTimeout(resolve, waitMs));
        brought = false;
      }
      if (this.#bring(page)) brought = true;
    }
    await this.#target.migration.endPostcopy();
    this.close();
  }

  /** Idempotent. */
  close(): void {
    this.#poll?.close();
    this.#poll = null;
    this.#uffd.close();
  }

  #answer(): void {
    for (;;) {
      const fault = readUserfault(this.#uffd.number);
      if (fault === null) return;
      const at = Number(fault.address - this.#base);
      if (at < 0 || at >= this.#memory.sizeBytes) continue; // none of ours: it waits in vain
      this.faults++;
      this.#bring(Math.floor(at / PAGE_BYTES));
    }
  }

  /** False: it was there. */
  #bring(page: number): boolean {
    const address = this.#base + BigInt(page * PAGE_BYTES);
    try {
      copyUserfault(
        this.#uffd.number,
        address,
        this.#memory.offset + page * PAGE_BYTES,
        PAGE_BYTES,
      );
      return true;
    } catch (error) {
      if (!(error instanceof SysError) || error.errnoName !== 'EEXIST') throw error;
      wakeUserfault(this.#uffd.number, address, PAGE_BYTES); // it came meanwhile
      return false;
    }
  }
}
