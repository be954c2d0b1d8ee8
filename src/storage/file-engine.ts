/**
 * A disk in a regular file or on a block device, by system calls through the page cache. Each
 * request holds the calling thread until it is done; a flush does so for as long as the medium
 * takes.
 */
import {
  EDQUOT,
  EFAULT,
  EFBIG,
  EINTR,
  EINVAL,
  EIO,
  ENOSPC,
  EOPNOTSUPP,
  EPERM,
  fallocate,
  fdatasync,
  preadvArena,
  pwritevArena,
} from '../sys/index.ts';
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  RWF_DSYNC,
} from '../wire/linux.ts';
import { writeExtents } from './extent-records.ts';
import { fileExtents } from './file/file-extents.ts';
import {
  IO_DISCARD,
  IO_ERASE,
  IO_EXTENTS,
  IO_FLUSH,
  IO_FUA,
  IO_READ,
  IO_UNMAP,
  IO_WRITE,
  IO_ZEROES,
  type IoBatch,
} from './io-batch.ts';
import { SyncEngine } from './sync-engine.ts';

/** Zeros that are written where the file system cannot make some: so many at a time. */
const ZERO_BYTES = 65536;
/** Vectors of one write of them, all of which are the same memory. */
const ZERO_VECTORS = 16;

/**
 * A worker that is busy is interrupted every 20 ms (`watchThread`). Local file systems do not mind;
 * network ones and FUSE end a call with EINTR, which is no error of the medium until it goes on for
 * so long.
 */
const INTERRUPTIONS_MAX = 1000;

/** Of a write that was not begun. EROFS is none: ext4 says so once it has given up. */
const REFUSALS: ReadonlySet<number> = new Set([-EINVAL, -EFBIG, -EPERM, -EFAULT, -EOPNOTSUPP]);

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

export type FileEngineSpec = {
  readonly kind: 'file';
  /** The image's; it stays open for longer than the engine. */
  readonly fd: number;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Arena offset of ZERO_BYTES of private memory that nobody writes. */
  readonly zerosAt: number;
  /** The same file once more, which is asked what a failed write was about; see `judgeDurable`. */
  readonly witnessFd?: number;
  /** Who uses the file beside the data plane, or below layers, goes past the page cache. */
  readonly bounce?: FileBounce;
  /** Left out: by system calls only. */
  readonly uring?: UringFileSpec;
};

/** Aligned memory for requests that go past the page cache from somewhere else. */
export type FileBounce = {
  /** Arena offset of BOUNCE_BYTES. */
  readonly at: number;
  readonly positionBytes: number;
};

export const BOUNCE_BYTES = 2 ** 22;

/** What `UringEngine` needs beside; see file/uring-engine.ts. */
export type UringFileSpec = {
  /** Arena offset of URING_PLACE_BYTES that are reserved. */
  readonly at: number;
  /** Go through the ring what goes to the page cache, too: reads, and writes. */
  readonly bufferedReads: boolean;
  readonly bufferedWrites: boolean;
  /** The same file with O_DIRECT, and what that wants; null: all goes through the page cache. */
  readonly direct: {
    readonly fd: number;
    readonly memoryBytes: number;
    readonly positionBytes: number;
  } | null;
  /** True: without a ring there is no engine. False: `openEngine` makes one of system calls. */
  readonly required: boolean;
};

export const FILE_ENGINE_ZERO_BYTES = ZERO_BYTES;

export class FileEngine extends SyncEngine {
  readonly #fd: number;
  readonly #witnessFd: number;
  readonly #zeroOffsets: Float64Array;
  readonly #zeroLengths = new Int32Array(ZERO_VECTORS);
  /** What is left of a transfer that the kernel cut short: columns of one request. */
  #restOffsets = new Float64Array(0);
  #restLengths = new Int32Array(0);
  /**
   * Not 0: a flush has failed with this. The kernel says so once, to who asks first, and drops
   * what it could not write; so no later flush may say that all is well, until the file is opened
   * anew and somebody has decided what is true.
   */
  protected lost = 0;
  /** What the file system can do with a range: known once it was asked. */
  protected punches = true;
  protected zeroes = true;

  constructor(spec: FileEngineSpec) {
    super(spec.sizeBytes, spec.readOnly);
    this.#fd = spec.fd;
    this.#witnessFd = spec.witnessFd ?? -1;
    this.#zeroOffsets = new Float64Array(ZERO_VECTORS).fill(spec.zerosAt);
  }

  protected execute(batch: IoBatch, row: number): number {
    switch (batch.op[row]) {
      case IO_READ:
        return this.#transfer(batch, row, 0);
      case IO_WRITE:
        return this.#transfer(batch, row, (batch.flags[row]! & IO_FUA) === 0 ? 0 : RWF_DSYNC);
      case IO_FLUSH:
        return this.#flush();
      case IO_DISCARD:
        return this.#durable(batch.flags[row]!, this.#discard(batch.at[row]!, batch.size[row]!));
      case IO_ZEROES:
        return this.#durable(batch.flags[row]!, this.#zero(batch, row));
      case IO_ERASE:
        return this.#durable(IO_FUA, this.#writeZeros(batch.at[row]!, batch.size[row]!));
      case IO_EXTENTS:
        writeExtents(batch, row, fileExtents(this.#fd, batch.at[row]!, batch.size[row]!));
        return 0;
      default:
        return -EOPNOTSUPP;
    }
  }

  protected finish(): void {}

  #transfer(batch: IoBatch, row: number, flags: number): number {
    const size = batch.size[row]!;
    if (size === 0) return 0;
    const first = batch.segFirst[row]!;
    const count = batch.segCount[row]!;
    const at = batch.at[row]!;
    const call = batch.op[row] === IO_READ ? preadvArena : pwritevArena;
    const moved = call(this.#fd, batch.segOffset, batch.segLen, first, count, at, flags);
    if (moved !== size) return this.#rest(batch, row, moved, flags);
    return flags === 0 ? 0 : this.lost;
  }

  /** A read that ends early met the end of a file that is shorter than the disk. */
  #failed(result: number, flags: number): number {
    const status = result === 0 ? -EIO : result;
    if (flags !== 0) this.judgeDurable(status);
    return status;
  }

  /**
   * A write that was to be durable has failed. Either it was not taken, as on a file system that is
   * full, and nothing but itself is lost; or it was, and what could not be made durable may be
   * older ones, of which the kernel has told us then, and will not tell a flush. Both have one
   * errno. The witness, who has been told of nothing, knows.
   */
  protected judgeDurable(status: number): void {
    if (this.lost !== 0 || REFUSALS.has(status)) return;
    const isFull = status === -ENOSPC || status === -EDQUOT;
    if (!isFull || this.#witnessFd < 0) this.lost = status;
    else if (syncFile(this.#witnessFd) !== 0) this.lost = status;
  }

  get failedFlush(): number {
    return this.lost;
  }

  /** The kernel moved a part or nothing: a signal, the end of the file, a medium full or bad. */
  #rest(batch: IoBatch, row: number, result: number, flags: number): number {
    const first = batch.segFirst[row]!;
    const count = batch.segCount[row]!;
    if (this.#restLengths.length < count) {
      this.#restOffsets = new Float64Array(count);
      this.#restLengths = new Int32Array(count);
    }
    const [offsets, lengths] = [this.#restOffsets, this.#restLengths];
    offsets.set(batch.segOffset.subarray(first, first + count));
    lengths.set(batch.segLen.subarray(first, first + count));
    const call = batch.op[row] === IO_READ ? preadvArena : pwritevArena;
    let moved = result;
    let at = batch.at[row]!;
    let left = batch.size[row]!;
    for (let s = 0, tries = 0; ;) {
      if (moved === -EINTR && ++tries < INTERRUPTIONS_MAX) moved = 0;
      else if (moved <= 0) return this.#failed(moved, flags);
      at += moved;
      left -= moved;
      if (left === 0) return flags === 0 ? 0 : this.lost;
      while (moved >= lengths[s]!) moved -= lengths[s++]!;
      offsets[s]! += moved;
      lengths[s]! -= moved;
      moved = call(this.#fd, offsets, lengths, s, count - s, at, flags);
    }
  }

  #flush(): number {
    if (this.lost === 0) this.lost = syncFile(this.#fd);
    return this.lost;
  }

  #durable(flags: number, status: number): number {
    return status === 0 && (flags & IO_FUA) !== 0 ? this.#flush() : status;
  }

  /** Advice: where the file system cannot give space back, it is kept. */
  #discard(at: number, size: number): number {
    if (!this.punches || size === 0) return 0;
    const status = allocate(this.#fd, PUNCH, at, size);
    if (status !== -EOPNOTSUPP) return status;
    this.punches = false;
    return 0;
  }

  #zero(batch: IoBatch, row: number): number {
    const at = batch.at[row]!;
    const size = batch.size[row]!;
    if (size === 0) return 0;
    if (this.punches && (batch.flags[row]! & IO_UNMAP) !== 0) {
      const status = allocate(this.#fd, PUNCH, at, size);
      if (status !== -EOPNOTSUPP) return status;
      this.punches = false;
    }
    if (this.zeroes) {
      const status = allocate(this.#fd, ZERO, at, size);
      if (status !== -EOPNOTSUPP) return status;
      this.zeroes = false; // tmpfs, NFS before 4.2
    }
    return this.#writeZeros(at, size);
  }

  #writeZeros(at: number, size: number): number {
    for (let done = 0, tries = 0; done < size;) {
      let vectors = 0;
      for (let left = size - done; left > 0 && vectors < ZERO_VECTORS; left -= ZERO_BYTES) {
        this.#zeroLengths[vectors++] = Math.min(left, ZERO_BYTES);
      }
      const offsets = this.#zeroOffsets;
      const written = pwritevArena(this.#fd, offsets, this.#zeroLengths, 0, vectors, at + done, 0);
      if (written === -EINTR && ++tries < INTERRUPTIONS_MAX) continue;
      if (written <= 0) return this.#failed(written, 0);
      done += written;
    }
    return 0;
  }
}

function allocate(fd: number, mode: number, at: number, size: number): number {
  let result = fallocate(fd, mode, at, size);
  for (let tries = 1; result === -EINTR && tries < INTERRUPTIONS_MAX; tries++) {
    result = fallocate(fd, mode, at, size);
  }
  return result;
}

function syncFile(fd: number): number {
  let result = fdatasync(fd);
  for (let tries = 1; result === -EINTR && tries < INTERRUPTIONS_MAX; tries++) {
    result = fdatasync(fd);
  }
  return result;
}
