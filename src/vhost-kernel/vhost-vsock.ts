/**
 * /dev/vhost-vsock: the kernel's AF_VSOCK at one end, a guest's socket device at the other.
 *
 * Theory of operation. The device has two rings, 0 (to the guest) and 1 (from it); the event queue
 * is the front-end's. A context id makes the guest known to the host's sockets from then on, also
 * before its rings run: what the host sends waits in the kernel. SET_RUNNING starts both rings at
 * once and checks both (EFAULT: one was not set up), so the device runs while both are wanted, and
 * stopping one stops both; the other goes on with it. Nothing else has to be undone: when
 * SET_RUNNING 0 returns the kernel is in neither ring (drivers/vhost/vsock.c, `vhost_vsock_stop`).
 *
 * There is no dirty log, although the kernel offers VHOST_F_LOG_ALL: Linux marks what it writes
 * into the rings and forgets the buffers (`vhost_transport_do_send_pkt` takes them without a log).
 */
import { VringError } from '../base/errors.ts';
import type {
  BackendIotlb,
  BackendMemoryRegion,
  VhostBackend,
  VringAddresses,
} from '../base/vhost-backend.ts';
import { VHOST_BACKEND_F_IOTLB_MSG_V2, VHOST_IOCTL } from '../wire/vhost-kernel.ts';
import { VHOST_F_LOG_ALL } from '../wire/vhost-user.ts';
import { VsockConfig, VSOCK_FIRST_GUEST_CID, VSOCK_LAST_GUEST_CID } from '../wire/virtio-vsock.ts';
import {
  featureNames,
  featureSet,
  hasFeature,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_ID_VSOCK,
} from '../wire/virtio.ts';
import { HostIotlb } from './host-iotlb.ts';
import { HostRings } from './host-rings.ts';
import { isErrno, VhostDevice } from './vhost-device.ts';

export type VhostVsockOptions = {
  /** The guest's context id: 3 to 2^32 - 2, one of its own on this host. */
  readonly cid: number;
  /** Default /dev/vhost-vsock. */
  readonly path?: string;
  /** A translation is missing; answered by `iotlb.update`, or never. */
  readonly onMiss?: (iova: bigint, write: boolean) => void;
};

const PATH = '/dev/vhost-vsock';
const REMEDY = 'load its module: modprobe vhost_vsock';
const RINGS = 2;

export class VhostVsockBackend implements VhostBackend {
  readonly description: string;
  readonly cid: number;
  readonly iotlb: BackendIotlb;
  readonly dirtyLog = null;
  readonly restartsWhole = false;
  readonly closed: Promise<Error | null>;
  /** For what is its alone: workers, busy loop. */
  readonly device: VhostDevice;
  readonly #rings: HostRings;
  readonly #iotlb: HostIotlb;
  readonly #onMiss: VhostVsockOptions['onMiss'] | null;
  readonly #end = Promise.withResolvers<Error | null>();
  readonly #wanted: boolean[] = Array.from({ length: RINGS }, () => false);
  #running = false;
  #acked = 0n;
  #status = 0;

  /**
   * Opens the device and takes the context id; nothing runs yet.
   * @throws VringError ERR_VRING_DEVICE_MISSING, _PERMISSION, ERR_VRING_VSOCK_CID (no id of a
   *   guest), ERR_VRING_VSOCK_CID_BUSY.
   */
  static open(options: VhostVsockOptions): VhostVsockBackend {
    checkCid(options.cid);
    const device = VhostDevice.open(options.path ?? PATH, REMEDY);
    try {
      takeCid(device, options.cid);
      return new VhostVsockBackend(device, options);
    } catch (error) {
      device.close();
      throw error;
    }
  }

  private constructor(device: VhostDevice, options: VhostVsockOptions) {
    this.description = `vhost-vsock:${options.cid}`;
    this.cid = options.cid;
    this.device = device;
    this.closed = this.#end.promise;
    this.#onMiss = options.onMiss ?? null;
    device.negotiateBackendFeatures(featureSet(VHOST_BACKEND_F_IOTLB_MSG_V2));
    const places = Array.from({ length: RINGS }, (_, index) => ({ device, index }));
    this.#rings = new HostRings(this.description, places, (index, on) => this.#run(index, on));
    this.#iotlb = new HostIotlb(this.description, [device], this.#rings);
    this.iotlb = this.#iotlb;
  }

  async getFeatures(): Promise<bigint> {
    return this.device.getFeatures() & ~featureSet(VHOST_F_LOG_ALL);
  }

  async setFeatures(acked: bigint): Promise<void> {
    const missing = acked & ~(await this.getFeatures());
    const names = (bits: bigint): string => featureNames(bits, VIRTIO_ID_VSOCK).join(' ');
    if (missing !== 0n) {
      const text = `${this.description} does not offer ${names(missing)}`;
      throw new VringError('ERR_VRING_FEATURES', text);
    }
    if (acked !== this.#acked && this.#rings.anyRunning) {
      const text = `${this.description}: features cannot change while rings run: stop them`;
      throw new VringError('ERR_VRING_BUSY', text);
    }
    this.#rings.setPlatform(hasFeature(acked, VIRTIO_F_ACCESS_PLATFORM));
    this.device.setFeatures(acked);
    this.#acked = acked;
    this.#iotlb.watch(this.#rings.platform ? (this.#onMiss ?? null) : null, (error) =>
      this.#gone(error),
    );
  }

  async setOwner(): Promise<void> {
    this.device.setOwner();
  }

  /** Without the event queue, which is the front-end's. */
  async getQueueNum(): Promise<number> {
    return RINGS;
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

  /** Stops both rings; the other one goes on when this one does. */
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

  async setVringEnable(index: number, enabled: boolean): Promise<void> {
    await this.#rings.setVringEnable(index, enabled);
  }

  /** `struct virtio_vsock_config`: the context id. */
  async getConfig(offset: number, sizeBytes: number): Promise<Uint8Array> {
    if (offset < 0 || offset + sizeBytes > VsockConfig.size) {
      const range = `${offset} to ${offset + sizeBytes}`;
      const text = `${this.description}: configuration has ${VsockConfig.size} bytes, not ${range}`;
      throw new VringError('ERR_VRING_CONFIG_RANGE', text);
    }
    const config = VsockConfig.encode({ guestCid: BigInt(this.cid) });
    return config.slice(offset, offset + sizeBytes);
  }

  /** @throws VringError ERR_VRING_NOT_NEGOTIATED: nothing can be written. */
  async setConfig(): Promise<void> {
    const text = `${this.description}: nothing of its configuration space can be written`;
    throw new VringError('ERR_VRING_NOT_NEGOTIATED', text);
  }

  async getStatus(): Promise<number> {
    return this.#status;
  }

  /** Kept here: vhost-vsock has none. 0, the driver's reset, stops both rings. */
  async setStatus(status: number): Promise<void> {
    if (status === 0) this.#rings.stopAll();
    this.#status = status;
  }

  /** The host's sockets to this guest see a reset. */
  async close(): Promise<void> {
    this.#release();
    this.#end.resolve(null);
  }

  #run(index: number, on: boolean): void {
    this.#wanted[index] = on;
    const run = this.#wanted.every((wanted) => wanted);
    if (run === this.#running) return;
    try {
      this.device.device.setU32(VHOST_IOCTL.VSOCK_SET_RUNNING, run ? 1 : 0);
    } catch (error) {
      this.#wanted[index] = false; // neither ring runs
      throw error;
    }
    this.#running = run;
  }

  #gone(error: Error): void {
    this.#end.resolve(error);
    this.#release();
  }

  #release(): void {
    this.device.close();
    this.#rings.close();
  }
}

function checkCid(cid: number): void {
  const inRange = cid >= VSOCK_FIRST_GUEST_CID && cid <= VSOCK_LAST_GUEST_CID;
  if (Number.isInteger(cid) && inRange) return;
  const text =
    `${cid} is no context id of a guest: ` +
    `${VSOCK_FIRST_GUEST_CID} to ${VSOCK_LAST_GUEST_CID} are (2 is the host)`;
  throw new VringError('ERR_VRING_VSOCK_CID', text);
}

function takeCid(device: VhostDevice, cid: number): void {
  try {
    device.device.setU64(VHOST_IOCTL.VSOCK_SET_GUEST_CID, BigInt(cid));
  } catch (cause) {
    if (!isErrno(cause, 'EADDRINUSE')) throw cause;
    const text = `context id ${cid} is in use on this host: end that guest, or take another id`;
    throw new VringError('ERR_VRING_VSOCK_CID_BUSY', text, { cause, recovery: 'retry' });
  }
}
