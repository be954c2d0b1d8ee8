/**
 * The data plane of block devices: what a worker runs when it serves disks. Loaded by the worker by
 * its URL; everything here runs on the worker's thread.
 */
import { VringError } from '../../base/errors.ts';
import type { DataPlane, PlaneContext } from '../../runtime/data-plane.ts';
import { type Engine, type EngineSpec, openEngine, type ZoneShape } from '../../storage/index.ts';
import type { BlkLifetime } from '../../wire/virtio-blk.ts';
import type { LastError } from '../disk/failed-flush.ts';
import type { LatencyStatus } from '../disk/request-latency.ts';
import { RequestPlane } from '../disk/request-plane.ts';
import type { BlkVring } from './blk-vring.ts';
import { DiskPlane } from './disk-plane.ts';

export type AddDisk = {
  readonly device: number;
  readonly queues: number;
  readonly serial: string;
  /** As `BlkDeviceOptions.lifetime`. */
  readonly lifetime?: BlkLifetime | null;
  readonly cache: Int32Array;
  /** Of a zoned disk: `DiskImage.zones`. */
  readonly zones?: ZoneShape | null;
  /** `DiskStatus.failedFlush` of the same bytes, opened before. */
  readonly failedFlush?: number;
  readonly image: EngineSpec;
};

export type DiskStatus = {
  readonly sizeBytes: number;
  readonly errors: number;
  readonly lastError: LastError | null;
  readonly faults: number;
  /** -errno of a flush that failed, and makes all others fail; 0. */
  readonly failedFlush: number;
  readonly latency: LatencyStatus;
  /** Of all rings since the disk was added, those that are gone included. */
  readonly totals: Readonly<Record<string, number>>;
  readonly vrings: {
    readonly index: number;
    readonly started: boolean;
    readonly busy: number;
    readonly counters: Readonly<Record<string, number>>;
  }[];
};

export class BlkPlane extends RequestPlane<BlkVring, DiskPlane> {
  readonly #open: (spec: EngineSpec) => Engine;

  constructor(context: PlaneContext, open: (spec: EngineSpec) => Engine = openEngine) {
    super(context);
    this.#open = open;
  }

  command(name: string, payload: unknown): unknown {
    switch (name) {
      case 'addDisk':
        return this.#addDisk(payload as AddDisk);
      case 'removeDisk':
        return this.#removeDisk((payload as { device: number }).device);
      case 'resizeDisk': {
        const { device, sizeBytes } = payload as { device: number; sizeBytes: number };
        this.device(device).resize(sizeBytes);
        this.wakeDevice(this.device(device)); // rings may have waited for room in the engine
        return undefined;
      }
      case 'diskStatus':
        return this.#status((payload as { device: number }).device);
      default:
        throw new VringError('ERR_VRING_WORKER', `unknown command ${name}`);
    }
  }

  #addDisk(add: AddDisk): void {
    const engine = this.#open(add.image);
    const disk = new DiskPlane({ ...add, engine, emit: this.context.emit });
    this.addDevice(add.device, disk);
    this.addEngine(disk, 0, engine);
  }

  #removeDisk(number: number): void {
    const disk = this.device(number);
    this.removeEngine(disk, 0, disk.engine);
    this.removeDevice(number);
    disk.engine.close();
  }

  #status(number: number): DiskStatus {
    const disk = this.device(number);
    const { errors, lastError, faults } = disk;
    // A driver without a cache flushes nothing, and its durable writes fail for the same reason.
    const failedFlush = disk.failedFlush || (disk.engine.failedFlush ?? 0);
    const vrings = disk.vrings.flatMap((vring) => {
      if (vring === null) return [];
      const { index, started, busy } = vring;
      return [{ index, started, busy, counters: vring.counters() }];
    });
    const { sizeBytes } = disk.engine;
    const latency = disk.latency.status();
    const totals = disk.totals();
    return { sizeBytes, errors, lastError, faults, failedFlush, latency, totals, vrings };
  }
}

export function createPlane(context: PlaneContext): DataPlane {
  return new BlkPlane(context);
}
