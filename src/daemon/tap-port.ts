import { VringError } from '../base/errors.ts';
import type { AddTapPort, LoadUplinkCounters, NetPortStatus } from '../devices/net/index.ts';
import { PrivateMemory } from '../memory/index.ts';
import type { Fd } from '../sys/fd.ts';
import {
  interfaceMac,
  openTap,
  setInterfaceMtu,
  setInterfaceUp,
  setTapOffloads,
} from '../sys/tap.ts';
import { TAP_ACCEPTS, TAP_ACCEPTS_USO, TAP_SCRATCH_BYTES } from '../uplinks/index.ts';
import {
  type PortContext,
  type PortReason,
  type SwitchPort,
  reasonOf,
  settingsOf,
} from './switch-port.ts';
import type { ReceivedFds, SentFds } from './hand-over-channel.ts';
import type { PortPlan, PortFinal } from './hand-over-format.ts';
import type { PortStatus, TapPortConfig } from './switch-types.ts';

/** An uplink to the host: a TAP interface, created if it is not there, gone with the port. */
export class TapPort implements SwitchPort {
  readonly config: TapPortConfig;
  readonly number: number;
  linkUp = true;
  readonly #context: PortContext;
  /** One per queue. */
  #fds: Fd[] = [];
  #scratch: PrivateMemory | null = null;
  #accepts = 0;
  #mtu: number;
  /** Set once the host deleted the interface: the fd reads nothing any more, for good. */
  #gone: PortReason | null = null;

  constructor(config: TapPortConfig, context: PortContext) {
    this.config = config;
    this.#mtu = config.mtu;
    this.number = context.number;
    this.#context = context;
  }

  async open(): Promise<void> {
    const { config } = this;
    const name = this.#openQueues();
    const { csum, tso, uso } = config.offload;
    const on = csum && tso;
    const wanted = { csum, tso4: on, tso6: on, ecn: on, ufo: false, uso: csum && uso };
    let kernelTakesUso = false; // offloads are the interface's, whichever queue they are set by
    for (const fd of this.#fds) kernelTakesUso = setTapOffloads(fd.number, wanted).uso;
    setInterfaceMtu(name, config.mtu);
    setInterfaceUp(name, true);
    await this.#attach(kernelTakesUso ? TAP_ACCEPTS_USO : TAP_ACCEPTS);
    this.#context.report('port-up', `attached to ${name}`);
  }

  /** Returns the name of the interface. */
  #openQueues(): string {
    const { interface: wanted, queues } = this.config;
    let name = wanted;
    for (let i = 0; i < queues; i++) {
      const opened = openTap(name, { vnetHdrBytes: 12, multiQueue: queues > 1 });
      this.#fds.push(opened.fd);
      name = opened.name;
    }
    return name;
  }

  async #attach(accepts: number): Promise<void> {
    const { config } = this;
    this.#accepts = accepts;
    this.#scratch = PrivateMemory.allocate(this.#context.workers * TAP_SCRATCH_BYTES);
    const add: AddTapPort = {
      port: this.number,
      settings: settingsOf(config, this.#context.policy()),
      fds: this.#fds.map((fd) => fd.number),
      scratchAt: this.#scratch.offset,
      accepts,
      mtu: this.#mtu,
      linkUp: this.linkUp,
    };
    await this.#context.worker.request('addTapPort', add);
  }

  plan(fds: SentFds): PortPlan {
    const { vlan, policy } = this.#context;
    const settings = { vlan: vlan(), policy: policy(), mtu: this.#mtu };
    const config = { ...this.config, ...settings } as PortPlan['config'];
    const tap = { fds: this.#fds.map((fd) => fds.add(fd)), accepts: this.#accepts };
    return { number: this.number, config, linkUp: this.linkUp, tap, memory: null };
  }

  /** The kernel keeps for the successor what nobody reads meanwhile. */
  async suspend(): Promise<PortFinal> {
    const status = { port: this.number };
    const { counters } = await this.#context.worker.request<NetPortStatus>('portStatus', status);
    return {
      number: this.number,
      listener: null,
      sessions: 0,
      reason: this.#gone,
      device: null,
      switchCounters: this.#context.switchCounters(),
      tapCounters: counters,
      session: null,
    };
  }

  async resume(): Promise<void> {}

  /** The interface stays: the successor has its queue, too. */
  async surrender(): Promise<void> {
    this.release();
  }

  async adopt(plan: PortPlan, fds: ReceivedFds): Promise<void> {
    this.linkUp = plan.linkUp;
    const { fds: places, accepts } = plan.tap ?? { fds: [-1], accepts: 0 };
    for (const at of places) {
      this.#fds.push(fds.take(at, `the interface of port ${plan.config.name}`));
    }
    await this.#attach(accepts);
  }

  async restore(state: PortFinal): Promise<void> {
    this.#gone = state.reason;
    const { tapCounters, switchCounters } = state;
    const load: LoadUplinkCounters = {
      port: this.number,
      counters: tapCounters ?? {},
      switchCounters,
    };
    await this.#context.worker.request('loadUplinkCounters', load);
  }

  async close(): Promise<void> {}

  release(): void {
    for (const fd of this.#fds) fd.close();
    this.#fds = [];
    this.#scratch?.close();
    this.#scratch = null;
  }

  async setMtu(mtu: number): Promise<void> {
    setInterfaceMtu(this.config.interface, mtu);
    this.#mtu = mtu;
    await this.#context.worker.request('setLink', { port: this.number, up: this.linkUp, mtu });
  }

  async setLink(up: boolean): Promise<void> {
    setInterfaceUp(this.config.interface, up);
    this.linkUp = up;
    await this.#context.worker.request('setLink', { port: this.number, up });
  }

  planeEvent(): void {
    throw new VringError('ERR_VRING_ASSERTION', 'a TAP has no virtqueues that could break');
  }

  status(_plane: NetPortStatus): Omit<PortStatus, 'counters' | 'vlan' | 'policy'> {
    const { config } = this;
    this.#lookForInterface();
    return {
      name: config.name,
      kind: 'tap',
      endpoint: config.interface,
      state: this.linkUp && this.#gone === null ? 'up' : 'down',
      reason: this.#gone,
      linkUp: this.linkUp,
      sessions: 0,
      mtu: this.#mtu,
      features: null,
      protocolFeatures: null,
      memory: null,
      session: null,
      queues: [],
    };
  }

  #lookForInterface(): void {
    if (this.#fds.length === 0 || this.#gone !== null) return;
    try {
      interfaceMac(this.config.interface);
    } catch (cause) {
      const name = this.config.interface;
      const message = `the interface ${name} is gone; remove the port and add it again`;
      this.#gone = reasonOf(new VringError('ERR_VRING_INTERFACE_GONE', message, { cause }));
      this.#context.report('port-down', message);
    }
  }
}
