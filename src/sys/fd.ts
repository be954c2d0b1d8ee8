/** File descriptors: one owner each, closed once. */
import { readdirSync, readlinkSync } from 'node:fs';
import { VringError } from '../base/errors.ts';
import { S_IFCHR, S_IFREG, S_IFSOCK } from '../wire/linux.ts';
import { check } from './errors.ts';
import { native } from './native.ts';

/** Most that a record of descriptors has; a thread that has more open leaves those unrecorded. */
const RECORDED_FDS = 1024;
export const FD_RECORD_BYTES = 4 * RECORDED_FDS;

/** Where this thread writes down what it has open, for who survives it: 0, or the number and 1. */
let record: Int32Array | null = null;

/**
 * From now on, what an Fd of this thread owns is written down in `memory`, FD_RECORD_BYTES of
 * zeros. Descriptors belong to the process: a thread that ends by an error leaves them open, with
 * their locks.
 */
export function recordFds(memory: SharedArrayBuffer): void {
  record = new Int32Array(memory);
}

/**
 * Closes what a thread has left that has ended. Idempotent. Returns how many.
 * @syscalls close
 */
export function closeRecordedFds(memory: SharedArrayBuffer): number {
  const cells = new Int32Array(memory);
  let closed = 0;
  for (let i = 0; i < cells.length; i++) {
    const cell = Atomics.exchange(cells, i, 0);
    if (cell === 0) continue;
    native.close(cell - 1);
    closed++;
  }
  return closed;
}

/** Entered after it is open and struck off before it is closed: a number here is nobody else's. */
function enter(number: number): void {
  const free = record?.indexOf(0) ?? -1;
  if (free >= 0) Atomics.store(record!, free, number + 1);
}

function strikeOff(number: number): void {
  const at = record?.indexOf(number + 1) ?? -1;
  if (at >= 0) Atomics.store(record!, at, 0);
}

/** Owns one descriptor. `close()` may be called any number of times. */
export class Fd {
  /** What it is, for error messages and status pages: `kick of vring 0`. */
  readonly what: string;
  #number: number;

  /** Takes ownership of an open descriptor. */
  constructor(number: number, what: string) {
    this.#number = number;
    this.what = what;
    enter(number);
  }

  /** @throws VringError ERR_VRING_CLOSED after `close()` or `take()`. */
  get number(): number {
    if (this.#number < 0) throw new VringError('ERR_VRING_CLOSED', `${this.what} is closed`);
    return this.#number;
  }

  get closed(): boolean {
    return this.#number < 0;
  }

  /** @syscalls close */
  close(): void {
    const number = this.#number;
    this.#number = -1;
    if (number < 0) return;
    strikeOff(number);
    native.close(number);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Gives ownership up: the descriptor stays open and is the caller's. */
  take(): number {
    const number = this.number;
    this.#number = -1;
    strikeOff(number);
    return number;
  }

  /**
   * A second descriptor of the same open file.
   * @syscalls fcntl
   */
  dup(): Fd {
    return dupFd(this.number, this.what);
  }
}

/**
 * Duplicates a descriptor that somebody else owns.
 * @syscalls fcntl
 */
export function dupFd(number: number, what: string): Fd {
  return new Fd(
    check('fcntl(F_DUPFD_CLOEXEC)', native.dup(number), () => what),
    what,
  );
}

/**
 * Closes a descriptor that is in no Fd, such as one that came with a refused message.
 * @syscalls close
 */
export function closeFd(number: number): void {
  native.close(number);
}

/**
 * Opens a file or device, close-on-exec.
 * @syscalls open
 */
export function openFd(path: string, flags: number): Fd {
  return new Fd(
    check('open', native.open(path, flags), () => path),
    path,
  );
}

export type FdStat = {
  /** `memfd-like` is a regular file that knows seals: memfd, tmpfs, hugetlbfs of memfd. */
  kind: 'file' | 'memfd-like' | 'socket' | 'char' | 'other';
  sizeBytes: number;
  /** Granularity of a mapping: the huge page of hugetlbfs, else the system's page. */
  pageSizeBytes: number;
};

const statOut = new Float64Array(4); // st_mode & S_IFMT, st_size, page size, seals or -1

/**
 * Type, size and page size of an open descriptor.
 * @syscalls fstat fstatfs fcntl
 */
export function fdStat(fd: number): FdStat {
  check('fstat', native.fdStat(fd, statOut), () => `fd ${fd}`);
  const [format, sizeBytes, pageSizeBytes, seals] = statOut as unknown as readonly number[];
  return { kind: kindOf(format!, seals!), sizeBytes: sizeBytes!, pageSizeBytes: pageSizeBytes! };
}

function kindOf(format: number, seals: number): FdStat['kind'] {
  if (format === S_IFREG) return seals >= 0 ? 'memfd-like' : 'file';
  if (format === S_IFSOCK) return 'socket';
  if (format === S_IFCHR) return 'char';
  return 'other';
}

/**
 * Open descriptors of this process, for leak tests.
 * @syscalls open getdents64 close
 */
export function openFdCount(): number {
  return readdirSync('/proc/self/fd').length - 1; // without the one that reads the folder
}

/**
 * Sets or clears O_NONBLOCK, which belongs to the open file: everybody who shares it sees it.
 * @throws SysError EBADF.
 * @syscalls fcntl
 */
export function setNonblocking(number: number, on: boolean): void {
  check('fcntl', native.setNonblocking(number, on ? 1 : 0), () => `fd ${number}`);
}

/**
 * What an open fd leads to, as the kernel names it: a path, `anon_inode:[eventfd]`, `socket:[123]`.
 * @syscalls readlink
 */
export function fdTarget(number: number): string {
  return readlinkSync(`/proc/self/fd/${number}`);
}
