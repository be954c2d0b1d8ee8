/**
 * The data plane of block devices: what a worker runs when it serves disks. Loaded by the worker by
 * its URL; everything here runs on the worker's thread.
 *
 * A *source* is what requests or completions come from: a ring, or an engine that completes later.
 * Awake sources are looked at every round; a ring that has been empty for `spinMs` is armed (its
 * driver is asked to kick) and sleeps until its descriptor becomes readable.
 */
import { assert } from '../../base/assert.ts';
import { VringError } from '../../base/errors.ts';
import {
  type DataPlane,
  DRAINING,
  type PlaneContext,
  type VringAttach,
} from '../../runtime/data-plane.ts';
import { type Engine, type EngineSpec, openEngine } from '../../storage/index.ts';
import type { IotlbUpdate } from '../../vhost-user/index.ts';
import type { BlkVring } from './blk-vring.ts';
import { DiskPlane, type LastError } from './disk-plane.ts';

export type AddDisk = {
  readonly device: number;
  readonly queues: number;
  readonly serial: string;
  readonly cache: Int32Array;
  readonly image: EngineSpec;
};

export type DiskStatus = {
  readonly sizeBytes: number;
  readonly errors: number;
  readonly lastError: LastError | null;
  readonly faults: number;
  /** Of all rings since the disk was added, those that are gone included. */
  readonly totals: Readonly<Record<string, number>>;
  readonly vrings: {
    readonly index: number;
    readonly started: boolean;
    readonly busy: number;
    readonly counters: Readonly<Record<string, number>>;
  }[];
};

/** `vring` is null for an engine. */
type Source = {
  readonly token: number;
  readonly disk: DiskPlane;
  readonly vring: BlkVring | null;
  /** Position in `#awake`, -1 asleep. */
  awakeAt: number;
  lastWorkMs: number;
};

type Disk = {
  readonly plane: DiskPlane;
  readonly engine: Source | null;
  /** By index of the ring. */
  readonly sources: (Source | null)[];
};

export class BlkPlane implements DataPlane {
  readonly #context: PlaneContext;
  readonly #open: (spec: EngineSpec) => Engine;
  readonly #disks: (Disk | null)[] = [];
  readonly #sources: (Source | null)[] = [];
  readonly #freeTokens: number[] = [];
  readonly #awake: Source[] = [];

  constructor(context: PlaneContext, open: (spec: EngineSpec) => Engine = openEngine) {
    this.#context = context;
    this.#open = open;
  }

  get awake(): number {
    return this.#awake.length;
  }

  poll(nowMs: number): number {
    let work = 0;
    // From the end: a source that falls asleep is replaced by the last one, which had its turn.
    for (let i = this.#awake.length - 1; i >= 0; i--) {
      const source = this.#awake[i]!;
      const { disk, vring } = source;
      const done = vring === null ? disk.complete() : disk.work(vring);
      if (done > 0) {
        work += done;
        source.lastWorkMs = nowMs;
        if (vring === null) this.#wakeRings(disk, nowMs); // which may have waited for room
      } else if (vring === null || nowMs - source.lastWorkMs > this.#context.spinMs) {
        this.#arm(source, nowMs);
      }
    }
    return work;
  }

  ready(token: number, nowMs: number): void {
    const source = this.#sources[token];
    if (source === null || source === undefined) return; // removed while the event was under way
    source.vring?.start(true);
    this.#wake(source, nowMs);
  }

  attachVring(attach: VringAttach): void {
    const disk = this.#disk(attach.device);
    const vring = disk.plane.attach(attach);
    const source = this.#addSource(disk.plane, vring);
    disk.sources[attach.index] = source;
    if (attach.kickFd < 0) {
      vring.start(true); // a driver that does not kick is polled
    } else {
      this.#context.watch(attach.kickFd, source.token);
      // The ring may still say what a device before us said: that it wants no kicks. Asked for
      // them, the driver either kicks or has added something already.
      if (!vring.started && vring.requestKicks()) vring.start(false);
    }
    const { queue } = vring;
    if (queue.resubmissions > 0) vring.start(true);
    // A device before us may have used requests and died before it told anybody; a driver that
    // waits for them adds none that would bring the news.
    const isFresh = queue.nextUsed === 0 && queue.usedWrap === 1 && queue.tracked === 0;
    if (!isFresh) disk.plane.setCallFd(vring, vring.callFd);
    this.#wake(source, performance.now());
  }

  detachVring(device: number, index: number): number {
    const disk = this.#disk(device);
    const source = disk.sources[index] ?? null;
    if (source === null) return 0;
    const base = disk.plane.detach(index);
    if (base === null) return DRAINING;
    disk.sources[index] = null;
    this.#removeSource(source);
    const { kickFd } = source.vring as BlkVring;
    if (kickFd >= 0) this.#context.unwatch(kickFd);
    return base;
  }

  enableVring(device: number, index: number, enabled: boolean): void {
    const source = this.#disk(device).sources[index] ?? null;
    if (source === null || source.vring === null) return;
    source.vring.enabled = enabled;
    source.vring.start(false);
    this.#wake(source, performance.now());
  }

  setCallFd(device: number, index: number, callFd: number): void {
    const { plane } = this.#disk(device);
    const vring = plane.vrings[index] ?? null;
    if (vring !== null) plane.setCallFd(vring, callFd);
  }

  setErrFd(device: number, index: number, errFd: number): void {
    const vring = this.#disk(device).plane.vrings[index] ?? null;
    if (vring !== null) vring.errFd = errFd;
  }

  resetDevice(device: number): void {
    this.#disk(device).plane.reset();
  }

  updateIotlb(device: number, entry: IotlbUpdate): void {
    const { plane } = this.#disk(device);
    plane.settle(); // the rings' maps change
    plane.iotlb.update(entry);
    this.#wakeRings(plane, performance.now());
  }

  invalidateIotlb(device: number, iova: number, sizeBytes: number): void {
    const { plane } = this.#disk(device);
    plane.settle();
    plane.iotlb.invalidate(iova, sizeBytes);
    this.#wakeRings(plane, performance.now()); // which may have waited for room in the engine
  }

  command(name: string, payload: unknown): unknown {
    switch (name) {
      case 'addDisk':
        return this.#addDisk(payload as AddDisk);
      case 'removeDisk':
        return this.#removeDisk((payload as { device: number }).device);
      case 'resizeDisk': {
        const { device, sizeBytes } = payload as { device: number; sizeBytes: number };
        return this.#disk(device).plane.resize(sizeBytes);
      }
      case 'diskStatus':
        return this.#status((payload as { device: number }).device);
      default:
        throw new VringError('ERR_VRING_WORKER', `unknown command ${name}`);
    }
  }

  /** To sleep, unless more arrived in the meantime or the driver never kicks. */
  #arm(source: Source, nowMs: number): void {
    const { vring, disk } = source;
    // A ring that waits for a translation or for room in the engine is woken by it.
    if (vring !== null && !vring.draining && vring.fault === 0 && vring.queue.missed === 0) {
      if (!disk.isCongested && !vring.isFull && (vring.kickFd < 0 || vring.requestKicks())) {
        // Found without a kick: a ring that was not started is now, and is worked on.
        vring.start(false);
        source.lastWorkMs = nowMs;
        if (vring.enabled) return;
      }
    }
    this.#sleep(source);
  }

  #sleep(source: Source): void {
    const last = this.#awake.pop() as Source;
    if (last !== source) {
      this.#awake[source.awakeAt] = last;
      last.awakeAt = source.awakeAt;
    }
    source.awakeAt = -1;
  }

  #wake(source: Source, nowMs: number): void {
    source.lastWorkMs = nowMs;
    if (source.awakeAt >= 0) return;
    if (source.vring?.started === true) source.vring.pauseKicks();
    source.awakeAt = this.#awake.push(source) - 1;
  }

  #wakeRings(plane: DiskPlane, nowMs: number): void {
    for (const source of this.#sources) {
      if (source !== null && source.disk === plane && source.vring !== null) {
        this.#wake(source, nowMs);
      }
    }
  }

  #addSource(disk: DiskPlane, vring: BlkVring | null): Source {
    const token = this.#freeTokens.pop() ?? this.#sources.length;
    const source: Source = { token, disk, vring, awakeAt: -1, lastWorkMs: 0 };
    this.#sources[token] = source;
    return source;
  }

  #removeSource(source: Source): void {
    if (source.awakeAt >= 0) this.#sleep(source);
    this.#sources[source.token] = null;
    this.#freeTokens.push(source.token);
  }

  #addDisk(add: AddDisk): void {
    const { device, image } = add;
    assert((this.#disks[device] ?? null) === null, () => `device ${device} is a disk already`);
    const engine = this.#open(image);
    const plane = new DiskPlane({ ...add, engine, emit: this.#context.emit });
    const source = engine.completionFd < 0 ? null : this.#addSource(plane, null);
    if (source !== null) this.#context.watch(engine.completionFd, source.token);
    this.#disks[device] = { plane, engine: source, sources: [] };
  }

  #removeDisk(device: number): void {
    const { plane, engine, sources } = this.#disk(device);
    assert(
      sources.every((source) => (source ?? null) === null),
      'its rings are detached',
    );
    if (engine !== null) {
      this.#removeSource(engine);
      this.#context.unwatch(plane.engine.completionFd);
    }
    plane.engine.close();
    this.#disks[device] = null;
  }

  #status(device: number): DiskStatus {
    const { plane } = this.#disk(device);
    const { errors, lastError, faults } = plane;
    const vrings = plane.vrings.flatMap((vring) => {
      if (vring === null) return [];
      const { index, started, busy } = vring;
      return [{ index, started, busy, counters: vring.counters() }];
    });
    const { sizeBytes } = plane.engine;
    return { sizeBytes, errors, lastError, faults, totals: plane.totals(), vrings };
  }

  #disk(device: number): Disk {
    const disk = this.#disks[device];
    if (disk === null || disk === undefined) {
      throw new VringError('ERR_VRING_WORKER', `no disk has number ${device}`);
    }
    return disk;
  }
}

export function createPlane(context: PlaneContext): DataPlane {
  return new BlkPlane(context);
}
