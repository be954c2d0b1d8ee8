/**
 * A port that the host itself plugs into: a VDUSE device, whose driver is the host's kernel (a
 * network interface) or a process that opens /dev/vhost-vdpa-N. drivers/vdpa/vdpa_user.
 *
 * The device outlives this process. A switch that ends takes it along unless `keep` is set; after a
 * crash the next switch finds it under its name and goes on where the rings stand. A hand-over is
 * the same without a crash: one process lets go of the device, the other opens it.
 */
import type { VringError } from '../base/errors.ts';
import {
  type AddNetPort,
  type LoadNetState,
  NetDevice,
  type NetPlaneState,
  type NetPortStatus,
  PARKED_FRAMES_BYTES,
} from '../devices/net/index.ts';
import { PrivateMemory } from '../memory/index.ts';
import { DeviceHost, type PlaneEvent, type VduseEvent, VduseService } from '../runtime/index.ts';
import type { VdpaPresence } from '../vhost-kernel/index.ts';
import { parseMac } from '../wire/ethernet.ts';
import { featureNames, VIRTIO_ID_NET } from '../wire/virtio.ts';
import type { ReceivedFds, SentFds } from './hand-over-channel.ts';
import type { PortFinal, PortPlan } from './hand-over-format.ts';
import { pairQueueName, queueStatuses, runs } from './port-queues.ts';
import {
  type PortContext,
  type PortReason,
  reasonOf,
  settingsOf,
  type SwitchPort,
} from './switch-port.ts';
import type { PortState, PortStatus, VdusePortConfig } from './switch-types.ts';

/** Descriptors of each queue: what Linux's own virtio cards have in QEMU. */
const QUEUE_SIZE = 256;
/** mac[6], status, max_virtqueue_pairs, mtu. */
const CONFIG_BYTES = 12;

export class VdusePort implements SwitchPort {
  readonly config: VdusePortConfig;
  readonly number: number;
  linkUp = true;
  readonly #context: PortContext;
  readonly #device: NetDevice;
  readonly #host: DeviceHost;
  #service: VduseService | null = null;
  #mtu: number;
  #reason: PortReason | null = null;
  #sessions = 0;
  #wasUp = false;
  /** While the port changes hands, rings stop and start without anybody being told. */
  #isQuiet = false;
  /** For frames that wait for a translation. */
  #parked: PrivateMemory | null = null;

  constructor(config: VdusePortConfig, context: PortContext) {
    this.config = config;
    this.number = context.number;
    this.#context = context;
    this.#mtu = config.mtu;
    this.#device = new NetDevice({
      queuePairs: 1, // VDUSE carries no control queue, and without it there is no second pair
      mac: config.mac === null ? null : parseMac(config.mac),
      mtu: config.mtu,
      packed: config.packed,
      mrgRxbuf: config.mrgRxbuf,
      iommu: false, // the transport translates
      controlQueue: false,
      ...config.offload,
    });
    this.#host = new DeviceHost({
      worker: context.worker,
      number: context.number,
      device: this.#device,
      protocolFeatures: 0n,
      queueNum: 1,
      onMtu: () => false,
      onChange: () => this.#reportUp(),
    });
  }

  /** What Linux made of the device. */
  get presence(): (VdpaPresence & { readonly resumed: boolean }) | null {
    const service = this.#service;
    return service && { ...service.presence, resumed: service.resumed };
  }

  async open(): Promise<void> {
    await this.#addToPlane();
    try {
      await this.#serve();
    } catch (error) {
      await this.#context.worker.request('removePort', { port: this.number });
      throw error;
    }
  }

  async #addToPlane(): Promise<void> {
    const { config } = this;
    this.#parked ??= PrivateMemory.allocate(PARKED_FRAMES_BYTES);
    const add: AddNetPort = {
      port: this.number,
      settings: settingsOf(config, this.#context.policy()),
      queuePairs: 1,
      mtu: this.#mtu,
      mac: config.mac === null ? null : parseMac(config.mac),
      linkUp: this.linkUp,
      parkedAt: this.#parked.offset,
    };
    await this.#context.worker.request('addNetPort', add);
  }

  async #serve(): Promise<void> {
    const { device, bind } = this.config;
    this.#service = await VduseService.start({
      name: device,
      target: this.#host,
      configBytes: CONFIG_BYTES,
      queueSize: QUEUE_SIZE,
      bind,
      stateFolder: null, // frames leave a ring in its order
      onEvent: (event) => this.#serviceEvent(event),
    });
    const { presence, resumed } = this.#service;
    if (this.#isQuiet) return;
    const what = presence.interface ?? presence.node ?? 'nothing yet';
    const how = resumed ? 'goes on with the device that was there' : 'made the device';
    this.#context.report(
      'device',
      `${how}: ${device} is ${what} (${presence.driver ?? 'no driver'})`,
    );
    this.#reportUp();
  }

  async close(): Promise<void> {
    const service = this.#service;
    this.#service = null;
    await service?.close({ keep: this.config.keep });
  }

  release(): void {
    this.#parked?.close();
    this.#parked = null;
  }

  plan(_fds: SentFds): PortPlan {
    const { vlan, policy } = this.#context;
    const settings = { vlan: vlan(), policy: policy(), mtu: this.#mtu };
    const config = { ...this.config, ...settings } as PortPlan['config'];
    return { number: this.number, config, linkUp: this.linkUp, tap: null, memory: null };
  }

  /** Lets go of the device: kicks and requests wait in the kernel for whoever opens it next. */
  async suspend(_fds: SentFds): Promise<PortFinal> {
    this.#isQuiet = true;
    const { worker, switchCounters } = this.#context;
    const plane = await worker.request<NetPlaneState>('saveState', { port: this.number });
    await this.#letGo();
    return {
      number: this.number,
      listener: null,
      sessions: this.#sessions,
      reason: this.#reason,
      device: JSON.stringify(plane),
      switchCounters: switchCounters(),
      tapCounters: null,
      session: null,
    };
  }

  /** Undoes `suspend`, or begins after `restore`: the device is opened by its name. */
  async resume(): Promise<void> {
    if (this.#service === null) await this.#serve();
    this.#isQuiet = false;
    this.#wasUp = this.#state() === 'up';
  }

  async surrender(): Promise<void> {
    this.#isQuiet = true;
    await this.#letGo();
    this.release();
  }

  async adopt({ linkUp }: PortPlan, _fds: ReceivedFds): Promise<void> {
    this.#isQuiet = true;
    this.linkUp = linkUp;
    this.#device.linkUp = linkUp;
    await this.#addToPlane();
  }

  async restore(state: PortFinal, _fds: ReceivedFds): Promise<void> {
    this.#sessions = Math.max(0, state.sessions - 1); // the one that goes on is counted again
    this.#reason = state.reason;
    const load: LoadNetState = {
      port: this.number,
      state: JSON.parse(state.device!) as NetPlaneState,
      switchCounters: state.switchCounters,
    };
    await this.#context.worker.request('loadState', load);
  }

  async #letGo(): Promise<void> {
    const service = this.#service;
    this.#service = null;
    await service?.close({ keep: true });
  }

  /** Linux reads the MTU when its driver starts. */
  async setMtu(mtu: number): Promise<void> {
    this.#mtu = mtu;
    this.#device.mtu = mtu;
    await this.#context.worker.request('setLink', { port: this.number, up: this.linkUp, mtu });
    await this.#host.configChanged();
  }

  async setLink(up: boolean): Promise<void> {
    this.linkUp = up;
    this.#device.linkUp = up;
    await this.#context.worker.request('setLink', { port: this.number, up });
    await this.#host.configChanged();
    this.#reportUp();
  }

  planeEvent(event: PlaneEvent): void {
    this.#host.planeEvent(event);
  }

  status(plane: NetPortStatus): Omit<PortStatus, 'counters' | 'vlan' | 'policy'> {
    const { config } = this;
    const host = this.#service?.host ?? null;
    const presence = this.#service?.presence ?? null;
    const what = presence?.interface ?? presence?.node ?? null;
    const acked = host?.acked ?? null;
    const names = (bits: bigint) => featureNames(bits, VIRTIO_ID_NET);
    return {
      name: config.name,
      kind: 'vduse',
      endpoint: what === null ? config.device : `${config.device},${what}`,
      state: this.#state(),
      reason: this.#reason,
      linkUp: this.linkUp,
      sessions: this.#sessions,
      mtu: this.#mtu,
      features: acked === null ? null : { bits: `0x${acked.toString(16)}`, names: names(acked) },
      protocolFeatures: null,
      memory:
        host === null ? null : { regions: host.memory.regions, bytes: host.memory.mappedBytes },
      session: null,
      queues: queueStatuses(this.#host.vrings, plane, pairQueueName),
    };
  }

  #state(): PortState {
    const service = this.#service;
    if (service === null || !this.linkUp || this.#reason?.code === GONE) return 'down';
    const { vrings } = this.#host;
    if (vrings.some((vring) => vring.fault !== null)) return 'broken';
    if (runs(vrings[0]) && runs(vrings[1])) return 'up';
    return service.host.acked === null ? 'listening' : 'negotiating';
  }

  #reportUp(): void {
    if (this.#isQuiet) return;
    const state = this.#state();
    const up = state === 'up';
    if (up === this.#wasUp) return;
    this.#wasUp = up;
    if (up) this.#reason = null;
    this.#context.report(
      up ? 'port-up' : 'port-down',
      up ? 'rings run' : `rings no longer run (${state})`,
    );
  }

  #serviceEvent(event: VduseEvent): void {
    if (event.kind === 'driver-ok') {
      this.#sessions++;
      const how = event.resumed ? 'goes on with a driver that ran' : 'a driver is ready';
      if (!this.#isQuiet) this.#context.report('session-started', how);
    } else if (event.kind === 'reset') {
      if (!this.#isQuiet) this.#context.report('session-ended', 'the driver reset the device');
    } else {
      this.#reason = reasonOf(event.error);
      if (event.kind === 'gone') this.#reason = { ...this.#reason, code: GONE };
      const { message } = event.error as VringError;
      this.#context.report(event.kind === 'gone' ? 'device-gone' : 'device-problem', message);
      this.#reportUp();
    }
  }
}

/** Nothing but removing the port helps. */
const GONE = 'ERR_VRING_DEVICE_GONE';
