/**
 * The data plane of SCSI devices: what a worker runs when it serves them. Loaded by the worker by
 * its URL; everything here runs on the worker's thread.
 */
import { VringError } from '../../base/errors.ts';
import type { DataPlane, PlaneContext } from '../../runtime/data-plane.ts';
import { type Engine, type EngineSpec, openEngine } from '../../storage/index.ts';
import type { LastError } from '../disk/failed-flush.ts';
import type { LatencyStatus } from '../disk/request-latency.ts';
import { RequestPlane } from '../disk/request-plane.ts';
import { MAX_LUN, MAX_LUNS, MAX_TARGET } from './limits.ts';
import type { Lun, LunState } from './lun.ts';
import type { WorkMemory } from './medium-work.ts';
import { ScsiUnits } from './scsi-units.ts';
import { namedCounts, type ScsiVring } from './scsi-vring.ts';

export type AddScsi = {
  readonly device: number;
  /** Of all kinds. */
  readonly queues: number;
  /** `ScsiDevice.sizes`. */
  readonly sizes: Int32Array;
  /** The owner's, for as long as the device is there. */
  readonly work: WorkMemory;
  /** The driver missed events of whoever served it before. */
  readonly missedEvents?: boolean;
};

export type UnitAddress = {
  readonly device: number;
  readonly target: number;
  readonly lun: number;
};

export type AddUnit = UnitAddress & {
  readonly image: EngineSpec;
  /** Logical block: 512 or 4096 bytes. */
  readonly blockBytes: number;
  /** At most 36 characters of ASCII; '': made of target and LUN. */
  readonly serial: string;
  /** Of the same unit, served before: `UnitStatus`. */
  readonly failedFlush?: number;
  readonly state?: LunState;
};

/** A parked unit goes on, with these bytes. */
export type UnparkUnit = UnitAddress & {
  readonly image: EngineSpec;
  readonly failedFlush: number;
};

export type UnitStatus = {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Commands that are under way. */
  readonly underWay: number;
  readonly errors: number;
  readonly lastError: LastError | null;
  /** -errno of a flush that failed, and makes all others fail; 0. */
  readonly failedFlush: number;
  /** Since the unit has this image. */
  readonly latency: LatencyStatus;
  readonly totals: Readonly<Record<string, number>>;
  readonly state: LunState;
};

export type ScsiStatus = {
  readonly errors: number;
  readonly lastError: LastError | null;
  readonly faults: number;
  /** Of all rings since the device was added, those that are gone included. */
  readonly totals: Readonly<Record<string, number>>;
  /** The driver has still to be told of some. */
  readonly hasEvents: boolean;
  readonly units: {
    readonly target: number;
    readonly lun: number;
    readonly sizeBytes: number;
    readonly readOnly: boolean;
    readonly underWay: number;
    /** Requests that its medium failed. */
    readonly errors: number;
    readonly latency: LatencyStatus;
  }[];
};

export class ScsiPlane extends RequestPlane<ScsiVring, ScsiUnits> {
  readonly #open: (spec: EngineSpec) => Engine;

  constructor(context: PlaneContext, open: (spec: EngineSpec) => Engine = openEngine) {
    super(context);
    this.#open = open;
  }

  command(name: string, payload: unknown): unknown {
    switch (name) {
      case 'addScsi': {
        const add = payload as AddScsi;
        const device = new ScsiUnits({ ...add, emit: this.context.emit });
        device.missedEvents = add.missedEvents ?? false;
        this.addDevice(add.device, device);
        return undefined;
      }
      case 'removeScsi':
        return this.#removeScsi((payload as { device: number }).device);
      case 'addUnit':
        return this.#addUnit(payload as AddUnit);
      case 'removeUnit':
        return this.#removeUnit(payload as UnitAddress);
      case 'parkUnit':
        return this.#parkUnit(payload as UnitAddress);
      case 'unparkUnit':
        return this.#unparkUnit(payload as UnparkUnit);
      case 'unitStatus':
        return unitStatus(this.#unit(payload as UnitAddress));
      case 'resizeUnit': {
        const { sizeBytes, ...address } = payload as UnitAddress & { sizeBytes: number };
        const device = this.device(address.device);
        device.resizeUnit(this.#unit(address), sizeBytes);
        this.wakeDevice(device); // its driver may look for events, and not kick
        return undefined;
      }
      case 'scsiStatus':
        return this.#status((payload as { device: number }).device);
      default:
        throw new VringError('ERR_VRING_WORKER', `unknown command ${name}`);
    }
  }

  #addUnit({ device: number, image, ...options }: AddUnit): void {
    const device = this.device(number);
    const { target, lun } = options;
    const problem = (text: string): VringError =>
      new VringError('ERR_VRING_SCSI_UNIT', `unit ${target}:${lun}: ${text}`);
    if (!(target >= 0 && target <= MAX_TARGET && lun >= 0 && lun <= MAX_LUN)) {
      throw problem(`targets go from 0 to ${MAX_TARGET}, LUNs from 0 to ${MAX_LUN}`);
    }
    if (device.find(target, lun) !== null) throw problem('is there already; remove it first');
    if (device.units.length === MAX_LUNS) throw problem(`a device has ${MAX_LUNS} units at most`);
    const engine = this.#open(image);
    const unit = device.addUnit({ ...options, engine });
    this.addEngine(device, unit.index, engine);
    this.wakeDevice(device);
  }

  /** False: commands are under way, ask again. */
  #removeUnit(address: UnitAddress): boolean {
    const device = this.device(address.device);
    const unit = this.#unit(address);
    const isGone = device.removeUnit(unit);
    this.wakeDevice(device);
    if (!isGone) return false;
    this.removeEngine(device, unit.index, unit.engine);
    unit.engine.close();
    return true;
  }

  /** False: commands are under way, ask again. True: nobody uses the image any more. */
  #parkUnit(address: UnitAddress): boolean {
    const device = this.device(address.device);
    const unit = this.#unit(address);
    if (!device.parkUnit(unit)) return false;
    const { engine } = unit;
    this.removeEngine(device, unit.index, engine);
    const { sizeBytes, readOnly } = engine;
    unit.engine = openEngine({ kind: 'null', sizeBytes, readOnly });
    engine.close();
    return true;
  }

  #unparkUnit({ image, failedFlush, ...address }: UnparkUnit): void {
    const device = this.device(address.device);
    const unit = this.#unit(address);
    const engine = this.#open(image);
    device.unparkUnit(unit, engine, failedFlush);
    this.addEngine(device, unit.index, engine);
    this.wakeDevice(device);
  }

  /** When its rings are detached nothing is under way. */
  #removeScsi(number: number): void {
    const device = this.device(number);
    device.settle();
    for (const { target, lun } of device.units) this.#removeUnit({ device: number, target, lun });
    this.removeDevice(number);
    device.close();
  }

  #status(number: number): ScsiStatus {
    const device = this.device(number);
    const { errors, lastError, faults } = device;
    const units = device.units.map((unit) => {
      const { target, lun, underWay, errors: unitErrors } = unit;
      const { sizeBytes } = unit.engine;
      const [readOnly, latency] = [unit.readOnly !== 0, unit.latency.status()];
      return { target, lun, sizeBytes, readOnly, underWay, errors: unitErrors, latency };
    });
    const { hasEvents } = device;
    return { errors, lastError, faults, totals: device.totals(), hasEvents, units };
  }

  #unit({ device, target, lun }: UnitAddress): Lun {
    const unit = this.device(device).find(target, lun);
    if (unit !== null) return unit;
    throw new VringError('ERR_VRING_SCSI_UNIT', `unit ${target}:${lun} is not there`);
  }
}

function unitStatus(lun: Lun): UnitStatus {
  const { engine, underWay, errors, lastError, failedFlush } = lun;
  const { sizeBytes, readOnly } = engine;
  const [totals, state] = [namedCounts(lun.counts), lun.save()];
  const latency = lun.latency.status();
  const health = { underWay, errors, lastError, failedFlush };
  return { sizeBytes, readOnly, ...health, latency, totals, state };
}

export function createPlane(context: PlaneContext): DataPlane {
  return new ScsiPlane(context);
}
