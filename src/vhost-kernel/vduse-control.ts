/**
 * /dev/vduse/control: makes and destroys VDUSE devices. A device that was made lives until it is
 * destroyed, whoever made it: a successor finds it under its name.
 */
import { SysError, VringError } from '../base/errors.ts';
import { VDUSE_API_VERSION, VDUSE_IOCTL, VDUSE_NAME_MAX, VduseDevConfig } from '../wire/vduse.ts';
import { deviceName } from '../wire/virtio.ts';
import { KernelDevice } from './kernel-device.ts';
import { checkVduseConfig, checkVduseName, type VduseConfig } from './vduse-features.ts';

const CONTROL_PATH = '/dev/vduse/control';

/** What brings /dev/vduse: for whoever has no node. */
export const VDUSE_REMEDY =
  'load its module: modprobe vduse (distributions that build their kernel without ' +
  'CONFIG_VDPA_USER, Debian among them, have none: build it, see docs/vduse.md)';

/** Alignment of a ring that the driver puts into one piece of memory: `vring_create_virtqueue`. */
const VQ_ALIGN = 4096;

export class VduseControl {
  readonly #device: KernelDevice;

  /** @throws VringError ERR_VRING_DEVICE_*, ERR_VRING_KERNEL_LACKS (an API that is not ours). */
  static open(): VduseControl {
    const device = KernelDevice.open(CONTROL_PATH, VDUSE_REMEDY);
    try {
      return new VduseControl(device);
    } catch (error) {
      device.close();
      throw error;
    }
  }

  /** Use `open`. */
  constructor(device: KernelDevice) {
    this.#device = device;
    const version = device.getU64(VDUSE_IOCTL.GET_API_VERSION);
    // A newer kernel still speaks the API that it is told to.
    if (version !== BigInt(VDUSE_API_VERSION)) {
      device.setU64(VDUSE_IOCTL.SET_API_VERSION, BigInt(VDUSE_API_VERSION));
    }
  }

  /**
   * @throws VringError ERR_VRING_VDUSE_CONFIG, ERR_VRING_VDUSE_EXISTS, ERR_VRING_VDUSE_REFUSED,
   *   ERR_VRING_DEVICE_PERMISSION.
   */
  create(config: VduseConfig): void {
    checkVduseConfig(config);
    const argument = new Uint8Array(VduseDevConfig.size + config.config.length);
    VduseDevConfig.write(new DataView(argument.buffer), 0, {
      name: nameBytes(config.name),
      vendorId: config.vendorId,
      deviceId: config.deviceId,
      features: config.features,
      vqNum: config.queueCount,
      vqAlign: VQ_ALIGN,
      reserved: new Uint8Array(52),
      configSize: config.config.length,
    });
    argument.set(config.config, VduseDevConfig.size);
    try {
      this.#device.exchange(VDUSE_IOCTL.CREATE_DEV, argument, config.name);
    } catch (error) {
      throw createRefused(error, config);
    }
  }

  /** @throws VringError ERR_VRING_VDUSE_BUSY, ERR_VRING_VDUSE_UNKNOWN. */
  destroy(name: string): void {
    checkVduseName(name);
    try {
      this.#device.exchange(VDUSE_IOCTL.DESTROY_DEV, nameBytes(name), name);
    } catch (cause) {
      const reason = cause instanceof SysError ? cause.errnoName : '';
      if (reason === 'EBUSY') {
        const text =
          `VDUSE device ${name} is in use: served by a process, or still a device of the vdpa ` +
          `bus; end that process, and: vring vdpa delete ${name}`;
        throw new VringError('ERR_VRING_VDUSE_BUSY', text, { cause, recovery: 'retry' });
      }
      if (reason === 'EINVAL') {
        const text = `there is no VDUSE device ${name}; ls /dev/vduse shows those that there are`;
        throw new VringError('ERR_VRING_VDUSE_UNKNOWN', text, { cause });
      }
      throw cause;
    }
  }

  /** Idempotent. */
  close(): void {
    this.#device.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function nameBytes(name: string): Uint8Array {
  const bytes = new Uint8Array(VDUSE_NAME_MAX);
  bytes.set(new TextEncoder().encode(name));
  return bytes;
}

function createRefused(cause: unknown, config: VduseConfig): unknown {
  const reason = cause instanceof SysError ? cause.errnoName : '';
  const { name, deviceId } = config;
  if (reason === 'EEXIST') {
    const text = `there is a VDUSE device ${name} already; take another name, or destroy it first`;
    return new VringError('ERR_VRING_VDUSE_EXISTS', text, { cause });
  }
  if (reason === 'EPERM') {
    const text =
      `VDUSE device ${name}: no permission to make a virtio-${deviceName(deviceId)} device; ` +
      'run as root (net needs CAP_NET_ADMIN)';
    return new VringError('ERR_VRING_DEVICE_PERMISSION', text, { cause });
  }
  if (reason !== 'EINVAL') return cause;
  const text =
    `VDUSE device ${name}: this kernel refuses a virtio-${deviceName(deviceId)} device with ` +
    `features 0x${config.features.toString(16)}. VDUSE takes blk since Linux 5.15 and net since ` +
    '6.9; for net on an older kernel its two lists of device ids must be extended and the module ' +
    'built anew, see docs/vduse.md';
  return new VringError('ERR_VRING_VDUSE_REFUSED', text, { cause });
}
