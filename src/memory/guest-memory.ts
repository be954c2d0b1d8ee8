/** Memory that we own and share: that of the software guest, as a front-end offers it. */
import type { BackendMemoryRegion } from '../base/vhost-backend.ts';
import { createMemfd, type Fd } from '../sys/index.ts';
import { SharedRegion } from './shared-region.ts';

const HUGE_PAGE_BYTES = 2 * 1024 * 1024;
const PAGE_BYTES = 4096;
/** Looks like an mmap of a 64-bit process, and stays below 2^47 with every arena offset. */
const UVA_BASE = 0x5000_0000_0000;

export type GuestMemoryOptions = {
  /** 2 MiB pages, which must be reserved (vm.nr_hugepages). The size is rounded up to them. */
  hugePages?: boolean;
  /** Guest-physical address of the first byte; default 0. */
  baseGpa?: number;
};

export class GuestMemory {
  /** To be sent to the back-end. */
  readonly fd: Fd;
  readonly region: SharedRegion;
  readonly sizeBytes: number;
  /** Arena offset of the first byte. */
  readonly offset: number;
  readonly baseGpa: number;
  /**
   * The "user address" that we tell the back-end. Any distinct range does; the arena offset is
   * unique in this process and never confused with a GPA.
   */
  readonly baseUva: number;

  /**
   * Zeroed memory in one region.
   * @throws SysError ENOMEM (no huge pages reserved); MemoryError ERR_VRING_MEMORY_*.
   */
  static create(sizeBytes: number, options: GuestMemoryOptions = {}): GuestMemory {
    const hugePages = options.hugePages === true;
    const unit = hugePages ? HUGE_PAGE_BYTES : PAGE_BYTES;
    const rounded = Math.ceil(sizeBytes / unit) * unit;
    const fd = createMemfd('vring-guest', rounded, { hugePages });
    const baseGpa = options.baseGpa ?? 0;
    try {
      const region = SharedRegion.map(
        fd.number,
        {
          guestPhysAddr: BigInt(baseGpa),
          userAddr: 0n,
          sizeBytes: BigInt(rounded),
          fdOffset: 0n,
        },
        'guest memory',
      );
      return new GuestMemory(fd, region, baseGpa);
    } catch (error) {
      fd.close();
      throw error;
    }
  }

  /** Use `create`. */
  constructor(fd: Fd, region: SharedRegion, baseGpa: number) {
    this.fd = fd;
    this.region = region;
    this.sizeBytes = region.sizeBytes;
    this.offset = region.offset;
    this.baseGpa = baseGpa;
    this.baseUva = UVA_BASE + region.offset;
  }

  /** What `VhostBackend.setMemTable` takes; the fd stays ours. */
  backendRegion(): BackendMemoryRegion {
    return {
      guestPhysAddr: BigInt(this.baseGpa),
      sizeBytes: BigInt(this.sizeBytes),
      userAddr: BigInt(this.baseUva),
      fd: this.fd.number,
      fdOffset: 0n,
    };
  }

  /** Idempotent. */
  close(): void {
    this.region.close();
    this.fd.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
