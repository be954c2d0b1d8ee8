/**
 * The data plane of a virtual switch: what a worker runs when it serves net devices and uplinks.
 * Loaded by the worker by its URL; everything here runs on the worker's thread.
 *
 * A *source* is something that frames or commands come from: a transmit queue, a control queue, an
 * uplink. Awake sources are looked at every round; one that has been empty for `spinMs` is armed
 * (its driver is asked to kick) and sleeps until its descriptor becomes readable. So the cost of a
 * round does not depend on how many ports are idle, and with all asleep the worker sleeps.
 */
import { assert } from '../../base/assert.ts';
import { VringError } from '../../base/errors.ts';
import type { DataPlane, PlaneContext, VringAttach } from '../../runtime/data-plane.ts';
import type { IotlbUpdate } from '../../vhost-user/index.ts';
import { MacTable, type PortSettings, Switch } from '../../switch/index.ts';
import { CaptureTap, type CaptureRing } from '../../capture/index.ts';
import {
  type AttachedPlane,
  PacketPlane,
  type PacketPlaneOptions,
  TapPlane,
  type TapPlaneOptions,
  type UplinkPlane,
  XdpPlane,
  type XdpPlaneOptions,
} from '../../uplinks/index.ts';
import { arena } from '../../sys/arena.ts';
import { hurryThread } from '../../sys/thread.ts';
import type { PortIotlb } from './port-iotlb.ts';
import { NetPort } from './net-port.ts';
import type { NetPlaneState } from './net-state.ts';
import { NetVring } from './net-vring.ts';

/** `options` of the worker that runs this plane; the memory stays the control plane's. */
export type NetPlaneOptions = {
  readonly macTable: SharedArrayBuffer;
  readonly counters: SharedArrayBuffer;
  /** Arena offset of SWITCH_SCRATCH_BYTES of private memory. */
  readonly scratchAt: number;
};

export type AddNetPort = {
  readonly port: number;
  readonly settings: PortSettings;
  readonly queuePairs: number;
  readonly mtu: number;
  readonly mac: Uint8Array | null;
  readonly linkUp: boolean;
  /** See NetPortOptions. */
  readonly parkedAt?: number;
};
export type AddTapPort = TapPlaneOptions & {
  readonly port: number;
  readonly settings: PortSettings;
};
/** A port of an interface that is there already. */
export type AddUplinkPort = {
  readonly port: number;
  readonly settings: PortSettings;
  readonly uplink:
    | (PacketPlaneOptions & { readonly kind: 'packet' })
    | (XdpPlaneOptions & { readonly kind: 'xdp' });
};
/** Its sockets, which come and go with the interface. */
export type AttachUplink = {
  readonly port: number;
  readonly queues: PacketPlaneOptions['queues'] | XdpPlaneOptions['queues'];
};
export type LoadNetState = {
  readonly port: number;
  readonly state: NetPlaneState;
  readonly switchCounters: Readonly<Record<string, number>>;
};
export type LoadUplinkCounters = {
  readonly port: number;
  readonly counters: Readonly<Record<string, number>>;
  readonly switchCounters: Readonly<Record<string, number>>;
};
export type NetPortStatus = {
  readonly counters: Record<string, number>;
  readonly vrings: { index: number; started: boolean; counters: Record<string, number> }[];
};

/** Something that is polled while awake; `token` names its descriptor to the worker. */
type Source = {
  readonly token: number;
  readonly port: number;
  readonly kind: 'transmitq' | 'receiveq' | 'control' | 'uplink';
  readonly vring: NetVring | null;
  /** Found empty, it is looked at again for `spinMs` before it is armed. */
  readonly spins: boolean;
  /** Position in `#awake`, -1 asleep. */
  awakeAt: number;
  lastWorkMs: number;
};

export class NetPlane implements DataPlane {
  readonly #context: PlaneContext;
  readonly #switch: Switch;
  readonly #sources: (Source | null)[] = [];
  readonly #freeTokens: number[] = [];
  readonly #awake: Source[] = [];
  readonly #netPorts: (NetPort | null)[] = [];
  readonly #uplinks: (UplinkPlane | null)[] = [];
  /** Sources of each vring, so that they can be found again: [device][index]. */
  readonly #vringSources: (Source | null)[][] = [];
  #nowSeconds = 0;
  /** No source is worked on; which of them are awake is kept. */
  #suspended = false;
  #calmDown: (() => void) | null = null;

  constructor(context: PlaneContext) {
    this.#context = context;
    const { macTable, counters, scratchAt } = context.options as NetPlaneOptions;
    const { view, bytes } = arena();
    this.#switch = new Switch({
      view,
      bytes,
      scratchAt,
      macTable: MacTable.attach(macTable),
      counters,
    });
  }

  get awake(): number {
    return this.#suspended ? 0 : this.#awake.length;
  }

  poll(nowMs: number): number {
    if (this.#suspended) return 0;
    const seconds = Math.trunc(nowMs / 1000);
    if (seconds !== this.#nowSeconds) {
      this.#nowSeconds = seconds;
      this.#switch.tick(seconds);
    }
    let work = 0;
    // From the end: a source that falls asleep is replaced by the last one, which had its turn.
    for (let i = this.#awake.length - 1; i >= 0; i--) {
      const source = this.#awake[i];
      const done = this.#work(source);
      if (done > 0) {
        work += done;
        source.lastWorkMs = nowMs;
      } else if (!source.spins || nowMs - source.lastWorkMs > this.#context.spinMs) {
        this.#arm(source, nowMs);
      }
    }
    if (work > 0) this.#switch.flush();
    return work;
  }

  ready(token: number, nowMs: number): void {
    const source = this.#sources[token];
    if (source === null || source === undefined) return; // removed while the event was under way
    if (source.vring !== null) this.#netPorts[source.port]?.changed(source.vring, true);
    if (source.kind !== 'receiveq') this.#wake(source, nowMs);
  }

  attachVring(attach: VringAttach): void {
    const { device, index } = attach;
    const port = this.#netPort(device);
    assert(port.vring(index) === null, () => `vring ${index} of device ${device} is attached`);
    const vring = new NetVring(attach, arena().buffer);
    port.attach(vring, attach.features);
    this.#changeIotlb(device, (iotlb) => iotlb.attach(attach));
    const source = this.#addSource(device, port.kindOf(index, attach.features), vring);
    this.#vringSources[device][index] = source;
    if (attach.kickFd < 0) {
      port.changed(vring, true); // a driver that does not kick is polled
    } else {
      this.#context.watch(attach.kickFd, source.token);
      // The ring may still say what a device before us said: that it wants no kicks. Asked for
      // them, the driver either kicks or has added something already.
      if (!vring.started && vring.requestKicks()) port.changed(vring, false);
    }
    if (source.kind !== 'receiveq') this.#wake(source, performance.now());
    else port.unpark();
  }

  detachVring(device: number, index: number): number {
    const source = this.#vringSources[device]?.[index];
    if (source === null || source === undefined) return 0;
    this.#vringSources[device][index] = null;
    this.#removeSource(source);
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
    if (source.kind !== 'receiveq') this.#wake(source, performance.now());
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
    const waiting = (this.#vringSources[device] ?? []).filter(
      (source) => source?.vring?.missed !== -1,
    );
    change(this.#netPort(device).iotlb);
    for (const source of waiting) {
      if (source?.vring && source.kind !== 'receiveq') this.#wake(source, performance.now());
    }
  }

  command(name: string, payload: unknown): unknown {
    switch (name) {
      case 'addNetPort':
        return this.#addNetPort(payload as AddNetPort);
      case 'addTapPort':
        return this.#addTapPort(payload as AddTapPort);
      case 'addUplinkPort':
        return this.#addUplinkPort(payload as AddUplinkPort);
      case 'attachUplink':
        return this.#attachUplink(payload as AttachUplink);
      case 'detachUplink':
        return this.#detachUplink((payload as { port: number }).port);
      case 'removePort':
        return this.#removePort((payload as { port: number }).port);
      case 'updatePort': {
        const { port, settings } = payload as { port: number; settings: PortSettings };
        return this.#switch.updatePort(port, settings);
      }
      case 'setLink':
        return this.#setLink(payload as { port: number; up: boolean; mtu?: number });
      case 'portStatus':
        return this.#portStatus((payload as { port: number }).port);
      case 'macTable':
        this.#switch.tick(Math.trunc(performance.now() / 1000)); // an idle worker's clock stands
        return this.#switch.macTable.list();
      case 'flushMacs':
        return this.#switch.macTable.flush((payload as { port?: number }).port);
      case 'suspend':
        this.#suspended = true;
        this.#calmDown ??= hurryThread(); // guests wait until `resume`
        return undefined;
      case 'resume':
        this.#suspended = false;
        this.#calmDown?.();
        this.#calmDown = null;
        return undefined;
      case 'learnMacs':
        return this.#switch.macTable.enter(payload as Int32Array, (port) =>
          this.#switch.macLimitOf(port),
        );
      case 'saveState':
        return this.#netPort((payload as { port: number }).port).saveState();
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

  #work(source: Source): number {
    if (source.kind === 'uplink') return this.#switch.forward(source.port);
    const port = this.#netPorts[source.port] as NetPort;
    const vring = source.vring as NetVring;
    if (source.kind === 'control') return port.control(vring);
    port.selected = vring.index >> 1;
    const chains = vring.chains;
    this.#switch.forward(source.port);
    return vring.chains - chains; // discarded and rejected ones are work, too
  }

  /** To sleep, unless more arrived in the meantime or the driver never kicks. */
  #arm(source: Source, nowMs: number): void {
    const { vring } = source;
    // A ring that waits for a translation is woken by it.
    if (vring !== null && vring.fault === 0 && vring.queue.missed === 0) {
      if (vring.kickFd < 0 || vring.requestKicks()) {
        // Found without a kick: a ring that was not started is now, and is worked on.
        if (!vring.started) this.#netPorts[source.port]?.changed(vring, false);
        source.lastWorkMs = nowMs;
        return;
      }
    }
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

  #addSource(port: number, kind: Source['kind'], vring: NetVring | null, spins = true): Source {
    const token = this.#freeTokens.pop() ?? this.#sources.length;
    const source: Source = { token, port, kind, vring, spins, awakeAt: -1, lastWorkMs: 0 };
    this.#sources[token] = source;
    return source;
  }

  #removeSource(source: Source): void {
    const last = this.#awake.length - 1;
    if (source.awakeAt >= 0) {
      const moved = this.#awake[last];
      this.#awake[source.awakeAt] = moved;
      moved.awakeAt = source.awakeAt;
      this.#awake.pop();
      source.awakeAt = -1;
    }
    this.#sources[source.token] = null;
    this.#freeTokens.push(source.token);
  }

  #addNetPort(add: AddNetPort): void {
    const port = new NetPort({ ...add, device: add.port, emit: this.#context.emit });
    this.#netPorts[add.port] = port;
    this.#vringSources[add.port] = [];
    this.#switch.addPort(add.port, port, add.settings);
  }

  #addTapPort(add: AddTapPort): void {
    this.#addUplink(add.port, new TapPlane(add), add.settings);
  }

  #addUplinkPort({ port, settings, uplink }: AddUplinkPort): void {
    const plane = uplink.kind === 'packet' ? new PacketPlane(uplink) : new XdpPlane(uplink);
    this.#addUplink(port, plane, settings);
  }

  #addUplink(port: number, plane: UplinkPlane, settings: PortSettings): void {
    this.#uplinks[port] = plane;
    this.#switch.addPort(port, plane, settings);
    const source = this.#addSource(port, 'uplink', null, plane.spins);
    this.#vringSources[port] = [source];
    this.#watchUplink(plane, source);
  }

  #watchUplink(plane: UplinkPlane, source: Source): void {
    for (const fd of plane.fds) this.#context.watch(fd, source.token);
    this.#wake(source, performance.now());
  }

  /** The switch's rules for the port, its counters and addresses stay as they are. */
  #attachUplink({ port, queues }: AttachUplink): void {
    const plane = this.#uplinks[port] as AttachedPlane<unknown>;
    plane.attach(queues);
    this.#watchUplink(plane, this.#vringSources[port][0] as Source);
  }

  #detachUplink(port: number): void {
    const plane = this.#uplinks[port] as AttachedPlane<unknown>;
    for (const fd of plane.fds) this.#context.unwatch(fd);
    plane.detach();
  }

  #removePort(port: number): void {
    // First what cannot fail: from here on nobody sends to the port.
    this.#switch.removePort(port);
    const uplink = this.#uplinks[port] ?? null;
    const sources = this.#vringSources[port] ?? [];
    this.#uplinks[port] = null;
    this.#vringSources[port] = [];
    if (uplink !== null) {
      this.#removeSource(sources[0] as Source);
      for (const fd of uplink.fds) this.#context.unwatch(fd);
      uplink.close();
    } else {
      assert(sources.every((source) => source === null || source === undefined));
    }
    this.#netPorts[port] = null;
  }

  #setLink(link: { port: number; up: boolean; mtu?: number }): void {
    const uplink = this.#uplinks[link.port] ?? null;
    const port = this.#netPorts[link.port] ?? uplink;
    if (port === null || port === undefined) return;
    port.linkUp = link.up;
    if (link.mtu !== undefined) port.mtu = link.mtu;
    // What the host queued while the link was down was announced then, and is not again.
    if (uplink !== null) {
      this.#wake(this.#vringSources[link.port][0] as Source, performance.now());
    }
  }

  #loadState({ port, state, switchCounters }: LoadNetState): void {
    this.#netPort(port).loadState(state);
    this.#switch.raiseCounters(port, switchCounters);
  }

  #loadUplinkCounters({ port, counters, switchCounters }: LoadUplinkCounters): void {
    const own = this.#uplinks[port]?.counters ?? ({} as Record<string, number>);
    for (const name of Object.keys(own) as (keyof typeof own)[]) own[name] = counters[name] ?? 0;
    this.#switch.raiseCounters(port, switchCounters);
  }

  #portStatus(port: number): NetPortStatus {
    const net = this.#netPorts[port];
    if (net !== null && net !== undefined) {
      return { counters: { ...net.counters }, vrings: net.status() };
    }
    const uplink = this.#uplinks[port];
    uplink?.readKernelCounters();
    return { counters: { ...uplink?.counters }, vrings: [] };
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
