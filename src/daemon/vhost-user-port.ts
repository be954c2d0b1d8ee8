import { VringError } from '../base/errors.ts';
import { planMemory, suspendEndpoint, takeMemory, takeSession } from './endpoint-hand-over.ts';
import type { PortPlan, PortFinal } from './hand-over-format.ts';
import type { ReceivedFds, SentFds } from './hand-over-channel.ts';
import type { Fd } from '../sys/index.ts';
import {
  type AddNetPort,
  encodeNetState,
  NetDevice,
  type NetPortStatus,
  PARKED_FRAMES_BYTES,
  parseNetState,
} from '../devices/net/index.ts';
import { PrivateMemory } from '../memory/index.ts';
import { DeviceHost, type PlaneEvent } from '../runtime/index.ts';
import {
  BackendConnector,
  BackendListener,
  type EndpointEvent,
  type EndpointOptions,
  type PreparedMemory,
} from '../vhost-user/index.ts';
import { parseMac } from '../wire/ethernet.ts';
import { VIRTIO_NET_MIN_MTU } from '../wire/virtio-net.ts';
import { type AckedFeatures, featureChanges } from './feature-changes.ts';
import { pairQueueName, queueStatuses, runs } from './port-queues.ts';
import { offenceOf, protocolFeaturesOf, sessionStatus } from './port-session.ts';
import { keepState, loadNetState, saveNetState, type StatefulPort } from './port-state.ts';
import {
  type PortContext,
  type PortReason,
  type SwitchPort,
  reasonOf,
  settingsOf,
} from './switch-port.ts';
import type { PortState, PortStatus, VhostUserPortConfig } from './switch-types.ts';

/** A port that a VM, or our software guest, plugs into: a vhost-user back-end on a socket. */
export class VhostUserPort implements SwitchPort {
  readonly config: VhostUserPortConfig;
  readonly number: number;
  linkUp = true;
  readonly #context: PortContext;
  readonly #device: NetDevice;
  readonly #host: DeviceHost;
  #endpoint: BackendListener | BackendConnector | null = null;
  /** In effect: the front-end may ask for less than what is offered. */
  #mtu: number;
  #offeredMtu: number;
  #reason: PortReason | null = null;
  #wasUp = false;
  /** While the port changes hands, its rings stop and start without anybody being told. */
  #isQuiet = false;
  #isRestored = false;
  #sessionsBefore = 0;
  /** Of a predecessor, until the endpoint has them. */
  #adopted: Fd | null = null;
  #prepared: PreparedMemory | null = null;
  /** What was acked when rings last ran. */
  #acked: AckedFeatures | null = null;
  /** For frames that wait for an IOMMU; null without one. */
  #parked: PrivateMemory | null = null;

  constructor(config: VhostUserPortConfig, context: PortContext) {
    this.config = config;
    this.number = context.number;
    this.#context = context;
    this.#mtu = config.mtu;
    this.#offeredMtu = config.mtu;
    this.#device = new NetDevice({
      queuePairs: config.queuePairs,
      mac: config.mac === null ? null : parseMac(config.mac),
      mtu: config.mtu,
      packed: config.packed,
      mrgRxbuf: config.mrgRxbuf,
      iommu: config.iommu,
      controlQueue: true,
      ...config.offload,
    });
    this.#host = new DeviceHost({
      worker: context.worker,
      number: context.number,
      device: this.#device,
      protocolFeatures: protocolFeaturesOf(config, context.workers),
      queueNum: config.queuePairs,
      onMtu: (mtu) => this.#setMtu(mtu),
      onChange: () => this.#reportUp(),
      state: keepState(this.#stateful()),
      onReset: () => this.#forgetDriver(),
      onRarp: (mac) => context.worker.request('announce', { port: context.number, mac }),
    });
  }

  async open(): Promise<void> {
    await this.#addToPlane();
    try {
      this.#endpoint = this.#listen(null);
    } catch (error) {
      await this.#context.worker.request('removePort', { port: this.number });
      throw error;
    }
  }

  async #addToPlane(): Promise<void> {
    const { config } = this;
    if (config.iommu)
      this.#parked ??= PrivateMemory.allocate(this.#context.workers * PARKED_FRAMES_BYTES);
    const add: AddNetPort = {
      port: this.number,
      settings: settingsOf(config, this.#context.policy()),
      queuePairs: config.queuePairs,
      mtu: this.#mtu,
      mac: config.mac === null ? null : parseMac(config.mac),
      linkUp: this.linkUp,
      parkedAt: this.#parked?.offset ?? -1,
    };
    await this.#context.worker.request('addNetPort', add);
  }

  /** Server mode: at the config's path, or where a predecessor listened. */
  #listen(
    listener: Fd | null,
    adopt?: EndpointOptions['adopt'],
  ): BackendListener | BackendConnector {
    const { config } = this;
    const options: EndpointOptions = {
      path: config.path,
      target: this.#host,
      onEvent: (event) => this.#endpointEvent(event),
      ...(adopt === undefined ? {} : { adopt }),
    };
    if (config.mode === 'client') return new BackendConnector(options);
    return new BackendListener({
      ...options,
      ...(listener === null ? {} : { listener }),
      ...(config.socketMode === null ? {} : { mode: config.socketMode }),
      ...(config.socketOwner === null ? {} : { owner: config.socketOwner }),
    });
  }

  /** Sessions so far, those of predecessors included. */
  get sessions(): number {
    return this.#sessionsBefore + (this.#endpoint?.sessions ?? 0);
  }

  async close(): Promise<void> {
    const endpoint = this.#endpoint;
    this.#endpoint = null;
    await endpoint?.close();
  }

  release(): void {
    this.#parked?.close();
    this.#parked = null;
  }

  plan(fds: SentFds): PortPlan {
    const { vlan, policy } = this.#context;
    const settings = { vlan: vlan(), policy: policy(), mtu: this.#offeredMtu };
    const config = { ...this.config, ...settings } as PortPlan['config'];
    return {
      number: this.number,
      config,
      linkUp: this.linkUp,
      tap: null,
      memory: planMemory(this.#endpoint, fds, this.#label),
    };
  }

  async suspend(fds: SentFds): Promise<PortFinal> {
    this.#isQuiet = true;
    const { sessions } = this;
    const device = await saveNetState(this.#stateful(), false);
    const { listener, session } = await suspendEndpoint(this.#endpoint!, fds, this.#label);
    return {
      number: this.number,
      listener,
      sessions,
      reason: this.#reason,
      device: new TextDecoder().decode(encodeNetState(device)),
      switchCounters: this.#context.switchCounters(),
      tapCounters: null,
      session,
    };
  }

  /** In messages. */
  get #label(): string {
    return `port ${this.config.name}`;
  }

  async resume(): Promise<void> {
    this.#endpoint ??= this.#listen(this.#adopted);
    await this.#endpoint.resume();
    this.#isQuiet = false;
    if (this.#isRestored) this.#acked = this.#ackedNow();
    if (this.#isRestored) this.#wasUp = this.#state() === 'up';
    this.#isRestored = false;
    this.#reportUp();
  }

  async surrender(): Promise<void> {
    this.#isQuiet = true;
    this.#prepared?.close();
    this.#adopted?.close();
    await this.#endpoint?.surrender();
    this.#endpoint = null;
  }

  async adopt({ linkUp, memory }: PortPlan, fds: ReceivedFds): Promise<void> {
    this.#isQuiet = true;
    this.linkUp = linkUp;
    this.#device.linkUp = linkUp;
    await this.#addToPlane();
    if (memory === null) return;
    this.#prepared = takeMemory(memory, fds, `the memory of ${this.#label}`);
  }

  async restore(state: PortFinal, fds: ReceivedFds): Promise<void> {
    const { mode } = this.config;
    const take = (at: number): Fd => fds.take(at, this.#label);
    this.#isRestored = true;
    this.#sessionsBefore = state.sessions;
    this.#reason = state.reason;
    await loadNetState(this.#stateful(), parseNetState(new TextEncoder().encode(state.device!)));
    if (mode === 'server') this.#adopted = take(state.listener ?? -1);
    if (state.session === null) return; // whoever connects next is served after `resume`
    this.#sessionsBefore--;
    const adopt = takeSession(state.session, take, this.#prepared);
    this.#endpoint = this.#listen(this.#adopted, adopt);
    this.#adopted = null;
    this.#prepared = null;
    await this.#endpoint.adopted;
  }

  /** A driver reads the MTU when it starts; one that runs may be told and go on as before. */
  async setMtu(mtu: number): Promise<void> {
    this.#offeredMtu = mtu;
    this.#device.mtu = mtu;
    this.#applyMtu(mtu);
    this.#tellDriver();
  }

  async setLink(up: boolean): Promise<void> {
    this.linkUp = up;
    this.#device.linkUp = up;
    await this.#context.worker.request('setLink', { port: this.number, up });
    this.#tellDriver();
  }

  /** What a driver sees of the device has changed. One that does not hear of it is no error. */
  #tellDriver(): void {
    this.#host.configChanged().catch((error: Error) => {
      this.#context.report('config-change', `the front-end does not take it: ${error.message}`);
    });
  }

  /** What the device state of this port is made of. */
  #stateful(): StatefulPort {
    return {
      config: this.config,
      context: this.#context,
      device: this.#device,
      host: () => this.#host,
      mtu: () => this.#mtu,
      offeredMtu: () => this.#offeredMtu,
      setMtu: (mtu) => this.#applyMtu(mtu),
      linkUp: () => this.linkUp,
      loaded: (linkUp) => {
        this.#context.report('state-loaded', 'goes on with the state of another port');
        if (linkUp !== this.linkUp) this.#tellDriver();
      },
    };
  }

  planeEvent(event: PlaneEvent): void {
    this.#host.planeEvent(event);
    if (event.kind !== 'fault') return;
    const offence = offenceOf(event.code);
    if (offence !== null) void this.#endpoint?.session?.close(offence);
  }

  status(plane: NetPortStatus): Omit<PortStatus, 'counters' | 'vlan' | 'policy'> {
    const { config } = this;
    const host = this.#host;
    const session = this.#endpoint?.session ?? null;
    return {
      name: config.name,
      kind: 'vhost-user',
      endpoint: config.mode === 'client' ? `${config.path},client` : config.path,
      state: this.#state(),
      reason: this.#reason,
      linkUp: this.linkUp,
      sessions: this.sessions,
      mtu: this.#mtu,
      ...sessionStatus(session?.state ?? null),
      queues: queueStatuses(host.vrings, plane, (index) => this.#queueName(index)),
    };
  }

  /** As in virtio 1.2, 5.1.2: receiveq1, transmitq1, ... controlq. */
  #queueName(index: number): string {
    if (index === NetDevice.controlQueueIndex(this.#host.acked, this.config.queuePairs)) {
      return 'controlq';
    }
    return pairQueueName(index);
  }

  #state(): PortState {
    const endpoint = this.#endpoint;
    if (endpoint === null || !this.linkUp) return 'down';
    if (endpoint.session === null) {
      return this.config.mode === 'client' ? 'connecting' : 'listening';
    }
    const { vrings } = this.#host;
    if (vrings.some((vring) => vring.fault !== null)) return 'broken';
    return runs(vrings[0]) && runs(vrings[1]) ? 'up' : 'negotiating';
  }

  #reportUp(): void {
    if (this.#isQuiet) return;
    const up = this.#endpoint !== null && this.#state() === 'up';
    if (up === this.#wasUp) return;
    this.#wasUp = up;
    if (up) this.#reason = null;
    if (up) this.#compareFeatures();
    this.#context.report(
      up ? 'port-up' : 'port-down',
      up ? 'rings run' : `rings no longer run (${this.#state()})`,
    );
  }

  /** A front-end that returns with other features: what runs now may be slower, or newer. */
  #compareFeatures(): void {
    const now = this.#ackedNow();
    const changes = this.#acked === null ? [] : featureChanges(this.#acked, now);
    this.#acked = now;
    if (changes.length === 0) return;
    this.#context.report('features-changed', `other features than before: ${changes.join(', ')}`);
  }

  #ackedNow(): AckedFeatures {
    return { features: this.#host.acked, protocolFeatures: this.#host.ackedProtocol };
  }

  #endpointEvent(event: EndpointEvent): void {
    if (this.#isQuiet) return; // its session changes hands, and neither begins nor ends
    if (event.kind === 'connected') {
      this.#context.report('session-started', 'a front-end connected');
      return;
    }
    this.#forgetDriver();
    const { reason } = event;
    // An orderly end leaves the last fault on display: it says more than "disconnected".
    if (reason !== null) this.#reason = reasonOf(reason);
    else this.#reason ??= reasonOf(frontendGone());
    if (event.kind === 'failed') {
      this.#context.report('endpoint-failed', event.reason.message);
    } else {
      this.#context.report('session-ended', (reason ?? frontendGone()).message);
    }
  }

  /** What a front-end or its driver set ends with the session, or with a reset. */
  #forgetDriver(): void {
    this.#device.resetAddress();
    if (this.#mtu !== this.#offeredMtu) this.#applyMtu(this.#offeredMtu);
  }

  /** NET_SET_MTU: the front-end may lower what we offered, not raise it. */
  #setMtu(mtu: number): boolean {
    if (mtu < VIRTIO_NET_MIN_MTU || mtu > this.#offeredMtu) return false;
    this.#applyMtu(mtu);
    return true;
  }

  #applyMtu(mtu: number): void {
    this.#mtu = mtu;
    void this.#context.worker
      .request('setLink', { port: this.number, up: this.linkUp, mtu })
      .catch(() => undefined);
  }
}

/** A guest that ends, reboots or is killed: its socket just closes. */
function frontendGone(): VringError {
  return new VringError('ERR_VRING_DISCONNECTED', 'the front-end disconnected');
}
