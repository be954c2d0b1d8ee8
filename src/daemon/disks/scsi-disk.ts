/**
 * A disk that is a unit of a SCSI adapter: the adapter has the socket and the worker. Whoever
 * exchanges its image keeps no other unit waiting: its own commands are told to come again.
 */
import type { LunState } from '../../devices/scsi/index.ts';
import { VringError } from '../../base/errors.ts';
import { Disk, type DiskContext, ERR_DISK_FAILED } from './disk.ts';
import type { DiskOrigin, DiskState, DiskStatus } from './disk-types.ts';
import type { UnitFinal, UnitPlan } from './scsi-hand-over.ts';
import type { ScsiHost } from './scsi-host.ts';
import { unitInput } from './scsi-input.ts';
import type { UnitConfig } from './scsi-types.ts';
import { ScsiUnit, type ScsiUnitOptions } from './scsi-unit.ts';
import type { ImageFacts } from './served-unit.ts';

/** The adapter, as its units know it. */
export type UnitWay = {
  readonly name: string;
  /** @throws VringError: it does not work. */
  readonly host: ScsiHost;
  readonly state: DiskState;
  readonly socket: string;
  readonly queues: number;
  readonly sessions: number;
};

export class ScsiDisk extends Disk<UnitConfig, ScsiUnit> {
  readonly #adapter: UnitWay;

  constructor(config: UnitConfig, origin: DiskOrigin, context: DiskContext, adapter: UnitWay) {
    super(config, origin, context);
    this.#adapter = adapter;
  }

  plan(): UnitPlan {
    return { config: unitInput(this.config), origin: this.origin, facts: this.facts };
  }

  /** Its image is closed, once `still` has resolved: no ring runs then. */
  async suspend(still: Promise<unknown>): Promise<UnitFinal> {
    const { way: _, ...image } = await this.suspendImage(async () => {
      await still;
      await this.standStill();
    });
    return { name: this.config.name, ...image, state: this.unit?.state ?? null };
  }

  adopt({ facts }: UnitPlan): void {
    this.adoptImage(facts);
  }

  async restore(state: UnitFinal): Promise<void> {
    if (this.unit !== null) this.unit.state = state.state as LunState | null;
    await this.restoreImage(state);
  }

  protected openUnit(): Promise<ScsiUnit> {
    return ScsiUnit.open(this.#options);
  }

  protected unitWithout(facts: ImageFacts): ScsiUnit {
    return ScsiUnit.without(this.#options, facts);
  }

  protected begin(): void {}

  protected async end(): Promise<void> {}

  /** Of this unit alone. */
  protected async standStill(): Promise<void> {
    await this.unit?.park();
  }

  protected async goOn(): Promise<void> {}

  protected async resumeWay(): Promise<void> {}

  protected get wayState(): DiskState {
    return this.#adapter.state;
  }

  protected get way(): Pick<DiskStatus, 'unit' | 'socket' | 'queues' | 'sessions'> {
    const { target, lun } = this.config;
    const { name: adapter, socket, queues, sessions } = this.#adapter;
    return { unit: { adapter, target, lun }, socket, queues, sessions };
  }

  get #options(): ScsiUnitOptions {
    const { target, lun, blockSize: blockBytes, serial } = this.config;
    return { ...this.unitOptions, host: this.#adapter.host, target, lun, blockBytes, serial };
  }
}

export function adapterFailed(name: string, why: string | null): VringError {
  const text = `SCSI adapter ${name} does not work: ${why ?? 'it is being opened'}`;
  return new VringError(ERR_DISK_FAILED, text);
}
