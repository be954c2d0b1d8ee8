import { VringError } from '../base/errors.ts';
import type { AddTapPort, LoadTapCounters, NetPortStatus } from '../devices/net/index.ts';
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
  #fd: Fd | null = null;
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
    const { fd, name } = openTap(config.interface, { vnetHdrBytes: 12 });
    this.#fd = fd;
    const { csum, tso, uso } = config.offload;
    const on = csum && tso;
    const wanted = { csum, tso4: on, tso6: on, ecn: on, ufo: false, uso: csum && uso };
    const { uso: kernelTakesUso } = setTapOffloads(fd.number, wanted);
    setInterfaceMtu(name, config.mtu);
    setInterfaceUp(name, true);
    await this.#attach(fd, kernelTakesUso ? TAP_ACCEPTS_USO : TAP_ACCEPTS);
    this.#context.report('port-up', `${config.name}: attached to ${name}`);
  }

  async #attach(fd: Fd, accepts: number): Promise<void> {
    const { config } = this;
    this.#accepts = accepts;
    this.#scratch = PrivateMemory.allocate(TAP_SCRATCH_BYTES);
    const add: AddTapPort = {
      port: this.number,
      settings: settingsOf(config),
      fd: fd.number,
      scratchAt: this.#scratch.offset,
      accepts,
      mtu: this.#mtu,
      linkUp: this.linkUp,
    };
    await this.#context.worker.request('addTapPort', add);
  }

  plan(fds: SentFds): PortPlan {
    const settings = { vlan: this.#context.vlan(), mtu: this.#mtu };
    const config = { ...this.config, ...settings } as PortPlan['config'];
    const tap = { fd: fds.add(this.#fd!), accepts: this.#accepts };
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
    this.#fd = fds.take(plan.tap?.fd ?? -1, `the interface of port ${plan.config.name}`);
    await this.#attach(this.#fd, plan.tap!.accepts);
  }

  async restore(state: PortFinal): Promise<void> {
    this.#gone = state.reason;
    const { tapCounters, switchCounters } = state;
    const load: LoadTapCounters = {
      port: this.number,
      counters: tapCounters ?? {},
      switchCounters,
    };
    await this.#context.worker.request('loadTapCounters', load);
  }

  async close(): Promise<void> {}

  release(): void {
    this.#fd?.close();
    this.#fd = null;
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

  status(_plane: NetPortStatus): Omit<PortStatus, 'counters' | 'vlan'> {
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
    if (this.#fd === null || this.#gone !== null) return;
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
