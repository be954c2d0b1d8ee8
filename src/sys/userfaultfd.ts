/**
 * userfaultfd: who touches a page of a registered range that is not there waits until somebody
 * brings it. For postcopy, where the front-end brings the pages of its guest; the fd is sent to it
 * with the ranges' addresses in this process.
 */
import * as linux from '../wire/linux.ts';
import { arenaHostAddress } from './arena.ts';
import { EAGAIN, check, sysError } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

/** Somebody waits for the page at `address`. */
export type Userfault = { readonly address: bigint; readonly write: boolean };

/**
 * Non-blocking, and ready for ranges.
 * @throws SysError EPERM without CAP_SYS_PTRACE, unless vm.unprivileged_userfaultfd is 1; ENOSYS.
 * @syscalls userfaultfd ioctl
 */
export function createUserfaultfd(): Fd {
  const flags = linux.O_CLOEXEC | linux.O_NONBLOCK;
  const number = check('userfaultfd', native.userfaultfd(flags), () => {
    return 'postcopy needs CAP_SYS_PTRACE, or sysctl vm.unprivileged_userfaultfd=1';
  });
  const fd = new Fd(number, 'userfaultfd');
  const api = { api: BigInt(linux.UFFD_API), features: 0n, ioctls: 0n };
  try {
    ask(fd.number, 'UFFDIO_API', linux.UFFDIO_API, linux.UffdioApi.encode(api));
  } catch (error) {
    fd.close();
    throw error;
  }
  return fd;
}

/**
 * Pages of the range that are not there are waited for from now on. The range must be mapped, and
 * both numbers multiples of its page size.
 * @throws SysError EINVAL, EBUSY (another userfaultfd has the range).
 * @syscalls ioctl
 */
export function registerUserfault(uffd: number, arenaOffset: number, sizeBytes: number): void {
  const bytes = linux.UffdioRegister.encode({
    ...rangeOf(arenaOffset, sizeBytes),
    mode: BigInt(linux.UFFDIO_REGISTER_MODE_MISSING),
    ioctls: 0n,
  });
  ask(uffd, 'UFFDIO_REGISTER', linux.UFFDIO_REGISTER, bytes);
}

/**
 * The range is ordinary memory again; who waits goes on.
 * @throws SysError EINVAL.
 * @syscalls ioctl
 */
export function unregisterUserfault(uffd: number, arenaOffset: number, sizeBytes: number): void {
  const bytes = linux.UffdioRange.encode(rangeOf(arenaOffset, sizeBytes));
  ask(uffd, 'UFFDIO_UNREGISTER', linux.UFFDIO_UNREGISTER, bytes);
}

/**
 * Who waits for these pages looks again.
 * @throws SysError EINVAL.
 * @syscalls ioctl
 */
export function wakeUserfault(uffd: number, hostAddress: bigint, sizeBytes: number): void {
  const bytes = linux.UffdioRange.encode({ start: hostAddress, len: BigInt(sizeBytes) });
  ask(uffd, 'UFFDIO_WAKE', linux.UFFDIO_WAKE, bytes);
}

/**
 * Brings pages, copied from arena memory, and wakes who waits for them.
 * @throws SysError EEXIST (a page is there), EINVAL, ENOENT.
 * @syscalls ioctl
 */
export function copyUserfault(
  uffd: number,
  hostAddress: bigint,
  sourceOffset: number,
  sizeBytes: number,
): void {
  const bytes = linux.UffdioCopy.encode({
    dst: hostAddress,
    src: arenaHostAddress() + BigInt(sourceOffset),
    len: BigInt(sizeBytes),
    mode: 0n,
    copy: 0n,
  });
  ask(uffd, 'UFFDIO_COPY', linux.UFFDIO_COPY, bytes);
}

/**
 * The next fault, or null when nobody waits whose fault was not read yet.
 * @throws SysError EINVAL.
 * @syscalls read
 */
export function readUserfault(uffd: number): Userfault | null {
  const bytes = new Uint8Array(linux.UffdMessage.size);
  for (;;) {
    const got = native.readBytes(uffd, bytes);
    if (got === -EAGAIN) return null;
    if (got < 0) throw sysError('read', got, `userfaultfd ${uffd}`);
    const message = linux.UffdMessage.decode(bytes);
    if (message.event !== linux.UFFD_EVENT_PAGEFAULT) continue; // no other was asked for
    const write = (message.flags & BigInt(linux.UFFD_PAGEFAULT_FLAG_WRITE)) !== 0n;
    return { address: message.address, write };
  }
}

function rangeOf(arenaOffset: number, sizeBytes: number): { start: bigint; len: bigint } {
  return { start: arenaHostAddress() + BigInt(arenaOffset), len: BigInt(sizeBytes) };
}

function ask(uffd: number, name: string, request: number, argument: Uint8Array): void {
  check(`ioctl(${name})`, native.ioctlBytes(uffd, request, argument), () => `userfaultfd ${uffd}`);
}
