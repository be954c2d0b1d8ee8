/**
 * Files and block devices that hold a disk. The transfers are hot: they throw and allocate
 * nothing, and return bytes or -errno.
 */
import { fstatSync } from 'node:fs';
import { VringError } from '../base/errors.ts';
import { BLKGETSIZE64 } from '../wire/linux.ts';
import { check } from './errors.ts';
import type { Fd } from './fd.ts';
import { type ArenaTransfer, native } from './native.ts';

/**
 * How large a regular file or block device is, bytes.
 * @throws VringError ERR_VRING_DISK_FILE: it is neither.
 * @syscalls fstat ioctl
 */
export function diskFileBytes(file: Fd): number {
  const stat = fstatSync(file.number);
  if (stat.isFile()) return stat.size;
  if (!stat.isBlockDevice()) {
    const text = `${file.what} is neither a regular file nor a block device`;
    throw new VringError('ERR_VRING_DISK_FILE', text);
  }
  const out = new Uint8Array(8);
  const result = native.ioctlBytes(file.number, BLKGETSIZE64, out);
  check('ioctl(BLKGETSIZE64)', result, () => file.what);
  return Number(new DataView(out.buffer).getBigUint64(0, true));
}

/**
 * Reads a file into ranges [first, first + count) of the arena, at most 1024: bytes or -errno.
 * @syscalls preadv2
 */
export const preadvArena: ArenaTransfer = native.preadvArena;

/**
 * Writes ranges of the arena into a file: bytes or -errno. With RWF_DSYNC they are durable then.
 * @syscalls pwritev2
 */
export const pwritevArena: ArenaTransfer = native.pwritevArena;

/**
 * 0 or -errno; `mode` is FALLOC_FL_*.
 * @syscalls fallocate
 */
export const fallocate: (fd: number, mode: number, at: number, sizeBytes: number) => number =
  native.fallocate;

/**
 * A position or -errno; `whence` is SEEK_*. Moves the position of the open file, which transfers at
 * a position of their own do not mind.
 * @syscalls lseek
 */
export const seekFile: (fd: number, at: number, whence: number) => number = native.seekFile;

/**
 * 0 or -errno. An error is told once by the kernel, to who asks first: remember it.
 * @syscalls fdatasync
 */
export const fdatasync: (fd: number) => number = native.fdatasync;

/**
 * Whole pages of our own (`mapPrivateAt`) become zeros and cost no memory: 0 or -errno.
 * @syscalls madvise
 */
export const zeroArenaPages: (offset: number, sizeBytes: number) => number = native.zeroArenaPages;
