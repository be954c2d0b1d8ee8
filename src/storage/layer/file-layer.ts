/**
 * A regular file or block device as the bottom of a stack: through the page cache, by Node's
 * thread pool. Also what formats that grow keep their files in.
 */
import { fdatasync, read, write } from 'node:fs';
import { VringError } from '../../base/errors.ts';
import { diskFileBytes, EIO, EOPNOTSUPP, fallocate, type Fd, truncate } from '../../sys/index.ts';
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
} from '../../wire/linux.ts';
import { fileExtents } from '../file/file-extents.ts';
import { type Extent, LayerError, type ZeroOptions } from './layer.ts';
import { SourceLayer } from './source-layer.ts';

/** Zeros are written so many at a time, where a file system cannot make them. */
const ZERO_BYTES = 2 ** 20;

export type FileLayerOptions = {
  /** The layer's from now on. */
  readonly file: Fd;
  /** For messages. */
  readonly path: string;
  readonly readOnly: boolean;
};

export class FileLayer extends SourceLayer {
  readonly description: string;
  readonly readOnly: boolean;
  readonly blockBytes: number = 512;
  sizeBytes: number;
  readonly #file: Fd;
  /** A flush has failed with this: see README.md, "A failed flush stays failed". */
  #lost: LayerError | null = null;
  /** Settles when no flush is under way; the next one, which all get who ask before it begins. */
  #flushed: Promise<unknown> = Promise.resolve();
  #nextFlush: Promise<void> | null = null;
  #zeros: Buffer | null = null;

  constructor({ file, path, readOnly }: FileLayerOptions) {
    super();
    this.description = `file:${path}`;
    this.readOnly = readOnly;
    this.sizeBytes = diskFileBytes(file);
    this.#file = file;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    for (let done = 0; done < into.length;) {
      const count = await this.transfer('read', into, done, at);
      if (count === 0) {
        throw new LayerError(EIO, `${this.description} ends at byte ${at + done}`);
      }
      done += count;
    }
  }

  async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    for (let done = 0; done < from.length;) {
      done += await this.transfer('write', from, done, at);
    }
    if (fua) await this.flush();
  }

  /**
   * One after the other: Linux tells an error of write-back to one `fdatasync` only, and of two at
   * the same time the other one would say that all is well.
   */
  flush(): Promise<void> {
    if (this.#nextFlush !== null) return this.#nextFlush;
    const next = this.#flushed.then(() => {
      this.#nextFlush = null;
      return this.#sync();
    });
    this.#nextFlush = next;
    this.#flushed = next.catch(() => undefined);
    return next;
  }

  async discard(at: number, sizeBytes: number): Promise<void> {
    // Advice: a file system that has no holes keeps what is there.
    this.#allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, sizeBytes);
  }

  async zero(at: number, sizeBytes: number, { unmap, fua }: ZeroOptions): Promise<void> {
    const mode = unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    if (!this.#allocate(mode | FALLOC_FL_KEEP_SIZE, at, sizeBytes)) {
      this.#zeros ??= Buffer.alloc(ZERO_BYTES);
      for (let done = 0; done < sizeBytes; done += ZERO_BYTES) {
        const some = this.#zeros.subarray(0, Math.min(ZERO_BYTES, sizeBytes - done));
        await this.write(at + done, some, false);
      }
    }
    if (fua) await this.flush();
  }

  override async extents(at: number, sizeBytes: number): Promise<Extent[]> {
    return fileExtents(this.#file.number, at, sizeBytes);
  }

  override async measure(): Promise<number> {
    return diskFileBytes(this.#file);
  }

  override async resize(sizeBytes: number): Promise<void> {
    const now = diskFileBytes(this.#file);
    if (now !== sizeBytes) {
      try {
        truncate(this.#file.number, sizeBytes);
      } catch (cause) {
        const text = `${this.description} stays at ${now} bytes, ${sizeBytes} were wanted`;
        throw new VringError('ERR_VRING_DISK_RESIZE', text, { cause });
      }
    }
    this.sizeBytes = sizeBytes;
  }

  override async close(): Promise<void> {
    this.#file.close();
  }

  async #sync(): Promise<void> {
    if (this.#lost !== null) throw this.#lost;
    await new Promise<void>((resolve, reject) => {
      fdatasync(this.#file.number, (error) => {
        if (error === null || error === undefined) return resolve();
        this.#lost = this.#failed(error, 'flush', 0);
        reject(this.#lost);
      });
    });
  }

  /** False: the file system cannot. */
  #allocate(mode: number, at: number, sizeBytes: number): boolean {
    if (sizeBytes === 0) return true;
    const result = fallocate(this.#file.number, mode, at, sizeBytes);
    if (result === -EOPNOTSUPP) return false;
    if (result < 0) throw this.#failed({ errno: result }, 'fallocate', at);
    return true;
  }

  protected transfer(
    op: 'read' | 'write',
    bytes: Uint8Array,
    done: number,
    at: number,
  ): Promise<number> {
    return new Promise((resolve, reject) => {
      const rest = bytes.length - done;
      const end = (error: NodeJS.ErrnoException | null, count: number): void => {
        if (error === null) resolve(count);
        else reject(this.#failed(error, op, at + done));
      };
      if (op === 'read') read(this.#file.number, bytes, done, rest, at + done, end);
      else write(this.#file.number, bytes, done, rest, at + done, end);
    });
  }

  #failed(error: { errno?: number }, op: string, at: number): LayerError {
    const errno = Math.abs(error.errno ?? -EIO);
    return new LayerError(errno, `${this.description}: ${op} at byte ${at}`, { cause: error });
  }
}
