/**
 * Writes that a server has acknowledged and not yet made durable. When it dies they may be lost, so
 * they are kept here and sent again to the one that follows; a flush that succeeded empties the
 * log. Who fills it faster than it is flushed waits for a flush.
 */

/** Copies of what was written; half of it is the mark to flush at. */
const MAX_LOG_BYTES = 32 * 2 ** 20;
/** An entry without bytes (zeros) costs something, too. */
const MAX_LOG_ENTRIES = 65_536;

export type LoggedWrite =
  | { readonly kind: 'write'; readonly at: number; readonly bytes: Buffer }
  | {
      readonly kind: 'zero';
      readonly at: number;
      readonly sizeBytes: number;
      readonly unmap: boolean;
    };

export class WriteLog {
  #entries: LoggedWrite[] = [];
  #bytes = 0;
  /** Entries that flushes have removed: what a mark counts from. */
  #removed = 0;

  get count(): number {
    return this.#entries.length;
  }

  get sizeBytes(): number {
    return this.#bytes;
  }

  get entries(): readonly LoggedWrite[] {
    return this.#entries;
  }

  /** It is time to flush. */
  get isHalfFull(): boolean {
    return this.#bytes > MAX_LOG_BYTES / 2 || this.#entries.length > MAX_LOG_ENTRIES / 2;
  }

  /** There must be a flush before anything else is written. */
  get isFull(): boolean {
    return this.#bytes > MAX_LOG_BYTES || this.#entries.length > MAX_LOG_ENTRIES;
  }

  add(entry: LoggedWrite): void {
    this.#entries.push(entry);
    if (entry.kind === 'write') this.#bytes += entry.bytes.length;
  }

  /** What is in it now; a flush that begins after this makes it durable. */
  mark(): number {
    return this.#removed + this.#entries.length;
  }

  /** What was in it at `mark` is durable. */
  flushed(mark: number): void {
    const count = mark - this.#removed;
    if (count <= 0) return; // an older flush that ended later
    for (const entry of this.#entries.slice(0, count)) {
      if (entry.kind === 'write') this.#bytes -= entry.bytes.length;
    }
    this.#entries = this.#entries.slice(count);
    this.#removed = mark;
  }

  clear(): void {
    this.flushed(this.mark());
  }
}
