/** Disks without a data plane, for tests of the API and of the CLI. */
import type { FaultRule } from '../storage/index.ts';
import { type DiskControl, diskNotFound, ERR_DISK_EXISTS } from './disks/disk-control.ts';
import type {
  DiskConfig,
  DiskExport,
  DiskStatus,
  DiskUpdate,
  RollbackOptions,
} from './disks/disk-types.ts';
import { layerText } from './disks/layer-input.ts';
import { VringError } from '../base/errors.ts';

export class FakeDisks implements DiskControl {
  readonly #disks = new Map<string, DiskConfig>();
  readonly #snapshots: string[] = [];
  /** What was asked of layers. */
  readonly asked: [name: string, payload: unknown][] = [];
  sizeBytes = 2 ** 30;

  constructor(disks: readonly DiskConfig[] = []) {
    for (const disk of disks) this.#disks.set(disk.name, disk);
  }

  async disks(): Promise<DiskStatus[]> {
    return [...this.#disks.values()].map((disk) => this.#status(disk));
  }

  async disk(name: string): Promise<DiskStatus> {
    return this.#status(this.#get(name));
  }

  async addDisk(config: DiskConfig): Promise<DiskStatus> {
    if (this.#disks.has(config.name)) {
      throw new VringError(ERR_DISK_EXISTS, `there is a disk named ${config.name} already`);
    }
    this.#disks.set(config.name, config);
    return this.#status(config);
  }

  async updateDisk(name: string, { limits, sizeBytes }: DiskUpdate): Promise<DiskStatus> {
    const disk = this.#get(name);
    if (sizeBytes !== undefined) this.sizeBytes = sizeBytes;
    if (limits !== undefined) this.#disks.set(name, { ...disk, limits });
    return this.disk(name);
  }

  async removeDisk(name: string): Promise<void> {
    this.#get(name);
    this.#disks.delete(name);
  }

  reopenDisk(name: string): Promise<DiskStatus> {
    return this.disk(name);
  }

  async exportDisk(name: string, wanted: DiskExport | null): Promise<DiskStatus> {
    this.#disks.set(name, { ...this.#get(name), export: wanted });
    return this.disk(name);
  }

  async snapshots(name: string): Promise<unknown> {
    this.#get(name);
    return this.#snapshots.map((snapshot) => ({ name: snapshot }));
  }

  async snapshot(name: string, snapshot: string): Promise<unknown> {
    this.#get(name);
    this.#snapshots.push(snapshot);
    return { name: snapshot };
  }

  async rollback(name: string, options: RollbackOptions): Promise<unknown> {
    this.#get(name);
    this.asked.push(['rollback', options]);
    return {};
  }

  async commit(name: string, to?: 'base'): Promise<unknown> {
    this.#get(name);
    this.asked.push(['commit', to]);
    return {};
  }

  async commitStatus(name: string): Promise<unknown> {
    this.#get(name);
    return { state: 'idle' };
  }

  async deleteSnapshot(name: string, snapshot: string): Promise<unknown> {
    this.#get(name);
    this.#snapshots.splice(this.#snapshots.indexOf(snapshot), 1);
    return null;
  }

  async setFaults(name: string, rules: readonly FaultRule[]): Promise<void> {
    this.#get(name);
    this.asked.push(['faults', rules]);
  }

  #get(name: string): DiskConfig {
    const disk = this.#disks.get(name);
    if (disk === undefined) throw diskNotFound(name);
    return disk;
  }

  #status(config: DiskConfig): DiskStatus {
    const { name, socket, readOnly, queues, blockSize, serial, limits, layers } = config;
    const uri = config.export && `nbd+unix:///${name}?socket=${config.export.socket}`;
    return {
      name,
      socket,
      origin: 'api',
      state: 'up',
      reason: null,
      image: layers.map(layerText).join(' over '),
      sizeBytes: this.sizeBytes,
      readOnly,
      queues,
      blockSize,
      serial,
      layers: layers.map(layerText),
      limits,
      export: uri,
      sessions: 1,
      inFlight: 2,
      errors: 1,
      lastError: { op: 'read', at: 4096, errno: 'EIO' },
      faults: 0,
      counters: { reads: 100, writes: 50, readBytes: 409600, writtenBytes: 204800, flushes: 3 },
      layerCounters: {},
      latency: { read: { counts: [0, 10, 60, 30], sumMicroseconds: 350 } },
    };
  }
}
