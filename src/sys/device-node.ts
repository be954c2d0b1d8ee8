/**
 * Device nodes that speak by ioctl, read and write: /dev/vhost-net, /dev/vduse/control.
 * Numbers and layouts are the callers'; what comes back is the kernel's result, or -errno.
 */
import { existsSync } from 'node:fs';
import { VringError } from '../base/errors.ts';
import { O_NONBLOCK, O_RDWR } from '../wire/linux.ts';
import { errnoName, sysError } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

/**
 * Opens a device node, non-blocking.
 * @param remedy what brings the node: `modprobe vhost_net`.
 * @throws VringError ERR_VRING_DEVICE_MISSING, ERR_VRING_DEVICE_PERMISSION, ERR_VRING_DEVICE_BUSY
 *   (somebody else has it), ERR_VRING_DEVICE.
 * @syscalls open
 */
export function openDeviceNode(path: string, remedy: string): Fd {
  const result = native.open(path, O_RDWR | O_NONBLOCK);
  if (result >= 0) return new Fd(result, path);
  const reason = errnoName(-result);
  if (reason === 'ENOENT' || reason === 'ENODEV' || reason === 'ENXIO') {
    const what = existsSync(path) ? 'has no driver behind it' : 'does not exist';
    const text = `${path} ${what}; ${remedy}`;
    throw new VringError('ERR_VRING_DEVICE_MISSING', text, { recovery: 'retry' });
  }
  if (reason === 'EACCES' || reason === 'EPERM') {
    const text = `${path}: no permission to open it; run as root, or give your user the node`;
    throw new VringError('ERR_VRING_DEVICE_PERMISSION', text);
  }
  if (reason === 'EBUSY') {
    const text = `${path} is in use by another process; end it first, or take another device`;
    throw new VringError('ERR_VRING_DEVICE_BUSY', text, { recovery: 'retry' });
  }
  const cause = sysError('open', result, path);
  throw new VringError('ERR_VRING_DEVICE', `${path} cannot be opened: ${reason}`, { cause });
}

/**
 * An ioctl whose argument is a pointer to `argument`; the kernel may write into it.
 * @syscalls ioctl
 */
export const ioctlBytes: (fd: number, request: number, argument: Uint8Array) => number =
  native.ioctlBytes;

/**
 * An ioctl whose argument is a number, or that has none (0).
 * @syscalls ioctl
 */
export const ioctlValue: (fd: number, request: number, argument: number) => number =
  native.ioctlValue;

/** @syscalls read */
export const readBytes: (fd: number, into: Uint8Array) => number = native.readBytes;

/** @syscalls write */
export const writeBytes: (fd: number, from: Uint8Array) => number = native.writeBytes;
