/** io_uring's three system calls, and what files say about direct I/O and locks. */
import type { Value } from '../wire/struct.ts';
import { UringParams } from '../wire/io-uring.ts';
import { BLKSSZGET, F_RDLCK, F_UNLCK, F_WRLCK } from '../wire/linux.ts';
import { check, EAGAIN, sysError } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

/**
 * A ring, close-on-exec, and what the kernel says of it.
 * @throws SysError ENOSYS (no io_uring), EPERM (forbidden: kernel.io_uring_disabled, seccomp),
 *   EINVAL (flags), ENOMEM.
 * @syscalls io_uring_setup
 */
export function setupUring(
  entries: number,
  flags: number,
  cqEntries: number,
): { readonly fd: Fd; readonly params: Value<typeof UringParams.fields> } {
  const bytes = new Uint8Array(UringParams.size);
  const view = new DataView(bytes.buffer);
  UringParams.fields.flags.set(view, 0, flags);
  UringParams.fields.cqEntries.set(view, 0, cqEntries);
  const result = native.uringSetup(entries, bytes);
  const number = check('io_uring_setup', result, () => `${entries} entries, flags ${flags}`);
  return { fd: new Fd(number, 'io_uring'), params: UringParams.read(view, 0) };
}

/**
 * Memory of a ring, where the kernel wants it; until `unmapUring`.
 * @throws SysError ENOMEM.
 * @syscalls mmap madvise
 */
export function mapUring(ring: Fd, sizeBytes: number, at: number): ArrayBuffer {
  const result = native.uringMap(ring.number, sizeBytes, at);
  if (typeof result === 'number') throw sysError('mmap', result, `${sizeBytes} bytes of io_uring`);
  return result;
}

/**
 * Arrays over it have no length any more.
 * @syscalls munmap
 */
export function unmapUring(memory: ArrayBuffer): void {
  check('munmap', native.uringUnmap(memory), () => 'io_uring');
}

/**
 * Submits, and waits for completions with GETEVENTS: how many were submitted, or -errno. Hot.
 * @syscalls io_uring_enter
 */
export const enterUring: (
  fd: number,
  toSubmit: number,
  minComplete: number,
  flags: number,
) => number = native.uringEnter;

/**
 * `argument` as the opcode has it, `count` of its elements.
 * @throws SysError.
 * @syscalls io_uring_register
 */
export function registerUring(
  ring: Fd,
  opcode: number,
  argument: Uint8Array | Int32Array,
  count: number,
): void {
  const result = native.uringRegister(ring.number, opcode, argument, count);
  check('io_uring_register', result, () => `opcode ${opcode}`);
}

/** What O_DIRECT wants, bytes; null: the kernel does not say. */
export type DirectAlignment = { readonly memoryBytes: number; readonly positionBytes: number };

/** @syscalls statx */
export function directAlignment(file: Fd): DirectAlignment | null {
  const out = new Uint32Array(2);
  check('statx', native.directAlignment(file.number, out), () => file.what);
  const [memoryBytes, positionBytes] = out as unknown as [number, number];
  return memoryBytes === 0 || positionBytes === 0 ? null : { memoryBytes, positionBytes };
}

/**
 * Logical block of a block device, bytes.
 * @syscalls ioctl
 */
export function logicalBlockBytes(device: Fd): number {
  const out = new Uint8Array(4);
  check('ioctl(BLKSSZGET)', native.ioctlBytes(device.number, BLKSSZGET, out), () => device.what);
  return new DataView(out.buffer).getUint32(0, true);
}

/**
 * Takes a shared lock of one byte, which goes with the open file. False: somebody else has it for
 * themselves.
 * @syscalls fcntl
 */
export function shareByte(file: Fd, at: number): boolean {
  return isGranted(file, at, native.lockByte(file.number, at, F_RDLCK, 0));
}

/** @syscalls fcntl */
export function unlockByte(file: Fd, at: number): void {
  isGranted(file, at, native.lockByte(file.number, at, F_UNLCK, 0));
}

/**
 * Has any other open file a lock of this byte?
 * @syscalls fcntl
 */
export function isByteLocked(file: Fd, at: number): boolean {
  return !isGranted(file, at, native.lockByte(file.number, at, F_WRLCK, 1));
}

function isGranted(file: Fd, at: number, result: number): boolean {
  if (result === -EAGAIN || result === -13) return false; // EACCES: what POSIX allows beside EAGAIN
  if (result < 0) throw sysError('fcntl(F_OFD_SETLK)', result, `byte ${at} of ${file.what}`);
  return true;
}
