/**
 * A vDPA device behind /dev/vhost-vdpa-N as a back-end: hardware, the kernel's simulators, a VDUSE
 * process, whoever offers a device on the vDPA bus.
 *
 * Theory of operation. The device sees no guest memory but what it is told, as translations of its
 * IOTLB, and vDPA devices demand VIRTIO_F_ACCESS_PLATFORM for that. A driver without an IOMMU of
 * its own knows nothing of it: then the bit is acked here and not shown, and the memory table is
 * the translations, guest-physical address for I/O virtual address. With the option `iommu` the bit
 * is shown, and a driver that takes it tells its translations with `iotlb.update`.
 *
 * Status is the device's own: features are taken when FEATURES_OK reads back, rings run from
 * DRIVER_OK on (vdpa-rings.ts has the order), bits go only by a reset, which the device's
 * translations do not survive (vdpa_sim forgets them, and vhost must be made to).
 *
 * A device that is deleted waits, in the kernel, until its node is closed. So the node is watched,
 * and when it is gone we let go at once: `closed` resolves with the reason.
 */
import { existsSync, watch, type FSWatcher } from 'node:fs';
import type {
  BackendIotlb,
  BackendMemoryRegion,
  VhostBackend,
  VringAddresses,
} from '../base/vhost-backend.ts';
import { VringError } from '../base/errors.ts';
import { arena, createEventfd, drainEventfd, type Fd, NotifyArea } from '../sys/index.ts';
import { type Poll, pollFd } from '../sys/index.ts';
import {
  VHOST_BACKEND_F_DESC_ASID,
  VHOST_BACKEND_F_ENABLE_AFTER_DRIVER_OK,
  VHOST_BACKEND_F_IOTLB_ASID,
  VHOST_BACKEND_F_IOTLB_BATCH,
  VHOST_BACKEND_F_IOTLB_MSG_V2,
  VHOST_BACKEND_F_IOTLB_PERSIST,
  VHOST_BACKEND_F_RESUME,
  VHOST_BACKEND_F_SUSPEND,
} from '../wire/vhost-kernel.ts';
import {
  featureNames,
  featureSet,
  hasFeature,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
} from '../wire/virtio.ts';
import { type IovaRange, VdpaDevice } from './vdpa-device.ts';
import { VdpaIotlb } from './vdpa-iotlb.ts';
import { VdpaMemory } from './vdpa-memory.ts';
import { VdpaRings } from './vdpa-rings.ts';
import type { HostVring } from './vhost-device.ts';
import { isErrno } from './vhost-device.ts';

export type VhostVdpaOptions = {
  /** Show VIRTIO_F_ACCESS_PLATFORM to the driver, which then has to tell its translations. */
  readonly iommu?: boolean;
  /** The device changed its configuration space. */
  readonly onConfigChange?: () => void;
  /** The device cannot go on until it is reset (DEVICE_NEEDS_RESET). */
  readonly onNeedsReset?: () => void;
};

/** Understood here; what the kernel offers of it is acked. */
const BACKEND_FEATURES = featureSet(
  VHOST_BACKEND_F_IOTLB_MSG_V2,
  VHOST_BACKEND_F_IOTLB_BATCH,
  VHOST_BACKEND_F_IOTLB_ASID,
  VHOST_BACKEND_F_SUSPEND,
  VHOST_BACKEND_F_RESUME,
  VHOST_BACKEND_F_ENABLE_AFTER_DRIVER_OK,
  VHOST_BACKEND_F_DESC_ASID,
  VHOST_BACKEND_F_IOTLB_PERSIST,
);

const PLATFORM = featureSet(VIRTIO_F_ACCESS_PLATFORM);

export class VhostVdpaBackend implements VhostBackend {
  readonly description: string;
  /** Groups, address spaces and whatever else is the device's own. */
  readonly device: VdpaDevice;
  /** VIRTIO_ID_*. */
  readonly deviceId: number;
  /** VHOST_BACKEND_F_* in use. */
  readonly backendFeatures: bigint;
  readonly iovaRange: IovaRange;
  readonly queueCount: number;
  readonly iotlb: BackendIotlb | null;
  /** vDPA devices do not say what they write; `ShadowBackend` does. */
  readonly dirtyLog = null;
  readonly restartsWhole: boolean;
  readonly closed: Promise<Error | null>;

  readonly #options: VhostVdpaOptions;
  readonly #offered: bigint;
  readonly #memory: VdpaMemory;
  readonly #rings: VdpaRings;
  readonly #spaces = new Map<number, VdpaIotlb>();
  readonly #notifyAreas = new Set<NotifyArea>();
  readonly #end = Promise.withResolvers<Error | null>();
  #configSize: number | null = null;
  #status = 0;
  #acked: bigint | null = null;
  #watcher: FSWatcher | null = null;
  #configCall: Fd | null = null;
  #configPoll: Poll | null = null;
  #ended = false;

  /**
   * @throws VringError ERR_VRING_DEVICE_*: what is in the way, with the remedy.
   */
  static async open(path: string, options: VhostVdpaOptions = {}): Promise<VhostVdpaBackend> {
    const device = VdpaDevice.open(path);
    try {
      const backend = new VhostVdpaBackend(device, options);
      backend.#watchNode();
      return backend;
    } catch (error) {
      device.close();
      throw error;
    }
  }

  /** Takes the device over. `open` also watches whether its node stays. */
  constructor(device: VdpaDevice, options: VhostVdpaOptions = {}) {
    this.device = device;
    this.description = `vhost-vdpa:${device.path}`;
    this.#options = options;
    device.vhost.setOwner(); // without an owner the kernel answers EPERM to most
    this.backendFeatures = device.vhost.negotiateBackendFeatures(BACKEND_FEATURES);
    this.deviceId = device.getDeviceId();
    this.#offered = device.vhost.getFeatures();
    this.iovaRange = device.getIovaRange();
    this.queueCount = device.getVringCount();
    const canResume = this.#can(VHOST_BACKEND_F_SUSPEND) && this.#can(VHOST_BACKEND_F_RESUME);
    this.restartsWhole = !canResume;
    this.#memory = new VdpaMemory(device.path, device.vhost.iotlb, this.iovaRange);
    this.#rings = new VdpaRings(device, this.queueCount, canResume);
    this.iotlb = options.iommu === true ? this.iotlbOf(0) : null;
    this.closed = this.#end.promise;
    this.#watchConfig();
  }

  /** Without ACCESS_PLATFORM, unless the driver is to have an IOMMU. */
  async getFeatures(): Promise<bigint> {
    return this.#options.iommu === true ? this.#offered : this.#offered & ~PLATFORM;
  }

  async setFeatures(acked: bigint): Promise<void> {
    if (acked === this.#acked) return;
    const lacking = acked & ~(await this.getFeatures());
    if (lacking !== 0n) throw this.#featureError(lacking, 'does not offer');
    // Demanded where it is offered: without it addresses would be the machine's own.
    const features = acked | (this.#offered & PLATFORM);
    try {
      this.device.vhost.setFeatures(features);
    } catch (error) {
      if (isErrno(error, 'EBUSY')) {
        const text =
          `${this.description}: features are negotiated already; a driver that wants others ` +
          'resets the device first';
        throw new VringError('ERR_VRING_FEATURES', text, { cause: error, recovery: 'reset' });
      }
      if (isErrno(error, 'EINVAL')) throw this.#featureError(features, 'does not take together');
      throw error;
    }
    this.#acked = acked;
  }

  /** Nothing: the device is ours since it was opened, and stays so across resets. */
  async setOwner(): Promise<void> {
    this.device.getStatus();
  }

  async getQueueNum(): Promise<number> {
    return this.queueCount;
  }

  /**
   * After the features. Without an IOMMU the device is told the regions; all of them are pinned.
   * @throws as `VdpaMemory.set`.
   */
  async setMemTable(regions: readonly BackendMemoryRegion[]): Promise<void> {
    this.#memory.set(regions, !this.#behindIommu);
  }

  async setVringNum(index: number, size: number): Promise<void> {
    this.#rings.setSize(index, size);
  }

  async setVringAddr(
    index: number,
    { descUva, availUva, usedUva }: VringAddresses,
    usedLogGpa: bigint | null = null,
  ): Promise<void> {
    if (usedLogGpa !== null) {
      const text = `${this.description} does not log what it writes; put a ShadowBackend before it`;
      throw new VringError('ERR_VRING_NOT_NEGOTIATED', text);
    }
    const place = (address: bigint) =>
      this.#behindIommu ? address : this.#memory.guestPhysAddr(address, 1n);
    const ring = { desc: place(descUva), avail: place(availUva), used: place(usedUva) };
    this.#rings.setAddresses(index, { ...ring, usedLogGpa: null });
  }

  /** @throws SysError EOPNOTSUPP: devices like vp_vdpa begin every ring at its start. */
  async setVringBase(index: number, base: number): Promise<void> {
    try {
      this.#rings.setBase(index, base);
    } catch (cause) {
      if (!isErrno(cause, 'ENOTSUP')) throw cause;
      const text =
        `${this.description}: vring ${index} cannot go on at base 0x${base.toString(16)}: this ` +
        'device begins every ring at its start; drive it through a ShadowBackend';
      throw new VringError('ERR_VRING_DEVICE_LACKS', text, { cause });
    }
  }

  /** Stops the whole device: by SUSPEND, or else by a reset. */
  async getVringBase(index: number): Promise<number> {
    this.#rings.stop(
      this.#can(VHOST_BACKEND_F_SUSPEND),
      () => this.#reset(),
      (ring) => this.#usedIndex(ring),
    );
    if (this.#rings.state === 'reset') this.#forgetMemory();
    return this.#rings.base(index);
  }

  async setVringKick(index: number, fd: number | null): Promise<void> {
    this.#rings.setKick(index, fd);
  }

  async setVringCall(index: number, fd: number | null): Promise<void> {
    this.#rings.setCall(index, fd);
  }

  /** Taken; no vDPA device of Linux signals it. */
  async setVringErr(index: number, fd: number | null): Promise<void> {
    this.#rings.setErr(index, fd);
  }

  async setVringEnable(index: number, enabled: boolean): Promise<void> {
    this.#rings.setEnabled(index, enabled);
  }

  /** @throws VringError ERR_VRING_CONFIG_RANGE */
  async getConfig(offset: number, sizeBytes: number): Promise<Uint8Array> {
    this.#checkConfig(offset, sizeBytes);
    return this.device.getConfig(offset, sizeBytes);
  }

  async setConfig(offset: number, bytes: Uint8Array): Promise<void> {
    this.#checkConfig(offset, bytes.length);
    this.device.setConfig(offset, bytes);
  }

  async getStatus(): Promise<number> {
    return this.device.getStatus();
  }

  /**
   * 0 resets. So does what a driver that begins anew says to a device that is stopped: the first
   * status after a stop by reset, one that takes bits away after a SUSPEND.
   * @throws VringError ERR_VRING_FEATURES: the device did not take FEATURES_OK.
   */
  async setStatus(status: number): Promise<void> {
    const { state } = this.#rings;
    const drops = (this.#status & ~status) !== 0;
    const anew = state === 'reset' || (state === 'suspended' && drops);
    if (status === 0 || anew) this.#resetAll();
    if (status === 0 || status === this.#status) return;
    if ((status & ~this.#status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0) {
      this.#rings.start(() => this.device.setStatus(status));
    } else this.device.setStatus(status);
    this.#status = status;
    if ((status & VIRTIO_CONFIG_S_FEATURES_OK) === 0) return;
    if ((this.device.getStatus() & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) return;
    throw this.#featureError(this.#acked ?? 0n, 'did not take (FEATURES_OK does not stay set)');
  }

  /**
   * Translations of another address space than the memory table's, by user addresses of it: for
   * rings of a group that `device.setGroupAsid` has put there.
   */
  iotlbOf(asid: number): VdpaIotlb {
    const known = this.#spaces.get(asid);
    if (known !== undefined) return known;
    const space = new VdpaIotlb(this.device.path, asid, this.device.vhost.iotlb, this.#memory);
    this.#spaces.set(asid, space);
    return space;
  }

  /**
   * The doorbell of a vring, to be used instead of its kick; it ends with this back-end at the
   * latest. Null: the device has none that can be mapped.
   */
  notifyArea(index: number): NotifyArea | null {
    const area = NotifyArea.map(this.device.vhost.device.fd, index);
    if (area !== null) this.#notifyAreas.add(area);
    return area;
  }

  async close(): Promise<void> {
    this.#finish(null);
  }

  #can(bit: number): boolean {
    return hasFeature(this.backendFeatures, bit);
  }

  get #behindIommu(): boolean {
    return this.#options.iommu === true && hasFeature(this.#acked ?? 0n, VIRTIO_F_ACCESS_PLATFORM);
  }

  #featureError(features: bigint, what: string): VringError {
    const names = featureNames(features, this.deviceId).join(' ');
    return new VringError('ERR_VRING_FEATURES', `${this.description} ${what}: ${names}`);
  }

  #checkConfig(offset: number, sizeBytes: number): void {
    this.#configSize ??= this.device.getConfigSize();
    const inside = offset >= 0 && sizeBytes > 0 && offset + sizeBytes <= this.#configSize;
    if (inside) return;
    const text =
      `${this.description}: ${sizeBytes} bytes at ${offset} are not within the configuration ` +
      `space of ${this.#configSize} bytes`;
    throw new VringError('ERR_VRING_CONFIG_RANGE', text);
  }

  /** Where a split ring's device was, of a device that stands still; null for a packed ring. */
  #usedIndex({ used }: HostVring): number | null {
    if (hasFeature(this.#acked ?? 0n, VIRTIO_F_RING_PACKED)) return null;
    const offset = this.#behindIommu
      ? this.iotlbOf(0).arenaOffset(used, 4)
      : this.#memory.arenaOffsetOfGpa(used, 4);
    return offset < 0 ? null : arena().view.getUint16(offset + 2, true);
  }

  #resetAll(): void {
    this.#reset();
    this.#forgetMemory();
    this.#rings.forget();
    this.#acked = null;
  }

  #reset(): void {
    this.device.setStatus(0);
    this.#status = 0;
  }

  /** After a reset, which the device's translations do not survive. Once more is nothing. */
  #forgetMemory(): void {
    this.#memory.forget();
    for (const space of this.#spaces.values()) space.forget();
  }

  #watchNode(): void {
    const { path } = this.device;
    this.#watcher = watch(path, { persistent: false }, () => {
      if (existsSync(path)) return;
      const text = `${this.description}: the device was deleted; it is let go of`;
      const error = new VringError('ERR_VRING_DEVICE_GONE', text, { recovery: 'reconnect' });
      this.#finish(error);
    });
    this.#watcher.on('error', () => undefined);
  }

  #watchConfig(): void {
    const { onConfigChange, onNeedsReset } = this.#options;
    if (onConfigChange === undefined && onNeedsReset === undefined) return;
    const call = createEventfd(`configuration of ${this.device.path}`);
    this.#configCall = call;
    this.device.setConfigCall(call.number);
    this.#configPoll = pollFd(call.number, { read: true }, () => {
      drainEventfd(call.number);
      this.#configChanged();
    });
  }

  #configChanged(): void {
    try {
      const broken = (this.device.getStatus() & VIRTIO_CONFIG_S_NEEDS_RESET) !== 0;
      if (broken) this.#options.onNeedsReset?.();
      else this.#options.onConfigChange?.();
    } catch (error) {
      this.#finish(error as Error);
    }
  }

  #finish(reason: Error | null): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#watcher?.close();
    this.#configPoll?.close();
    try {
      this.device.setStatus(0); // closing does that too; but then no ring runs while we unmap
    } catch {
      // The device does not answer: closing its node ends it.
    }
    for (const area of this.#notifyAreas) area.close();
    this.#rings.forget();
    this.device.close();
    this.#configCall?.close();
    this.#memory.close();
    this.#end.resolve(reason);
  }
}
