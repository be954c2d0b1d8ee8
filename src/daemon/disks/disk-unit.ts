/**
 * A disk without the way to it: the image, the device over it, and the worker that does its I/O.
 * One worker per disk, so that a medium that hangs holds up nobody else. Whoever has a unit brings
 * a driver to `host`, over vhost-user or VDUSE.
 *
 * A unit can be without its image while somebody else has it (`detachImage`): it answers for the
 * device then, and no ring runs.
 */
import { assert } from '../../base/assert.ts';
import { ConfigError, VringError } from '../../base/errors.ts';
import {
  type AddDisk,
  BLK_PLANE_MODULE,
  BlkDevice,
  type DiskStatus,
} from '../../devices/blk/index.ts';
import {
  DataPlaneWorker,
  DeviceHost,
  type PlaneEvent,
  workerEnvironment,
} from '../../runtime/index.ts';
import { canErase, type DiskImage, openStack, type StackSpec } from '../../storage/index.ts';
import { errnoName } from '../../sys/index.ts';
import { BACKEND_PROTOCOL_FEATURES } from '../../vhost-user/index.ts';
import { faultName } from '../../virtqueue/faults.ts';
import {
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
} from '../../wire/vhost-user.ts';
import { featureSet } from '../../wire/virtio.ts';
import type { BlkLifetime } from '../../wire/virtio-blk.ts';

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
  /** The worker ended by itself: close the unit. */
  readonly onCrash: (error: Error) => void;
};

export type DiskUnitEvent =
  | { readonly kind: 'problem'; readonly reason: string }
  | {
      readonly kind: 'fault';
      readonly code: number;
      readonly queue: number;
      readonly fault: string;
    }
  | {
      readonly kind: 'io-error';
      readonly image: string;
      readonly queue: number;
      readonly op: string;
      readonly at: number;
      readonly error: string;
      readonly count: number;
    };

/** What a driver sees of an image. */
export type ImageFacts = { readonly sizeBytes: number; readonly readOnly: boolean };

/** The device's number in its worker, which has no other. */
const DEVICE = 0;

/** All that a disk has a use for; postcopy would let a front-end hold the worker up. */
const PROTOCOL_FEATURES =
  (BACKEND_PROTOCOL_FEATURES | featureSet(VHOST_USER_PROTOCOL_F_RESET_DEVICE)) &
  ~featureSet(VHOST_USER_PROTOCOL_F_MTU, VHOST_USER_PROTOCOL_F_PAGEFAULT);

/** A worker whose disk may be away; a session that ends meanwhile has nothing to reset there. */
class DiskWorker extends DataPlaneWorker {
  hasDisk = false;

  override async resetDevice(device: number): Promise<void> {
    if (this.hasDisk) await super.resetDevice(device);
  }
}

export class DiskUnit {
  readonly device: BlkDevice;
  readonly host: DeviceHost;
  readonly worker: DiskWorker;
  readonly #options: DiskUnitOptions;
  /**
   * `DiskStatus.failedFlush` when the image was closed last: it goes on failing with the next one,
   * until somebody who has decided what is true sets it to 0.
   */
  failedFlush = 0;
  #image: DiskImage | null = null;
  #stack: StackSpec;
  readonly #readOnly: boolean;

  /**
   * Opens the image, and everything over it.
   * @throws VringError, SysError, ConfigError: what was asked for cannot be; nothing is left open.
   */
  static async open(options: DiskUnitOptions): Promise<DiskUnit> {
    const image = await openImage(options);
    let unit: DiskUnit | null = null;
    try {
      unit = new DiskUnit(options, image);
      await unit.#add(image);
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

  private constructor(options: DiskUnitOptions, { sizeBytes, readOnly }: ImageFacts) {
    this.#options = options;
    this.#stack = options.shape.stack;
    this.#readOnly = readOnly;
    const { queues, blockBytes, packed, iommu } = options.shape;
    const { secureErase = false, lifetime = null } = options.shape;
    const shape = { queues, blockBytes, packed, iommu, secureErase, lifetime };
    this.device = new BlkDevice({ sizeBytes, readOnly, ...shape });
    this.worker = new DiskWorker({
      name: 'vring-blk',
      planeModule: BLK_PLANE_MODULE,
      planeOptions: null,
      spinMs: options.spinMs,
      onEvent: (event) => this.#planeEvent(event),
      onCrash: options.onCrash,
    });
    this.host = new DeviceHost({
      worker: this.worker,
      number: DEVICE,
      device: this.device,
      protocolFeatures: PROTOCOL_FEATURES,
      queueNum: queues,
      onMtu: () => false,
      onChange: () => options.onChange?.(),
    });
  }

  /** @throws VringError ERR_VRING_DISK_AWAY while another process has it. */
  get image(): DiskImage {
    if (this.#image !== null) return this.#image;
    const text = 'the disk is changing hands; ask again in a moment';
    throw new VringError('ERR_VRING_DISK_AWAY', text, { recovery: 'retry' });
  }

  get hasImage(): boolean {
    return this.#image !== null;
  }

  get description(): string {
    return this.#image?.description ?? 'nothing';
  }

  /**
   * After `without` or `detachImage`. A driver that runs relies on what it was told: an image that
   * has become read-only is refused, another size is told by `lookAtSize`.
   */
  async attachImage(stack: StackSpec = this.#stack): Promise<void> {
    assert(this.#image === null, 'a unit has one image');
    const image = await openImage(this.#options, stack);
    try {
      if (image.readOnly !== this.#readOnly) {
        const [is, was] = image.readOnly ? ['read-only', 'writable'] : ['writable', 'read-only'];
        const text = `${image.description} is ${is} now, and was ${was} when the driver began`;
        throw new VringError('ERR_VRING_DISK_FILE', text);
      }
      await this.#add(image);
      this.#stack = stack;
    } catch (error) {
      await image.close();
      throw error;
    }
  }

  /** Closes the image, so that another process can open it. No ring runs. */
  async detachImage(): Promise<void> {
    const image = this.image;
    this.failedFlush = (await this.status()).failedFlush;
    await this.worker.request('removeDisk', { device: DEVICE });
    this.worker.hasDisk = false;
    this.#image = null;
    await image.close();
  }

  status(): Promise<DiskStatus> {
    return this.worker.request<DiskStatus>('diskStatus', { device: DEVICE });
  }

  /** The image may have another size by now; true: it had, and the driver was told. */
  async lookAtSize(): Promise<boolean> {
    const sizeBytes = await this.image.measure();
    if (sizeBytes === this.device.sizeBytes) return false;
    await this.resize(sizeBytes);
    return true;
  }

  /**
   * A larger disk is announced when it is there, a smaller one before it is gone.
   * @throws VringError ERR_VRING_DISK_RESIZE, ConfigError: no whole blocks.
   */
  async resize(sizeBytes: number): Promise<void> {
    const { device, image } = this;
    const before = device.sizeBytes;
    if (sizeBytes >= before) {
      if (sizeBytes % device.blockBytes !== 0) device.sizeBytes = sizeBytes; // throws what is wrong
      await image.resize(sizeBytes);
      await this.worker.request('resizeDisk', { device: DEVICE, sizeBytes });
      device.sizeBytes = sizeBytes;
      return this.#announce();
    }
    try {
      device.sizeBytes = sizeBytes;
      await this.#announce();
      await this.worker.request('resizeDisk', { device: DEVICE, sizeBytes });
      await image.resize(sizeBytes);
    } catch (error) {
      device.sizeBytes = before;
      await this.worker.request('resizeDisk', { device: DEVICE, sizeBytes: before });
      await this.#announce();
      throw error;
    }
  }

  /** Ends the worker, then the image. Idempotent; its sessions are over. */
  async close(): Promise<void> {
    const image = this.#image;
    this.#image = null;
    try {
      if (this.worker.hasDisk) await this.worker.request('removeDisk', { device: DEVICE });
    } catch (error) {
      if (!(error instanceof VringError)) throw error; // the worker is gone, and that was said
    }
    this.worker.hasDisk = false;
    await this.worker.close();
    await image?.close();
  }

  async #add(image: DiskImage): Promise<void> {
    const { queues, serial, secureErase = false, lifetime = null } = this.#options.shape;
    const { cache } = this.device;
    if (secureErase && !canErase(image.spec)) {
      const text = `${image.description} cannot promise that nothing is left; remove it`;
      throw new ConfigError('secureErase', text);
    }
    const common = { device: DEVICE, queues, serial, lifetime, cache };
    const add: AddDisk = { ...common, failedFlush: this.failedFlush, image: image.spec };
    await this.worker.request('addDisk', add);
    this.worker.hasDisk = true;
    this.#image = image;
  }

  /** A driver that does not hear of it is no error of the disk. */
  async #announce(): Promise<void> {
    try {
      await this.host.configChanged();
    } catch (error) {
      const reason = `the front-end does not take the change: ${(error as Error).message}`;
      this.#options.onEvent({ kind: 'problem', reason });
    }
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

function openImage(
  { shape, onEvent }: DiskUnitOptions,
  stack: StackSpec = shape.stack,
): Promise<DiskImage> {
  return openStack({
    stack,
    readOnly: shape.readOnly,
    environment: workerEnvironment(import.meta.url.endsWith('.ts')),
    onProblem: (reason) => onEvent({ kind: 'problem', reason }),
  });
}
