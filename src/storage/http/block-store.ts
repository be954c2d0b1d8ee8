/** Where blocks of an object are kept for later: the least recently used go first. */

export interface BlockStore {
  /** Blocks that fit. */
  readonly capacity: number;
  readonly count: number;
  /** Whether it is there, probably. */
  has(block: number): boolean;
  /** Copies from `offset` of a block on; false: it is not there. Never rejects. */
  read(block: number, offset: number, into: Uint8Array): Promise<boolean>;
  /** Keeps a block, or does not. Never rejects; `bytes` are not changed afterwards by anybody. */
  write(block: number, bytes: Buffer): Promise<void>;
  /** What it could not do, counted. */
  readonly failures: number;
  close(): Promise<void>;
}

export class MemoryBlockStore implements BlockStore {
  readonly capacity: number;
  readonly failures = 0;
  /** In the order of use. */
  readonly #blocks = new Map<number, Buffer>();

  constructor(capacity: number) {
    this.capacity = capacity;
  }

  get count(): number {
    return this.#blocks.size;
  }

  has(block: number): boolean {
    return this.#blocks.has(block);
  }

  async read(block: number, offset: number, into: Uint8Array): Promise<boolean> {
    const bytes = this.#blocks.get(block);
    if (bytes === undefined) return false;
    this.#blocks.delete(block);
    this.#blocks.set(block, bytes);
    into.set(bytes.subarray(offset, offset + into.length));
    return true;
  }

  async write(block: number, bytes: Buffer): Promise<void> {
    this.#blocks.delete(block);
    this.#blocks.set(block, bytes);
    if (this.#blocks.size <= this.capacity) return;
    const [oldest] = this.#blocks.keys();
    this.#blocks.delete(oldest!);
  }

  async close(): Promise<void> {
    this.#blocks.clear();
  }
}
