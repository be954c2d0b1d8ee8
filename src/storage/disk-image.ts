/**
 * The control half of a disk: opens what holds its bytes, owns it, and says how a worker gets at
 * it. One image is served by one device.
 */
import { assert } from '../base/assert.ts';
import { ConfigError, VringError } from '../base/errors.ts';
import { PrivateMemory } from '../memory/index.ts';
import { diskFileBytes, type Fd, openFd, truncate } from '../sys/index.ts';
import { O_RDONLY, O_RDWR } from '../wire/linux.ts';
import { FILE_ENGINE_ZERO_BYTES, type FileEngineSpec } from './file-engine.ts';
import type { MemoryEngineSpec } from './memory-engine.ts';

/** What a worker opens an engine from; structured clone. */
export type EngineSpec = FileEngineSpec | MemoryEngineSpec;

/** Positions on a disk are counted in these. */
export const SECTOR_BYTES = 512;

/** Largest disk: what a double holds exactly, in whole sectors. */
export const MAX_DISK_BYTES = 2 ** 53 - SECTOR_BYTES;

/** Largest disk in memory: the arena has 16 TiB for everything, and memory is less. */
export const MAX_MEMORY_DISK_BYTES = 2 ** 40;

export type DiskImage = {
  /** For messages: `file:/srv/a.img`. */
  readonly description: string;
  readonly readOnly: boolean;
  readonly sizeBytes: number;
  readonly spec: EngineSpec;
  /** How large what is below is now; somebody may have changed it. `resize` takes it over. */
  measure(): number;
  /**
   * Another size. The caller tells engine and driver: a larger disk afterwards, a smaller one
   * before.
   * @throws VringError ERR_VRING_DISK_RESIZE.
   */
  resize(sizeBytes: number): void;
  /** Idempotent; once no engine uses it. */
  close(): void;
};

export type FileImageOptions = { readonly path: string; readonly readOnly?: boolean };

/**
 * Opens a regular file or block device of whole sectors.
 * @throws SysError ENOENT, EACCES, ...; VringError ERR_VRING_DISK_FILE.
 */
export function openFileImage(options: FileImageOptions): DiskImage {
  const { path, readOnly = false } = options;
  const file = openFd(path, readOnly ? O_RDONLY : O_RDWR);
  try {
    const sizeBytes = diskFileBytes(file);
    if (sizeBytes === 0 || sizeBytes % SECTOR_BYTES !== 0 || sizeBytes > MAX_DISK_BYTES) {
      const wanted = `a disk has a whole number of ${SECTOR_BYTES}-byte sectors, one at least`;
      const text = `${path} has ${sizeBytes} bytes; ${wanted}: truncate -s SIZE ${path}`;
      throw new VringError('ERR_VRING_DISK_FILE', text);
    }
    return new FileImage(file, path, sizeBytes, readOnly);
  } catch (error) {
    file.close();
    throw error;
  }
}

/**
 * Zeros in the memory of this process; a page costs memory once it was written.
 * @throws ConfigError: no size of a disk. SysError ENOMEM.
 */
export function createMemoryImage(sizeBytes: number, readOnly = false): DiskImage {
  checkSize('memory', sizeBytes, MAX_MEMORY_DISK_BYTES);
  return new MemoryImage(PrivateMemory.allocate(sizeBytes), sizeBytes, readOnly);
}

function checkSize(path: string, sizeBytes: number, max: number): void {
  const whole = Number.isInteger(sizeBytes) && sizeBytes % SECTOR_BYTES === 0;
  if (whole && sizeBytes > 0 && sizeBytes <= max) return;
  const expected = `a multiple of ${SECTOR_BYTES} from ${SECTOR_BYTES} to ${max}`;
  throw new ConfigError(path, `${sizeBytes} bytes is no size of a disk, expected ${expected}`);
}

class FileImage implements DiskImage {
  readonly description: string;
  readonly readOnly: boolean;
  sizeBytes: number;
  readonly #file: Fd;
  readonly #zeros: PrivateMemory;

  constructor(file: Fd, path: string, sizeBytes: number, readOnly: boolean) {
    this.description = `file:${path}`;
    this.readOnly = readOnly;
    this.sizeBytes = sizeBytes;
    this.#file = file;
    this.#zeros = PrivateMemory.allocate(FILE_ENGINE_ZERO_BYTES);
  }

  get spec(): FileEngineSpec {
    const { sizeBytes, readOnly } = this;
    const fd = this.#file.number;
    return { kind: 'file', fd, sizeBytes, readOnly, zerosAt: this.#zeros.offset };
  }

  measure(): number {
    return diskFileBytes(this.#file);
  }

  /** A block device is as large as it is: `sizeBytes` must be what it has become. */
  resize(sizeBytes: number): void {
    checkSize('size', sizeBytes, MAX_DISK_BYTES);
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

  close(): void {
    this.#file.close();
    this.#zeros.close();
  }
}

class MemoryImage implements DiskImage {
  readonly description: string;
  readonly readOnly: boolean;
  readonly sizeBytes: number;
  readonly #memory: PrivateMemory;

  constructor(memory: PrivateMemory, sizeBytes: number, readOnly: boolean) {
    assert(memory.sizeBytes >= sizeBytes);
    this.description = `memory:${sizeBytes}`;
    this.readOnly = readOnly;
    this.sizeBytes = sizeBytes;
    this.#memory = memory;
  }

  get spec(): MemoryEngineSpec {
    const { sizeBytes, readOnly } = this;
    const { offset, handle } = this.#memory;
    return { kind: 'memory', offset, handle, sizeBytes, readOnly };
  }

  measure(): number {
    return this.sizeBytes;
  }

  resize(sizeBytes: number): void {
    if (sizeBytes === this.sizeBytes) return;
    const text = `a disk in memory keeps its ${this.sizeBytes} bytes; take a file to grow one`;
    throw new VringError('ERR_VRING_DISK_RESIZE', text);
  }

  close(): void {
    this.#memory.close();
  }
}
