/**
 * A served disk: an image, the device over it, the worker that does its I/O, and the way that a
 * driver comes to it, a vhost-user socket or the kernel's VDUSE.
 */
import { messageOf, VringError } from '../base/errors.ts';
import {
  type AddDisk,
  BLK_PLANE_MODULE,
  BlkDevice,
  type DiskStatus,
} from '../devices/blk/index.ts';
import {
  DataPlaneWorker,
  DeviceHost,
  type PlaneEvent,
  type VduseBind,
  VduseService,
} from '../runtime/index.ts';
import { errnoName } from '../sys/index.ts';
import { createMemoryImage, type DiskImage, openFileImage } from '../storage/index.ts';
import { BACKEND_PROTOCOL_FEATURES, BackendListener } from '../vhost-user/index.ts';
import { faultName } from '../virtqueue/faults.ts';
import {
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
} from '../wire/vhost-user.ts';
import { featureSet } from '../wire/virtio.ts';
import { BlkConfig } from '../wire/virtio-blk.ts';
import type { Readiness } from './serve-run.ts';

type VduseAt = {
  readonly vduse: string;
  readonly bind: VduseBind;
  readonly keep: boolean;
  readonly ownBounce: boolean;
};

export type BlkServiceOptions = {
  readonly at: { readonly socket: string } | VduseAt;
  readonly image: { readonly file: string } | { readonly memoryBytes: number };
  readonly readOnly: boolean;
  readonly queues: number;
  readonly serial: string;
  readonly blockBytes: number;
  readonly packed: boolean;
  /** vhost-user: the driver may sit behind an IOMMU. */
  readonly iommu: boolean;
  readonly spinMs: number;
  readonly onEvent: (event: BlkServiceEvent) => void;
};

/** What is said of a running service; flat, for lines of JSON. */
export type BlkServiceEvent = {
  readonly event: string;
  readonly [name: string]: string | number | boolean | null;
};

/** The device's number in its worker, which has no other. */
const DEVICE = 0;

/** All that a disk has a use for; postcopy would let a front-end hold the worker up. */
const PROTOCOL_FEATURES =
  (BACKEND_PROTOCOL_FEATURES | featureSet(VHOST_USER_PROTOCOL_F_RESET_DEVICE)) &
  ~featureSet(VHOST_USER_PROTOCOL_F_MTU, VHOST_USER_PROTOCOL_F_PAGEFAULT);

/**
 * Where a disk over VDUSE records what it has begun. Requests complete in the order of the ring,
 * but a packed ring whose chains take several slots does not say where its device died
 * (virtqueue/recover-packed.ts), and a wrong guess loses the file system.
 */
const STATE_FOLDER = '/run/vring';

/** Descriptors of a queue of VDUSE, whose driver takes what there is. */
const VDUSE_QUEUE_SIZE = 256;

export class BlkService {
  /** Resolves when nothing works any more; `close` it then. */
  readonly failed: Promise<Error>;
  readonly #options: BlkServiceOptions;
  readonly #image: DiskImage;
  readonly #device: BlkDevice;
  readonly #worker: DataPlaneWorker;
  readonly #host: DeviceHost;
  readonly #fail: (error: Error) => void;
  #listener: BackendListener | null = null;
  #vduse: VduseService | null = null;

  /**
   * Serves when it resolves.
   * @throws VringError, SysError, ConfigError: what was asked for cannot be; nothing is left open.
   */
  static async start(options: BlkServiceOptions): Promise<BlkService> {
    const { image: from, readOnly } = options;
    const image =
      'file' in from
        ? openFileImage({ path: from.file, readOnly })
        : createMemoryImage(from.memoryBytes, readOnly);
    let service: BlkService;
    try {
      service = new BlkService(options, image);
    } catch (error) {
      image.close();
      throw error;
    }
    try {
      await service.#begin();
      return service;
    } catch (error) {
      await service.close();
      throw error;
    }
  }

  private constructor(options: BlkServiceOptions, image: DiskImage) {
    this.#options = options;
    this.#image = image;
    const { at, queues, readOnly, blockBytes, packed } = options;
    const { sizeBytes } = image;
    // VduseHost translates by itself, and adds the feature.
    const iommu = options.iommu && 'socket' in at;
    const shape = { sizeBytes, readOnly, queues, blockBytes, packed, iommu };
    this.#device = new BlkDevice(shape);
    const { promise, resolve } = Promise.withResolvers<Error>();
    this.failed = promise;
    this.#fail = resolve;
    this.#worker = new DataPlaneWorker({
      name: 'vring-blk',
      planeModule: BLK_PLANE_MODULE,
      planeOptions: null,
      spinMs: options.spinMs,
      onEvent: (event) => this.#planeEvent(event),
      onCrash: resolve,
    });
    this.#host = new DeviceHost({
      worker: this.#worker,
      number: DEVICE,
      device: this.#device,
      protocolFeatures: PROTOCOL_FEATURES,
      queueNum: queues,
      onMtu: () => false,
      onChange: () => undefined,
    });
  }

  /** For the ready line. */
  get readiness(): Readiness & Readonly<Record<string, unknown>> {
    const { at } = this.#options;
    const { presence, resumed } = this.#vduse ?? { presence: null, resumed: false };
    return {
      event: 'ready',
      device: 'blk',
      name: 'vduse' in at ? at.vduse : null,
      socket: 'socket' in at ? at.socket : null,
      driver: presence?.driver ?? null,
      node: presence?.node ?? null,
      interface: null,
      resumed,
      image: this.#image.description,
      sizeBytes: this.#device.sizeBytes,
    };
  }

  async #begin(): Promise<void> {
    const { at, serial, queues } = this.#options;
    const { cache } = this.#device;
    const add: AddDisk = { device: DEVICE, queues, serial, cache, image: this.#image.spec };
    await this.#worker.request('addDisk', add);
    if ('socket' in at) this.#listen(at.socket);
    else await this.#serveVduse(at);
  }

  #listen(path: string): void {
    this.#listener = new BackendListener({
      path,
      target: this.#host,
      onEvent: (event) => {
        const reason = 'reason' in event && event.reason !== null ? event.reason.message : null;
        this.#emit(event.kind, { reason });
      },
    });
  }

  async #serveVduse({ vduse: name, bind, ownBounce }: VduseAt): Promise<void> {
    this.#vduse = await VduseService.start({
      name,
      target: this.#host,
      configBytes: BlkConfig.size,
      queueSize: VDUSE_QUEUE_SIZE,
      bind,
      ownBounce,
      stateFolder: STATE_FOLDER,
      onEvent: (event) => {
        if (event.kind === 'gone') this.#fail(event.error);
        else if (event.kind === 'problem') this.#emit('problem', { reason: event.error.message });
        else if (event.kind === 'driver-ok') this.#emit('driver-ok', { resumed: event.resumed });
        else this.#emit(event.kind, {});
      },
    });
  }

  /** The image may have another size by now: then engine, device and driver hear of it. */
  async lookAtSize(): Promise<void> {
    try {
      const sizeBytes = this.#image.measure();
      if (sizeBytes === this.#device.sizeBytes) return;
      await this.#resize(sizeBytes);
      this.#emit('resized', { sizeBytes });
    } catch (error) {
      this.#emit('problem', { reason: messageOf(error) });
    }
  }

  /** A larger disk is announced when it is there, a smaller one before it is gone. */
  async #resize(sizeBytes: number): Promise<void> {
    this.#image.resize(sizeBytes);
    await this.#worker.request('resizeDisk', { device: DEVICE, sizeBytes });
    this.#device.sizeBytes = sizeBytes;
    await this.#host.configChanged();
  }

  #planeEvent(event: PlaneEvent): void {
    this.#host.planeEvent(event);
    if (event.kind === 'fault') {
      this.#emit('fault', { queue: event.index, fault: faultName(event.code) });
    } else if (event.kind === 'io-error') {
      const { index: queue, op, at, errno, count } = event;
      const { description: image } = this.#image;
      this.#emit('io-error', { image, queue, op, at, error: errnoName(errno), count });
    }
  }

  #emit(event: string, rest: Omit<BlkServiceEvent, 'event'>): void {
    this.#options.onEvent({ event, ...rest });
  }

  /** Requests under way are finished first. Returns the device's counters. */
  async close(): Promise<Record<string, number>> {
    const { at } = this.#options;
    await this.#listener?.close();
    await this.#vduse?.close({ keep: 'keep' in at && at.keep });
    let counters: Record<string, number> = {};
    try {
      const status = await this.#worker.request<DiskStatus>('diskStatus', { device: DEVICE });
      counters = { errors: status.errors, faults: status.faults, ...status.totals };
      await this.#worker.request('removeDisk', { device: DEVICE });
    } catch (error) {
      if (!(error instanceof VringError)) throw error; // the worker is gone, and that was said
    }
    await this.#worker.close();
    this.#image.close();
    return counters;
  }
}
