/**
 * Ranges of a disk that somebody has to himself. Whoever wants one that overlaps waits, in the
 * order of asking; what does not overlap goes past.
 */

type Entry = {
  readonly at: number;
  readonly end: number;
  readonly seq: number;
  granted: (() => void) | null;
};

export class RangeLock {
  /** Held and wanted, in the order of asking. As many as there are requests: tens. */
  readonly #entries = new Set<Entry>();
  #seq = 0;

  /** Resolves with what gives it back. */
  async acquire(at: number, sizeBytes: number): Promise<() => void> {
    const entry: Entry = { at, end: at + sizeBytes, seq: this.#seq++, granted: null };
    this.#entries.add(entry);
    if (!this.#isFree(entry)) await new Promise<void>((resolve) => (entry.granted = resolve));
    return () => this.#release(entry);
  }

  #isFree(entry: Entry): boolean {
    for (const other of this.#entries) {
      if (other === entry) return true;
      if (other.at < entry.end && entry.at < other.end) return false;
    }
    return true;
  }

  #release(entry: Entry): void {
    if (!this.#entries.delete(entry)) return;
    for (const waiting of this.#entries) {
      if (waiting.granted === null || waiting.seq < entry.seq || !this.#isFree(waiting)) continue;
      const { granted } = waiting;
      waiting.granted = null;
      granted();
    }
  }
}
