/**
 * /dev/vhost-net: the kernel moves frames between a guest's rings and a TAP.
 *
 * Theory of operation. A vhost-net device has two rings and one kernel thread, so a queue pair is
 * one open device and one queue of the TAP: vring 2p and 2p+1 here are vring 0 (receives) and 1
 * (sends) of device p. The kernel knows rings only; the offloads are the TAP's (virtio-net headers
 * go through untouched), the control queue and the configuration space the front-end's.
 *
 * What drivers/vhost/net.c and vhost.c demand, in the order in which it comes:
 *
 * 1. SET_OWNER ties the device to this process (EBUSY: it has one; everything else: EPERM before
 *    it) and starts the thread `vhost-PID`, which uses our address space.
 * 2. SET_FEATURES: only what GET_FEATURES said. Bit 27, VHOST_NET_F_VIRTIO_NET_HDR, would make the
 *    kernel invent the headers that our TAP already has: never acked. With ACCESS_PLATFORM it also
 *    makes an empty IOTLB, every time.
 * 3. SET_MEM_TABLE, then SET_VRING_NUM, _BASE (EBUSY while the ring has its TAP), _ADDR.
 * 4. NET_SET_BACKEND gives the TAP to a ring, which is its start: only now are addresses and log
 *    checked (EFAULT), the used index is read, and the flags of the used ring are written. With -1
 *    it is taken away: when that returns no frame is under way, and GET_VRING_BASE is final.
 * 5. RESET_OWNER or the last close ends the thread before it returns.
 *
 * When its interface is deleted the kernel says nothing: frames to send are completed and dropped.
 * Waiting for the TAP's fd to fail would wake this process for every frame that the kernel's own
 * reader is told of (tun.c wakes both the same way), so the fd is asked four times a second.
 */
import { VringError } from '../base/errors.ts';
import type {
  BackendDirtyLog,
  BackendIotlb,
  BackendMemoryRegion,
  VhostBackend,
  VringAddresses,
} from '../base/vhost-backend.ts';
import type { Fd } from '../sys/index.ts';
import {
  VHOST_BACKEND_F_IOTLB_MSG_V2,
  VHOST_IOCTL,
  VHOST_NET_F_VIRTIO_NET_HDR,
} from '../wire/vhost-kernel.ts';
import { VHOST_F_LOG_ALL } from '../wire/vhost-user.ts';
import { VIRTIO_NET_F_MQ } from '../wire/virtio-net.ts';
import {
  featureNames,
  featureSet,
  hasFeature,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_NET,
} from '../wire/virtio.ts';
import { HostRings } from './host-rings.ts';
import { HostIotlb } from './host-iotlb.ts';
import { TapQueues } from './tap-queues.ts';
import { VhostDevice } from './vhost-device.ts';

export type VhostNetOptions = {
  /**
   * Name of the interface, or a pattern (`tap%d`): made if it is not there, and then gone with
   * this back-end. Or its open queues, one per pair, which become the back-end's, come what may.
   */
  readonly tap: string | readonly Fd[];
  /** Default 1. */
  readonly queuePairs?: number;
  /** Set the interface up; default true. */
  readonly up?: boolean;
  /** Default /dev/vhost-net. */
  readonly path?: string;
  /** A translation is missing; answered by `iotlb.update`, or never. */
  readonly onMiss?: (iova: bigint, write: boolean) => void;
  /** How long the kernel looks at an idle ring before it sleeps; default 0, which is not at all. */
  readonly busyLoopMicroseconds?: number;
};

const PATH = '/dev/vhost-net';
const REMEDY = 'load its module: modprobe vhost_net';
/** As the kernel's TAP has queues: MAX_TAP_QUEUES of if_tun.h. */
const MAX_QUEUE_PAIRS = 256;
/** How long a deleted interface goes unnoticed. */
const LOOK_MS = 250;
const BACKEND_FEATURES = featureSet(VHOST_BACKEND_F_IOTLB_MSG_V2);
const LOG_ALL = featureSet(VHOST_F_LOG_ALL);

export class VhostNetBackend implements VhostBackend {
  readonly description: string;
  readonly iotlb: BackendIotlb;
  readonly dirtyLog: BackendDirtyLog;
  readonly restartsWhole = false;
  readonly closed: Promise<Error | null>;
  /** Of the TAP, as the kernel has it. */
  readonly interfaceName: string;
  /** One per queue pair, for what is theirs alone: workers, busy loop, byte order. */
  readonly devices: readonly VhostDevice[];
  readonly #tap: TapQueues;
  readonly #rings: HostRings;
  readonly #iotlb: HostIotlb;
  readonly #options: VhostNetOptions;
  /** VIRTIO_F_* and VHOST_F_* of the kernel. */
  readonly #kernelFeatures: bigint;
  readonly #end = Promise.withResolvers<Error | null>();
  #look: NodeJS.Timeout | null = null;
  #acked = 0n;
  #status = 0;

  /**
   * Opens devices and TAP queues; nothing runs yet.
   * @throws VringError ERR_VRING_DEVICE_MISSING, _PERMISSION, ERR_VRING_INTERFACE...
   */
  static open(options: VhostNetOptions): VhostNetBackend {
    const { queuePairs = 1, tap: wanted, up = true, path = PATH } = options;
    if (!Number.isInteger(queuePairs) || queuePairs < 1 || queuePairs > MAX_QUEUE_PAIRS) {
      if (typeof wanted !== 'string') for (const fd of wanted) fd.close();
      const text = `${queuePairs} queue pairs: a TAP has 1 to ${MAX_QUEUE_PAIRS}`;
      throw new VringError('ERR_VRING_INTERFACE', text);
    }
    const devices: VhostDevice[] = [];
    let tap: TapQueues | null = null;
    try {
      tap = TapQueues.open(wanted, queuePairs, up);
      for (let i = 0; i < queuePairs; i++) devices.push(VhostDevice.open(path, REMEDY));
      return new VhostNetBackend(devices, tap, options);
    } catch (error) {
      for (const device of devices) device.close();
      tap?.close();
      throw error;
    }
  }

  private constructor(devices: readonly VhostDevice[], tap: TapQueues, options: VhostNetOptions) {
    this.description = `vhost-net:${tap.name}`;
    this.interfaceName = tap.name;
    this.devices = devices;
    this.closed = this.#end.promise;
    this.#tap = tap;
    this.#options = options;
    this.#kernelFeatures =
      devices.reduce((common, device) => common & device.getFeatures(), ~0n) &
      ~featureSet(VHOST_NET_F_VIRTIO_NET_HDR);
    for (const device of devices) device.negotiateBackendFeatures(BACKEND_FEATURES);
    const places = devices.flatMap((device) => [
      { device, index: 0 },
      { device, index: 1 },
    ]);
    this.#rings = new HostRings(this.description, places, (index, on) => this.#run(index, on));
    this.#iotlb = new HostIotlb(this.description, devices, this.#rings);
    this.iotlb = this.#iotlb;
    this.dirtyLog = { setLogBase: async (fd, sizeBytes) => this.#rings.setLogBase(fd, sizeBytes) };
    this.#look = setInterval(() => this.#lookForInterface(), LOOK_MS).unref();
  }

  async getFeatures(): Promise<bigint> {
    return this.#offered();
  }

  /** While rings run, only VHOST_F_LOG_ALL may change. */
  async setFeatures(acked: bigint): Promise<void> {
    this.#checkFeatures(acked);
    this.#rings.setPlatform(hasFeature(acked, VIRTIO_F_ACCESS_PLATFORM));
    for (const device of this.devices) device.setFeatures(acked & this.#kernelFeatures);
    const changed = this.#acked ^ acked;
    if ((changed & ~LOG_ALL) !== 0n) this.#tap.accept(acked);
    this.#acked = acked;
    this.#iotlb.watch(this.#rings.platform ? (this.#options.onMiss ?? null) : null, (error) =>
      this.#gone(error),
    );
  }

  async setOwner(): Promise<void> {
    const { busyLoopMicroseconds = 0 } = this.#options;
    for (const device of this.devices) {
      device.setOwner();
      if (busyLoopMicroseconds === 0) continue;
      for (const index of [0, 1]) device.setBusyLoop(index, busyLoopMicroseconds);
    }
  }

  /** RESET_OWNER: all rings stop, the kernel's threads end; as new, and without an owner. */
  async resetOwner(): Promise<void> {
    this.#rings.stopAll();
    this.#iotlb.watch(null, () => undefined);
    for (const device of this.devices) device.resetOwner();
    this.#acked = 0n;
    this.#status = 0;
  }

  async getQueueNum(): Promise<number> {
    return 2 * this.devices.length;
  }

  async setMemTable(regions: readonly BackendMemoryRegion[]): Promise<void> {
    await this.#rings.setMemTable(regions);
  }

  async setVringNum(index: number, size: number): Promise<void> {
    this.#rings.setVringNum(index, size);
  }

  async setVringAddr(
    index: number,
    addresses: VringAddresses,
    usedLogGpa: bigint | null = null,
  ): Promise<void> {
    this.#rings.setVringAddr(index, addresses, usedLogGpa);
  }

  async setVringBase(index: number, base: number): Promise<void> {
    this.#rings.setVringBase(index, base);
  }

  async getVringBase(index: number): Promise<number> {
    return this.#rings.getVringBase(index);
  }

  async setVringKick(index: number, fd: number | null): Promise<void> {
    await this.#rings.setVringKick(index, fd);
  }

  async setVringCall(index: number, fd: number | null): Promise<void> {
    this.#rings.setVringCall(index, fd);
  }

  async setVringErr(index: number, fd: number | null): Promise<void> {
    this.#rings.setVringErr(index, fd);
  }

  /** Takes the TAP away from the ring, or gives it back; the ring keeps its place. */
  async setVringEnable(index: number, enabled: boolean): Promise<void> {
    await this.#rings.setVringEnable(index, enabled);
  }

  /** An eventfd that the kernel signals whenever it marked a page, or null. */
  setLogFd(fd: number | null): void {
    for (const device of this.devices) device.setLogFd(fd);
  }

  /** @throws VringError ERR_VRING_NOT_NEGOTIATED: the configuration space is the front-end's. */
  async getConfig(): Promise<Uint8Array> {
    throw this.#noConfig();
  }

  /** @throws VringError ERR_VRING_NOT_NEGOTIATED. */
  async setConfig(): Promise<void> {
    throw this.#noConfig();
  }

  async getStatus(): Promise<number> {
    return this.#status;
  }

  /** Kept here: vhost-net has none. 0, the driver's reset, stops all rings. */
  async setStatus(status: number): Promise<void> {
    if (status === 0) this.#rings.stopAll();
    this.#status = status;
  }

  async close(): Promise<void> {
    this.#release();
    this.#end.resolve(null);
  }

  #offered(): bigint {
    const mq = this.devices.length > 1 ? featureSet(VIRTIO_NET_F_MQ) : 0n;
    return this.#kernelFeatures | this.#tap.offloads | mq;
  }

  #checkFeatures(acked: bigint): void {
    const missing = acked & ~this.#offered();
    if (missing !== 0n) {
      const packed = hasFeature(missing, VIRTIO_F_RING_PACKED);
      const text =
        `${this.description} does not offer ${names(missing)}` +
        (packed ? "; the kernel's vhost-net has split rings only" : '');
      throw new VringError('ERR_VRING_FEATURES', text);
    }
    if (!hasFeature(acked, VIRTIO_F_VERSION_1)) {
      const text = `${this.description} needs VERSION_1: its headers have the 12 bytes of virtio 1`;
      throw new VringError('ERR_VRING_FEATURES', text);
    }
    if (hasFeature(acked, VHOST_F_LOG_ALL)) this.#rings.demandLog('VHOST_F_LOG_ALL is acked');
    const changed = (acked ^ this.#acked) & ~LOG_ALL;
    if (changed === 0n || !this.#rings.anyRunning) return;
    const text = `${this.description}: ${names(changed)} cannot change while rings run: stop them`;
    throw new VringError('ERR_VRING_BUSY', text);
  }

  #run(index: number, on: boolean): void {
    const pair = index >> 1;
    const fd = on ? this.#tap.fds[pair].number : null;
    this.devices[pair].setFile(VHOST_IOCTL.NET_SET_BACKEND, index & 1, fd);
  }

  #lookForInterface(): void {
    if (this.#tap.alive) return;
    const text =
      `${this.description}: the interface was deleted while in use; ` +
      'make it again and open the back-end anew';
    this.#gone(new VringError('ERR_VRING_INTERFACE_GONE', text, { recovery: 'reconnect' }));
  }

  /** The reason stands before the devices are closed: who waits for `closed` hears of it. */
  #gone(error: Error): void {
    this.#end.resolve(error);
    this.#release();
  }

  /** Idempotent. The kernel lets go of rings and TAP before their memory is unmapped. */
  #release(): void {
    if (this.#look !== null) clearInterval(this.#look);
    this.#look = null;
    this.#iotlb.watch(null, () => undefined);
    for (const device of this.devices) device.close();
    this.#tap.close();
    this.#rings.close();
  }

  #noConfig(): VringError {
    const text =
      `${this.description} has no configuration space: ` +
      'MAC address, MTU and link state are what the front-end says';
    return new VringError('ERR_VRING_NOT_NEGOTIATED', text);
  }
}

function names(features: bigint): string {
  return featureNames(features, VIRTIO_ID_NET).join(' ');
}
