/**
 * One open device node of the kernel's vhost, and its ioctls as typed calls. A refusal is a
 * VringError that names the ioctl, the device, and what helps.
 */
import { VringError } from '../base/errors.ts';
import {
  errnoName,
  type Fd,
  ioctlBytes,
  ioctlValue,
  openDeviceNode,
  sysError,
} from '../sys/index.ts';
import type { Ioctl } from '../wire/ioctl.ts';

export class KernelDevice {
  readonly path: string;
  readonly #fd: Fd;

  /**
   * @param remedy what brings the node where it is missing: `load its module: modprobe vhost_net`.
   * @throws VringError of `openDeviceNode`.
   */
  static open(path: string, remedy: string): KernelDevice {
    return new KernelDevice(path, openDeviceNode(path, remedy));
  }

  /** Takes the descriptor over. */
  constructor(path: string, fd: Fd) {
    this.path = path;
    this.#fd = fd;
  }

  /** @throws VringError ERR_VRING_CLOSED: also for every call that uses it. */
  get fd(): number {
    if (this.#fd.closed) throw new VringError('ERR_VRING_CLOSED', `${this.path} is closed`);
    return this.#fd.number;
  }

  get closed(): boolean {
    return this.#fd.closed;
  }

  /** An ioctl without argument, or with a number. */
  call(ioctl: Ioctl, argument = 0): number {
    const result = ioctlValue(this.fd, ioctl.request, argument);
    if (result < 0) throw this.refusal(ioctl, result);
    return result;
  }

  /**
   * An ioctl with a struct, which the kernel may write into; returns the same bytes.
   * @param what of the device is meant, for the message of a refusal: `vring 1`.
   */
  exchange<B extends Uint8Array>(ioctl: Ioctl, argument: B, what = ''): B {
    const result = ioctlBytes(this.fd, ioctl.request, argument);
    if (result < 0) throw this.refusal(ioctl, result, what);
    return argument;
  }

  getU64(ioctl: Ioctl): bigint {
    return new DataView(this.exchange(ioctl, new Uint8Array(8)).buffer).getBigUint64(0, true);
  }

  setU64(ioctl: Ioctl, value: bigint): void {
    const argument = new Uint8Array(8);
    new DataView(argument.buffer).setBigUint64(0, value, true);
    this.exchange(ioctl, argument);
  }

  /** Fields of up to 32 bits: u8, u16, int, unsigned. */
  getU32(ioctl: Ioctl): number {
    return new DataView(this.exchange(ioctl, new Uint8Array(4)).buffer).getUint32(0, true);
  }

  setU32(ioctl: Ioctl, value: number): void {
    const argument = new Uint8Array(4);
    new DataView(argument.buffer).setUint32(0, value >>> 0, true);
    this.exchange(ioctl, argument);
  }

  /** Idempotent. */
  close(): void {
    this.#fd.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** The error for an ioctl that somebody made on `fd` and that failed with -errno. */
  refusal({ name, since }: Ioctl, result: number, what = ''): VringError {
    const reason = errnoName(-result);
    const detail = what === '' ? this.path : `${this.path}, ${what}`;
    const cause = sysError(`ioctl(${name})`, result, detail);
    // What the kernel answers for a number it does not know: vhost.c, vdpa.c, vduse_dev.c.
    if (reason === 'ENOIOCTLCMD' || reason === 'ENOTTY') {
      const text = `${this.path}: this kernel has no ${name} (Linux ${since} or newer has it)`;
      return new VringError('ERR_VRING_KERNEL_LACKS', text, { cause });
    }
    if (reason === 'ENODEV' || reason === 'EIO' || reason === 'ENXIO') {
      const text = `${this.path}: the device is gone (${name}: ${reason})`;
      return new VringError('ERR_VRING_DEVICE_GONE', text, { cause, recovery: 'reconnect' });
    }
    return cause;
  }
}
