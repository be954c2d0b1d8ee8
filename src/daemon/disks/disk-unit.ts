/**
 * A disk without the way to it: the image, the device over it, and the worker that does its I/O.
 * One worker per disk, so that a medium that hangs holds up nobody else. Whoever has a unit brings
 * a driver to `host`, over vhost-user or VDUSE.
 */
import { isDeepStrictEqual } from 'node:util';
import { ConfigError, VringError } from '../../base/errors.ts';
import {
  type AddDisk,
  BLK_PLANE_MODULE,
  BlkDevice,
  type DiskStatus,
} from '../../devices/blk/index.ts';
import { DeviceHost, type PlaneEvent } from '../../runtime/index.ts';
import { canErase, type DiskImage, type StackSpec, type ZoneShape } from '../../storage/index.ts';
import { errnoName } from '../../sys/index.ts';
import { faultName } from '../../virtqueue/faults.ts';
import type { BlkLifetime } from '../../wire/virtio-blk.ts';
import { DEVICE, DeviceWorker, DISK_PROTOCOL_FEATURES } from './device-worker.ts';
import type { PlaneCounts } from './disk-counts.ts';
import { type DiskUnitEvent, type ImageFacts, openImage, ServedUnit } from './served-unit.ts';

export type { DiskUnitEvent, ImageFacts } from './served-unit.ts';

export type DiskShape = {
  /** From top to bottom. */
  readonly stack: StackSpec;
  readonly readOnly: boolean;
  readonly queues: number;
  /** At most 20 bytes. */
  readonly serial: string;
  readonly blockBytes: number;
  readonly packed: boolean;
  readonly iommu: boolean;
  /** Offer to overwrite what is erased; refused where the engine cannot promise that. */
  readonly secureErase?: boolean;
  /** What is known of the wear of the medium. */
  readonly lifetime?: BlkLifetime | null;
};

export type DiskUnitOptions = {
  readonly shape: DiskShape;
  readonly spinMs: number;
  readonly onEvent: (event: DiskUnitEvent) => void;
  /** Something that a status display shows has changed. */
  readonly onChange?: () => void;
  /** The worker, or the storage thread of the image, ended by itself: close the unit. */
  readonly onCrash: (error: Error) => void;
  /** NBD exports have ended by themselves, and nothing else. */
  readonly onExportsLost?: () => void;
};

export class DiskUnit extends ServedUnit {
  readonly device: BlkDevice;
  readonly host: DeviceHost;
  readonly worker: DeviceWorker;
  readonly #options: DiskUnitOptions;
  #workerFailure: Error | null = null;
  /** What the driver was told of its zones; null: the disk has none. */
  readonly zones: ZoneShape | null;

  /**
   * Opens the image, and everything over it.
   * @throws VringError, SysError, ConfigError: what was asked for cannot be; nothing is left open.
   */
  static async open(options: DiskUnitOptions): Promise<DiskUnit> {
    const image = await openImage({ ...options, ...options.shape });
    let unit: DiskUnit | null = null;
    try {
      unit = new DiskUnit(options, image);
      await unit.begin(image);
      return unit;
    } catch (error) {
      await unit?.close();
      await image.close();
      throw error;
    }
  }

  /**
   * Everything but the image, which another process has: `attachImage` follows.
   * @throws ConfigError.
   */
  static without(options: DiskUnitOptions, facts: ImageFacts): DiskUnit {
    return new DiskUnit(options, facts);
  }

  private constructor(options: DiskUnitOptions, { sizeBytes, readOnly, zones = null }: ImageFacts) {
    super({ ...options, ...options.shape }, readOnly);
    this.#options = options;
    this.zones = zones;
    const { queues, blockBytes, packed, iommu } = options.shape;
    const { secureErase = false, lifetime = null } = options.shape;
    const shape = { queues, blockBytes, packed, iommu, secureErase, lifetime, zones };
    this.device = new BlkDevice({ sizeBytes, readOnly, ...shape });
    this.worker = new DeviceWorker({
      name: 'vring-blk',
      planeModule: BLK_PLANE_MODULE,
      planeOptions: null,
      spinMs: options.spinMs,
      onEvent: (event) => this.#planeEvent(event),
      onCrash: (error) => {
        this.#workerFailure = error;
        options.onCrash(error);
      },
    });
    this.host = new DeviceHost({
      worker: this.worker,
      number: DEVICE,
      device: this.device,
      protocolFeatures: DISK_PROTOCOL_FEATURES,
      queueNum: queues,
      onMtu: () => false,
      onChange: () => options.onChange?.(),
    });
  }

  get sizeBytes(): number {
    return this.device.sizeBytes;
  }

  set sizeBytes(sizeBytes: number) {
    this.device.sizeBytes = sizeBytes;
  }

  status(): Promise<DiskStatus> {
    return this.worker.request<DiskStatus>('diskStatus', { device: DEVICE });
  }

  async counts(): Promise<PlaneCounts> {
    const status = await this.status();
    return { ...status, underWay: status.vrings.reduce((sum, { busy }) => sum + busy, 0) };
  }

  /** Ends the worker, then the image. Idempotent; its sessions are over. */
  close(): Promise<void> {
    return this.letGo();
  }

  protected get workerFailure(): Error | null {
    return this.#workerFailure;
  }

  protected async addToPlane(image: DiskImage): Promise<void> {
    const { queues, serial, secureErase = false, lifetime = null } = this.#options.shape;
    const { cache } = this.device;
    if (secureErase && !canErase(image.spec)) {
      const text = `${image.description} cannot promise that nothing is left; remove it`;
      throw new ConfigError('secureErase', text);
    }
    this.#demandSameZones(image);
    const { zones } = this;
    const common = { device: DEVICE, queues, serial, lifetime, cache, zones };
    const add: AddDisk = { ...common, failedFlush: this.failedFlush, image: image.spec };
    await this.worker.request('addDisk', add);
    this.worker.hasDevice = true;
  }

  /** No ring runs. */
  protected async parkInPlane(): Promise<void> {
    this.failedFlush = (await this.status()).failedFlush;
    await this.removeFromPlane();
  }

  protected async removeFromPlane(): Promise<void> {
    if (!this.worker.hasDevice) return;
    this.worker.hasDevice = false;
    await this.worker.request('removeDisk', { device: DEVICE });
  }

  protected async resizeInPlane(sizeBytes: number): Promise<void> {
    await this.worker.request('resizeDisk', { device: DEVICE, sizeBytes });
  }

  /** A driver that runs relies on what it was told. */
  #demandSameZones(image: DiskImage): void {
    if (isDeepStrictEqual(image.zones ?? null, this.zones)) return;
    const text = `${image.description} has other zones than when the driver began`;
    throw new VringError('ERR_VRING_DISK_FILE', text);
  }

  /** A driver that does not hear of it is no error of the disk. */
  protected async announce(): Promise<void> {
    try {
      await this.host.configChanged();
    } catch (error) {
      const reason = `the front-end does not take the change: ${(error as Error).message}`;
      this.#options.onEvent({ kind: 'problem', reason });
    }
  }

  protected override afterPlane(): Promise<void> {
    return this.worker.close();
  }

  #planeEvent(event: PlaneEvent): void {
    this.host.planeEvent(event);
    const { onEvent } = this.#options;
    if (event.kind === 'fault') {
      const { code, index: queue } = event;
      onEvent({ kind: 'fault', code, queue, fault: faultName(code) });
    } else if (event.kind === 'io-error') {
      const { index: queue, op, at, errno, count } = event;
      const image = this.description;
      onEvent({ kind: 'io-error', image, queue, op, at, error: errnoName(errno), count });
    }
  }
}
