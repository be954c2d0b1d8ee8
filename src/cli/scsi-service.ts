/**
 * A served SCSI device: the host adapter, its units, and the vhost-user socket that a driver comes
 * to it by. Units may come and go while it runs.
 */
import { createHash } from 'node:crypto';
import { ConfigError, messageOf } from '../base/errors.ts';
import { ScsiHost, type ScsiShape } from '../daemon/disks/scsi-host.ts';
import { ScsiUnit } from '../daemon/disks/scsi-unit.ts';
import type { DiskUnitEvent } from '../daemon/disks/served-unit.ts';
import type { NbdExportOptions, NbdExportStatus } from '../storage/index.ts';
import { BackendListener } from '../vhost-user/index.ts';
import type { UnitSpec } from './scsi-unit.ts';
import type { Readiness, ServiceEvent } from './serve-run.ts';

export type ScsiServiceOptions = ScsiShape & {
  readonly socket: string;
  readonly units: readonly UnitSpec[];
  readonly exports: readonly UnitExport[];
  /** Logical blocks of all units. */
  readonly blockBytes: number;
  readonly spinMs: number;
  readonly onEvent: (event: ServiceEvent) => void;
};

/** A unit that is served by NBD, too. */
export type UnitExport = {
  readonly target: number;
  readonly lun: number;
  readonly where: NbdExportOptions;
};

type Unit = { readonly spec: UnitSpec; readonly unit: ScsiUnit; readonly uris: string[] };

export class ScsiService {
  /** Resolves when nothing works any more; `close` it then. */
  readonly failed: Promise<Error>;
  readonly #options: ScsiServiceOptions;
  readonly #host: ScsiHost;
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
    const { promise, resolve } = Promise.withResolvers<Error>();
    this.failed = promise;
    this.#host = new ScsiHost({
      shape: options,
      spinMs: options.spinMs,
      onFault: ({ queue, fault }) => this.#emit('fault', { queue, fault }),
      onCrash: resolve,
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
      exports: this.#units.flatMap(({ uris }) => uris),
      units: this.#units.map(({ spec: { target, lun }, unit }) => {
        const { description, sizeBytes, readOnly } = unit.image;
        return { target, lun, image: description, sizeBytes, readOnly };
      }),
    };
  }

  async #begin(): Promise<void> {
    await this.#host.begin();
    for (const unit of this.#options.units) await this.addUnit(unit);
    for (const each of this.#options.exports) await this.exportUnit(each);
    this.#listener = new BackendListener({
      path: this.#options.socket,
      target: this.#host.host,
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
      const { target, lun, stack, readOnly } = spec;
      const name = `${target}:${lun}`;
      if (this.#find(target, lun) !== undefined) {
        throw new ConfigError(name, 'is there already; remove it first');
      }
      const { blockBytes, socket } = this.#options;
      const unit = await ScsiUnit.open({
        host: this.#host,
        target,
        lun,
        stack,
        readOnly,
        blockBytes,
        serial: serialOf(socket, name),
        onEvent: (event) => this.#unitEvent(name, event),
        onCrash: (error) => this.#emit('problem', { unit: name, reason: error.message }),
      });
      this.#units.push({ spec, unit, uris: [] });
    });
  }

  /**
   * The driver hears of it; what is under way is finished. @throws ConfigError: it is not there.
   */
  removeUnit(target: number, lun: number): Promise<void> {
    return this.#inTurn(async () => {
      const found = this.#get(target, lun);
      await found.unit.close();
      this.#units.splice(this.#units.indexOf(found), 1);
    });
  }

  /** Returns the URI. @throws ConfigError, VringError: where it is to be, or the unit. */
  async exportUnit({ target, lun, where }: UnitExport): Promise<string> {
    let uri = '';
    await this.#inTurn(async () => {
      const { unit, uris } = this.#get(target, lun);
      ({ uri } = (await unit.image.control('export', where)) as NbdExportStatus);
      uris.push(uri);
    });
    return uri;
  }

  /** All of the unit's. @throws ConfigError: it is not there. */
  endExports(target: number, lun: number): Promise<void> {
    return this.#inTurn(async () => {
      const { unit, uris } = this.#get(target, lun);
      for (const uri of uris.splice(0)) await unit.image.control('unexport', { uri });
    });
  }

  /** Images may have other sizes by now: then engines and the driver hear of it. */
  lookAtSizes(): Promise<void> {
    return this.#inTurn(async () => {
      for (const { spec, unit } of this.#units) {
        const name = `${spec.target}:${spec.lun}`;
        try {
          if (!(await unit.lookAtSize())) continue;
          this.#emit('resized', { unit: name, sizeBytes: unit.sizeBytes });
        } catch (error) {
          this.#emit('problem', { unit: name, reason: messageOf(error) });
        }
      }
    });
  }

  /** Requests under way are finished first. Returns the device's counters. */
  async close(): Promise<Record<string, number>> {
    await this.#listener?.close();
    await this.#last;
    const status = await this.#host.status().catch(() => null);
    await this.#host.close();
    for (const { unit } of this.#units) await unit.close();
    return status === null
      ? {}
      : { errors: status.errors, faults: status.faults, ...status.totals };
  }

  #get(target: number, lun: number): Unit {
    const unit = this.#find(target, lun);
    if (unit === undefined) throw new ConfigError(`${target}:${lun}`, 'is not there');
    return unit;
  }

  #find(target: number, lun: number): Unit | undefined {
    return this.#units.find(({ spec }) => spec.target === target && spec.lun === lun);
  }

  #inTurn(change: () => Promise<void>): Promise<void> {
    const result = this.#last.then(change);
    this.#last = result.catch(() => undefined);
    return result;
  }

  #unitEvent(unit: string, event: DiskUnitEvent): void {
    if (event.kind === 'problem') return this.#emit('problem', { unit, reason: event.reason });
    if (event.kind === 'fault') return; // of the device, and told by it
    const { queue, op, at, error, count } = event;
    this.#emit('io-error', { unit, queue, op, at, error, count });
  }

  #emit(event: string, rest: Omit<ServiceEvent, 'event'>): void {
    this.#options.onEvent({ event, ...rest });
  }
}

/** Guests tell disks apart by it: the same for the same place, another for every other one. */
function serialOf(socket: string, unit: string): string {
  return createHash('sha256').update(`${socket} ${unit}`).digest('hex').slice(0, 16);
}
