/**
 * What a file is opened as: descriptors, the lock, and the way that requests take to it. Lives as
 * long as the image; engines are opened from its `uring`.
 *
 * What `auto` means was measured, and is written down in docs/performance.md: io_uring where the
 * file system can say that it would have to wait, else system calls; the page cache for regular
 * files, no cache of ours for block devices.
 */
import { fstatSync } from 'node:fs';
import { SysError, VringError } from '../../base/errors.ts';
import { type ArenaRange, PrivateMemory, reserveRange } from '../../memory/index.ts';
import {
  directAlignment,
  EOPNOTSUPP,
  type Fd,
  logicalBlockBytes,
  openFd,
  preadvArena,
} from '../../sys/index.ts';
import { O_DIRECT, O_RDONLY, O_RDWR, RWF_NOWAIT } from '../../wire/linux.ts';
import {
  BOUNCE_BYTES,
  FILE_ENGINE_ZERO_BYTES,
  type FileBounce,
  type UringFileSpec,
} from '../file-engine.ts';
import type { FileSpec } from '../stack/stack-spec.ts';
import { lockBeside, tryLockImage } from './image-lock.ts';
import { URING_PLACE_BYTES, uringProblem } from './uring.ts';

/** `path`, and how: see `FileSpec`. */
export type FileOptions = Omit<FileSpec, 'kind'> & {
  readonly readOnly?: boolean;
  /** True: no data plane drives it; layers of a storage thread do. */
  readonly isLayered?: boolean;
};

/** Where neither kernel nor device says what O_DIRECT wants: a page is enough for all of them. */
const SAFE_ALIGNMENT_BYTES = 4096;

const SECTOR_BYTES = 512;

type Direct = NonNullable<UringFileSpec['direct']> & { readonly file: Fd };

export class FileParts {
  readonly file: Fd;
  /** FILE_ENGINE_ZERO_BYTES of zeros that nobody writes. */
  readonly zeros = PrivateMemory.allocate(FILE_ENGINE_ZERO_BYTES + SAFE_ALIGNMENT_BYTES);
  /** For people: `io_uring, O_DIRECT`; `system calls: io_uring_setup failed with EPERM`. */
  readonly means: string;
  /** `FileEngineSpec.witnessFd`; null where nothing is written by a data plane. */
  readonly witness: Fd | null;
  readonly uring: UringFileSpec | null;
  readonly bounce: FileBounce | null;
  readonly #direct: Direct | null = null;
  readonly #place: ArenaRange | null = null;
  #bounceMemory: PrivateMemory | null = null;

  /**
   * @throws SysError ENOENT, EACCES, ...; VringError ERR_VRING_DISK_LOCKED, ERR_VRING_DISK_URING,
   *   ERR_VRING_DISK_DIRECT: what was asked for with `on` cannot be.
   */
  constructor(options: FileOptions) {
    const { path, readOnly = false, uring = 'auto', direct = 'auto', lock = true } = options;
    const flags = readOnly ? O_RDONLY : O_RDWR;
    this.file = openNamed(path, flags);
    try {
      if (lock) tryLockImage(this.file, readOnly);
      const isWritten = !readOnly && options.isLayered !== true;
      this.witness = isWritten ? openFd(`/proc/self/fd/${this.file.number}`, O_RDONLY) : null;
      if (options.isLayered === true) {
        this.uring = null;
        this.bounce = direct === 'on' ? this.#bounceOf(this.#askLayered(flags)) : null;
        this.means = direct === 'on' ? 'layers, O_DIRECT' : 'layers';
        return;
      }
      const problem = uring === 'off' ? 'it is turned off' : (uringProblem()?.message ?? null);
      if (problem !== null && (uring === 'on' || direct === 'on')) throw noUring(path, problem);
      const isDevice = fstatSync(this.file.number).isBlockDevice();
      const wantsDirect = direct === 'on' || (direct === 'auto' && isDevice);
      if (problem === null && wantsDirect) this.#direct = this.#openDirect(flags, direct === 'on');
      if (lock && this.#direct !== null) lockBeside(this.#direct.file, readOnly);
      this.bounce = this.#direct === null ? null : this.#bounceOf(this.#direct.positionBytes);
      const reads = problem === null && (uring === 'on' || this.#readsCanTell());
      if (problem !== null || !(reads || this.#direct !== null)) {
        this.uring = null;
        const why = problem ?? 'this file system cannot tell whether it would have to wait';
        this.means = uring === 'off' ? 'system calls' : `system calls: ${why}`;
        return;
      }
      this.#place = reserveRange(URING_PLACE_BYTES);
      this.uring = {
        at: this.#place.offset,
        bufferedReads: reads,
        bufferedWrites: uring === 'on',
        direct: this.#direct === null ? null : plainDirect(this.#direct),
        required: uring === 'on' || direct === 'on',
      };
      this.means = this.#direct === null ? 'io_uring' : 'io_uring, O_DIRECT';
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Idempotent; once no engine uses it. */
  close(): void {
    this.file.close();
    this.witness?.close();
    this.#direct?.file.close();
    this.#place?.close();
    this.zeros.close();
    this.#bounceMemory?.close();
  }

  #bounceOf(positionBytes: number): FileBounce {
    this.#bounceMemory = PrivateMemory.allocate(BOUNCE_BYTES);
    return { at: this.#bounceMemory.offset, positionBytes };
  }

  /** Layers count in sectors, and formats have files of any length. */
  #askLayered(flags: number): number {
    const { file, positionBytes } = this.#openDirect(flags, true)!;
    file.close(); // the storage thread opens its own
    if (positionBytes <= SECTOR_BYTES) return positionBytes;
    const text =
      `${this.file.what} has blocks of ${positionBytes} bytes with O_DIRECT, and layers write ` +
      `${SECTOR_BYTES}; take direct: 'off'`;
    throw new VringError('ERR_VRING_DISK_DIRECT', text);
  }

  /** The same file once more, whatever has its name by now. */
  #openDirect(flags: number, required: boolean): Direct | null {
    let file: Fd;
    try {
      file = openFd(`/proc/self/fd/${this.file.number}`, flags | O_DIRECT);
    } catch (cause) {
      if (!(cause instanceof SysError) || !required) return null;
      const text =
        `${this.file.what} cannot be opened with O_DIRECT, which its file system does not have; ` +
        `take direct: 'auto'`;
      throw new VringError('ERR_VRING_DISK_DIRECT', text, { cause });
    }
    try {
      const told = directAlignment(file);
      if (told !== null) return { file, fd: file.number, ...told };
      const isDevice = fstatSync(file.number).isBlockDevice();
      const bytes = isDevice ? logicalBlockBytes(file) : SAFE_ALIGNMENT_BYTES;
      return { file, fd: file.number, memoryBytes: bytes, positionBytes: bytes };
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /**
   * Without RWF_NOWAIT (tmpfs) every request would take a kernel thread of the ring, which costs
   * more than the request.
   */
  #readsCanTell(): boolean {
    const at = Float64Array.of(this.zeros.offset + FILE_ENGINE_ZERO_BYTES);
    const read = preadvArena(this.file.number, at, Int32Array.of(1), 0, 1, 0, RWF_NOWAIT);
    return read !== -EOPNOTSUPP;
  }
}

/** What helps whoever gave the path. */
const REMEDIES: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file; `truncate -s SIZE FILE` makes an empty disk',
  ENOTDIR: 'a part of this path is no folder',
  EROFS: 'it is on a read-only file system; serve it read-only, or remount that',
  EACCES: 'its mode, or that of a folder, does not let this user; change it, or serve it read-only',
  EPERM: 'it may not be written (lsattr); serve it read-only',
  EISDIR: 'it is a folder; a disk is a file or a block device (a folder is for overlay:FOLDER)',
  ETXTBSY: 'it is a program that runs, or swap; a disk is a file of its own',
};

/** Opens an image; where that fails, the error also says what to do. */
function openNamed(path: string, flags: number): Fd {
  try {
    return openFd(path, flags);
  } catch (cause) {
    const remedy = cause instanceof SysError ? REMEDIES[cause.errnoName] : undefined;
    if (!(cause instanceof SysError) || remedy === undefined) throw cause;
    throw new SysError('open', cause.errno, cause.errnoName, `${path}: ${remedy}`, { cause });
  }
}

function plainDirect({ fd, memoryBytes, positionBytes }: Direct): UringFileSpec['direct'] {
  return { fd, memoryBytes, positionBytes };
}

function noUring(path: string, why: string): VringError {
  const text = `${path} cannot be served through io_uring: ${why}; take uring: 'auto'`;
  return new VringError('ERR_VRING_DISK_URING', text);
}
