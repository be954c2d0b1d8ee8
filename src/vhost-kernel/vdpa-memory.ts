/**
 * The front-end's memory as a vDPA device sees it. The kernel maps nothing by itself: each region
 * is mapped in this process, and then told to the device, page by page pinned, as a translation of
 * its IOTLB. For a driver without an IOMMU the I/O virtual address is the guest-physical one.
 *
 * Tables are compared: what is the same memory at the same place stays mapped and pinned, so that
 * a table with one region more does not stop a device that is at work.
 */
import { readFileSync } from 'node:fs';
import type { BackendMemoryRegion } from '../base/vhost-backend.ts';
import { SysError, VringError } from '../base/errors.ts';
import { GuestRegions, type SharedRegion, translate } from '../memory/index.ts';
import { arenaHostAddress } from '../sys/index.ts';
import { VHOST_ACCESS_RW } from '../wire/vhost-kernel.ts';
import type { IotlbChannel } from './iotlb-channel.ts';
import type { IovaRange } from './vdpa-device.ts';

/** Owns the mappings in this process, and those of the device. */
export class VdpaMemory {
  readonly #path: string;
  readonly #iotlb: IotlbChannel;
  readonly #range: IovaRange;
  readonly #guest = new GuestRegions();
  /** Regions that the device knows in address space 0. */
  #told = new Set<SharedRegion>();

  constructor(path: string, iotlb: IotlbChannel, range: IovaRange) {
    this.#path = path;
    this.#iotlb = iotlb;
    this.#range = range;
  }

  get regions(): readonly SharedRegion[] {
    return this.#guest.table.regions;
  }

  /**
   * `direct`: the device is told every region, guest-physical address for I/O virtual address.
   * The fds stay the caller's.
   * @throws MemoryError with the field at fault, ERR_VRING_VDPA_IOVA: the old table stays.
   *   ERR_VRING_VDPA_PIN, ERR_VRING_VDPA_MAP: the device is left without memory.
   */
  set(regions: readonly BackendMemoryRegion[], direct: boolean): void {
    if (direct) {
      for (const [i, { guestPhysAddr, sizeBytes }] of regions.entries()) {
        this.checkRange(`region ${i}`, guestPhysAddr, sizeBytes);
      }
    }
    const update = this.#guest.prepare(regions);
    try {
      this.#tell(update.gone, direct ? update.next.regions : []);
    } catch (error) {
      this.forget();
      this.#guest.abandon(update);
      this.#guest.commit(this.#guest.prepare([]));
      throw error;
    }
    this.#guest.commit(update);
  }

  /** @throws VringError ERR_VRING_VDPA_IOVA */
  checkRange(what: string, iova: bigint, sizeBytes: bigint): void {
    const { first, last } = this.#range;
    if (iova >= first && iova + sizeBytes - 1n <= last) return;
    const text =
      `${this.#path}: ${what}, ${rangeText(iova, sizeBytes)}, is not within what the device can ` +
      `address, 0x${first.toString(16)} to 0x${last.toString(16)}; give the guest less memory, ` +
      'or place it there';
    throw new VringError('ERR_VRING_VDPA_IOVA', text);
  }

  /** Of a user address: what the device calls it, where it was told directly. */
  guestPhysAddr(userAddr: bigint, sizeBytes: bigint): bigint {
    const { region, delta } = this.#find(userAddr, sizeBytes);
    return BigInt(region.guestPhysAddr) + delta;
  }

  /** Of a user address: where it is in the arena. */
  arenaOffset(userAddr: bigint, sizeBytes: bigint): number {
    const { region, delta } = this.#find(userAddr, sizeBytes);
    return region.offset + Number(delta);
  }

  /** Of a guest-physical address: where it is in the arena; negative: nowhere. */
  arenaOffsetOfGpa(gpa: bigint, sizeBytes: number): number {
    return translate(this.#guest.table.gpaMap(), Number(gpa), sizeBytes);
  }

  /**
   * Takes everything told from the device; the table stays. After a reset, which lets devices
   * forget (vdpa_sim) while vhost remembers, and would refuse the same translation as known.
   */
  forget(): void {
    const told = [...this.#told];
    this.#told = new Set();
    for (const region of told) {
      this.#iotlb.invalidate(BigInt(region.guestPhysAddr), BigInt(region.sizeBytes));
    }
  }

  /** Idempotent. Unmaps in this process; the device's translations end with its descriptor. */
  close(): void {
    this.#told.clear();
    this.#guest.close();
  }

  #tell(gone: readonly SharedRegion[], wanted: readonly SharedRegion[]): void {
    const remove = [...this.#told].filter((r) => gone.includes(r) || !wanted.includes(r));
    const add = wanted.filter((region) => !this.#told.has(region));
    if (remove.length + add.length === 0) return;
    this.#iotlb.batch(0, () => {
      for (const region of remove) {
        this.#iotlb.invalidate(BigInt(region.guestPhysAddr), BigInt(region.sizeBytes));
        this.#told.delete(region);
      }
      for (const [i, region] of add.entries()) {
        const iova = BigInt(region.guestPhysAddr);
        const sizeBytes = BigInt(region.sizeBytes);
        const hostAddr = arenaHostAddress() + BigInt(region.offset);
        try {
          this.#iotlb.update({ iova, sizeBytes, hostAddr, permissions: VHOST_ACCESS_RW });
        } catch (error) {
          throw explainMapping(error, this.#path, `region ${i}`, iova, sizeBytes);
        }
        this.#told.add(region);
      }
    });
  }

  #find(userAddr: bigint, sizeBytes: bigint): { region: SharedRegion; delta: bigint } {
    for (const region of this.#guest.table.regions) {
      const delta = userAddr - BigInt(region.userAddr);
      if (delta >= 0n && delta + sizeBytes <= BigInt(region.sizeBytes)) return { region, delta };
    }
    const text =
      `user address 0x${userAddr.toString(16)} (${sizeBytes} bytes) is in none of the ` +
      `${this.#guest.table.regions.length} regions of the memory table`;
    throw new VringError('ERR_VRING_MEMORY_ADDRESS', text);
  }
}

/**
 * Why a translation was refused. The kernel answers EFAULT to every reason (vhost.c,
 * `vhost_chr_write_iter`); the usual one, the limit of pinned memory, can be looked up.
 */
export function explainMapping(
  error: unknown,
  path: string,
  what: string,
  iova: bigint,
  sizeBytes: bigint,
): unknown {
  if (!(error instanceof SysError)) return error;
  const begin = `${path}: ${what}, ${rangeText(iova, sizeBytes)}, `;
  const pinned = procNumber('/proc/self/status', /^VmPin:\s+(\d+) kB/m) * 1024;
  const limit = procNumber('/proc/self/limits', /^Max locked memory\s+(\d+)/m);
  if (pinned + Number(sizeBytes) > limit) {
    const text =
      `${begin}cannot be pinned: a vDPA device holds all memory that it may use, ${pinned} bytes ` +
      `so far, and RLIMIT_MEMLOCK allows ${limit}; raise it for this process (ulimit -l ` +
      'unlimited, prlimit --memlock=unlimited, LimitMEMLOCK=infinity)';
    return new VringError('ERR_VRING_VDPA_PIN', text, { cause: error });
  }
  const text =
    `${begin}is refused by the kernel (${error.errnoName}, which it says to every reason): the ` +
    'addresses are in use, memory is short, or the device holds no more translations; ' +
    'fewer and larger regions help, for example huge pages';
  return new VringError('ERR_VRING_VDPA_MAP', text, { cause: error });
}

/** Infinity where there is no such number: no limit. */
function procNumber(file: string, pattern: RegExp): number {
  const found = pattern.exec(readFileSync(file, 'utf8'));
  return found === null ? Infinity : Number(found[1]);
}

function rangeText(iova: bigint, sizeBytes: bigint): string {
  return `0x${iova.toString(16)} to 0x${(iova + sizeBytes - 1n).toString(16)}`;
}
