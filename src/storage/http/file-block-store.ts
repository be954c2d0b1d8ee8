/**
 * Blocks in a file, which the next process finds again.
 *
 *   PATH         slots of one block each; sparse, written as blocks come
 *   PATH.index   a header (magic, sizes, SHA-256 of the object's identity), and a record for each
 *                slot: which block is in it, and the SHA-256 of identity, block and bytes
 *
 * The header has a page of its own and is synced when it is written: we know our files again.
 * Nothing else is synced, and nothing need be. After a crash or a power cut slots and records may
 * be old, new or torn, but a slot counts only when its bytes have the hash of its record, which is
 * looked at when the slot is first used. A hash over the identity as well makes bytes of another
 * version, or of another object, no match. One disk uses a cache at a time.
 */
import { createHash } from 'node:crypto';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { ConfigError, messageOf } from '../../base/errors.ts';
import type { BlockStore } from './block-store.ts';

const MAGIC = Buffer.from('VRINGBC1');
/** Magic, block size, count of slots, identity; and where records begin. */
const HEADER_BYTES = 48;
const RECORDS_AT = 4096;
/** Block + 1 (0: empty), hash. */
const RECORD_BYTES = 40;

export type FileBlockStoreOptions = {
  readonly path: string;
  readonly blockBytes: number;
  /** Slots. */
  readonly capacity: number;
  /** Of the object and its version: what a cache is good for. Null: for nobody after us. */
  readonly identity: string | null;
  readonly totalBytes: number;
};

type Slot = {
  readonly index: number;
  block: number;
  hash: Buffer;
  /** Its bytes were held against the hash, or written by us. */
  isVerified: boolean;
  /** Who uses its bytes; it is not given to another block meanwhile. */
  users: number;
  /** What is in it is wrong. */
  isBad: boolean;
};

export class FileBlockStore implements BlockStore {
  readonly capacity: number;
  failures = 0;
  readonly #options: FileBlockStoreOptions;
  readonly #identity: Buffer;
  readonly #lock: Server;
  readonly #data: FileHandle;
  readonly #index: FileHandle;
  /** By block, in the order of use. */
  readonly #slots = new Map<number, Slot>();
  readonly #free: number[] = [];

  /** @throws ConfigError: no path for a cache, in use, no permission. */
  static async open(options: FileBlockStoreOptions): Promise<FileBlockStore> {
    const { path } = options;
    const fail = (cause: unknown): never => {
      if (cause instanceof ConfigError) throw cause;
      throw new ConfigError('cache.path', `${path}: ${messageOf(cause)}`, { cause });
    };
    await refuseForeign(path).catch(fail);
    const data = await open(path, 'a+').catch(fail);
    await data.close();
    const files = [await open(path, 'r+').catch(fail)];
    let lock: Server | null = null;
    try {
      lock = await lockFile(path);
      // 'r+' does not create, 'w+' truncates, 'a+' writes at the end only: made first.
      await (await open(`${path}.index`, 'a')).close();
      files.push(await open(`${path}.index`, 'r+'));
      const store = new FileBlockStore(options, lock, files[0]!, files[1]!);
      await store.#load();
      return store;
    } catch (cause) {
      lock?.close();
      for (const file of files) await file.close();
      return fail(cause);
    }
  }

  private constructor(
    options: FileBlockStoreOptions,
    lock: Server,
    data: FileHandle,
    index: FileHandle,
  ) {
    this.capacity = options.capacity;
    this.#options = options;
    this.#lock = lock;
    this.#data = data;
    this.#index = index;
    const identity = options.identity ?? `${process.pid} ${Math.random()} ${Date.now()}`;
    this.#identity = createHash('sha256').update(identity).digest();
  }

  get count(): number {
    return this.#slots.size;
  }

  has(block: number): boolean {
    return this.#slots.has(block);
  }

  async read(block: number, offset: number, into: Uint8Array): Promise<boolean> {
    const slot = this.#slots.get(block);
    if (slot === undefined) return false;
    this.#slots.delete(block);
    this.#slots.set(block, slot); // it is the one used last now
    slot.users++;
    try {
      if (slot.isVerified) {
        await this.#readAt(slot, offset, into);
      } else {
        const bytes = Buffer.allocUnsafe(this.#sizeOf(block));
        await this.#readAt(slot, 0, bytes);
        if (!this.#hash(block, bytes).equals(slot.hash)) throw new Error('a hash does not match');
        slot.isVerified = true;
        into.set(bytes.subarray(offset, offset + into.length));
      }
      return true;
    } catch {
      this.failures++;
      slot.isBad = true;
      if (this.#slots.get(block) === slot) this.#slots.delete(block);
      return false;
    } finally {
      slot.users--;
      if (slot.isBad && slot.users === 0) this.#free.push(slot.index);
    }
  }

  async write(block: number, bytes: Buffer): Promise<void> {
    if (this.#slots.has(block)) return;
    const index = this.#free.pop() ?? this.#evict();
    if (index === null) return; // all are in use: not worth waiting for
    const hash = this.#hash(block, bytes);
    try {
      await writeAll(this.#data, bytes, index * this.#options.blockBytes);
      const record = Buffer.alloc(RECORD_BYTES);
      record.writeBigUInt64LE(BigInt(block + 1), 0);
      hash.copy(record, 8);
      await writeAll(this.#index, record, RECORDS_AT + index * RECORD_BYTES);
      this.#slots.set(block, { index, block, hash, isVerified: true, users: 0, isBad: false });
    } catch {
      this.failures++; // a full disk, say: the block comes from the server next time
      this.#free.push(index);
    }
  }

  async close(): Promise<void> {
    await this.#data.close();
    await this.#index.close();
    this.#lock.close();
  }

  async #load(): Promise<void> {
    const { blockBytes, capacity, totalBytes } = this.#options;
    const header = Buffer.alloc(HEADER_BYTES);
    MAGIC.copy(header, 0);
    header.writeUInt32LE(blockBytes, 8);
    header.writeUInt32LE(capacity, 12);
    this.#identity.copy(header, 16);
    const found = Buffer.alloc(RECORDS_AT + capacity * RECORD_BYTES);
    const { bytesRead } = await this.#index.read(found, 0, found.length, 0);
    if (!found.subarray(0, HEADER_BYTES).equals(header)) {
      await writeAll(this.#index, header, 0);
      await this.#index.truncate(RECORDS_AT);
      await this.#index.sync();
      await this.#data.truncate(0);
      found.fill(0);
    }
    const blocks = Math.ceil(totalBytes / blockBytes);
    for (let index = capacity - 1; index >= 0; index--) {
      const at = RECORDS_AT + index * RECORD_BYTES;
      const number = at + RECORD_BYTES <= bytesRead ? found.readBigUInt64LE(at) : 0n;
      const block = Number(number) - 1;
      if (number === 0n || number > BigInt(blocks) || this.#slots.has(block)) {
        this.#free.push(index);
        continue;
      }
      const hash = found.subarray(at + 8, at + RECORD_BYTES);
      this.#slots.set(block, { index, block, hash, isVerified: false, users: 0, isBad: false });
    }
  }

  #sizeOf(block: number): number {
    const { blockBytes, totalBytes } = this.#options;
    return Math.min(blockBytes, totalBytes - block * blockBytes);
  }

  #hash(block: number, bytes: Buffer): Buffer {
    const hash = createHash('sha256').update(this.#identity).update(`${block} `);
    return hash.update(bytes).digest();
  }

  async #readAt(slot: Slot, offset: number, into: Uint8Array): Promise<void> {
    const at = slot.index * this.#options.blockBytes + offset;
    const { bytesRead } = await this.#data.read(into, 0, into.length, at);
    if (bytesRead !== into.length) throw new Error('the file is too short');
  }

  /** A slot whose block was used longest ago and is not being read. */
  #evict(): number | null {
    for (const slot of this.#slots.values()) {
      if (slot.users > 0) continue;
      this.#slots.delete(slot.block);
      return slot.index;
    }
    return null;
  }
}

/** Nobody's file is overwritten because of a wrong path. */
async function refuseForeign(path: string): Promise<void> {
  const found = await stat(path).catch(() => null);
  if (found === null || found.size === 0) return;
  const problem = `${path} exists and is no cache of ours; give another path, or remove it`;
  if (!found.isFile()) throw new ConfigError('cache.path', problem);
  const magic = Buffer.alloc(MAGIC.length);
  const index = await open(`${path}.index`, 'r').catch(() => null);
  await index?.read(magic, 0, magic.length, 0);
  await index?.close();
  if (!magic.equals(MAGIC)) throw new ConfigError('cache.path', problem);
}

/** An abstract socket named after the file: gone with its process, however that ends. */
async function lockFile(path: string): Promise<Server> {
  const { dev, ino } = await stat(path);
  const server = createServer((socket) => socket.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      if (cause.code !== 'EADDRINUSE') return reject(cause);
      const text = `${path} is the cache of another disk that is open; give another path`;
      reject(new ConfigError('cache.path', text, { cause }));
    });
    server.listen(`\0vring-cache-${dev}-${ino}`, resolve);
  });
  server.unref();
  return server;
}

async function writeAll(file: FileHandle, bytes: Buffer, at: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, at + done);
    done += bytesWritten;
  }
}
