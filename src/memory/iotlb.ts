/**
 * The translations that a front-end has given for a device behind a virtual IOMMU: from I/O
 * virtual addresses to the arena. Specification, "IOMMU support".
 *
 * Columns sorted by address, without overlap. Neighbours that continue each other in the arena
 * with equal permissions are one entry, so a guest whose mappings are large costs as little as one
 * without IOMMU. A change is a search and one move of the columns' tails. When the table is full
 * the entry that was told longest ago makes room, one at a time: a cache that is emptied when it
 * is full misses everything at once, again and again.
 */
import { assert } from '../base/assert.ts';
import { MAX_IOTLB_ENTRIES } from '../base/limits.ts';
import type { AddressMap } from './address-map.ts';

export const IOTLB_READ = 1;
export const IOTLB_WRITE = 2;

/** A translation; the addresses end below 2^53. */
export type IotlbEntry = {
  readonly iova: number;
  readonly sizeBytes: number;
  /** Arena offset of the first byte. */
  readonly offset: number;
  /** IOTLB_READ | IOTLB_WRITE; 0 forgets the range. */
  readonly permissions: number;
};

/** A change splits at most one entry in front and one behind, and adds one. */
const SPARE = 2;

export class Iotlb {
  readonly capacity: number;
  readonly #start: Float64Array;
  readonly #end: Float64Array;
  readonly #delta: Float64Array;
  /** When each entry was last told. */
  readonly #told: Float64Array;
  readonly #permission: Uint8Array;
  #count = 0;
  #clock = 0;
  /** Entries that were dropped because the table was full. */
  evictions = 0;

  constructor(capacity = MAX_IOTLB_ENTRIES) {
    assert(capacity > 0, 'an IOTLB has room');
    this.capacity = capacity;
    this.#start = new Float64Array(capacity + SPARE);
    this.#end = new Float64Array(capacity + SPARE);
    this.#delta = new Float64Array(capacity + SPARE);
    this.#told = new Float64Array(capacity + SPARE);
    this.#permission = new Uint8Array(capacity + SPARE);
  }

  get count(): number {
    return this.#count;
  }

  /** What was known of the range is replaced. */
  update(entry: IotlbEntry): void {
    const { iova, sizeBytes, offset, permissions } = entry;
    if (!(sizeBytes > 0)) return;
    this.invalidate(iova, sizeBytes);
    if ((permissions & (IOTLB_READ | IOTLB_WRITE)) === 0) return;
    let start = iova;
    let end = iova + sizeBytes;
    const delta = offset - iova;
    let first = this.#find(iova);
    let behind = first;
    const same = (at: number): boolean =>
      this.#delta[at] === delta && this.#permission[at] === permissions;
    if (first > 0 && this.#end[first - 1] === start && same(first - 1)) {
      first--;
      start = this.#start[first]!;
    }
    if (behind < this.#count && this.#start[behind] === end && same(behind)) {
      end = this.#end[behind]!;
      behind++;
    }
    this.#resize(first, behind, 1);
    this.#set(first, start, end, delta, permissions, ++this.#clock);
    while (this.#count > this.capacity) this.#evict();
  }

  /** Forgets a range; an entry that is only partly in it keeps the rest. */
  invalidate(iova: number, sizeBytes: number): void {
    const until = iova + sizeBytes;
    const first = this.#find(iova);
    let behind = first;
    while (behind < this.#count && this.#start[behind]! < until) behind++;
    if (behind === first) return;
    const head = this.#start[first]!;
    const tail = this.#end[behind - 1]!;
    const last = behind - 1;
    const [lastDelta, lastTold] = [this.#delta[last]!, this.#told[last]!];
    const lastPermission = this.#permission[last]!;
    const keepsHead = head < iova;
    const keepsTail = tail > until;
    this.#resize(first, behind, (keepsHead ? 1 : 0) + (keepsTail ? 1 : 0));
    if (keepsHead) this.#end[first] = iova; // the rest of this entry is what it was
    if (keepsTail) {
      const at = keepsHead ? first + 1 : first;
      this.#set(at, until, tail, lastDelta, lastPermission, lastTold);
    }
    while (this.#count > this.capacity) this.#evict();
  }

  clear(): void {
    this.#count = 0;
  }

  /** Becomes what `map` says, all of it as young as can be; later ranges count as younger. */
  replace(map: AddressMap): void {
    this.#count = 0;
    for (let i = 0; i < map.count; i++) {
      const start = map.start[i]!;
      const permissions = map.permission?.[i] ?? IOTLB_READ | IOTLB_WRITE;
      const sizeBytes = map.end[i]! - start;
      this.update({ iova: start, sizeBytes, offset: start + map.delta[i]!, permissions });
    }
  }

  /**
   * Arena offset of `iova`, or -1 unless all of the range may be used so and is one piece of the
   * arena.
   */
  translate(iova: number, lenBytes: number, permission: number): number {
    const first = this.#find(iova);
    const delta = this.#delta[first];
    for (let at = first, next = iova; ; at++) {
      if (at >= this.#count || this.#start[at]! > next || this.#delta[at] !== delta) return -1;
      if ((this.#permission[at]! & permission) !== permission) return -1;
      next = this.#end[at]!;
      if (next - iova >= lenBytes) return iova + this.#delta[first]!;
    }
  }

  /** First address of the range that may not be used so; -1: all of it may. */
  firstMiss(iova: number, lenBytes: number, permission: number): number {
    let next = iova;
    for (let at = this.#find(iova); next - iova < lenBytes; at++) {
      if (at >= this.#count || this.#start[at]! > next) return next;
      if ((this.#permission[at]! & permission) !== permission) return next;
      next = this.#end[at]!;
    }
    return -1;
  }

  /** The live columns: ask again after every change. */
  map(): AddressMap {
    return {
      count: this.#count,
      start: this.#start,
      end: this.#end,
      delta: this.#delta,
      permission: this.#permission,
    };
  }

  /** A copy for another thread, no longer than it must be. */
  snapshot(): AddressMap {
    const count = this.#count;
    return {
      count,
      start: this.#start.slice(0, count),
      end: this.#end.slice(0, count),
      delta: this.#delta.slice(0, count),
      permission: this.#permission.slice(0, count),
    };
  }

  /** Index of the first entry that ends behind `iova`. */
  #find(iova: number): number {
    let low = 0;
    let high = this.#count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#end[middle]! > iova) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Makes [first, behind) `entries` long; what stays of it is at its front. */
  #resize(first: number, behind: number, entries: number): void {
    const to = first + entries;
    const count = this.#count;
    if (to !== behind) {
      this.#start.copyWithin(to, behind, count);
      this.#end.copyWithin(to, behind, count);
      this.#delta.copyWithin(to, behind, count);
      this.#told.copyWithin(to, behind, count);
      this.#permission.copyWithin(to, behind, count);
    }
    this.#count = count + to - behind;
    assert(this.#count <= this.#start.length);
  }

  #set(
    at: number,
    start: number,
    end: number,
    delta: number,
    permission: number,
    told: number,
  ): void {
    this.#start[at] = start;
    this.#end[at] = end;
    this.#delta[at] = delta;
    this.#permission[at] = permission;
    this.#told[at] = told;
  }

  /** A scan, but only of a full table: 4 us for 4096 entries, where a miss costs the peer 50. */
  #evict(): void {
    let oldest = 0;
    for (let at = 1; at < this.#count; at++) {
      if (this.#told[at]! < this.#told[oldest]!) oldest = at;
    }
    this.#resize(oldest, oldest + 1, 0);
    this.evictions++;
  }
}
