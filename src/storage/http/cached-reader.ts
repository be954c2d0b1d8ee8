/**
 * Reads of any range from fetches of whole blocks: a block that several want is fetched once,
 * blocks are kept in a store, and whoever reads on in order finds the next ones on their way.
 */
import type { BlockStore } from './block-store.ts';

/** Blocks that one read waits for at once. */
const MAX_BLOCKS_AT_ONCE = 16;
const READ_AHEAD_BLOCKS = 4;
/** Readers in order that are told apart. */
const MAX_STREAMS = 8;

export type CachedReaderOptions = {
  readonly totalBytes: number;
  readonly blockBytes: number;
  readonly store: BlockStore;
  readonly fetch: (at: number, sizeBytes: number) => Promise<Buffer>;
};

export class CachedReader {
  hits = 0;
  misses = 0;
  fetchedBytes = 0;
  readAheads = 0;
  readonly #options: CachedReaderOptions;
  readonly #fetching = new Map<number, Promise<Buffer>>();
  /** Where reads have ended; one that begins there goes on in order. */
  readonly #ends: number[] = [];
  #ahead = 0;
  readonly #stored = new Set<Promise<void>>();

  constructor(options: CachedReaderOptions) {
    this.#options = options;
  }

  /** All blocks have settled when it does: nobody writes to `into` afterwards. */
  async read(at: number, into: Uint8Array): Promise<void> {
    const { blockBytes } = this.#options;
    const end = at + into.length;
    let next = at;
    let failure: unknown = null;
    const worker = async (): Promise<void> => {
      while (next < end && failure === null) {
        const from = next;
        const block = Math.floor(from / blockBytes);
        next = Math.min(end, (block + 1) * blockBytes);
        const target = into.subarray(from - at, next - at);
        try {
          await this.#readBlock(block, from - block * blockBytes, target);
        } catch (error) {
          failure ??= error;
        }
      }
    };
    if (into.length > 0) this.#lookAhead(at, end);
    await Promise.all(Array.from({ length: MAX_BLOCKS_AT_ONCE }, worker));
    if (failure !== null) throw failure;
  }

  /** When nothing is being read. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#fetching.values());
    await Promise.all(this.#stored);
    await this.#options.store.close();
  }

  async #readBlock(block: number, offset: number, into: Uint8Array): Promise<void> {
    const isComing = this.#fetching.has(block);
    if (!isComing && (await this.#options.store.read(block, offset, into))) {
      this.hits++;
      return;
    }
    this.misses++;
    const bytes = await this.#fetch(block);
    into.set(bytes.subarray(offset, offset + into.length));
  }

  /** Once for all who want it; it counts as being fetched until it is in the store. */
  #fetch(block: number): Promise<Buffer> {
    const coming = this.#fetching.get(block);
    if (coming !== undefined) return coming;
    const { totalBytes, blockBytes, store, fetch } = this.#options;
    const at = block * blockBytes;
    const fetched = fetch(at, Math.min(blockBytes, totalBytes - at));
    this.#fetching.set(block, fetched);
    const stored = fetched
      .then((bytes) => {
        this.fetchedBytes += bytes.length;
        return store.write(block, bytes);
      })
      .catch(() => {}) // whoever waits for it is told by `fetched`
      .finally(() => {
        this.#fetching.delete(block);
        this.#stored.delete(stored);
      });
    this.#stored.add(stored);
    return fetched;
  }

  #lookAhead(at: number, end: number): void {
    const { totalBytes, blockBytes, store } = this.#options;
    const stream = this.#ends.indexOf(at);
    if (stream >= 0) this.#ends.splice(stream, 1);
    this.#ends.push(end);
    if (this.#ends.length > MAX_STREAMS) this.#ends.shift();
    // A small store would lose blocks to it before they are used.
    if (stream < 0 || store.capacity < 4 * READ_AHEAD_BLOCKS) return;
    const first = Math.ceil(end / blockBytes);
    const last = Math.min(first + READ_AHEAD_BLOCKS, Math.ceil(totalBytes / blockBytes));
    for (let block = first; block < last && this.#ahead < READ_AHEAD_BLOCKS; block++) {
      if (store.has(block) || this.#fetching.has(block)) continue;
      this.#ahead++;
      this.readAheads++;
      this.#fetch(block)
        .catch(() => {}) // who really wants it asks again
        .finally(() => this.#ahead--);
    }
  }
}
