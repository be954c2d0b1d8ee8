/**
 * The data plane of devices that carry requests out by engines: which of their rings and engines a
 * worker looks at. What is particular to a kind of device is its `RequestDevice`, and the commands.
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
import type { Engine } from '../../storage/index.ts';
import type { IotlbUpdate } from '../../vhost-user/index.ts';
import type { Flight } from './flight.ts';
import type { FlightVring } from './flight-vring.ts';
import type { RequestDevice } from './request-device.ts';

/** A ring or an engine: the other one is null. */
type Source<Device, Vring> = {
  readonly token: number;
  readonly device: Device;
  readonly vring: Vring | null;
  readonly engine: Engine | null;
  /** Which engine of the device. */
  readonly part: number;
  /** Position in `#awake`, -1 asleep. */
  awakeAt: number;
  lastWorkMs: number;
};

type Served<Device, Vring> = {
  readonly device: Device;
  /** By index of the ring. */
  readonly sources: (Source<Device, Vring> | null)[];
};

export abstract class RequestPlane<
  Vring extends FlightVring,
  Device extends RequestDevice<Flight, Vring>,
> implements DataPlane {
  protected readonly context: PlaneContext;
  readonly #served: (Served<Device, Vring> | null)[] = [];
  readonly #sources: (Source<Device, Vring> | null)[] = [];
  readonly #freeTokens: number[] = [];
  readonly #awake: Source<Device, Vring>[] = [];
  /** Those of `#sources` that are engines. */
  readonly #engines: Source<Device, Vring>[] = [];

  constructor(context: PlaneContext) {
    this.context = context;
  }

  /** Everything that is particular to the kind of device. */
  abstract command(name: string, payload: unknown): unknown;

  get awake(): number {
    return this.#awake.length;
  }

  poll(nowMs: number): number {
    let work = 0;
    // From the end: a source that falls asleep is replaced by the last one, which had its turn.
    for (let i = this.#awake.length - 1; i >= 0; i--) {
      const source = this.#awake[i]!;
      const { device, vring, part } = source;
      const done = vring === null ? device.complete(part) : device.work(vring, nowMs);
      if (done > 0) {
        work += done;
        source.lastWorkMs = nowMs;
        if (vring === null) this.#wakeRings(device, nowMs); // which may have waited for room
        else if (this.#engines.length > 0) this.#wakeEngines(device, nowMs);
      } else if (vring === null) {
        this.#armEngine(source, nowMs);
      } else if (nowMs - source.lastWorkMs > this.context.spinMs) {
        this.#armRing(source, vring, nowMs);
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
    const { device, sources } = this.#find(attach.device);
    const vring = device.attach(attach);
    const source = this.#addSource(device, vring, null, 0);
    sources[attach.index] = source;
    if (attach.kickFd < 0) {
      vring.start(true); // a driver that does not kick is polled
    } else {
      this.context.watch(attach.kickFd, source.token);
      // The ring may still say what a device before us said: that it wants no kicks. Asked for
      // them, the driver either kicks or has added something already.
      if (!vring.started && vring.requestKicks()) vring.start(false);
    }
    const { queue } = vring;
    if (queue.resubmissions > 0) vring.start(true);
    // A device before us may have used requests and died before it told anybody; a driver that
    // waits for them adds none that would bring the news.
    const isFresh = queue.nextUsed === 0 && queue.usedWrap === 1 && queue.tracked === 0;
    if (!isFresh) device.setCallFd(vring, vring.callFd);
    this.#wake(source, performance.now());
  }

  detachVring(number: number, index: number): number {
    const { device, sources } = this.#find(number);
    const source = sources[index] ?? null;
    if (source === null) return 0;
    const base = device.detach(index);
    if (base === null) {
      this.#wakeEngines(device, performance.now()); // which was looked at, and is silent now
      return DRAINING;
    }
    sources[index] = null;
    this.#removeSource(source);
    const { kickFd } = source.vring as Vring;
    if (kickFd >= 0) this.context.unwatch(kickFd);
    return base;
  }

  enableVring(number: number, index: number, enabled: boolean): void {
    const source = this.#find(number).sources[index] ?? null;
    if (source === null || source.vring === null) return;
    source.vring.enabled = enabled;
    source.vring.start(false);
    this.#wake(source, performance.now());
  }

  setCallFd(number: number, index: number, callFd: number): void {
    const device = this.device(number);
    const vring = device.vrings[index] ?? null;
    if (vring !== null) device.setCallFd(vring, callFd);
  }

  setErrFd(number: number, index: number, errFd: number): void {
    const vring = this.device(number).vrings[index] ?? null;
    if (vring !== null) vring.errFd = errFd;
  }

  resetDevice(number: number): void {
    this.device(number).reset();
  }

  updateIotlb(number: number, entry: IotlbUpdate): void {
    const device = this.device(number);
    device.settle(); // the rings' maps change
    device.iotlb.update(entry);
    this.#wakeRings(device, performance.now());
  }

  invalidateIotlb(number: number, iova: number, sizeBytes: number): void {
    const device = this.device(number);
    device.settle();
    device.iotlb.invalidate(iova, sizeBytes);
    this.#wakeRings(device, performance.now()); // which may have waited for room in the engine
  }

  /** An engine that is silent while it is looked at is looked at while it has something to do. */
  #wakeEngines(device: Device, nowMs: number): void {
    for (const source of this.#engines) {
      const engine = source.engine as Engine;
      if (source.device !== device || engine.arm === undefined || engine.pending === 0) continue;
      this.#wake(source, nowMs);
    }
  }

  #armEngine(source: Source<Device, Vring>, nowMs: number): void {
    const engine = source.engine as Engine;
    if (engine.arm !== undefined && engine.pending > 0) {
      if (nowMs - source.lastWorkMs <= this.context.spinMs || engine.arm()) return;
    }
    this.#sleep(source);
  }

  /** To sleep, unless more arrived in the meantime or the driver never kicks. */
  #armRing(source: Source<Device, Vring>, vring: Vring, nowMs: number): void {
    const { device } = source;
    // A ring that waits for a translation or for room in the engine is woken by it.
    if (!vring.draining && vring.fault === 0 && vring.queue.missed === 0) {
      if (!device.waits(vring) && (vring.kickFd < 0 || vring.requestKicks())) {
        // Found without a kick: a ring that was not started is now, and is worked on.
        vring.start(false);
        source.lastWorkMs = nowMs;
        if (vring.enabled) return;
      }
    }
    this.#sleep(source);
  }

  #sleep(source: Source<Device, Vring>): void {
    const last = this.#awake.pop() as Source<Device, Vring>;
    if (last !== source) {
      this.#awake[source.awakeAt] = last;
      last.awakeAt = source.awakeAt;
    }
    source.awakeAt = -1;
  }

  #wake(source: Source<Device, Vring>, nowMs: number): void {
    source.lastWorkMs = nowMs;
    if (source.awakeAt >= 0) return;
    if (source.vring?.started === true) source.vring.pauseKicks();
    source.awakeAt = this.#awake.push(source) - 1;
  }

  #wakeRings(device: Device, nowMs: number): void {
    for (const source of this.#sources) {
      if (source !== null && source.device === device && source.vring !== null) {
        this.#wake(source, nowMs);
      }
    }
  }

  #addSource(
    device: Device,
    vring: Vring | null,
    engine: Engine | null,
    part: number,
  ): Source<Device, Vring> {
    const token = this.#freeTokens.pop() ?? this.#sources.length;
    const source = { token, device, vring, engine, part, awakeAt: -1, lastWorkMs: 0 };
    this.#sources[token] = source;
    return source;
  }

  #removeSource(source: Source<Device, Vring>): void {
    if (source.awakeAt >= 0) this.#sleep(source);
    this.#sources[source.token] = null;
    this.#freeTokens.push(source.token);
  }

  protected device(number: number): Device {
    return this.#find(number).device;
  }

  protected addDevice(number: number, device: Device): void {
    assert((this.#served[number] ?? null) === null, () => `device ${number} is there already`);
    this.#served[number] = { device, sources: [] };
  }

  /** Once its rings are detached and its engines are removed. */
  protected removeDevice(number: number): void {
    const { sources } = this.#find(number);
    assert(
      sources.every((source) => (source ?? null) === null),
      'its rings are detached',
    );
    this.#served[number] = null;
  }

  /** An engine whose completions are waited for, where it has any. */
  protected addEngine(device: Device, part: number, engine: Engine): void {
    if (engine.completionFd < 0) return;
    const source = this.#addSource(device, null, engine, part);
    this.#engines.push(source);
    this.context.watch(engine.completionFd, source.token);
    engine.arm?.(); // from now on it is silent while it is looked at
  }

  protected removeEngine(device: Device, part: number, engine: Engine): void {
    if (engine.completionFd < 0) return;
    const at = this.#engines.findIndex((source) => source.engine === engine);
    const [source] = this.#engines.splice(at, 1);
    assert(source !== undefined && source.device === device && source.part === part);
    this.#removeSource(source);
    this.context.unwatch(engine.completionFd);
  }

  /** For what does not come from a driver: a ring that has something to do all the same. */
  protected wakeDevice(device: Device): void {
    this.#wakeRings(device, performance.now());
  }

  #find(number: number): Served<Device, Vring> {
    const served = this.#served[number];
    if (served === null || served === undefined) {
      throw new VringError('ERR_VRING_WORKER', `no device of this plane has number ${number}`);
    }
    return served;
  }
}
