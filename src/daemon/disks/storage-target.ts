/**
 * Many disks in one process. Each has a worker, and perhaps a storage thread, of its own: what a
 * medium does to one of them no other notices. Units of SCSI adapters are disks, too, which share
 * the worker of their adapter; they have names that no other disk has.
 *
 * Whose a disk is: one that the configuration names is the configuration's, and what is changed of
 * it at run time lasts until the process ends. All others are the API's: they are remembered with
 * every change, and are there again after a restart.
 */
import { VringError } from '../../base/errors.ts';
import { MAX_DISKS, MAX_UNITS } from '../../base/limits.ts';
import type { CutResult, FaultRule } from '../../storage/index.ts';
import type { ReceivedFds, SentFds } from '../hand-over-channel.ts';
import { BlkDisk } from './blk-disk.ts';
import type { AnyDisk } from './disk.ts';
import {
  type DiskControl,
  diskNotFound,
  ERR_DISK_LIMIT,
  type LayerAnswer,
} from './disk-control.ts';
import type { DiskFinal, DiskPlan } from './disk-hand-over.ts';
import { parseDisk } from './disk-input.ts';
import { DiskMemory } from './disk-memory.ts';
import type { RememberedState } from './disk-state-file.ts';
import type {
  DiskConfig,
  DiskExport,
  DiskOrigin,
  DiskStatus,
  DiskUpdate,
  MediumConfig,
  RollbackOptions,
} from './disk-types.ts';
import { comesBack, exists, openError, socketTaken } from './disk-refusals.ts';
import { ScsiAdapters } from './scsi-adapters.ts';
import type { AdapterFinal, AdapterPlan } from './scsi-hand-over.ts';
import type { AdapterConfig, AdapterStatus, UnitConfig } from './scsi-types.ts';

export type StorageTargetOptions = {
  readonly stateFile: string;
  readonly spinMs: number;
  readonly report: (kind: string, disk: string, message: string) => void;
  /** Whose a socket is that no disk has: a port's name, or null. */
  readonly socketOwner: (path: string) => string | null;
};

export type StoragePlan = {
  readonly disks: DiskPlan[];
  readonly adapters: AdapterPlan[];
};

export type StorageFinal = {
  readonly disks: DiskFinal[];
  readonly adapters: AdapterFinal[];
};

export class StorageTarget implements DiskControl {
  readonly #options: StorageTargetOptions;
  readonly #memory: DiskMemory;
  readonly #disks = new Map<string, BlkDisk>();
  readonly #adapters: ScsiAdapters;
  /** Remembered disks whose name the configuration has, too: kept for when it has not. */
  #shadowed: DiskConfig[] = [];

  constructor(options: StorageTargetOptions) {
    this.#options = options;
    const { spinMs, report, stateFile: path } = options;
    this.#adapters = new ScsiAdapters({ spinMs, report });
    this.#memory = new DiskMemory({
      path,
      report,
      state: (as) => this.#remembered(as),
      onWritten: () => this.#wasRemembered(),
    });
  }

  /** Opens all at once; those that cannot be opened are `failed`, and the others are served. */
  async start(
    configured: readonly DiskConfig[],
    adapters: readonly AdapterConfig[] = [],
  ): Promise<void> {
    const remembered = await this.#memory.read();
    this.#adapters.makeAll(adapters, remembered);
    for (const config of configured) this.#make(config, 'config');
    for (const config of remembered.disks) {
      if (!this.#disks.has(config.name)) {
        this.#make(config, 'api');
        continue;
      }
      this.#shadowed.push(config);
      const text = 'the configuration names a disk that was added by the API; it has its own now';
      this.#options.report('disk-shadowed', config.name, text);
    }
    const opened = [...this.#disks.values()].map((disk) => disk.openOrFail());
    await Promise.all([...opened, this.#adapters.open()]);
  }

  get isEmpty(): boolean {
    return this.#disks.size === 0 && this.#adapters.all.length === 0;
  }

  /** Whose a socket is: `disk vm0`, `SCSI adapter vm0`; null. */
  ownerOf(socket: string, except?: string): string | null {
    for (const { config } of this.#disks.values()) {
      if (config.name === except) continue;
      if (config.socket === socket || config.export?.socket === socket)
        return `disk ${config.name}`;
    }
    return this.#adapters.ownerOf(socket, except);
  }

  async disks(): Promise<DiskStatus[]> {
    return await Promise.all(this.#all.map((disk) => disk.status()));
  }

  async disk(name: string): Promise<DiskStatus> {
    return await this.#get(name).status();
  }

  addDisk(config: DiskConfig): Promise<DiskStatus> {
    return this.#memory.turns.run(async () => {
      this.#refuseTwins(config);
      const disk = this.#make(config, 'api');
      try {
        await disk.open().catch((error: unknown) => {
          throw openError('disk', config.name, error);
        });
        await this.#memory.rememberOr('the disk was not added');
      } catch (error) {
        this.#disks.delete(config.name);
        await disk.close();
        throw error;
      }
      this.#options.report('disk-added', config.name, `added, socket ${config.socket}`);
      return await disk.status();
    });
  }

  removeDisk(name: string): Promise<void> {
    if (this.#adapters.findUnit(name) !== null) return this.#detachUnit(name);
    return this.#memory.turns.run(async () => {
      const disk = this.#disks.get(name);
      if (disk === undefined) throw diskNotFound(name);
      this.#disks.delete(name);
      await this.#forgetOr(disk.origin, 'the disk stays', () => this.#disks.set(name, disk));
      await disk.turns.run(() => disk.close());
      this.#options.report('disk-removed', name, `removed, its image stays${comesBack(disk)}`);
    });
  }

  async adapters(): Promise<AdapterStatus[]> {
    return await Promise.all(this.#adapters.all.map((adapter) => adapter.status()));
  }

  async adapter(name: string): Promise<AdapterStatus> {
    return await this.#adapters.get(name).status();
  }

  addAdapter(config: AdapterConfig): Promise<AdapterStatus> {
    return this.#memory.turns.run(async () => {
      this.#refuseTwinAdapter(config);
      const adapter = this.#adapters.make(config, 'api');
      try {
        await adapter.turns
          .run(() => adapter.open(true))
          .catch((error: unknown) => {
            throw openError('SCSI adapter', config.name, error);
          });
        await this.#memory.rememberOr('the adapter was not added');
      } catch (error) {
        this.#adapters.forget(adapter);
        await adapter.close();
        throw error;
      }
      this.#options.report('scsi-added', config.name, `added, socket ${config.socket}`);
      return await adapter.status();
    });
  }

  removeAdapter(name: string): Promise<void> {
    return this.#memory.turns.run(async () => {
      const adapter = this.#adapters.get(name);
      this.#adapters.forget(adapter);
      await this.#forgetOr('api', 'the adapter stays', () => this.#adapters.keep(adapter));
      await adapter.turns.run(() => adapter.close());
      const text = `removed, the images of its units stay${comesBack(adapter)}`;
      this.#options.report('scsi-removed', name, text);
    });
  }

  attachUnit(name: string, config: UnitConfig): Promise<DiskStatus> {
    return this.#memory.turns.run(async () => {
      const adapter = this.#adapters.get(name);
      this.#refuseTwinUnits([config]);
      const disk = adapter.make(config, 'api');
      try {
        await disk.turns
          .run(() => disk.open())
          .catch((error: unknown) => {
            throw openError('disk', config.name, error);
          });
        await this.#memory.rememberOr('the unit was not attached');
      } catch (error) {
        await adapter.detach(disk);
        throw error;
      }
      this.#options.report('disk-attached', config.name, `attached to SCSI adapter ${name}`);
      return await disk.status();
    });
  }

  /** What is under way may take its time, and no other disk is to wait for that. */
  async #detachUnit(name: string): Promise<void> {
    const { adapter, disk } = await this.#memory.turns.run(async () => {
      const found = this.#adapters.findUnit(name);
      if (found === null) throw diskNotFound(name);
      const { units } = found.adapter;
      units.delete(name);
      await this.#forgetOr(found.disk.origin, 'the unit stays', () => units.set(name, found.disk));
      return found;
    });
    await adapter.detach(disk);
    this.#options.report('disk-detached', name, `detached, its image stays${comesBack(disk)}`);
  }

  updateDisk(name: string, update: DiskUpdate): Promise<DiskStatus> {
    const { limits } = update;
    const plan = <C extends MediumConfig>(config: C): C =>
      limits === undefined ? config : { ...config, limits };
    return this.#change(name, plan, (disk) => disk.update(update));
  }

  reopenDisk(name: string): Promise<DiskStatus> {
    const plan = <C extends MediumConfig>(config: C): C => config;
    return this.#change(name, plan, (disk) =>
      disk.reopen().catch((error: unknown) => {
        throw openError('disk', name, error);
      }),
    );
  }

  exportDisk(name: string, wanted: DiskExport | null): Promise<DiskStatus> {
    const owner = wanted === null ? null : this.#ownerOf(wanted.socket, name);
    if (owner !== null) return Promise.reject(socketTaken(wanted!.socket, owner));
    const plan = <C extends MediumConfig>(config: C): C => ({ ...config, export: wanted });
    return this.#change(name, plan, (disk) => disk.setExport(wanted));
  }

  snapshots(name: string): Promise<LayerAnswer> {
    return this.#ask(name, 'snapshots', {});
  }

  async snapshot(name: string, snapshot: string): Promise<LayerAnswer> {
    const answer = await this.#ask(name, 'snapshot', { name: snapshot });
    this.#options.report('disk-snapshot', name, `snapshot ${snapshot} made`);
    return answer;
  }

  async rollback(name: string, { name: to, force }: RollbackOptions): Promise<LayerAnswer> {
    const disk = this.#get(name);
    const answer = await disk.turns.run(async () => {
      if (force !== true) disk.refuseDriver('its content has changed');
      const done = await disk.control('rollback', to === undefined ? {} : { name: to });
      await disk.lookAtSize();
      return done;
    });
    this.#options.report('disk-rollback', name, `rolled back to ${to ?? 'the last snapshot'}`);
    return answer;
  }

  async commit(name: string, to?: 'base'): Promise<LayerAnswer> {
    const answer = await this.#ask(name, 'commit', to === undefined ? {} : { to });
    const where = to === undefined ? 'what is below' : 'the base';
    this.#options.report('disk-commit', name, `what was written is being merged into ${where}`);
    return answer;
  }

  commitStatus(name: string): Promise<LayerAnswer> {
    return this.#ask(name, 'commit-status', {});
  }

  async deleteSnapshot(name: string, snapshot: string): Promise<LayerAnswer> {
    const answer = await this.#ask(name, 'delete', { name: snapshot });
    this.#options.report('disk-snapshot', name, `snapshot ${snapshot} deleted`);
    return answer;
  }

  async setFaults(name: string, rules: readonly FaultRule[]): Promise<void> {
    await this.#ask(name, 'faults', rules);
    this.#options.report('disk-faults', name, `${rules.length} rules of faults are in force`);
  }

  async cutPower(name: string, seed?: number): Promise<CutResult> {
    const answer = await this.#ask(name, 'cut', seed === undefined ? {} : { seed });
    const cut = answer as CutResult;
    const fates = `${cut.kept} kept, ${cut.lost} lost, ${cut.torn} torn`;
    const text = `the power was cut: of ${cut.requests} unflushed requests ${fates}`;
    this.#options.report('disk-cut', name, `${text}; it fails until it is reopened`);
    return cut;
  }

  /** Runs while nothing changes a disk, or the set of them. */
  exclusively<T>(work: () => Promise<T>): Promise<T> {
    return this.#memory.turns.run(() => {
      let held = work;
      for (const { turns } of [...this.#all, ...this.#adapters.all]) {
        const inner = held;
        held = () => turns.run(inner);
      }
      return held();
    });
  }

  plan(fds: SentFds): StoragePlan {
    const disks = [...this.#disks.values()].map((disk) => disk.plan(fds));
    return { disks, adapters: this.#adapters.plan(fds) };
  }

  async suspend(fds: SentFds): Promise<StorageFinal> {
    const suspended = [...this.#disks.values()].map((disk) => disk.suspend(fds));
    const [disks, adapters] = await Promise.all([
      Promise.all(suspended),
      this.#adapters.suspend(fds),
    ]);
    return { disks, adapters };
  }

  async resume(): Promise<void> {
    const resumed = [...this.#disks.values()].map((disk) => disk.resume());
    await Promise.allSettled([...resumed, this.#adapters.resume()]);
  }

  async surrender(): Promise<void> {
    const surrendered = [...this.#disks.values()].map((disk) => disk.surrender());
    await Promise.allSettled([...surrendered, this.#adapters.surrender()]);
  }

  /** @throws ConfigError, VringError. */
  async adopt({ disks, adapters }: StoragePlan, fds: ReceivedFds): Promise<void> {
    for (const plan of disks) this.#make(parseDisk(plan.config), plan.origin).adopt(plan, fds);
    const remembered = await this.#memory.read();
    this.#shadowed = remembered.disks.filter(({ name }) => {
      return this.#disks.get(name)?.origin === 'config';
    });
    this.#adapters.adopt(adapters, fds, remembered);
  }

  /** @throws VringError naming the disk that cannot be taken over. */
  async restore({ disks, adapters }: StorageFinal, fds: ReceivedFds): Promise<void> {
    const restored = disks.map((state) => this.#disks.get(state.name)?.restore(state, fds));
    await Promise.all([...restored, this.#adapters.restore(adapters, fds)]);
  }

  /** A disk of a newer configuration; it is `failed` where it cannot be opened. */
  async addConfigured(config: DiskConfig): Promise<void> {
    this.#refuseTwins(config);
    await this.#make(config, 'config').openOrFail();
  }

  /** The same for an adapter. */
  async addConfiguredAdapter(config: AdapterConfig): Promise<void> {
    this.#refuseTwinAdapter(config);
    await this.#adapters.make(config, 'config').openOrFail();
  }

  /** Units that a newer configuration has at an adapter which runs. */
  async attachConfigured(adapter: string, units: readonly UnitConfig[]): Promise<void> {
    for (const unit of units) {
      this.#refuseTwinUnits([unit]);
      const disk = this.#adapters.get(adapter).make(unit, 'config');
      await disk.turns.run(() => disk.openOrFail());
    }
  }

  async close(): Promise<void> {
    await this.#memory.turns.run(async () => {
      const closed = [...this.#disks.values()].map((disk) => disk.turns.run(() => disk.close()));
      const adapters = this.#adapters.all.map((adapter) => {
        return adapter.turns.run(() => adapter.close());
      });
      await Promise.allSettled([...closed, ...adapters]);
    });
  }

  get #all(): AnyDisk[] {
    return [...this.#disks.values(), ...this.#adapters.units];
  }

  #make(config: DiskConfig, origin: DiskOrigin): BlkDisk {
    const { spinMs, report } = this.#options;
    const disk = new BlkDisk(config, origin, {
      spinMs,
      report: (kind, message) => report(kind, config.name, message),
    });
    this.#disks.set(config.name, disk);
    return disk;
  }

  /** @throws VringError ERR_VRING_DISK_NOT_FOUND. */
  #get(name: string): AnyDisk {
    const disk = this.#disks.get(name) ?? this.#adapters.findUnit(name)?.disk;
    if (disk === undefined) throw diskNotFound(name);
    return disk;
  }

  async #ask(name: string, what: string, payload: unknown): Promise<LayerAnswer> {
    const disk = this.#get(name);
    return await disk.turns.run(() => disk.control(what, payload));
  }

  /** A change of one disk. One of the API's is remembered first: what cannot be is not made. */
  async #change(
    name: string,
    plan: <C extends MediumConfig>(config: C) => C,
    change: (disk: AnyDisk) => Promise<void>,
  ): Promise<DiskStatus> {
    const disk = this.#get(name);
    await disk.changes.run(() => {
      const planned = plan(disk.config);
      const make = (): Promise<void> => disk.turns.run(() => change(disk));
      if (disk.origin !== 'api' || planned === disk.config) return make();
      return this.#memory.change(planned, make);
    });
    return await disk.status();
  }

  #remembered(as: <C extends MediumConfig>(config: C) => C): RememberedState {
    const own = [...this.#disks.values()].filter(({ origin }) => origin === 'api');
    const disks = [...own.map(({ config }) => as(config)), ...this.#shadowed];
    return { disks, ...this.#adapters.remembered(as) };
  }

  #wasRemembered(): void {
    this.#shadowed = this.#shadowed.filter(({ name }) => this.#disks.get(name)?.origin !== 'api');
    this.#adapters.wasRemembered();
  }

  /** After something was taken away; `undo` puts it back where that cannot be remembered. */
  async #forgetOr(origin: DiskOrigin, consequence: string, undo: () => void): Promise<void> {
    try {
      if (origin === 'api') await this.#memory.rememberOr(consequence);
    } catch (error) {
      undo();
      throw error;
    }
  }

  #refuseTwins({ name, socket, export: exported }: DiskConfig): void {
    this.#refuseName('disk', name);
    this.#refuseSockets([socket, exported?.socket]);
  }

  #refuseTwinAdapter({ name, socket, units }: AdapterConfig): void {
    this.#refuseName('SCSI adapter', name);
    this.#refuseSockets([socket]);
    this.#refuseTwinUnits(units);
    const sockets = [socket, ...units.flatMap((unit) => unit.export?.socket ?? [])];
    const twice = sockets.find((path, i) => sockets.indexOf(path) !== i);
    if (twice !== undefined) throw socketTaken(twice, `SCSI adapter ${name}`);
    const unit = units.find((one, i) => units.findIndex(({ name: n }) => n === one.name) !== i);
    if (unit !== undefined) throw exists(`a unit ${unit.name}`);
  }

  #refuseTwinUnits(units: readonly MediumConfig[]): void {
    for (const { name, export: exported } of units) {
      if (this.#adapters.findUnit(name) !== null) throw exists(`a unit ${name}`);
      this.#refuseSockets([exported?.socket]);
    }
    if (this.#adapters.units.length + units.length <= MAX_UNITS) return;
    const text = `there are at most ${MAX_UNITS} units of SCSI adapters in one process; detach one`;
    throw new VringError(ERR_DISK_LIMIT, text);
  }

  /** One of adapters and disks, which have a worker each. */
  #refuseName(what: string, name: string): void {
    if (this.#disks.has(name)) throw exists(`a disk named ${name}`);
    if (this.#adapters.has(name)) throw exists(`a SCSI adapter named ${name}`);
    if (this.#disks.size + this.#adapters.all.length < MAX_DISKS) return;
    const most = `the most of one process; remove one`;
    const text = `${what} ${name}: there are ${MAX_DISKS} disks and adapters, ${most}`;
    throw new VringError(ERR_DISK_LIMIT, text);
  }

  #refuseSockets(paths: readonly (string | undefined)[]): void {
    for (const path of paths) {
      const owner = path === undefined ? null : this.#ownerOf(path);
      if (owner !== null) throw socketTaken(path!, owner);
    }
  }

  #ownerOf(socket: string, except?: string): string | null {
    const owner = this.ownerOf(socket, except);
    if (owner !== null) return owner;
    const port = this.#options.socketOwner(socket);
    return port === null ? null : `port ${port}`;
  }
}
