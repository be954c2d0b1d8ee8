/** Disks without a data plane, for tests of the API and of the CLI. */
import type { CutResult, FaultRule } from '../storage/index.ts';
import {
  type DiskControl,
  diskNotFound,
  ERR_DISK_EXISTS,
  ERR_SCSI_NOT_FOUND,
} from './disks/disk-control.ts';
import type {
  DiskConfig,
  DiskExport,
  DiskStatus,
  DiskUpdate,
  MediumConfig,
  RollbackOptions,
  UnitPlace,
} from './disks/disk-types.ts';
import { layerText } from './disks/layer-input.ts';
import type { AdapterConfig, AdapterStatus, UnitConfig } from './disks/scsi-types.ts';
import { VringError } from '../base/errors.ts';

export class FakeDisks implements DiskControl {
  readonly #disks = new Map<string, DiskConfig>();
  readonly #adapters = new Map<string, AdapterConfig>();
  readonly #snapshots: string[] = [];
  /** What was asked of layers. */
  readonly asked: [name: string, payload: unknown][] = [];
  sizeBytes = 2 ** 30;

  constructor(disks: readonly DiskConfig[] = [], adapters: readonly AdapterConfig[] = []) {
    for (const disk of disks) this.#disks.set(disk.name, disk);
    for (const adapter of adapters) this.#adapters.set(adapter.name, adapter);
  }

  async disks(): Promise<DiskStatus[]> {
    const units = [...this.#adapters.values()].flatMap((adapter) => {
      return adapter.units.map((unit) => this.#unitStatus(adapter, unit));
    });
    return [...[...this.#disks.values()].map((disk) => this.#status(disk)), ...units];
  }

  async disk(name: string): Promise<DiskStatus> {
    for (const adapter of this.#adapters.values()) {
      const unit = adapter.units.find((one) => one.name === name);
      if (unit !== undefined) return this.#unitStatus(adapter, unit);
    }
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
    for (const adapter of this.#adapters.values()) {
      if (!adapter.units.some((unit) => unit.name === name)) continue;
      const units = adapter.units.filter((unit) => unit.name !== name);
      this.#adapters.set(adapter.name, { ...adapter, units });
      return;
    }
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

  async cutPower(name: string, seed = 1): Promise<CutResult> {
    this.#get(name);
    this.asked.push(['cut', seed]);
    return { seed, requests: 3, kept: 1, lost: 1, torn: 1 };
  }

  async adapters(): Promise<AdapterStatus[]> {
    return [...this.#adapters.values()].map((adapter) => adapterStatus(adapter));
  }

  async adapter(name: string): Promise<AdapterStatus> {
    return adapterStatus(this.#adapter(name));
  }

  async addAdapter(config: AdapterConfig): Promise<AdapterStatus> {
    this.#adapters.set(config.name, config);
    return adapterStatus(config);
  }

  async removeAdapter(name: string): Promise<void> {
    this.#adapters.delete(this.#adapter(name).name);
  }

  async attachUnit(name: string, unit: UnitConfig): Promise<DiskStatus> {
    const adapter = this.#adapter(name);
    this.#adapters.set(name, { ...adapter, units: [...adapter.units, unit] });
    return this.disk(unit.name);
  }

  #adapter(name: string): AdapterConfig {
    const adapter = this.#adapters.get(name);
    if (adapter === undefined) throw new VringError(ERR_SCSI_NOT_FOUND, `no adapter ${name}`);
    return adapter;
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

  #unitStatus({ name: adapter, socket, queues }: AdapterConfig, unit: UnitConfig): DiskStatus {
    const { target, lun } = unit;
    return this.#status({ ...unit, socket, queues }, { adapter, target, lun });
  }

  #status(
    config: MediumConfig & { readonly socket: string; readonly queues: number },
    unit: UnitPlace | null = null,
  ): DiskStatus {
    const { name, socket, readOnly, queues, blockSize, serial, limits, layers } = config;
    const uri = config.export && `nbd+unix:///${name}?socket=${config.export.socket}`;
    return {
      name,
      unit,
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

function adapterStatus({ name, socket, queues, units }: AdapterConfig): AdapterStatus {
  const names = units.map((unit) => unit.name);
  const counters = { chains: 200, tasks: 1, events: 2 };
  const state = { state: 'up', reason: null, origin: 'api' } as const;
  return { name, socket, ...state, queues, units: names, sessions: 1, faults: 0, counters };
}
