/**
 * What has been written and not flushed, sector by sector, with its past: a power cut may leave any
 * of it on the medium. Owned by a PowerCutLayer.
 */
import { assert } from '../../base/assert.ts';

const SECTOR_BYTES = 512;

/** One request's content of one sector. */
export type Version = { readonly request: number; readonly bytes: Uint8Array };

/** Neighbouring sectors that go to the medium together. */
export type Run = { readonly at: number; readonly bytes: Uint8Array };

/** Most that one run has: what is copied at once. */
const MAX_RUN_SECTORS = 2048;

export class VolatileSectors {
  /** By number of the sector, oldest version first. */
  readonly #sectors = new Map<number, Version[]>();
  #versions = 0;

  get isEmpty(): boolean {
    return this.#versions === 0;
  }

  /** Memory that it takes, roughly. */
  get sizeBytes(): number {
    return this.#versions * SECTOR_BYTES;
  }

  get requests(): readonly number[] {
    const all = [...this.#sectors.values()].flat().map(({ request }) => request);
    return [...new Set(all)].toSorted((a, b) => a - b);
  }

  put(request: number, at: number, from: Uint8Array): void {
    const bytes = from.slice();
    for (let offset = 0; offset < bytes.length; offset += SECTOR_BYTES) {
      const sector = bytes.subarray(offset, offset + SECTOR_BYTES);
      this.#add((at + offset) / SECTOR_BYTES, { request, bytes: sector });
    }
  }

  putZeros(request: number, at: number, sizeBytes: number): void {
    const bytes = new Uint8Array(SECTOR_BYTES);
    for (let offset = 0; offset < sizeBytes; offset += SECTOR_BYTES) {
      this.#add((at + offset) / SECTOR_BYTES, { request, bytes });
    }
  }

  /** Forgets all versions in the range. */
  drop(at: number, sizeBytes: number): void {
    for (const sector of this.#within(at, sizeBytes)) {
      this.#versions -= this.#sectors.get(sector)!.length;
      this.#sectors.delete(sector);
    }
  }

  /** The newest version of each sector in the range. */
  snapshot(at = 0, sizeBytes = Infinity): Map<number, Version> {
    const result = new Map<number, Version>();
    for (const sector of this.#within(at, sizeBytes)) {
      result.set(sector, this.#sectors.get(sector)!.at(-1)!);
    }
    return result;
  }

  /** Forgets what is on the medium now: each of `destaged`, and what was older. */
  forget(destaged: ReadonlyMap<number, Version>): void {
    for (const [sector, version] of destaged) {
      const versions = this.#sectors.get(sector);
      const index = versions?.indexOf(version) ?? -1;
      if (versions === undefined || index < 0) continue; // dropped meanwhile
      this.#versions -= index + 1;
      versions.splice(0, index + 1);
      if (versions.length === 0) this.#sectors.delete(sector);
    }
  }

  /**
   * What is on the medium if of each sector those versions got there that `isKept` takes: the last
   * of them. Sectors of which none did are not in it.
   */
  choose(isKept: (sector: number, version: Version) => boolean): Map<number, Version> {
    const result = new Map<number, Version>();
    for (const [sector, versions] of this.#sectors) {
      const kept = versions.findLast((version) => isKept(sector, version));
      if (kept !== undefined) result.set(sector, kept);
    }
    return result;
  }

  #add(sector: number, version: Version): void {
    assert(Number.isInteger(sector), 'requests to a layer are whole sectors');
    const versions = this.#sectors.get(sector);
    if (versions === undefined) this.#sectors.set(sector, [version]);
    else versions.push(version);
    this.#versions++;
  }

  /** Numbers of sectors that have versions; looks at the fewer of both. */
  #within(at: number, sizeBytes: number): number[] {
    const first = at / SECTOR_BYTES;
    const end = (at + sizeBytes) / SECTOR_BYTES;
    if (end - first > this.#sectors.size) {
      return [...this.#sectors.keys()].filter((sector) => sector >= first && sector < end);
    }
    const found: number[] = [];
    for (let sector = first; sector < end; sector++) {
      if (this.#sectors.has(sector)) found.push(sector);
    }
    return found;
  }
}

export function copyVersions(
  versions: ReadonlyMap<number, Version>,
  at: number,
  into: Uint8Array,
): void {
  for (const [sector, { bytes }] of versions) {
    const offset = sector * SECTOR_BYTES - at;
    if (offset >= 0 && offset < into.length) into.set(bytes, offset);
  }
}

export function runsOf(versions: ReadonlyMap<number, Version>): Run[] {
  const sectors = [...versions.keys()].toSorted((a, b) => a - b);
  const runs: Run[] = [];
  for (let i = 0; i < sectors.length;) {
    const first = sectors[i]!;
    let count = 1;
    while (sectors[i + count] === first + count && count < MAX_RUN_SECTORS) count++;
    const bytes = new Uint8Array(count * SECTOR_BYTES);
    for (let s = 0; s < count; s++) {
      bytes.set(versions.get(first + s)!.bytes, s * SECTOR_BYTES);
    }
    runs.push({ at: first * SECTOR_BYTES, bytes });
    i += count;
  }
  return runs;
}
