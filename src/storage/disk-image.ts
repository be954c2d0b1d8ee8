/**
 * The control half of a disk: opens what holds its bytes, owns it, and says how a worker gets at
 * it. One image is served by one device.
 */
import { assert } from '../base/assert.ts';
import { ConfigError, VringError } from '../base/errors.ts';
import { PrivateMemory } from '../memory/index.ts';
import { diskFileBytes, type Fd, truncate } from '../sys/index.ts';
import type { BridgeEngineSpec } from './bridge/bridge-engine.ts';
import { FileParts, type FileOptions } from './file/file-parts.ts';
import type { FileEngineSpec } from './file-engine.ts';
import type { LimitEngineSpec } from './limit/limit-engine.ts';
import type { MemoryEngineSpec } from './memory-engine.ts';
import type { NullEngineSpec } from './null-engine.ts';
import type { ZoneShape } from './zoned/zone-types.ts';

/** What a worker opens an engine from; structured clone. */
export type EngineSpec =
  | FileEngineSpec
  | MemoryEngineSpec
  | NullEngineSpec
  | BridgeEngineSpec
  | LimitEngineSpec;

/** Positions on a disk are counted in these. */
export const SECTOR_BYTES = 512;

/** Largest disk: what a double holds exactly, in whole sectors. */
export const MAX_DISK_BYTES = 2 ** 53 - SECTOR_BYTES;

/** Largest disk in memory: the arena has 16 TiB for everything, and memory is less. */
export const MAX_MEMORY_DISK_BYTES = 2 ** 40;

export type DiskImage = {
  /** For messages: `file:/srv/a.img`. */
  readonly description: string;
  /** How requests get to a file, for people: `io_uring, O_DIRECT`. */
  readonly means?: string;
  readonly readOnly: boolean;
  readonly sizeBytes: number;
  /** Of a zoned disk; else null, or left out. */
  readonly zones?: ZoneShape | null;
  readonly spec: EngineSpec;
  /** What carries requests out has ended by this, and all of them fail: close the image. */
  readonly failure?: Error | null;
  /** How large what is below is now; somebody may have changed it. `resize` takes it over. */
  measure(): Promise<number>;
  /**
   * Another size. The caller tells engine and driver: a larger disk afterwards, a smaller one
   * before.
   * @throws VringError ERR_VRING_DISK_RESIZE.
   */
  resize(sizeBytes: number): Promise<void>;
  /**
   * What a layer of the stack can be asked to do: `Layer.control`.
   * @throws VringError ERR_VRING_DISK_CONTROL: none of them knows the name.
   */
  control(name: string, payload: unknown): Promise<unknown>;
  /** Of the layers; `{}` without any. */
  counters(): Promise<Record<string, number>>;
  /** Idempotent; once no engine uses it. */
  close(): Promise<void>;
};

export type FileImageOptions = FileOptions & {
  /** True: layers stand on the file, and know what its size means. */
  readonly isLayered?: boolean;
};

/**
 * Opens a regular file or block device of whole sectors, and locks it: see `FileSpec`. One that is
 * in use is refused at once; `openStack` waits for who is about to go.
 * @throws SysError ENOENT, EACCES, ...; VringError ERR_VRING_DISK_FILE, ERR_VRING_DISK_LOCKED,
 *   ERR_VRING_DISK_URING, ERR_VRING_DISK_DIRECT.
 */
export function openFileImage(options: FileImageOptions): DiskImage {
  const { path, readOnly = false } = options;
  const parts = new FileParts(options);
  try {
    const sizeBytes = diskFileBytes(parts.file);
    const isWhole = sizeBytes > 0 && sizeBytes % SECTOR_BYTES === 0;
    if (sizeBytes > MAX_DISK_BYTES || (options.isLayered !== true && !isWhole)) {
      const wanted = `a disk has a whole number of ${SECTOR_BYTES}-byte sectors, one at least`;
      const text = `${path} has ${sizeBytes} bytes; ${wanted}: truncate -s SIZE ${path}`;
      throw new VringError('ERR_VRING_DISK_FILE', text);
    }
    return new FileImage(parts, sizeBytes, readOnly);
  } catch (error) {
    parts.close();
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

export function checkSize(path: string, sizeBytes: number, max: number): void {
  const whole = Number.isInteger(sizeBytes) && sizeBytes % SECTOR_BYTES === 0;
  if (whole && sizeBytes > 0 && sizeBytes <= max) return;
  const expected = `a multiple of ${SECTOR_BYTES} from ${SECTOR_BYTES} to ${max}`;
  throw new ConfigError(path, `${sizeBytes} bytes is no size of a disk, expected ${expected}`);
}

/** A direct image has no layers to ask. */
export function noControl({ description }: DiskImage, name: string): VringError {
  const text = `${description} has nothing that does ${name}; look at its layers`;
  return new VringError('ERR_VRING_DISK_CONTROL', text);
}

class FileImage implements DiskImage {
  readonly description: string;
  readonly readOnly: boolean;
  sizeBytes: number;
  readonly #parts: FileParts;
  readonly #file: Fd;

  constructor(parts: FileParts, sizeBytes: number, readOnly: boolean) {
    this.description = `file:${parts.file.what}`;
    this.readOnly = readOnly;
    this.sizeBytes = sizeBytes;
    this.#parts = parts;
    this.#file = parts.file;
  }

  get means(): string {
    return this.#parts.means;
  }

  get spec(): FileEngineSpec {
    const { sizeBytes, readOnly } = this;
    const { zeros, uring, bounce, witness } = this.#parts;
    const bySystemCalls = { fd: this.#file.number, sizeBytes, readOnly, zerosAt: zeros.offset };
    const extras = {
      ...(uring !== null && { uring }),
      ...(bounce !== null && { bounce }),
      ...(witness !== null && { witnessFd: witness.number }),
    };
    return { kind: 'file', ...bySystemCalls, ...extras };
  }

  async measure(): Promise<number> {
    return diskFileBytes(this.#file);
  }

  /** A block device is as large as it is: `sizeBytes` must be what it has become. */
  async resize(sizeBytes: number): Promise<void> {
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

  async control(name: string): Promise<unknown> {
    throw noControl(this, name);
  }

  async counters(): Promise<Record<string, number>> {
    return {};
  }

  async close(): Promise<void> {
    this.#parts.close();
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

  async measure(): Promise<number> {
    return this.sizeBytes;
  }

  async resize(sizeBytes: number): Promise<void> {
    if (sizeBytes === this.sizeBytes) return;
    const text = `a disk in memory keeps its ${this.sizeBytes} bytes; take a file to grow one`;
    throw new VringError('ERR_VRING_DISK_RESIZE', text);
  }

  async control(name: string): Promise<unknown> {
    throw noControl(this, name);
  }

  async counters(): Promise<Record<string, number>> {
    return {};
  }

  async close(): Promise<void> {
    this.#memory.close();
  }
}
