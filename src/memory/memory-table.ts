/** A guest's memory as its front-end has shared it: the regions, by either address space. */
import { MAX_MEM_SLOTS } from '../base/limits.ts';
import type { RegionHandle } from '../sys/index.ts';
import type { AddressMap } from './address-map.ts';
import { buildAddressMap } from './build-map.ts';
import { hex, MemoryError } from './errors.ts';
import type { RegionDescription, SharedRegion } from './shared-region.ts';

/** What VHOST_USER_REM_MEM_REG names a region by. */
export type RegionMatch = Pick<RegionDescription, 'guestPhysAddr' | 'userAddr' | 'sizeBytes'>;

/** Owns its regions: closing the table closes them. */
export class MemoryTable {
  readonly regions: SharedRegion[] = [];

  /**
   * Takes ownership of a region.
   * @throws MemoryError ERR_VRING_MEMORY_OVERLAP, ERR_VRING_MEMORY_SLOTS; the region is then
   *   still the caller's.
   */
  add(region: SharedRegion): void {
    if (this.regions.length >= MAX_MEM_SLOTS) {
      const text = `the memory table has ${MAX_MEM_SLOTS} regions already, no more are served`;
      throw new MemoryError('ERR_VRING_MEMORY_SLOTS', 'regions', text);
    }
    for (const [index, other] of this.regions.entries()) {
      refuseOverlap(
        'guest_phys_addr',
        region.guestPhysAddr,
        other.guestPhysAddr,
        region,
        other,
        index,
      );
      refuseOverlap('userspace_addr', region.userAddr, other.userAddr, region, other, index);
    }
    this.regions.push(region);
  }

  /** The region with these addresses and size, or null. */
  find(match: RegionMatch): SharedRegion | null {
    const found = this.regions.find(
      (region) =>
        BigInt(region.guestPhysAddr) === match.guestPhysAddr &&
        BigInt(region.userAddr) === match.userAddr &&
        BigInt(region.sizeBytes) === match.sizeBytes,
    );
    return found ?? null;
  }

  /** Takes a region out; it is then the caller's, and still mapped. Null: there is none such. */
  remove(match: RegionMatch): SharedRegion | null {
    const found = this.find(match);
    if (found !== null) this.regions.splice(this.regions.indexOf(found), 1);
    return found;
  }

  /** Guest-physical addresses: what descriptors hold. */
  gpaMap(): AddressMap {
    return buildAddressMap(
      this.regions.map(({ guestPhysAddr: start, sizeBytes, offset }) => ({
        start,
        sizeBytes,
        offset,
      })),
    );
  }

  /** The front-end's user addresses: what SET_VRING_ADDR holds. */
  uvaMap(): AddressMap {
    return buildAddressMap(
      this.regions.map(({ userAddr: start, sizeBytes, offset }) => ({ start, sizeBytes, offset })),
    );
  }

  /** For other threads to retain, and to look up `regionFaults`. */
  handles(): RegionHandle[] {
    return this.regions.map((region) => region.handle);
  }

  get totalBytes(): number {
    return this.regions.reduce((sum, region) => sum + region.sizeBytes, 0);
  }

  /** Idempotent. */
  close(): void {
    for (const region of this.regions.splice(0)) region.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function refuseOverlap(
  field: string,
  start: number,
  otherStart: number,
  region: SharedRegion,
  other: SharedRegion,
  index: number,
): void {
  const end = start + region.sizeBytes;
  const otherEnd = otherStart + other.sizeBytes;
  if (start >= otherEnd || otherStart >= end) return;
  const text =
    `${field} range ${hex(start)}-${hex(end)} overlaps ` +
    `${hex(otherStart)}-${hex(otherEnd)} of region ${index}`;
  throw new MemoryError('ERR_VRING_MEMORY_OVERLAP', field, text);
}
