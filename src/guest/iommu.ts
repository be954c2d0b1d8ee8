/**
 * The software guest's IOMMU: what its device addresses is not guest memory as it lies. Rings,
 * tables and buffers get I/O virtual addresses, the back-end learns them by asking (IOTLB misses),
 * and mappings can be taken back while it works.
 */
import { assert } from '../base/assert.ts';
import type { BackendIotlb, IotlbMapping } from '../base/vhost-backend.ts';
import type { GuestMemory } from '../memory/index.ts';
import type { GuestQueue } from './guest-queue.ts';
import { IOTLB_ACCESS_RO, IOTLB_ACCESS_RW } from '../wire/vhost-user-parse.ts';

/** How a driver's addresses are made for its device. */
export interface AddressSpace {
  /** Whether VIRTIO_F_ACCESS_PLATFORM has to be negotiated. */
  readonly platform: boolean;
  /** The device's address of a range of guest memory. */
  map(gpa: number, sizeBytes: number, writable: boolean): number;
  /** Once memory is shared, before rings start: a back-end that never asks is told everything. */
  settle(): Promise<void>;
}

/** Guest-physical addresses, without an IOMMU. */
export const DIRECT: AddressSpace = {
  platform: false,
  map: (gpa) => gpa,
  settle: () => Promise.resolve(),
};

/**
 * `offset`: one mapping for all memory, at a distance. `scatter`: every range has a place of its
 * own, page by page, so that a back-end's cache has much to remember.
 */
export type IommuMode = 'offset' | 'scatter';

const PAGE = 4096;
const OFFSET = 0x10_0000_0000;
const SCATTER_BASE = 0x20_0000_0000;
/** Unmapped pages between two ranges: 1 to this many, so that neighbours cannot be joined. */
const MAX_GAP_PAGES = 64;

type Page = { readonly gpa: number; readonly permissions: number };

export class GuestIommu implements AddressSpace {
  readonly platform = true;
  readonly mode: IommuMode;
  /** Asked and answered, asked for what is not mapped, taken back. */
  readonly counters = { misses: 0, updates: 0, faults: 0, invalidations: 0 };
  /** Of what is mapped, by IOVA page number. Scatter only. */
  readonly #pages = new Map<number, Page>();
  #memory: GuestMemory | null = null;
  #peer: BackendIotlb | null = null;
  #next = SCATTER_BASE;
  #random = 1;

  constructor(mode: IommuMode) {
    this.mode = mode;
  }

  /** The memory behind it; before the first miss. */
  setMemory(memory: GuestMemory): void {
    this.#memory = memory;
  }

  /** The back-end of now; null: it has no IOTLB, and will not take ACCESS_PLATFORM. */
  setPeer(peer: BackendIotlb | null): void {
    this.#peer = peer;
  }

  async settle(): Promise<void> {
    const peer = this.#peer;
    if (peer === null || peer.asks) return;
    for (const mapping of this.mappings()) await this.#tell(peer, mapping);
  }

  /** Everything that is mapped; pages that follow each other on both sides are one. */
  mappings(): IotlbMapping[] {
    const memory = this.#memory;
    assert(memory !== null, 'memory comes before mappings');
    if (this.mode === 'offset') return [this.#whole(memory)];
    return this.#ranges(memory, [...this.#pages.keys()]);
  }

  map(gpa: number, sizeBytes: number, writable: boolean): number {
    if (this.mode === 'offset') return gpa + OFFSET;
    const first = Math.floor(gpa / PAGE);
    const last = Math.floor((gpa + sizeBytes - 1) / PAGE);
    const iova = this.#next;
    const permissions = writable ? IOTLB_ACCESS_RW : IOTLB_ACCESS_RO;
    for (let page = first; page <= last; page++) {
      this.#pages.set(iova / PAGE + page - first, { gpa: page * PAGE, permissions });
    }
    this.#next += (last - first + 1 + this.#gap()) * PAGE;
    return iova + (gpa % PAGE);
  }

  /**
   * Moves a range to new addresses while the device works: the old ones are gone when it resolves.
   * No buffer of the range may be with the device. Scatter only. A back-end that does not ask is
   * told the new addresses before it loses the old ones.
   */
  async remap(iova: number, sizeBytes: number): Promise<number> {
    assert(this.mode === 'scatter', 'an offset is the same for everybody');
    const first = Math.floor(iova / PAGE);
    const last = Math.floor((iova + sizeBytes - 1) / PAGE);
    const page = this.#pages.get(first);
    assert(page !== undefined, 'the range is mapped');
    for (let each = first; each <= last; each++) this.#pages.delete(each);
    const gpa = page.gpa + (iova % PAGE);
    const moved = this.map(gpa, sizeBytes, page.permissions === IOTLB_ACCESS_RW);
    await this.#tellRange(moved, last - first + 1);
    await this.invalidate(first * PAGE, (last - first + 1) * PAGE);
    return moved;
  }

  /** Makes the back-end forget translations; one that asks may ask again for what is mapped. */
  async invalidate(iova: number, sizeBytes: number): Promise<void> {
    this.counters.invalidations++;
    await this.#peer?.invalidate(BigInt(iova), BigInt(sizeBytes));
  }

  /** Makes it forget everything. One that does not ask is told again; its rings stand still. */
  async invalidateAll(): Promise<void> {
    this.counters.invalidations++;
    await this.#peer?.invalidate(0n, 2n ** 64n - 1n);
    await this.settle();
  }

  /** The back-end asks. What is not mapped stays unanswered, as with a real IOMMU. */
  missed(iova: bigint, write: boolean): void {
    this.counters.misses++;
    const entry = this.#translate(Number(iova), write);
    if (entry === null) {
      this.counters.faults++;
      return;
    }
    this.counters.updates++;
    // A back-end that is gone asks again when it is back.
    this.#peer?.update(entry).catch(() => undefined);
  }

  #translate(iova: number, write: boolean): IotlbMapping | null {
    const memory = this.#memory;
    if (memory === null) return null;
    const { baseGpa, baseUva, sizeBytes } = memory;
    if (this.mode === 'offset') {
      const start = baseGpa + OFFSET;
      return iova < start || iova >= start + sizeBytes ? null : this.#whole(memory);
    }
    const page = this.#pages.get(Math.floor(iova / PAGE));
    if (page === undefined || (write && page.permissions !== IOTLB_ACCESS_RW)) return null;
    return {
      iova: BigInt(iova - (iova % PAGE)),
      sizeBytes: BigInt(PAGE),
      userAddr: BigInt(baseUva + page.gpa - baseGpa),
      permissions: page.permissions,
    };
  }

  #whole({ baseGpa, baseUva, sizeBytes }: GuestMemory): IotlbMapping {
    return {
      iova: BigInt(baseGpa + OFFSET),
      sizeBytes: BigInt(sizeBytes),
      userAddr: BigInt(baseUva),
      permissions: IOTLB_ACCESS_RW,
    };
  }

  /** Page numbers in the order in which they were mapped, which is ascending. */
  #ranges(memory: GuestMemory, pages: readonly number[]): IotlbMapping[] {
    const ranges: IotlbMapping[] = [];
    for (let i = 0, count = 0; i < pages.length; i += count) {
      const first = this.#pages.get(pages[i]!)!;
      for (count = 1; i + count < pages.length; count++) {
        const next = this.#pages.get(pages[i + count]!)!;
        const follows =
          pages[i + count] === pages[i]! + count &&
          next.gpa === first.gpa + count * PAGE &&
          next.permissions === first.permissions;
        if (!follows) break;
      }
      ranges.push({
        iova: BigInt(pages[i]! * PAGE),
        sizeBytes: BigInt(count * PAGE),
        userAddr: BigInt(memory.baseUva + first.gpa - memory.baseGpa),
        permissions: first.permissions,
      });
    }
    return ranges;
  }

  async #tellRange(iova: number, pages: number): Promise<void> {
    const peer = this.#peer;
    if (peer === null || peer.asks || this.#memory === null) return;
    const first = Math.floor(iova / PAGE);
    const numbers = Array.from({ length: pages }, (_, i) => first + i);
    for (const mapping of this.#ranges(this.#memory, numbers)) await this.#tell(peer, mapping);
  }

  #tell(peer: BackendIotlb, mapping: IotlbMapping): Promise<void> {
    this.counters.updates++;
    return peer.update(mapping);
  }

  /** The same places in every run: a multiplicative generator (Lehmer, 1951). */
  #gap(): number {
    this.#random = (this.#random * 48271) % 0x7fff_ffff;
    return 1 + (this.#random % MAX_GAP_PAGES);
  }
}

/**
 * Gives up to `most` free slots of a queue new addresses, while its device works with the others.
 * Returns how many. As a driver that unmaps its buffers after use, but all at once.
 */
export async function remapFreeSlots(
  queue: GuestQueue,
  iommu: GuestIommu,
  most: number,
): Promise<number> {
  const { freeSlots, epoch } = queue;
  const count = Math.min(most, queue.freeCount);
  queue.freeCount -= count;
  const slots = freeSlots.slice(queue.freeCount, queue.freeCount + count);
  try {
    for (const slot of slots) {
      queue.slotGpa[slot] = await iommu.remap(queue.slotGpa[slot], queue.slotBytes);
    }
  } finally {
    if (epoch === queue.epoch) {
      freeSlots.set(slots, queue.freeCount);
      queue.freeCount += count;
    }
  }
  return count;
}
