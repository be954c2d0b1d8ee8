/** From -errno to SysError. */
import { constants } from 'node:os';
import { type Recovery, SysError } from '../base/errors.ts';

const names = new Map<number, string>();
for (const [name, errno] of Object.entries(constants.errno)) {
  if (!names.has(errno)) names.set(errno, name);
}

export const EAGAIN = constants.errno.EAGAIN;
/** "File descriptor in bad state"; not in os.constants. */
export const EBADFD = 77;
export const ECONNREFUSED = constants.errno.ECONNREFUSED;
export const EDQUOT = constants.errno.EDQUOT;
export const EFAULT = constants.errno.EFAULT;
export const EFBIG = constants.errno.EFBIG;
export const EINTR = constants.errno.EINTR;
export const EINVAL = constants.errno.EINVAL;
export const EIO = constants.errno.EIO;
export const EISCONN = constants.errno.EISCONN;
export const ENOENT = constants.errno.ENOENT;
export const ENOSPC = constants.errno.ENOSPC;
export const EOPNOTSUPP = constants.errno.EOPNOTSUPP;
export const EPERM = constants.errno.EPERM;
export const EROFS = constants.errno.EROFS;

/** Symbol of a positive errno: `ENOENT`. */
export function errnoName(errno: number): string {
  return names.get(errno) ?? `errno ${errno}`;
}

/** What usually helps; the caller of a wrapper may know better. */
function recoveryOf(errno: number): Recovery {
  switch (errnoName(errno)) {
    case 'ENOENT':
    case 'ECONNREFUSED':
    case 'EAGAIN':
    case 'EINTR':
    case 'EBUSY':
    case 'ENOMEM':
    case 'EMFILE':
    case 'ENFILE':
      return 'retry';
    case 'EPIPE':
    case 'ECONNRESET':
    case 'ENOTCONN':
      return 'reconnect';
    default:
      return 'fatal';
  }
}

/** The error for a native result below zero. */
export function sysError(syscall: string, result: number, detail: string): SysError {
  const errno = -result;
  return new SysError(syscall, errno, errnoName(errno), detail, { recovery: recoveryOf(errno) });
}

/** `result`, unless it is -errno. The detail is built only when it failed. */
export function check(syscall: string, result: number, detail: () => string): number {
  if (result < 0) throw sysError(syscall, result, detail());
  return result;
}
