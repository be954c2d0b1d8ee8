/**
 * Many disks in one process. Each has a worker, and perhaps a storage thread, of its own: what a
 * medium does to one of them no other notices.
 *
 * Whose a disk is: one that the configuration names is the configuration's, and what is changed of
 * it at run time lasts until the process ends. All others are the API's: they are remembered with
 * every change, and are there again after a restart.
 */
import { ConfigError, messageOf, VringError } from '../../base/errors.ts';
import { MAX_DISKS } from '../../base/limits.ts';
import type { FaultRule } from '../../storage/index.ts';
import type { ReceivedFds, SentFds } from '../hand-over-channel.ts';
import { Disk, type DiskContext } from './disk.ts';
import {
  type DiskControl,
  diskNotFound,
  ERR_DISK_EXISTS,
  ERR_DISK_LIMIT,
  ERR_DISK_OPEN,
  type LayerAnswer,
} from './disk-control.ts';
import type { DiskFinal, DiskPlan } from './disk-hand-over.ts';
import { parseDisk } from './disk-input.ts';
import { DiskStateFile, ERR_DISK_STATE } from './disk-state-file.ts';
import type {
  DiskConfig,
  DiskExport,
  DiskOrigin,
  DiskStatus,
  DiskUpdate,
  RollbackOptions,
} from './disk-types.ts';
import { Turns } from './turns.ts';

export type StorageTargetOptions = {
  readonly stateFile: string;
  readonly spinMs: number;
  readonly report: (kind: string, disk: string, message: string) => void;
  /** Whose a socket is that no disk has: a port's name, or null. */
  readonly socketOwner: (path: string) => string | null;
};

export class StorageTarget implements DiskControl {
  readonly #options: StorageTargetOptions;
  readonly #stateFile: DiskStateFile;
  readonly #disks = new Map<string, Disk>();
  /** Remembered disks whose name the configuration has, too: kept for when it has not. */
  #shadowed: DiskConfig[] = [];
  /** Of the set of disks, and of the file. */
  readonly #turns = new Turns();

  constructor(options: StorageTargetOptions) {
    this.#options = options;
    this.#stateFile = new DiskStateFile(options.stateFile);
  }

  /** Opens all at once; those that cannot be opened are `failed`, and the others are served. */
  async start(configured: readonly DiskConfig[]): Promise<void> {
    const remembered = await this.#readState();
    for (const config of configured) this.#make(config, 'config');
    for (const config of remembered) {
      if (!this.#disks.has(config.name)) {
        this.#make(config, 'api');
        continue;
      }
      this.#shadowed.push(config);
      const text = 'the configuration names a disk that was added by the API; it has its own now';
      this.#options.report('disk-shadowed', config.name, text);
    }
    await Promise.all([...this.#disks.values()].map((disk) => disk.openOrFail()));
  }

  get isEmpty(): boolean {
    return this.#disks.size === 0;
  }

  /** Name of the disk that has the socket, or null. */
  ownerOf(socket: string): string | null {
    for (const { config } of this.#disks.values()) {
      if (config.socket === socket || config.export?.socket === socket) return config.name;
    }
    return null;
  }

  async disks(): Promise<DiskStatus[]> {
    return await Promise.all([...this.#disks.values()].map((disk) => disk.status()));
  }

  async disk(name: string): Promise<DiskStatus> {
    return await this.#get(name).status();
  }

  addDisk(config: DiskConfig): Promise<DiskStatus> {
    return this.#turns.run(async () => {
      this.#refuseTwins(config);
      const disk = this.#make(config, 'api');
      try {
        await disk.open().catch((error: unknown) => {
          throw openError(config, error);
        });
        await this.#rememberOr('the disk was not added');
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
    return this.#turns.run(async () => {
      const disk = this.#get(name);
      this.#disks.delete(name);
      try {
        if (disk.origin === 'api') await this.#rememberOr('the disk stays');
      } catch (error) {
        this.#disks.set(name, disk);
        throw error;
      }
      await disk.turns.run(() => disk.close());
      const again = disk.origin === 'config' ? '; a restart brings it back: see the file' : '';
      this.#options.report('disk-removed', name, `removed, its image stays${again}`);
    });
  }

  updateDisk(name: string, update: DiskUpdate): Promise<DiskStatus> {
    return this.#change(name, (disk) => disk.update(update));
  }

  reopenDisk(name: string): Promise<DiskStatus> {
    return this.#change(name, (disk) =>
      disk.reopen().catch((error: unknown) => {
        throw openError(disk.config, error);
      }),
    );
  }

  exportDisk(name: string, wanted: DiskExport | null): Promise<DiskStatus> {
    const owner = wanted === null ? null : this.#ownerOf(wanted.socket, name);
    if (owner !== null) return Promise.reject(taken(wanted!.socket, owner));
    return this.#change(name, (disk) => disk.setExport(wanted));
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

  /** Runs while nothing changes a disk, or the set of them. */
  exclusively<T>(work: () => Promise<T>): Promise<T> {
    return this.#turns.run(() => {
      let held = work;
      for (const disk of this.#disks.values()) {
        const inner = held;
        held = () => disk.turns.run(inner);
      }
      return held();
    });
  }

  plan(fds: SentFds): DiskPlan[] {
    return [...this.#disks.values()].map((disk) => disk.plan(fds));
  }

  async suspend(fds: SentFds): Promise<DiskFinal[]> {
    return await Promise.all([...this.#disks.values()].map((disk) => disk.suspend(fds)));
  }

  async resume(): Promise<void> {
    await Promise.allSettled([...this.#disks.values()].map((disk) => disk.resume()));
  }

  async surrender(): Promise<void> {
    await Promise.allSettled([...this.#disks.values()].map((disk) => disk.surrender()));
  }

  /** @throws ConfigError, VringError. */
  async adopt(plans: readonly DiskPlan[], fds: ReceivedFds): Promise<void> {
    for (const plan of plans) this.#make(parseDisk(plan.config), plan.origin).adopt(plan, fds);
    const remembered = await this.#readState();
    this.#shadowed = remembered.filter(({ name }) => this.#disks.get(name)?.origin === 'config');
  }

  /** @throws VringError naming the disk that cannot be taken over. */
  async restore(states: readonly DiskFinal[], fds: ReceivedFds): Promise<void> {
    await Promise.all(states.map((state) => this.#get(state.name).restore(state, fds)));
  }

  /** A disk of a newer configuration; it is `failed` where it cannot be opened. */
  async addConfigured(config: DiskConfig): Promise<void> {
    this.#refuseTwins(config);
    await this.#make(config, 'config').openOrFail();
  }

  async close(): Promise<void> {
    await this.exclusively(async () => {
      await Promise.allSettled([...this.#disks.values()].map((disk) => disk.close()));
    });
  }

  async #readState(): Promise<DiskConfig[]> {
    try {
      return await this.#stateFile.read();
    } catch (error) {
      this.#options.report('disk-state-unread', '', messageOf(error));
      return [];
    }
  }

  #make(config: DiskConfig, origin: DiskOrigin): Disk {
    const context: DiskContext = {
      spinMs: this.#options.spinMs,
      report: (kind, message) => this.#options.report(kind, config.name, message),
    };
    const disk = new Disk(config, origin, context);
    this.#disks.set(config.name, disk);
    return disk;
  }

  #get(name: string): Disk {
    const disk = this.#disks.get(name);
    if (disk === undefined) throw diskNotFound(name);
    return disk;
  }

  async #ask(name: string, what: string, payload: unknown): Promise<LayerAnswer> {
    const disk = this.#get(name);
    return await disk.turns.run(() => disk.control(what, payload));
  }

  /** A change of one disk; those of the API are remembered with it. */
  async #change(name: string, change: (disk: Disk) => Promise<void>): Promise<DiskStatus> {
    const disk = this.#get(name);
    await disk.turns.run(() => change(disk));
    if (disk.origin === 'api') {
      const what = 'the change was made, and is forgotten with the end of this process';
      await this.#turns.run(() => this.#rememberOr(what));
    }
    return await disk.status();
  }

  /** @throws VringError ERR_VRING_DISK_STATE: `consequence`, for people. */
  async #rememberOr(consequence: string): Promise<void> {
    try {
      await this.#remember();
    } catch (cause) {
      throw new VringError(ERR_DISK_STATE, `${messageOf(cause)}; ${consequence}`, { cause });
    }
  }

  async #remember(): Promise<void> {
    const own = [...this.#disks.values()].filter(({ origin }) => origin === 'api');
    await this.#stateFile.write([...own.map(({ config }) => config), ...this.#shadowed]);
    this.#shadowed = this.#shadowed.filter(({ name }) => this.#disks.get(name)?.origin !== 'api');
  }

  #refuseTwins({ name, socket, export: exported }: DiskConfig): void {
    if (this.#disks.has(name)) {
      throw new VringError(ERR_DISK_EXISTS, `there is a disk named ${name} already`);
    }
    for (const path of [socket, exported?.socket]) {
      const owner = path === undefined ? null : this.#ownerOf(path);
      if (owner !== null) throw taken(path!, owner);
    }
    if (this.#disks.size < MAX_DISKS) return;
    const text = `disk ${name}: there are ${MAX_DISKS} disks, the most of one process; remove one`;
    throw new VringError(ERR_DISK_LIMIT, text);
  }

  #ownerOf(socket: string, except?: string): string | null {
    const disk = this.ownerOf(socket);
    if (disk !== null && disk !== except) return `disk ${disk}`;
    const port = this.#options.socketOwner(socket);
    return port === null ? null : `port ${port}`;
  }
}

function taken(socket: string, owner: string): VringError {
  return new VringError(ERR_DISK_EXISTS, `socket ${socket} already belongs to ${owner}`);
}

/** What was asked for is at fault, or what is there; never the request's form. */
function openError({ name }: DiskConfig, error: unknown): unknown {
  if (error instanceof ConfigError) return error;
  const text = `disk ${name} cannot be opened: ${messageOf(error)}`;
  return new VringError(ERR_DISK_OPEN, text, { cause: error });
}
