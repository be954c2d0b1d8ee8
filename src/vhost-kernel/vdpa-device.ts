/**
 * One open /dev/vhost-vdpa-N: the ioctls that vhost-vDPA has beside those of every vhost device, as
 * typed calls. Linux, drivers/vhost/vdpa.c and include/uapi/linux/vhost.h.
 *
 * It keeps no state: what may be called when is decided by its user, `VhostVdpaBackend`. A call may
 * take long: the kernel asks the device behind the node, and behind a VDUSE device is a process,
 * for whose answer it waits up to 30 seconds.
 */
import { VringError } from '../base/errors.ts';
import type { Ioctl } from '../wire/ioctl.ts';
import { hasFeature } from '../wire/virtio.ts';
import {
  VdpaConfigHeader,
  VdpaIovaRange,
  VHOST_BACKEND_F_DESC_ASID,
  VHOST_BACKEND_F_RESUME,
  VHOST_BACKEND_F_SUSPEND,
  VHOST_FILE_UNBIND,
  VHOST_IOCTL,
} from '../wire/vhost-kernel.ts';
import { isErrno, VhostDevice } from './vhost-device.ts';

/** The addresses that the device can reach; `last` is inclusive. */
export type IovaRange = { readonly first: bigint; readonly last: bigint };

/** The kernel's ENOTSUPP, which has no name in user space: what `open` answers without an IOMMU. */
const ENOTSUPP = 524;

const REMEDY =
  'load vhost_vdpa (modprobe vhost_vdpa) and make a device: vdpa mgmtdev show, then ' +
  'vdpa dev add name vdpa0 mgmtdev NAME; one that virtio_vdpa has taken is bound anew in ' +
  '/sys/bus/vdpa/drivers';

export class VdpaDevice {
  readonly vhost: VhostDevice;

  /**
   * The kernel resets the device when its node is opened.
   * @throws VringError of `openDeviceNode`; ERR_VRING_DEVICE_BUSY: a vDPA device has one user.
   *   ERR_VRING_DEVICE_IOMMU: a device that relies on the platform's IOMMU, and there is none.
   */
  static open(path: string): VdpaDevice {
    try {
      return new VdpaDevice(VhostDevice.open(path, REMEDY));
    } catch (error) {
      const { cause } = error as VringError;
      if ((cause as { errno?: number } | undefined)?.errno !== ENOTSUPP) throw error;
      const text =
        `${path}: the device behind it needs an IOMMU that keeps caches coherent, and this ` +
        'machine has none in use; switch it on in the firmware and boot with intel_iommu=on or ' +
        'amd_iommu=on (in QEMU: -device intel-iommu, and iommu_platform=on for the card)';
      throw new VringError('ERR_VRING_DEVICE_IOMMU', text, { cause });
    }
  }

  /** Takes the device over. */
  constructor(vhost: VhostDevice) {
    this.vhost = vhost;
  }

  get path(): string {
    return this.vhost.path;
  }

  /** VIRTIO_ID_*. */
  getDeviceId(): number {
    return this.vhost.device.getU32(VHOST_IOCTL.VDPA_GET_DEVICE_ID);
  }

  getStatus(): number {
    return this.vhost.device.getU32(VHOST_IOCTL.VDPA_GET_STATUS) & 0xff;
  }

  /** 0 resets. Bits are never taken away one by one: the kernel answers EINVAL. */
  setStatus(status: number): void {
    this.vhost.device.exchange(
      VHOST_IOCTL.VDPA_SET_STATUS,
      Uint8Array.of(status),
      `status 0x${status.toString(16)}`,
    );
  }

  /** Bytes of the configuration space. Linux 5.18. */
  getConfigSize(): number {
    return this.vhost.device.getU32(VHOST_IOCTL.VDPA_GET_CONFIG_SIZE);
  }

  getConfig(offset: number, sizeBytes: number): Uint8Array {
    const argument = configArgument(offset, new Uint8Array(sizeBytes));
    const what = `${sizeBytes} bytes at ${offset}`;
    this.vhost.device.exchange(VHOST_IOCTL.VDPA_GET_CONFIG, argument, what);
    return argument.slice(VdpaConfigHeader.size);
  }

  setConfig(offset: number, bytes: Uint8Array): void {
    const what = `${bytes.length} bytes at ${offset}`;
    const argument = configArgument(offset, bytes);
    this.vhost.device.exchange(VHOST_IOCTL.VDPA_SET_CONFIG, argument, what);
  }

  /** An eventfd, lent, that is signalled when the device changed its configuration; or null. */
  setConfigCall(fd: number | null): void {
    this.vhost.device.setU32(VHOST_IOCTL.VDPA_SET_CONFIG_CALL, fd ?? VHOST_FILE_UNBIND);
  }

  /** Linux 5.18. */
  getVringCount(): number {
    return this.vhost.device.getU32(VHOST_IOCTL.VDPA_GET_VQS_COUNT);
  }

  /** Descriptors of the largest ring that the device takes. */
  getMaxVringSize(): number {
    return this.vhost.device.getU32(VHOST_IOCTL.VDPA_GET_VRING_NUM) & 0xffff;
  }

  /** As `getMaxVringSize`, for one ring; where the kernel cannot say (before 6.10), that. */
  getVringSize(index: number): number {
    try {
      return this.vhost.getState(VHOST_IOCTL.VDPA_GET_VRING_SIZE, index);
    } catch (error) {
      if ((error as VringError).code !== 'ERR_VRING_KERNEL_LACKS') throw error;
      return this.getMaxVringSize();
    }
  }

  /** Everything, where the kernel cannot say (before 5.11). */
  getIovaRange(): IovaRange {
    const argument = new Uint8Array(VdpaIovaRange.size);
    try {
      this.vhost.device.exchange(VHOST_IOCTL.VDPA_GET_IOVA_RANGE, argument);
    } catch (error) {
      if ((error as VringError).code !== 'ERR_VRING_KERNEL_LACKS') throw error;
      return { first: 0n, last: 2n ** 64n - 1n };
    }
    return VdpaIovaRange.decode(argument);
  }

  /** Sets of rings that share their address space. Linux 5.19. */
  getGroupCount(): number {
    return this.vhost.device.getU32(VHOST_IOCTL.VDPA_GET_GROUP_NUM);
  }

  getAddressSpaceCount(): number {
    return this.vhost.device.getU32(VHOST_IOCTL.VDPA_GET_AS_NUM);
  }

  /** @throws VringError ERR_VRING_DEVICE_LACKS: the device knows no groups. */
  getVringGroup(index: number): number {
    return this.#optional('groups of vrings', () =>
      this.vhost.getState(VHOST_IOCTL.VDPA_GET_VRING_GROUP, index),
    );
  }

  /** Of the ring's descriptors and indices, apart from its buffers. DESC_ASID, Linux 6.7. */
  getVringDescGroup(index: number): number {
    this.#need(VHOST_BACKEND_F_DESC_ASID, VHOST_IOCTL.VDPA_GET_VRING_DESC_GROUP);
    return this.vhost.getState(VHOST_IOCTL.VDPA_GET_VRING_DESC_GROUP, index);
  }

  /** Before DRIVER_OK; a reset puts every group into address space 0. */
  setGroupAsid(group: number, asid: number): void {
    this.#optional('address spaces', () => {
      try {
        this.vhost.setState(VHOST_IOCTL.VDPA_SET_GROUP_ASID, group, asid);
      } catch (cause) {
        if (!isErrno(cause, 'EINVAL') && !isErrno(cause, 'ENOBUFS')) throw cause;
        const text =
          `${this.path}: group ${group} cannot be in address space ${asid}: there are ` +
          `${this.getGroupCount()} groups and ${this.getAddressSpaceCount()} address spaces`;
        throw new VringError('ERR_VRING_VDPA_GROUP', text, { cause });
      }
    });
  }

  enableVring(index: number, enabled: boolean): void {
    this.vhost.setState(VHOST_IOCTL.VDPA_SET_VRING_ENABLE, index, enabled ? 1 : 0);
  }

  /** When it returns no ring is worked on. VHOST_BACKEND_F_SUSPEND, Linux 6.1. */
  suspend(): void {
    this.#need(VHOST_BACKEND_F_SUSPEND, VHOST_IOCTL.VDPA_SUSPEND);
    this.vhost.device.call(VHOST_IOCTL.VDPA_SUSPEND);
  }

  /** After `suspend`. VHOST_BACKEND_F_RESUME, Linux 6.6. */
  resume(): void {
    this.#need(VHOST_BACKEND_F_RESUME, VHOST_IOCTL.VDPA_RESUME);
    this.vhost.device.call(VHOST_IOCTL.VDPA_RESUME);
  }

  /** Idempotent. The kernel resets the device and forgets all mappings before the call returns. */
  close(): void {
    this.vhost.close();
  }

  /** A kernel that lacks one of these answers what other mistakes give, too: EFAULT, EPERM. */
  #need(bit: number, { name, since }: Ioctl): void {
    if (hasFeature(this.vhost.backendFeatures, bit)) return;
    const text =
      `${this.path}: ${name} is not offered: the kernel (Linux ${since} or newer has it) or the ` +
      'device behind lacks it';
    throw new VringError('ERR_VRING_KERNEL_LACKS', text);
  }

  #optional<T>(what: string, call: () => T): T {
    try {
      return call();
    } catch (cause) {
      if (!isErrno(cause, 'ENOTSUP')) throw cause; // another name of EOPNOTSUPP
      const text = `${this.path}: this device has no ${what}`;
      throw new VringError('ERR_VRING_DEVICE_LACKS', text, { cause });
    }
  }
}

function configArgument(offset: number, bytes: Uint8Array): Uint8Array {
  const argument = new Uint8Array(VdpaConfigHeader.size + bytes.length);
  argument.set(VdpaConfigHeader.encode({ off: offset, len: bytes.length }));
  argument.set(bytes, VdpaConfigHeader.size);
  return argument;
}
