/**
 * The SCSI adapters of a storage target. Whose a unit is: the configuration's or the API's, as for
 * disks. An adapter that the API added is remembered with its units; of one that the configuration
 * names, the units that the API attached are.
 */
import { VringError } from '../../base/errors.ts';
import type { ReceivedFds, SentFds } from '../hand-over-channel.ts';
import { ERR_SCSI_NOT_FOUND } from './disk-control.ts';
import type { RememberedState } from './disk-state-file.ts';
import type { DiskOrigin, MediumConfig } from './disk-types.ts';
import { type AdapterContext, ScsiAdapter } from './scsi-adapter.ts';
import type { ScsiDisk } from './scsi-disk.ts';
import type { AdapterFinal, AdapterPlan } from './scsi-hand-over.ts';
import { parseAdapter } from './scsi-input.ts';
import type { AdapterConfig } from './scsi-types.ts';

type Remembered = Pick<RememberedState, 'adapters' | 'units'>;

export class ScsiAdapters {
  readonly #context: AdapterContext;
  readonly #adapters = new Map<string, ScsiAdapter>();
  /** What is remembered and has no place now: kept for when it has. */
  #kept: Remembered = { adapters: [], units: [] };

  constructor(context: AdapterContext) {
    this.#context = context;
  }

  get all(): ScsiAdapter[] {
    return [...this.#adapters.values()];
  }

  get units(): ScsiDisk[] {
    return this.all.flatMap((adapter) => [...adapter.units.values()]);
  }

  has(name: string): boolean {
    return this.#adapters.has(name);
  }

  /** @throws VringError ERR_VRING_SCSI_NOT_FOUND. */
  get(name: string): ScsiAdapter {
    const adapter = this.#adapters.get(name);
    if (adapter !== undefined) return adapter;
    const text = `there is no SCSI adapter named ${JSON.stringify(name)}`;
    throw new VringError(ERR_SCSI_NOT_FOUND, text);
  }

  /** A unit by its name, with its adapter; null: there is none. */
  findUnit(name: string): { readonly adapter: ScsiAdapter; readonly disk: ScsiDisk } | null {
    for (const adapter of this.all) {
      const disk = adapter.units.get(name);
      if (disk !== undefined) return { adapter, disk };
    }
    return null;
  }

  /** Whose a socket is: `SCSI adapter vm0`, `disk vm0:0:1`; null. */
  ownerOf(socket: string, except?: string): string | null {
    for (const adapter of this.all) {
      if (adapter.socket === socket) return `SCSI adapter ${adapter.name}`;
      for (const { config } of adapter.units.values()) {
        if (config.export?.socket === socket && config.name !== except)
          return `disk ${config.name}`;
      }
    }
    return null;
  }

  make(config: AdapterConfig, origin: DiskOrigin): ScsiAdapter {
    const adapter = new ScsiAdapter(config, origin, this.#context);
    this.#adapters.set(config.name, adapter);
    return adapter;
  }

  /** Undoes `forget`. */
  keep(adapter: ScsiAdapter): void {
    this.#adapters.set(adapter.name, adapter);
  }

  forget(adapter: ScsiAdapter): void {
    this.#adapters.delete(adapter.name);
  }

  /** Makes those of the configuration and those that are remembered; none is opened. */
  makeAll(configured: readonly AdapterConfig[], { adapters, units }: Remembered): void {
    for (const config of configured) this.make(config, 'config');
    const shadowed = adapters.filter(({ name }) => this.has(name));
    for (const config of adapters) if (!this.has(config.name)) this.make(config, 'api');
    for (const { name } of shadowed) {
      const text =
        'the configuration names an adapter that was added by the API; it has its own now';
      this.#context.report('disk-shadowed', name, text);
    }
    const kept = units.filter(({ adapter: name, unit }) => {
      const adapter = this.#adapters.get(name);
      if (adapter !== undefined && !adapter.units.has(unit.name)) {
        adapter.make(unit, 'api');
        return false;
      }
      const why = adapter === undefined ? 'its adapter is not there' : 'the configuration has one';
      this.#context.report('disk-shadowed', unit.name, `attached by the API, and kept: ${why}`);
      return true;
    });
    this.#kept = { adapters: shadowed, units: kept };
  }

  /** For the state file. */
  remembered(as: <C extends MediumConfig>(config: C) => C): Remembered {
    const own = this.all.filter(({ origin }) => origin === 'api');
    const attached = this.all
      .filter(({ origin }) => origin === 'config')
      .flatMap(({ name: adapter, units }) => {
        const api = [...units.values()].filter(({ origin }) => origin === 'api');
        return api.map(({ config }) => ({ adapter, unit: as(config) }));
      });
    return {
      adapters: [
        ...own.map(({ config }) => ({ ...config, units: config.units.map(as) })),
        ...this.#kept.adapters,
      ],
      units: [...attached, ...this.#kept.units],
    };
  }

  /** What was added takes the place of what was kept under its name. */
  wasRemembered(): void {
    const { adapters, units } = this.#kept;
    this.#kept = {
      adapters: adapters.filter(({ name }) => this.#adapters.get(name)?.origin !== 'api'),
      units: units.filter(({ unit }) => this.findUnit(unit.name)?.disk.origin !== 'api'),
    };
  }

  async open(): Promise<void> {
    await Promise.all(this.all.map((adapter) => adapter.openOrFail()));
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.all.map((adapter) => adapter.close()));
  }

  plan(fds: SentFds): AdapterPlan[] {
    return this.all.map((adapter) => adapter.plan(fds));
  }

  async suspend(fds: SentFds): Promise<AdapterFinal[]> {
    return await Promise.all(this.all.map((adapter) => adapter.suspend(fds)));
  }

  async resume(): Promise<void> {
    await Promise.allSettled(this.all.map((adapter) => adapter.resume()));
  }

  async surrender(): Promise<void> {
    await Promise.allSettled(this.all.map((adapter) => adapter.surrender()));
  }

  /** @throws ConfigError, VringError. */
  adopt(plans: readonly AdapterPlan[], fds: ReceivedFds, { adapters, units }: Remembered): void {
    for (const plan of plans) this.make(parseAdapter(plan.config), plan.origin).adopt(plan, fds);
    this.#kept = {
      adapters: adapters.filter(({ name }) => this.#adapters.get(name)?.origin === 'config'),
      units: units.filter(({ unit }) => this.findUnit(unit.name)?.disk.origin !== 'api'),
    };
  }

  /** @throws VringError naming the adapter or unit that cannot be taken over. */
  async restore(states: readonly AdapterFinal[], fds: ReceivedFds): Promise<void> {
    await Promise.all(states.map((state) => this.get(state.name).restore(state, fds)));
  }
}
