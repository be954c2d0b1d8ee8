/** Why a TAP interface cannot be opened, and what to do. */
import { readFileSync } from 'node:fs';
import { SysError, VringError } from '../base/errors.ts';
import { IFF_TAP } from '../wire/linux.ts';

/** What the kernel's errno means for `openTap(name)`; what is no such error is handed back. */
export function tapProblem(name: string, multiQueue: boolean, cause: unknown): unknown {
  const errnoName = cause instanceof SysError ? cause.errnoName : '';
  const problem = (code: string, text: string, recovery?: 'retry'): VringError =>
    new VringError(code, text, { cause, ...(recovery && { recovery }) });
  switch (errnoName) {
    case 'EPERM':
    case 'EACCES':
      return problem(
        'ERR_VRING_INTERFACE_PERMISSION',
        `${name}: no permission to make or open this interface; run as root (CAP_NET_ADMIN), ` +
          `or let root make it for your user: ip tuntap add ${name} mode tap user $USER vnet_hdr`,
      );
    case 'EBUSY':
      return problem(
        'ERR_VRING_INTERFACE_BUSY',
        `${name}: another process has this interface open; end it, or take another name`,
        'retry',
      );
    case 'EINVAL':
      return problem('ERR_VRING_INTERFACE', `${name}: ${misfit(name, multiQueue)}`);
    case 'ENOENT':
    case 'ENODEV':
      return problem(
        'ERR_VRING_DEVICE_MISSING',
        '/dev/net/tun does not exist; load its module: modprobe tun',
        'retry',
      );
    default:
      return cause;
  }
}

const ANEW = ', or delete it, and it is made anew';

/** tun_set_iff: an interface is of one queue or of several from its first day. */
function misfit(name: string, multiQueue: boolean): string {
  const flags = tunFlags(name);
  if (flags === null || (flags & IFF_TAP) === 0) {
    const what = `it is there, and is no TAP of ${multiQueue ? 'several queues' : 'one queue'}`;
    return `${what}; take another name, or packet: for what is an interface`;
  }
  return multiQueue
    ? `it is a TAP of one queue; ask for one${ANEW}`
    : `it is a TAP of several queues (multi_queue); ask for 2 or more${ANEW}`;
}

/** Null: it is none of the tun driver, or this sysfs shows another network namespace. */
function tunFlags(name: string): number | null {
  try {
    return Number(readFileSync(`/sys/class/net/${name}/tun_flags`, 'latin1'));
  } catch {
    return null;
  }
}
