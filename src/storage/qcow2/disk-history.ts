/** For tests: what a disk may hold after a crash, by what was asked of it and answered when. */
const SECTOR = 512;

type Version = {
  readonly value: number;
  readonly begunAt: number;
  endedAt: number;
  /** A discard: its value is possible, and takes no other's place. */
  readonly isWeak: boolean;
};

/** Sectors are filled with one byte each. */
export class DiskHistory {
  #clock = 1;
  /** By sector. */
  readonly #versions: Version[][];
  /** A flush that was answered had been asked for at this time. */
  #flushedAt = 0;

  constructor(disk: Uint8Array) {
    this.#versions = Array.from({ length: disk.length / SECTOR }, (_, i) => [
      { value: disk[i * SECTOR]!, begunAt: 0, endedAt: 0, isWeak: false },
    ]);
  }

  /** Returns what is called when it is answered. */
  begin(at: number, sizeBytes: number, value: number, isWeak: boolean): () => void {
    const version = { value, begunAt: this.#clock++, endedAt: Infinity, isWeak };
    for (let s = at / SECTOR; s < (at + sizeBytes) / SECTOR; s++) this.#versions[s]!.push(version);
    return () => (version.endedAt = this.#clock++);
  }

  beginFlush(): () => void {
    const begunAt = this.#clock++;
    return () => (this.#flushedAt = Math.max(this.#flushedAt, begunAt));
  }

  /** Throws where a disk holds what it may not; `kill`: what was answered is there. */
  check(disk: Uint8Array, how: 'kill' | 'cut'): void {
    const before = how === 'kill' ? Infinity : this.#flushedAt;
    for (const [s, versions] of this.#versions.entries()) {
      const sector = disk.subarray(s * SECTOR, (s + 1) * SECTOR);
      const value = sector[0]!;
      const isOne = sector.every((byte) => byte === value);
      const firm = versions.filter((v) => !v.isWeak && v.endedAt < before);
      const possible = versions.filter(
        (v) => !firm.some((later) => later.begunAt > v.endedAt && later !== v),
      );
      if (isOne && possible.some((v) => v.value === value)) continue;
      const values = possible.map((v) => v.value).join(', ');
      throw new Error(`after a ${how} sector ${s} holds ${value}, expected ${values}`);
    }
  }
}
