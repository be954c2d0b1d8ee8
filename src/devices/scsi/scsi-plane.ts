/**
 * The data plane of SCSI devices: what a worker runs when it serves them. Loaded by the worker by
 * its URL; everything here runs on the worker's thread.
 */
import { VringError } from '../../base/errors.ts';
import type { DataPlane, PlaneContext } from '../../runtime/data-plane.ts';
import { type Engine, type EngineSpec, openEngine } from '../../storage/index.ts';
import type { LastError } from '../disk/request-device.ts';
import { RequestPlane } from '../disk/request-plane.ts';
import { MAX_LUN, MAX_LUNS, MAX_TARGET } from './limits.ts';
import type { Lun } from './lun.ts';
import type { WorkMemory } from './medium-work.ts';
import { ScsiUnits } from './scsi-units.ts';
import type { ScsiVring } from './scsi-vring.ts';

export type AddScsi = {
  readonly device: number;
  /** Of all kinds. */
  readonly queues: number;
  /** `ScsiDevice.sizes`. */
  readonly sizes: Int32Array;
  /** The owner's, for as long as the device is there. */
  readonly work: WorkMemory;
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
};

export type ScsiStatus = {
  readonly errors: number;
  readonly lastError: LastError | null;
  readonly faults: number;
  /** Of all rings since the device was added, those that are gone included. */
  readonly totals: Readonly<Record<string, number>>;
  readonly units: {
    readonly target: number;
    readonly lun: number;
    readonly sizeBytes: number;
    readonly readOnly: boolean;
    readonly underWay: number;
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
        this.addDevice(add.device, new ScsiUnits({ ...add, emit: this.context.emit }));
        return undefined;
      }
      case 'removeScsi':
        return this.#removeScsi((payload as { device: number }).device);
      case 'addUnit':
        return this.#addUnit(payload as AddUnit);
      case 'removeUnit':
        return this.#removeUnit(payload as UnitAddress);
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
    const units = device.units.map(({ target, lun, engine, underWay, readOnly }) => {
      const { sizeBytes } = engine;
      return { target, lun, sizeBytes, readOnly: readOnly !== 0, underWay };
    });
    return { errors, lastError, faults, totals: device.totals(), units };
  }

  #unit({ device, target, lun }: UnitAddress): Lun {
    const unit = this.device(device).find(target, lun);
    if (unit !== null) return unit;
    throw new VringError('ERR_VRING_SCSI_UNIT', `unit ${target}:${lun} is not there`);
  }
}

export function createPlane(context: PlaneContext): DataPlane {
  return new ScsiPlane(context);
}
