/**
 * What every device of the kernel's vhost has, as typed calls: owner, features, memory, vrings,
 * dirty log, IOTLB. vhost-net, vhost-vsock and vhost-vDPA are this and a few ioctls of their own.
 *
 * It keeps no state but the descriptor and what was negotiated of backend features: what may be
 * called when is the kernel's to say (drivers/vhost/vhost.c), and which order is useful is its
 * user's. Addresses are those of this process, or an IOMMU's.
 */
import { SysError, VringError } from '../base/errors.ts';
import type { Ioctl } from '../wire/ioctl.ts';
import {
  VHOST_FILE_UNBIND,
  VHOST_IOCTL,
  VhostMemoryHeader,
  VhostMemoryRegion,
  VhostVringWorker,
  VhostWorkerState,
  VringAddr,
  VringFile,
  VringState,
} from '../wire/vhost-kernel.ts';
import { VHOST_VRING_F_LOG } from '../wire/vhost-user.ts';
import type { HostRegion } from './front-memory.ts';
import { IotlbChannel } from './iotlb-channel.ts';
import { KernelDevice } from './kernel-device.ts';

/** The three areas of a split ring, where this process has them; or as the IOMMU calls them. */
export type HostVring = {
  readonly desc: bigint;
  readonly avail: bigint;
  readonly used: bigint;
  /** Guest-physical address of the used ring; null: what is written there is not logged. */
  readonly usedLogGpa: bigint | null;
};

export class VhostDevice {
  readonly device: KernelDevice;
  readonly iotlb: IotlbChannel;
  #backendFeatures = 0n;

  /** @param remedy as for `KernelDevice.open`. */
  static open(path: string, remedy: string): VhostDevice {
    return new VhostDevice(KernelDevice.open(path, remedy));
  }

  /** Takes the device over. */
  constructor(device: KernelDevice) {
    this.device = device;
    this.iotlb = new IotlbChannel(device);
  }

  get path(): string {
    return this.device.path;
  }

  /** Bits of VHOST_BACKEND_F_* in use. */
  get backendFeatures(): bigint {
    return this.#backendFeatures;
  }

  /**
   * @throws VringError ERR_VRING_DEVICE_BUSY: the open file has an owner already, such as the
   *   process that gave the descriptor away.
   */
  setOwner(): void {
    try {
      this.device.call(VHOST_IOCTL.SET_OWNER);
    } catch (cause) {
      if (!isErrno(cause, 'EBUSY')) throw cause;
      const text =
        `${this.path}: this descriptor has an owner already; ` +
        'one open device serves one process: open the node again';
      throw new VringError('ERR_VRING_DEVICE_BUSY', text, { cause });
    }
  }

  /** Everything as after opening: the rings stop, the kernel's thread ends. */
  resetOwner(): void {
    this.device.call(VHOST_IOCTL.RESET_OWNER);
  }

  getFeatures(): bigint {
    return this.device.getU64(VHOST_IOCTL.GET_FEATURES);
  }

  setFeatures(acked: bigint): void {
    this.device.setU64(VHOST_IOCTL.SET_FEATURES, acked);
  }

  /**
   * Takes what is offered of `wanted`, and returns it. A kernel before 4.19 offers nothing.
   * Before anything of the IOTLB: the version of its messages depends on it.
   */
  negotiateBackendFeatures(wanted: bigint): bigint {
    let offered = 0n;
    try {
      offered = this.device.getU64(VHOST_IOCTL.GET_BACKEND_FEATURES);
    } catch (error) {
      if ((error as VringError).code !== 'ERR_VRING_KERNEL_LACKS') throw error;
    }
    const features = offered & wanted;
    if (features !== 0n) this.device.setU64(VHOST_IOCTL.SET_BACKEND_FEATURES, features);
    this.#backendFeatures = features;
    this.iotlb.features = features;
    return features;
  }

  /** Of our address space; it must stay mapped until the next table, or the end. */
  setMemTable(regions: readonly HostRegion[]): void {
    const { size } = VhostMemoryRegion;
    const table = new Uint8Array(VhostMemoryHeader.size + regions.length * size);
    const view = new DataView(table.buffer);
    VhostMemoryHeader.write(view, 0, { nregions: regions.length, padding: 0 });
    for (const [i, region] of regions.entries()) {
      VhostMemoryRegion.write(view, VhostMemoryHeader.size + i * size, {
        guestPhysAddr: region.guestPhysAddr,
        memorySize: region.sizeBytes,
        userspaceAddr: region.hostAddr,
        flagsPadding: 0n,
      });
    }
    this.device.exchange(VHOST_IOCTL.SET_MEM_TABLE, table, `${regions.length} regions`);
  }

  /** Where the bitmap lies in this process; it must stay mapped until the next one, or the end. */
  setLogBase(hostAddr: bigint): void {
    this.device.setU64(VHOST_IOCTL.SET_LOG_BASE, hostAddr);
  }

  /** An eventfd that is signalled whenever something was logged, or null. */
  setLogFd(fd: number | null): void {
    this.device.setU32(VHOST_IOCTL.SET_LOG_FD, fd ?? VHOST_FILE_UNBIND);
  }

  setVringNum(index: number, size: number): void {
    this.setState(VHOST_IOCTL.SET_VRING_NUM, index, size);
  }

  setVringAddr(index: number, ring: HostVring): void {
    const argument = VringAddr.encode({
      index,
      flags: ring.usedLogGpa === null ? 0 : VHOST_VRING_F_LOG,
      descUva: ring.desc,
      usedUva: ring.used,
      availUva: ring.avail,
      logGpa: ring.usedLogGpa ?? 0n,
    });
    this.device.exchange(VHOST_IOCTL.SET_VRING_ADDR, argument, `vring ${index}`);
  }

  setVringBase(index: number, base: number): void {
    this.setState(VHOST_IOCTL.SET_VRING_BASE, index, base);
  }

  getVringBase(index: number): number {
    return this.getState(VHOST_IOCTL.GET_VRING_BASE, index);
  }

  /** eventfds, lent: the kernel keeps a reference of its own. */
  setVringKick(index: number, fd: number | null): void {
    this.setFile(VHOST_IOCTL.SET_VRING_KICK, index, fd);
  }

  setVringCall(index: number, fd: number | null): void {
    this.setFile(VHOST_IOCTL.SET_VRING_CALL, index, fd);
  }

  setVringErr(index: number, fd: number | null): void {
    this.setFile(VHOST_IOCTL.SET_VRING_ERR, index, fd);
  }

  /** How long the kernel's thread looks at an idle ring before it sleeps; 0: not at all. */
  setBusyLoop(index: number, microseconds: number): void {
    this.setState(VHOST_IOCTL.SET_VRING_BUSYLOOP_TIMEOUT, index, microseconds);
  }

  getBusyLoop(index: number): number {
    return this.getState(VHOST_IOCTL.GET_VRING_BUSYLOOP_TIMEOUT, index);
  }

  /**
   * Byte order of a ring without VERSION_1.
   * @throws VringError ERR_VRING_KERNEL_LACKS: built without CONFIG_VHOST_CROSS_ENDIAN_LEGACY.
   */
  setVringEndian(index: number, bigEndian: boolean): void {
    crossEndian(this.path, () =>
      this.setState(VHOST_IOCTL.SET_VRING_ENDIAN, index, bigEndian ? 1 : 0),
    );
  }

  getVringEndian(index: number): 'little' | 'big' {
    const state = crossEndian(this.path, () => this.getState(VHOST_IOCTL.GET_VRING_ENDIAN, index));
    return state === 1 ? 'big' : 'little';
  }

  /** One more kernel thread of this device; its number. Linux 6.5. */
  newWorker(): number {
    const state = new Uint8Array(VhostWorkerState.size);
    return VhostWorkerState.decode(this.device.exchange(VHOST_IOCTL.NEW_WORKER, state)).workerId;
  }

  /** The worker must serve no ring. */
  freeWorker(workerId: number): void {
    const argument = VhostWorkerState.encode({ workerId });
    this.device.exchange(VHOST_IOCTL.FREE_WORKER, argument, `worker ${workerId}`);
  }

  attachVringWorker(index: number, workerId: number): void {
    const argument = VhostVringWorker.encode({ index, workerId });
    const what = `vring ${index}, worker ${workerId}`;
    this.device.exchange(VHOST_IOCTL.ATTACH_VRING_WORKER, argument, what);
  }

  getVringWorker(index: number): number {
    const argument = VhostVringWorker.encode({ index, workerId: 0 });
    this.device.exchange(VHOST_IOCTL.GET_VRING_WORKER, argument, `vring ${index}`);
    return VhostVringWorker.decode(argument).workerId;
  }

  /** Idempotent. The kernel stops the rings and ends its thread before the call returns. */
  close(): void {
    this.iotlb.close();
    this.device.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  // ---- by the shape of the argument, also for ioctls that only one kind of device has ----------

  /** `struct vhost_vring_state`, to the kernel. */
  setState(ioctl: Ioctl, index: number, num: number): void {
    this.device.exchange(ioctl, VringState.encode({ index, num }), `vring ${index}: ${num}`);
  }

  /** `struct vhost_vring_state`, from the kernel. */
  getState(ioctl: Ioctl, index: number): number {
    const argument = VringState.encode({ index, num: 0 });
    return VringState.decode(this.device.exchange(ioctl, argument, `vring ${index}`)).num;
  }

  /** `struct vhost_vring_file`; null takes away. */
  setFile(ioctl: Ioctl, index: number, fd: number | null): void {
    const argument = VringFile.encode({ index, fd: fd ?? VHOST_FILE_UNBIND });
    this.device.exchange(ioctl, argument, `vring ${index}, fd ${fd ?? 'none'}`);
  }
}

/** Whether something thrown by a KernelDevice is the system's error of that name. */
export function isErrno(error: unknown, name: string): boolean {
  return error instanceof SysError && error.errnoName === name;
}

function crossEndian<T>(path: string, call: () => T): T {
  try {
    return call();
  } catch (cause) {
    if ((cause as VringError).code !== 'ERR_VRING_KERNEL_LACKS') throw cause;
    const text =
      `${path}: this kernel was built without CONFIG_VHOST_CROSS_ENDIAN_LEGACY: ` +
      'rings of a driver without VERSION_1 have the byte order of the host';
    throw new VringError('ERR_VRING_KERNEL_LACKS', text, { cause });
  }
}
