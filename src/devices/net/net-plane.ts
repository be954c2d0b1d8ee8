/**
 * The data plane of a virtual switch: what a worker runs when it serves net devices and uplinks.
 * Loaded by the worker by its URL; everything here runs on the worker's thread.
 *
 * A *source* is something that frames or commands come from: a transmit queue, a control queue, an
 * uplink. Awake sources are looked at every round; one that has been empty for as long as its
 * policy spins (port-policy.ts) is armed (its driver is asked to kick) and sleeps until then.
 * So a round costs nothing for ports that are idle, and with all asleep the worker sleeps.
 */
import { assert } from '../../base/assert.ts';
import { VringError } from '../../base/errors.ts';
import type {
  DataPlane,
  PlaneContext,
  ResumedVring,
  VringAttach,
} from '../../runtime/data-plane.ts';
import type { IotlbUpdate } from '../../vhost-user/index.ts';
import { MacTable, Switch } from '../../switch/index.ts';
import { CaptureTap, type CaptureRing } from '../../capture/index.ts';
import { TapPlane, type UplinkPlane } from '../../uplinks/index.ts';
import { arena } from '../../sys/arena.ts';
import { hurryThread } from '../../sys/thread.ts';
import type { PortIotlb } from './port-iotlb.ts';
import { CallHold } from './call-hold.ts';
import { DriverNews } from './driver-news.ts';
import type {
  AddNetPort,
  AddTapPort,
  AddUplinkPort,
  AttachUplink,
  LoadNetState,
  LoadUplinkCounters,
  NetPlaneOptions,
  NetPortSettings,
  NetPortStatus,
} from './net-commands.ts';
import { NetPort } from './net-port.ts';
import type { NetPlaneState } from './net-state.ts';
import { NetUplinks, UNWATCHED_REST_MS, uplinkPlaneOf } from './net-uplinks.ts';
import { NetVring } from './net-vring.ts';
import {
  BUSY_FRAMES,
  BUSY_LULL,
  DEFAULT_POLICY,
  PortPace,
  type PortPolicy,
  SourcePace,
} from './port-policy.ts';
import { REST_TOKEN, RestTimer } from './rest-timer.ts';
import { PlaneSources, type Source } from './plane-sources.ts';
import { PortScratch } from './port-scratch.ts';

export class NetPlane implements DataPlane {
  readonly #context: PlaneContext;
  readonly #switch: Switch;
  readonly #sources = new PlaneSources();
  readonly #netPorts: (NetPort | null)[] = [];
  readonly #portScratch = new PortScratch(true);
  readonly #uplinks: NetUplinks;
  readonly #paces: PortPace[] = [];
  readonly #calls = new CallHold<NetVring>();
  readonly #rests: RestTimer<Source>;
  readonly #news: DriverNews;
  /** Sources of each vring, so that they can be found again: [device][index]. */
  readonly #vringSources: (Source | null)[][] = [];
  readonly roundsOfClock = 4; // 16 us where queues are full
  lull = 1;
  readonly #worker: number;
  readonly #workers: number;
  readonly #loads: Float64Array;
  /** What to add to a thread's clock, which begins with the thread, for one that all share. */
  readonly #clockMs = Number(process.hrtime.bigint()) / 1e6 - performance.now();
  #nowSeconds = 0;
  /** No source is worked on; which of them are awake is kept. */
  #suspended = false;
  #calmDown: (() => void) | null = null;

  constructor(context: PlaneContext) {
    this.#context = context;
    const options = context.options as NetPlaneOptions;
    const { macTable, counters, scratchAt } = options;
    this.#rests = new RestTimer(context);
    this.#uplinks = new NetUplinks(context, this.#sources);
    this.#news = new DriverNews(context.emit, (device) => this.#netPorts[device] ?? null);
    [this.#worker, this.#workers] = [options.worker ?? 0, options.workers ?? 1];
    this.#loads = new Float64Array(options.loads ?? new SharedArrayBuffer(8));
    const { view, bytes } = arena();
    this.#switch = new Switch({
      view,
      bytes,
      scratchAt,
      macTable: MacTable.attach(macTable),
      counters,
      settle: () => this.#portScratch.settle(),
    });
  }

  get awake(): number {
    if (this.#suspended) return 0;
    return this.#sources.awake.length + this.#calls.count + this.#switch.unflushed;
  }

  poll(nowMs: number): number {
    if (this.#suspended) return 0;
    const seconds = Math.trunc((nowMs + this.#clockMs) / 1000);
    if (seconds !== this.#nowSeconds) {
      this.#nowSeconds = seconds;
      this.#switch.tick(seconds);
    } else if (this.#switch.macTable.due > 0) this.#switch.macTable.sweep();
    let work = 0;
    let lull = BUSY_LULL;
    // From the end: a source that falls asleep is replaced by the last one, which had its turn.
    for (let i = this.#sources.awake.length - 1; i >= 0; i--) {
      const source = this.#sources.awake[i];
      const done = this.#work(source);
      if (done > 0) {
        work += done;
        if (source.pace.lull < lull) lull = source.pace.lull;
        if (source.pace.spinning) source.pace.rewarded(nowMs - source.lastWorkMs);
        source.lastWorkMs = nowMs;
        this.#loads[source.loadSlot] += done;
      } else if (!source.spins || nowMs - source.lastWorkMs >= source.pace.spinMs) {
        this.#arm(source, nowMs);
      } else source.pace.spinning = true;
    }
    if (work > 0 || this.#switch.unflushed > 0) {
      this.#switch.flush();
      this.lull = work < BUSY_FRAMES ? 1 : lull;
    }
    if (this.#calls.count > 0) this.#calls.endRound(nowMs, this.#sources.awake.length === 0);
    return work;
  }

  peek(nowMs: number): boolean {
    return this.#sources.peek(nowMs);
  }

  ready(token: number, nowMs: number): void {
    if (token === REST_TOKEN) return this.#endRests(nowMs);
    const source = this.#sources.at(token);
    if (source === null) return; // removed while the event was under way
    if (source.vring !== null) this.#netPorts[source.port]?.changed(source.vring, true);
    if (source.kind !== 'receiveq') this.#sources.wake(source, nowMs);
  }

  attachVring(attach: VringAttach): void {
    const { device, index } = attach;
    const port = this.#netPort(device);
    assert(port.vring(index) === null, () => `vring ${index} of device ${device} is attached`);
    const vring = new NetVring(attach, arena().buffer);
    const kind = port.kindOf(index, attach.features);
    const source = this.#addSource(device, kind, vring, true, attach.loadSlot);
    this.#sources.watchKicks(source, vring, this.#context);
    port.attach(vring, attach.features);
    this.#changeIotlb(device, (iotlb) => iotlb.attach(attach));
    this.#vringSources[device][index] = source;
    if (attach.kickFd < 0) {
      port.changed(vring, true); // a driver that does not kick is polled
    } else {
      // The ring may still say what a device before us said: that it wants no kicks. Asked for
      // them, the driver either kicks or has added something already.
      if (!vring.started && vring.requestKicks()) port.changed(vring, false);
    }
    if (source.kind !== 'receiveq') this.#sources.wake(source, performance.now());
    else port.unpark();
  }

  detachVring(device: number, index: number): number {
    const source = this.#vringSources[device]?.[index];
    if (source === null || source === undefined) return 0;
    this.#vringSources[device][index] = null;
    this.#sources.remove(source);
    if (source.kind === 'control') this.#news.settle(device);
    if (source.vring !== null && source.vring.kickFd >= 0) {
      this.#context.unwatch(source.vring.kickFd);
    }
    return this.#netPort(device).detach(index);
  }

  enableVring(device: number, index: number, enabled: boolean): void {
    const source = this.#vringSources[device]?.[index] ?? null;
    if (source === null || source.vring === null) return;
    source.vring.enabled = enabled;
    this.#netPort(device).changed(source.vring, false);
    if (source.kind !== 'receiveq') this.#sources.wake(source, performance.now());
  }

  setCallFd(device: number, index: number, callFd: number): void {
    const port = this.#netPort(device);
    const vring = port.vring(index);
    if (vring !== null) port.setCallFd(vring, callFd);
  }

  setErrFd(device: number, index: number, errFd: number): void {
    const vring = this.#netPort(device).vring(index);
    if (vring !== null) vring.errFd = errFd;
  }

  resetDevice(device: number): void {
    this.#netPort(device).reset();
  }

  updateIotlb(device: number, entry: IotlbUpdate): void {
    this.#changeIotlb(device, (iotlb) => iotlb.update(entry));
    this.#netPort(device).unpark();
  }

  /** No round is under way: no chain is out whose translation this is. */
  invalidateIotlb(device: number, iova: number, sizeBytes: number): void {
    this.#changeIotlb(device, (iotlb) => iotlb.invalidate(iova, sizeBytes));
  }

  /** A ring that waits for a translation forgets that with every change, and so looks again. */
  #changeIotlb(device: number, change: (iotlb: PortIotlb) => void): void {
    const sources = (this.#vringSources[device] ?? []).filter((source) => source !== null);
    const waiting = sources.filter(
      ({ kind, vring }) => kind !== 'receiveq' && vring?.missed !== -1,
    );
    change(this.#netPort(device).iotlb);
    for (const source of waiting) this.#sources.wake(source, performance.now());
  }

  command(name: string, payload: unknown): unknown {
    switch (name) {
      case 'addNetPort':
        return this.#addNetPort(payload as AddNetPort);
      case 'addTapPort': {
        const { port, settings, transmitOnly } = payload as AddTapPort;
        const tap = new TapPlane(payload as AddTapPort);
        return this.#addUplink(port, tap, settings, transmitOnly === true);
      }
      case 'addUplinkPort':
        return this.#addUplinkPort(payload as AddUplinkPort);
      case 'attachUplink':
        return this.#uplinks.attach(payload as AttachUplink);
      case 'detachUplink':
        return this.#uplinks.detach((payload as { port: number }).port);
      case 'removePort':
        return this.#removePort((payload as { port: number }).port);
      case 'updatePort':
        return this.#updatePort(payload as { port: number; settings: NetPortSettings });
      case 'setLink':
        return this.#setLink(payload as { port: number; up: boolean; mtu?: number });
      case 'portStatus':
        return this.#portStatus((payload as { port: number }).port);
      case 'macClock': // an idle worker's clock stands; who asks reads the table itself
        return this.#switch.tick(Math.trunc((performance.now() + this.#clockMs) / 1000));
      case 'flushMacs':
        return this.#switch.macTable.flush((payload as { port?: number }).port);
      case 'suspend':
        this.#suspended = true;
        this.#calls.close();
        this.#calmDown ??= hurryThread(); // guests wait until `resume`
        return undefined;
      case 'resume':
        this.#suspended = false;
        this.#calls.open();
        this.#calmDown?.();
        this.#calmDown = null;
        return undefined;
      case 'learnMacs':
        return this.#switch.macTable.enter(payload as Int32Array, (port) =>
          this.#switch.macLimitOf(port),
        );
      case 'saveState':
        return this.#netPort((payload as { port: number }).port).saveState();
      case 'loadDriver': {
        const { port, state } = payload as { port: number; state: NetPlaneState };
        return this.#netPort(port).loadState(state);
      }
      case 'driverHeard':
        return this.#news.heard((payload as { port: number }).port);
      case 'releaseVring':
        return this.#releaseVring(payload as { device: number; index: number });
      case 'loadState':
        return this.#loadState(payload as LoadNetState);
      case 'loadUplinkCounters':
        return this.#loadUplinkCounters(payload as LoadUplinkCounters);
      case 'announce': {
        const { port, mac } = payload as { port: number; mac: Uint8Array };
        return this.#switch.hasPort(port) && this.#switch.announce(port, mac);
      }
      case 'startCapture': {
        const { port, ring } = payload as { port: number; ring: CaptureRing };
        return this.#switch.setTap(port, new CaptureTap(ring, arena()));
      }
      case 'stopCapture':
        return this.#switch.setTap((payload as { port: number }).port, null);
      default:
        throw new VringError('ERR_VRING_WORKER', `unknown command ${name}`);
    }
  }

  close(): void {
    this.#rests.close();
  }

  #work(source: Source): number {
    if (source.kind === 'uplink')
      return this.#uplinks.watch(source.port)!.worked(this.#switch.forward(source.port));
    const port = this.#netPorts[source.port] as NetPort;
    const vring = source.vring as NetVring;
    if (source.kind === 'control') {
      const done = port.control(vring);
      if (done > 0 && this.#workers > 1) this.#news.changed(source.port);
      return done;
    }
    port.selected = vring.index >> 1;
    const chains = vring.chains;
    this.#switch.forward(source.port);
    return vring.chains - chains; // discarded and rejected ones are work, too
  }

  /** Another worker goes on with the ring. A broken one stays, and broken: null. */
  #releaseVring({ device, index }: { device: number; index: number }): ResumedVring | null {
    const vring = this.#netPort(device).vring(index);
    assert(vring !== null, () => `vring ${index} of device ${device} is attached`);
    if (vring.fault !== 0) return null;
    const base = this.detachVring(device, index); // makes a call that is held
    return { base, started: vring.started, counters: vring.counters() };
  }

  /** To sleep, unless more arrived in the meantime or the driver never kicks. */
  #arm(source: Source, nowMs: number): void {
    const { vring } = source;
    // A ring that waits for a translation is woken by it.
    if (vring !== null && vring.fault === 0 && vring.queue.missed === 0) {
      if (source.pace.rests(vring.chains)) {
        vring.pauseKicks(); // the first time, nothing has paused them yet
        this.#rests.add(source);
        return this.#sources.toSleep(source);
      }
      if (vring.kickFd < 0 || vring.requestKicks()) {
        // Found without a kick: a ring that was not started is now, and is worked on.
        if (!vring.started) this.#netPorts[source.port]?.changed(vring, false);
        source.lastWorkMs = nowMs;
        return;
      }
    }
    if (source.kind === 'uplink' && !this.#uplinks.rewatch(source.port)) {
      this.#rests.add(source, UNWATCHED_REST_MS);
      return this.#sources.toSleep(source);
    }
    source.pace.asleep();
    this.#sources.toSleep(source);
  }

  #endRests(nowMs: number): void {
    for (const source of this.#rests.end()) {
      if (this.#sources.at(source.token) === source) this.#sources.wake(source, nowMs);
    }
  }

  #addSource(
    port: number,
    kind: Source['kind'],
    vring: NetVring | null,
    spins: boolean,
    loadSlot = this.#worker,
  ): Source {
    const pace = new SourcePace(this.#paces[port], this.#context.spinMs);
    return this.#sources.add({ port, kind, vring, spins, pace, loadSlot });
  }

  #addNetPort(add: AddNetPort): void {
    this.#rests.prepare(add.settings.policy);
    const port = new NetPort({
      ...add,
      device: add.port,
      emit: this.#context.emit,
      scratch: this.#portScratch,
      worker: this.#worker,
      workers: this.#workers,
    });
    this.#netPorts[add.port] = port;
    this.#vringSources[add.port] = [];
    this.#switch.addPort(add.port, port, add.settings);
    this.#paces[add.port] = new PortPace();
    this.#setPolicy(add.port, add.settings.policy);
  }

  #updatePort({ port, settings }: { port: number; settings: NetPortSettings }): void {
    this.#rests.prepare(settings.policy);
    this.#switch.updatePort(port, settings);
    this.#setPolicy(port, settings.policy);
  }

  /** What was decided by the old one ends: calls that are held are made, and gaps are forgotten. */
  #setPolicy(number: number, policy: PortPolicy = DEFAULT_POLICY): void {
    const pace = this.#paces[number];
    const port = this.#netPorts[number] ?? null;
    this.#calls.release();
    pace.policy = policy;
    if (port !== null) {
      port.callHold = pace.holdsCalls ? this.#calls : null;
      port.callsAtOnce = policy === 'latency';
    }
    for (const source of this.#vringSources[number]) source?.pace.policyChanged();
  }

  #addUplinkPort({ port, settings, uplink }: AddUplinkPort): void {
    this.#addUplink(port, uplinkPlaneOf(uplink), settings, false);
  }

  #addUplink(port: number, plane: UplinkPlane, settings: NetPortSettings, isOthers: boolean): void {
    if (!isOthers) this.#rests.enable();
    this.#switch.addPort(port, plane, settings);
    this.#paces[port] = new PortPace(settings.policy);
    const source = isOthers ? null : this.#addSource(port, 'uplink', null, plane.spins);
    this.#vringSources[port] = source === null ? [] : [source];
    try {
      this.#uplinks.add(port, plane, source);
    } catch (error) {
      this.#removePort(port);
      throw error;
    }
  }

  #removePort(port: number): void {
    // First what cannot fail: from here on nobody sends to the port.
    this.#switch.removePort(port);
    const sources = this.#vringSources[port] ?? [];
    this.#vringSources[port] = [];
    if (!this.#uplinks.remove(port)) {
      assert(sources.every((source) => source === null || source === undefined));
    }
    this.#netPorts[port] = null;
  }

  #setLink(link: { port: number; up: boolean; mtu?: number }): void {
    const port = this.#netPorts[link.port] ?? this.#uplinks.plane(link.port);
    if (port === null) return;
    port.linkUp = link.up;
    if (link.mtu !== undefined) port.mtu = link.mtu;
    this.#uplinks.wake(link.port);
  }

  #loadState({ port, state, switchCounters }: LoadNetState): void {
    this.#netPort(port).loadState(state);
    this.#switch.raiseCounters(port, switchCounters);
  }

  #loadUplinkCounters({ port, counters, switchCounters }: LoadUplinkCounters): void {
    this.#uplinks.loadCounters(port, counters);
    this.#switch.raiseCounters(port, switchCounters);
  }

  #portStatus(port: number): NetPortStatus {
    const net = this.#netPorts[port];
    if (net !== null && net !== undefined) {
      const counters = { ...net.counters, ...this.#paces[port].counters };
      return { counters, vrings: net.status() };
    }
    const counters = { ...this.#uplinks.counters(port), ...this.#paces[port]?.counters };
    return { counters, vrings: [] };
  }

  #netPort(device: number): NetPort {
    const port = this.#netPorts[device];
    if (port === null || port === undefined) {
      throw new VringError('ERR_VRING_WORKER', `no net port has number ${device}`);
    }
    return port;
  }
}

export function createPlane(context: PlaneContext): DataPlane {
  return new NetPlane(context);
}
