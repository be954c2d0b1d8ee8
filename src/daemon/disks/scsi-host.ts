/**
 * A SCSI host adapter without the way to it: the device, and the worker that carries out the
 * commands of all its units. Units (`ScsiUnit`) may come and go while it runs.
 */
import {
  type AddScsi,
  SCSI_PLANE_MODULE,
  ScsiDevice,
  type ScsiStatus,
  WORK_MEMORY_BYTES,
} from '../../devices/scsi/index.ts';
import { VringError } from '../../base/errors.ts';
import { PrivateMemory } from '../../memory/index.ts';
import { DeviceHost, type PlaneEvent } from '../../runtime/index.ts';
import { errnoName } from '../../sys/index.ts';
import { faultName } from '../../virtqueue/faults.ts';
import { DEVICE, DeviceWorker, DISK_PROTOCOL_FEATURES } from './device-worker.ts';
import type { PlaneCounts } from './disk-counts.ts';
import type { Metered } from './disk-meter.ts';
import type { DiskUnitEvent } from './served-unit.ts';

export type ScsiShape = {
  /** Request queues. */
  readonly queues: number;
  readonly packed: boolean;
  readonly iommu: boolean;
};

export type ScsiHostOptions = {
  readonly shape: ScsiShape;
  readonly spinMs: number;
  readonly onFault: (event: DiskUnitEvent & { kind: 'fault' }) => void;
  /** Something that a status display shows has changed. */
  readonly onChange?: () => void;
  /** The worker ended by itself: close everything. */
  readonly onCrash: (error: Error) => void;
};

/** What the medium of one unit failed. */
export type UnitError = Omit<DiskUnitEvent & { kind: 'io-error' }, 'kind' | 'image'>;

export class ScsiHost implements Metered {
  readonly device: ScsiDevice;
  readonly host: DeviceHost;
  readonly #options: ScsiHostOptions;
  readonly #worker: DeviceWorker;
  /** Of the worker, which cannot make it. */
  readonly #work: PrivateMemory;
  readonly #onError = new Map<number, (error: UnitError) => void>();
  #failure: Error | null = null;

  /** Call `begin` before anybody is served. @throws ConfigError. */
  constructor(options: ScsiHostOptions) {
    this.#options = options;
    this.device = new ScsiDevice(options.shape);
    this.#work = PrivateMemory.allocate(WORK_MEMORY_BYTES);
    this.#worker = new DeviceWorker({
      name: 'vring-scsi',
      planeModule: SCSI_PLANE_MODULE,
      planeOptions: null,
      spinMs: options.spinMs,
      onEvent: (event) => this.#planeEvent(event),
      onCrash: (error) => {
        this.#failure = error;
        options.onCrash(error);
      },
    });
    this.host = new DeviceHost({
      worker: this.#worker,
      number: DEVICE,
      device: this.device,
      protocolFeatures: DISK_PROTOCOL_FEATURES,
      queueNum: this.device.queueCount,
      onMtu: () => false,
      onChange: () => options.onChange?.(),
    });
  }

  /** By this the worker has ended; null. */
  get failure(): Error | null {
    return this.#failure;
  }

  /** `missedEvents`: whoever served the driver before had some for it. */
  async begin(missedEvents = false): Promise<void> {
    const { queueCount: queues, sizes } = this.device;
    const { offset, handle } = this.#work;
    const work = { offset, handle };
    const add: AddScsi = { device: DEVICE, queues, sizes, work, missedEvents };
    await this.#worker.request('addScsi', add);
    this.#worker.hasDevice = true;
  }

  /** What the worker does to one unit. */
  request<T>(name: string, payload: object): Promise<T> {
    return this.#worker.request<T>(name, { device: DEVICE, ...payload });
  }

  status(): Promise<ScsiStatus> {
    return this.request<ScsiStatus>('scsiStatus', {});
  }

  get isCounting(): boolean {
    return !this.isClosed;
  }

  async counts(): Promise<PlaneCounts> {
    const status = await this.status();
    const underWay = status.units.reduce((sum, unit) => sum + unit.underWay, 0);
    return { ...status, underWay, latency: {} };
  }

  async layers(): Promise<Record<string, number>> {
    return {};
  }

  /** Null ends it. */
  onUnitError(target: number, lun: number, listener: ((error: UnitError) => void) | null): void {
    const part = target * 256 + lun;
    if (listener === null) this.#onError.delete(part);
    else this.#onError.set(part, listener);
  }

  /** Idempotent. Sessions are over; units are closed afterwards. */
  async close(): Promise<void> {
    try {
      if (this.#worker.hasDevice) await this.request('removeScsi', {});
    } catch (error) {
      if (!(error instanceof VringError)) throw error; // the worker is gone, and that was said
    }
    this.#worker.hasDevice = false;
    await this.#worker.close();
    this.#work.close();
  }

  /** It has no units any more: theirs to close are images only. */
  get isClosed(): boolean {
    return !this.#worker.hasDevice;
  }

  #planeEvent(event: PlaneEvent): void {
    this.host.planeEvent(event);
    if (event.kind === 'fault') {
      const { code, index: queue } = event;
      this.#options.onFault({ kind: 'fault', code, queue, fault: faultName(code) });
    } else if (event.kind === 'io-error') {
      const { index: queue, part, op, at, errno, count } = event;
      this.#onError.get(part)?.({ queue, op, at, error: errnoName(errno), count });
    }
  }
}
