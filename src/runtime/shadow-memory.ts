/**
 * Memory of a guest whose rings are shadowed: mapped here, to serve its rings, and given on to the
 * device together with memory of our own, in which the shadow rings lie. Ours gets guest-physical
 * addresses behind the guest's.
 */
import type { BackendMemoryRegion } from '../base/vhost-backend.ts';
import { VringError } from '../base/errors.ts';
import { type AddressMap, GuestMemory, GuestRegions } from '../memory/index.ts';
import { dupFd, type Fd } from '../sys/index.ts';

const ALIGN = 2n * 1024n * 1024n;

/** x86 takes writes there for interrupts (MSI), whatever an IOMMU is told. */
const MSI_FIRST = 0xfee0_0000n;
const MSI_END = 0xfef0_0000n;

/** Memory of ours and where guest and front-end would have it. */
export type ShadowArea = {
  readonly memory: GuestMemory;
  readonly gpa: bigint;
  readonly userAddr: bigint;
};

type GuestRegion = BackendMemoryRegion & { readonly own: Fd };

/** Owns all of it. */
export class ShadowMemory {
  readonly #areas = new Map<number, ShadowArea>();
  readonly #mapped = new GuestRegions();
  #guest: GuestRegion[] = [];
  /** By arena offset: start, end, and guest-physical address minus arena offset; sorted. */
  #back: { start: number; end: number; delta: number }[] = [];

  /** What the device is to be told: the guest's regions, and ours. */
  get regions(): readonly BackendMemoryRegion[] {
    const areas = [...this.#areas.values()].map(({ memory, gpa, userAddr }) => ({
      ...memory.backendRegion(),
      guestPhysAddr: gpa,
      userAddr,
    }));
    return [...this.#guest, ...areas];
  }

  /** Some region was cut short by its owner: what is read there are zeros. */
  get isTruncated(): boolean {
    for (const region of this.#mapped.table.regions) if (region.truncated) return true;
    return false;
  }

  /** Guest-physical addresses to the arena. */
  gpaMap(): AddressMap {
    return this.#mapped.table.gpaMap();
  }

  /** Arena offset of a range of user addresses. @throws VringError ERR_VRING_MEMORY_ADDRESS */
  offsetOf(userAddr: bigint, sizeBytes: number): number {
    for (const region of this.#mapped.table.regions) {
      const delta = userAddr - BigInt(region.userAddr);
      if (delta < 0n || delta + BigInt(sizeBytes) > BigInt(region.sizeBytes)) continue;
      return region.offset + Number(delta);
    }
    const text =
      `user address 0x${userAddr.toString(16)} (${sizeBytes} bytes) is in no region of the ` +
      'memory table';
    throw new VringError('ERR_VRING_MEMORY_ADDRESS', text, { recovery: 'reconnect' });
  }

  /** The guest-physical address of an arena offset that a chain named: it is in a region. */
  gpaOf(offset: number): number {
    const back = this.#back;
    for (let i = 0; i < back.length; i++) {
      if (offset >= back[i]!.start && offset < back[i]!.end) return offset + back[i]!.delta;
    }
    return -1;
  }

  /**
   * The guest's memory; the fds stay the caller's.
   * @throws MemoryError with the field at fault; VringError ERR_VRING_SHADOW_MEMORY: rings that run
   *   are in the way.
   */
  setGuest(regions: readonly BackendMemoryRegion[], areasInUse: ReadonlySet<number>): void {
    const update = this.#mapped.prepare(regions);
    try {
      if (update.gone.length > 0 && areasInUse.size > 0) {
        const text = 'regions cannot be taken away while rings run; stop the rings first';
        throw new VringError('ERR_VRING_SHADOW_MEMORY', text);
      }
      this.#makeWay(regions, areasInUse);
    } catch (error) {
      this.#mapped.abandon(update);
      throw error;
    }
    this.#mapped.commit(update);
    for (const { own } of this.#guest) own.close();
    this.#guest = regions.map((region, i) => {
      const own = dupFd(region.fd, `region ${i}`);
      return { ...region, own, fd: own.number };
    });
    this.#back = this.#mapped.table.regions
      .map(({ offset, sizeBytes, guestPhysAddr }) => {
        return { start: offset, end: offset + sizeBytes, delta: guestPhysAddr - offset };
      })
      .sort((a, b) => a.start - b.start);
  }

  /** Memory for ring `index`; that of before, where it is large enough. True: it is new. */
  ensureArea(index: number, sizeBytes: number): boolean {
    const known = this.#areas.get(index);
    if (known !== undefined && known.memory.sizeBytes >= sizeBytes) return false;
    known?.memory.close();
    this.#areas.delete(index);
    const all = this.regions;
    let gpa = behind(all.map((r) => r.guestPhysAddr + r.sizeBytes));
    if (gpa < MSI_END && gpa + BigInt(sizeBytes) > MSI_FIRST) gpa = roundUp(MSI_END);
    const userAddr = behind(all.map((r) => r.userAddr + r.sizeBytes));
    const memory = GuestMemory.create(sizeBytes, { baseGpa: Number(gpa) });
    this.#areas.set(index, { memory, gpa, userAddr });
    return true;
  }

  area(index: number): ShadowArea {
    return this.#areas.get(index)!;
  }

  /** Idempotent. */
  close(): void {
    this.#mapped.close();
    for (const { own } of this.#guest) own.close();
    this.#guest = [];
    for (const { memory } of this.#areas.values()) memory.close();
    this.#areas.clear();
  }

  /** Areas that lie where the guest's memory is to be are dropped; they are made anew elsewhere. */
  #makeWay(regions: readonly BackendMemoryRegion[], inUse: ReadonlySet<number>): void {
    for (const [index, { memory, gpa, userAddr }] of this.#areas) {
      const size = BigInt(memory.sizeBytes);
      const clash = regions.find(
        (r) =>
          (r.guestPhysAddr < gpa + size && gpa < r.guestPhysAddr + r.sizeBytes) ||
          (r.userAddr < userAddr + size && userAddr < r.userAddr + r.sizeBytes),
      );
      if (clash === undefined) continue;
      if (inUse.has(index)) {
        const text =
          `a region at 0x${clash.guestPhysAddr.toString(16)} lies where the shadow ring of vring ` +
          `${index} is; stop the rings before the memory grows`;
        throw new VringError('ERR_VRING_SHADOW_MEMORY', text, { recovery: 'reset' });
      }
      memory.close();
      this.#areas.delete(index);
    }
  }
}

function behind(ends: readonly bigint[]): bigint {
  return roundUp(ends.reduce((most, end) => (end > most ? end : most), 0n));
}

function roundUp(address: bigint): bigint {
  return ((address + ALIGN - 1n) / ALIGN) * ALIGN;
}
