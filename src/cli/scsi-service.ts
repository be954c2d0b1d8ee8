/**
 * A served SCSI device: images, the device over them, the worker that does its I/O, and the
 * vhost-user socket that a driver comes to it by. Units may come and go while it runs.
 */
import { createHash } from 'node:crypto';
import { ConfigError, messageOf, VringError } from '../base/errors.ts';
import {
  type AddScsi,
  type AddUnit,
  SCSI_PLANE_MODULE,
  ScsiDevice,
  type ScsiStatus,
  WORK_MEMORY_BYTES,
} from '../devices/scsi/index.ts';
import { PrivateMemory } from '../memory/index.ts';
import {
  DataPlaneWorker,
  DeviceHost,
  type PlaneEvent,
  workerEnvironment,
} from '../runtime/index.ts';
import { type DiskImage, openStack } from '../storage/index.ts';
import { errnoName } from '../sys/index.ts';
import { BACKEND_PROTOCOL_FEATURES, BackendListener } from '../vhost-user/index.ts';
import { faultName } from '../virtqueue/faults.ts';
import {
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
} from '../wire/vhost-user.ts';
import { featureSet } from '../wire/virtio.ts';
import type { UnitSpec } from './scsi-unit.ts';
import type { Readiness } from './serve-run.ts';

export type ScsiServiceOptions = {
  readonly socket: string;
  readonly units: readonly UnitSpec[];
  /** Request queues. */
  readonly queues: number;
  /** Logical blocks of all units. */
  readonly blockBytes: number;
  readonly packed: boolean;
  readonly iommu: boolean;
  readonly spinMs: number;
  readonly onEvent: (event: ScsiServiceEvent) => void;
};

/** What is said of a running service; flat, for lines of JSON. */
export type ScsiServiceEvent = {
  readonly event: string;
  readonly [name: string]: string | number | boolean | null;
};

type Unit = { readonly spec: UnitSpec; readonly image: DiskImage };

/** The device's number in its worker, which has no other. */
const DEVICE = 0;

/** Units whose commands are under way are looked at so often. */
const REMOVE_POLL_MS = 10;

const PROTOCOL_FEATURES =
  (BACKEND_PROTOCOL_FEATURES | featureSet(VHOST_USER_PROTOCOL_F_RESET_DEVICE)) &
  ~featureSet(VHOST_USER_PROTOCOL_F_MTU, VHOST_USER_PROTOCOL_F_PAGEFAULT);

export class ScsiService {
  /** Resolves when nothing works any more; `close` it then. */
  readonly failed: Promise<Error>;
  readonly #options: ScsiServiceOptions;
  readonly #device: ScsiDevice;
  readonly #worker: DataPlaneWorker;
  readonly #host: DeviceHost;
  /** Of the worker, which cannot make it. */
  readonly #work: PrivateMemory;
  readonly #units: Unit[] = [];
  /** Units change one after the other. */
  #last: Promise<unknown> = Promise.resolve();
  #listener: BackendListener | null = null;

  /**
   * Serves when it resolves.
   * @throws VringError, SysError, ConfigError: what was asked for cannot be; nothing is left open.
   */
  static async start(options: ScsiServiceOptions): Promise<ScsiService> {
    const service = new ScsiService(options);
    try {
      await service.#begin();
      return service;
    } catch (error) {
      await service.close();
      throw error;
    }
  }

  private constructor(options: ScsiServiceOptions) {
    this.#options = options;
    const { queues, packed, iommu, spinMs } = options;
    this.#device = new ScsiDevice({ queues, packed, iommu });
    this.#work = PrivateMemory.allocate(WORK_MEMORY_BYTES);
    const { promise, resolve } = Promise.withResolvers<Error>();
    this.failed = promise;
    this.#worker = new DataPlaneWorker({
      name: 'vring-scsi',
      planeModule: SCSI_PLANE_MODULE,
      planeOptions: null,
      spinMs,
      onEvent: (event) => this.#planeEvent(event),
      onCrash: resolve,
    });
    this.#host = new DeviceHost({
      worker: this.#worker,
      number: DEVICE,
      device: this.#device,
      protocolFeatures: PROTOCOL_FEATURES,
      queueNum: this.#device.queueCount,
      onMtu: () => false,
      onChange: () => undefined,
    });
  }

  /** For the ready line. */
  get readiness(): Readiness & Readonly<Record<string, unknown>> {
    return {
      event: 'ready',
      device: 'scsi',
      name: null,
      socket: this.#options.socket,
      driver: null,
      node: null,
      interface: null,
      resumed: false,
      units: this.#units.map(({ spec: { target, lun }, image }) => {
        const { description, sizeBytes, readOnly } = image;
        return { target, lun, image: description, sizeBytes, readOnly };
      }),
    };
  }

  async #begin(): Promise<void> {
    const queues = this.#device.queueCount;
    const { offset, handle } = this.#work;
    const work = { offset, handle };
    const add: AddScsi = { device: DEVICE, queues, sizes: this.#device.sizes, work };
    await this.#worker.request('addScsi', add);
    for (const unit of this.#options.units) await this.addUnit(unit);
    this.#listener = new BackendListener({
      path: this.#options.socket,
      target: this.#host,
      onEvent: (event) => {
        const reason = 'reason' in event && event.reason !== null ? event.reason.message : null;
        this.#emit(event.kind, { reason });
      },
    });
  }

  /**
   * The driver hears of it, and finds the unit.
   * @throws ConfigError, VringError, SysError: nothing has changed.
   */
  addUnit(spec: UnitSpec): Promise<void> {
    return this.#inTurn(async () => {
      const { target, lun } = spec;
      const name = `${target}:${lun}`;
      if (this.#find(target, lun) !== undefined) {
        throw new ConfigError(name, 'is there already; remove it first');
      }
      const image = await openStack({
        stack: spec.stack,
        readOnly: spec.readOnly,
        environment: workerEnvironment(import.meta.url.endsWith('.ts')),
        onProblem: (reason) => this.#emit('problem', { unit: name, reason }),
      });
      try {
        const { blockBytes } = this.#options;
        checkBlocks(name, image, blockBytes);
        const { spec: engine } = image;
        const serial = serialOf(this.#options.socket, name);
        const add: AddUnit = { device: DEVICE, target, lun, image: engine, blockBytes, serial };
        await this.#worker.request('addUnit', add);
      } catch (error) {
        await image.close();
        throw error;
      }
      this.#units.push({ spec, image });
    });
  }

  /**
   * The driver hears of it; what is under way is finished. @throws ConfigError: it is not there.
   */
  removeUnit(target: number, lun: number): Promise<void> {
    return this.#inTurn(async () => {
      const unit = this.#find(target, lun);
      if (unit === undefined) throw new ConfigError(`${target}:${lun}`, 'is not there');
      const address = { device: DEVICE, target, lun };
      while (!(await this.#worker.request<boolean>('removeUnit', address))) {
        await new Promise((resolve) => setTimeout(resolve, REMOVE_POLL_MS));
      }
      this.#units.splice(this.#units.indexOf(unit), 1);
      await unit.image.close();
    });
  }

  /** Images may have other sizes by now: then engines and the driver hear of it. */
  lookAtSizes(): Promise<void> {
    return this.#inTurn(async () => {
      for (const { spec, image } of this.#units) {
        const { target, lun } = spec;
        const unit = `${target}:${lun}`;
        try {
          const sizeBytes = await image.measure();
          if (sizeBytes === image.sizeBytes) continue;
          await image.resize(sizeBytes);
          await this.#worker.request('resizeUnit', { device: DEVICE, target, lun, sizeBytes });
          this.#emit('resized', { unit, sizeBytes });
        } catch (error) {
          this.#emit('problem', { unit, reason: messageOf(error) });
        }
      }
    });
  }

  /** Requests under way are finished first. Returns the device's counters. */
  async close(): Promise<Record<string, number>> {
    await this.#listener?.close();
    await this.#last;
    let counters: Record<string, number> = {};
    try {
      const status = await this.#worker.request<ScsiStatus>('scsiStatus', { device: DEVICE });
      counters = { errors: status.errors, faults: status.faults, ...status.totals };
      await this.#worker.request('removeScsi', { device: DEVICE });
    } catch (error) {
      if (!(error instanceof VringError)) throw error; // the worker is gone, and that was said
    }
    await this.#worker.close();
    for (const { image } of this.#units) await image.close();
    this.#work.close();
    return counters;
  }

  #find(target: number, lun: number): Unit | undefined {
    return this.#units.find(({ spec }) => spec.target === target && spec.lun === lun);
  }

  #inTurn(change: () => Promise<void>): Promise<void> {
    const result = this.#last.then(change);
    this.#last = result.catch(() => undefined);
    return result;
  }

  #planeEvent(event: PlaneEvent): void {
    this.#host.planeEvent(event);
    if (event.kind === 'fault') {
      this.#emit('fault', { queue: event.index, fault: faultName(event.code) });
    } else if (event.kind === 'io-error') {
      const { index: queue, op, at, errno, count } = event;
      this.#emit('io-error', { queue, op, at, error: errnoName(errno), count });
    }
  }

  #emit(event: string, rest: Omit<ScsiServiceEvent, 'event'>): void {
    this.#options.onEvent({ event, ...rest });
  }
}

function checkBlocks(
  name: string,
  { sizeBytes, description }: DiskImage,
  blockBytes: number,
): void {
  if (sizeBytes % blockBytes === 0) return;
  const text = `${description} has ${sizeBytes} bytes, no whole blocks of ${blockBytes}`;
  throw new ConfigError(name, text);
}

/** Guests tell disks apart by it: the same for the same place, another for every other one. */
function serialOf(socket: string, unit: string): string {
  return createHash('sha256').update(`${socket} ${unit}`).digest('hex').slice(0, 16);
}
