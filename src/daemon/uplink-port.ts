import { messageOf, SysError, VringError } from '../base/errors.ts';
import type {
  AddUplinkPort,
  AttachUplink,
  LoadUplinkCounters,
  NetPortStatus,
} from '../devices/net/index.ts';
import { PrivateMemory } from '../memory/index.ts';
import {
  type Capability,
  type InterfaceState,
  interfaceQueues,
  interfaceState,
  missingCapabilities,
  setInterfaceUp,
  watchInterfaces,
} from '../sys/index.ts';
import { ACCEPT_CSUM } from '../switch/index.ts';
import { ERR_XDP, PACKET_ACCEPTS, PacketSockets, XdpSockets } from '../uplinks/index.ts';
import { ETHTOOL_CHANNELS_BYTES } from '../wire/linux.ts';
import type { ReceivedFds, SentFds } from './hand-over-channel.ts';
import type { PortFinal, PortPlan } from './hand-over-format.ts';
import { MAX_UPLINK_QUEUES } from './port-input.ts';
import {
  type PortContext,
  type PortReason,
  reasonOf,
  settingsOf,
  type SwitchPort,
} from './switch-port.ts';
import type { PortStatus, UplinkPortConfig } from './switch-types.ts';

/** The interface is not there, or not fit for the port. */
const ERR_INTERFACE = 'ERR_VRING_INTERFACE';
const ERR_INTERFACE_GONE = 'ERR_VRING_INTERFACE_GONE';
const ERR_PERMISSION = 'ERR_VRING_PERMISSION';

/** An interface that is there and cannot be used, such as by who has its queue, is tried again. */
const RETRY_MS = 1000;

/** Sockets of either kind, open; `queues` is what the worker is told. */
type Sockets = { readonly queues: AttachUplink['queues']; readonly how: string; close(): void };

/**
 * An uplink by an interface that is there: AF_PACKET or AF_XDP.
 *
 * Theory of operation. The port of the switch stays; its sockets come and go with the interface.
 * The kernel's news of interfaces only say when to look: `#look` compares what is there with what
 * the port has and does one step after the other, never two at once. An interface that is down
 * keeps its sockets (its driver may reset it when an XDP program comes), one that was removed does
 * not, and another one of the same name is the port's again.
 */
export class UplinkPort implements SwitchPort {
  readonly config: UplinkPortConfig;
  readonly number: number;
  linkUp = true;
  readonly #context: PortContext;
  #mtu: number;
  #sockets: Sockets | null = null;
  /** Index of the interface that `#sockets` are bound to. */
  #index = 0;
  /** Its MTU then. */
  #socketsMtu = 0;
  /** The interface is up and has a carrier. */
  #carrier = false;
  /** Why the port is not up. */
  #reason: PortReason | null = null;
  #watch: { close(): void } | null = null;
  #retry: NodeJS.Timeout | undefined;
  /** A hand-over, or the end: news are not acted on. */
  #resting = true;
  /** What is being done; the next step waits for it. */
  #work: Promise<void> = Promise.resolve();

  constructor(config: UplinkPortConfig, context: PortContext) {
    this.config = config;
    this.number = context.number;
    this.#context = context;
    this.#mtu = config.mtu;
  }

  async open(): Promise<void> {
    const { interface: name } = this.config;
    const state = interfaceState(name);
    if (state === null) throw new VringError(ERR_INTERFACE, noInterface(name));
    if (state.loopback) throw new VringError(ERR_INTERFACE, isLoopback(name));
    await this.#add();
    try {
      await this.#connect(this.#raise(state));
    } catch (error) {
      await this.#disconnect();
      await this.#context.worker.request('removePort', { port: this.number });
      throw error;
    }
    this.#start();
    this.#lookSoon(); // what changed before anybody listened
  }

  /** The port of the switch, without sockets. */
  async #add(): Promise<void> {
    const { config } = this;
    const common = { queues: [], mtu: this.#mtu, linkUp: false };
    const { csum, tso } = config.offload;
    const accepts = !csum ? 0 : tso ? PACKET_ACCEPTS : ACCEPT_CSUM;
    const add: AddUplinkPort = {
      port: this.number,
      settings: settingsOf(config, this.#context.policy()),
      uplink:
        config.kind === 'packet'
          ? { kind: 'packet', ...common, accepts }
          : { kind: 'xdp', ...common },
    };
    await this.#context.worker.request('addUplinkPort', add);
  }

  #start(): void {
    this.#resting = false;
    this.#watch = watchInterfaces(() => this.#lookSoon());
  }

  /** Sets the interface up, as nothing else may have. */
  #raise(state: InterfaceState): InterfaceState {
    const { interface: name } = this.config;
    if (state.up) return state;
    try {
      setInterfaceUp(name, true);
    } catch (error) {
      throw explain(this.config, error);
    }
    return interfaceState(name) ?? state;
  }

  /** @throws VringError, SysError; the port has no sockets then. */
  async #connect(state: InterfaceState): Promise<void> {
    const { config } = this;
    const { interface: name } = config;
    if (state.mtu < this.#mtu)
      throw new VringError(ERR_INTERFACE, mtuTooSmall(name, state, this.#mtu));
    let sockets: Sockets;
    try {
      sockets = await this.#openSockets(state);
    } catch (error) {
      throw explain(config, error);
    }
    this.#sockets = sockets;
    this.#index = state.index;
    this.#socketsMtu = state.mtu;
    this.#reason = null;
    const attach: AttachUplink = { port: this.number, queues: sockets.queues };
    try {
      await this.#context.worker.request('attachUplink', attach);
    } catch (error) {
      await this.#disconnect();
      throw error;
    }
    this.#context.report('port-up', `attached to ${name}, ${sockets.how}`);
    await this.#setCarrier(state.up);
  }

  async #openSockets({ index: interfaceIndex, mtu }: InterfaceState): Promise<Sockets> {
    const { config } = this;
    const { workers } = this.#context;
    if (config.kind === 'packet') {
      const { qdiscBypass } = config;
      const queues = Math.max(config.queues, workers);
      const rollover = workers === 1;
      const sockets = PacketSockets.open({ interfaceIndex, queues, qdiscBypass, rollover });
      return { queues: sockets.queues, how: 'AF_PACKET', close: () => sockets.close() };
    }
    const { copyMode, attach } = config;
    const { interface: name } = config;
    const all = countQueues(name);
    if (all < workers) throw new VringError(ERR_XDP, tooFewQueues(name, all, workers));
    const queues = config.queues ?? Math.min(all, MAX_UPLINK_QUEUES);
    const options = { interfaceIndex, queues, sockets: workers, copyMode, attach, mtu };
    const sockets = await XdpSockets.open(options);
    const copy = sockets.zeroCopy ? 'zero copy' : 'copy mode';
    const how = `AF_XDP, ${queues} queue${queues === 1 ? '' : 's'}, ${sockets.attached}, ${copy}`;
    return { queues: sockets.queues, how, close: () => sockets.close() };
  }

  async #disconnect(): Promise<void> {
    if (this.#sockets === null) return;
    await this.#context.worker.request('detachUplink', { port: this.number });
    this.release();
  }

  async #setCarrier(up: boolean): Promise<void> {
    this.#carrier = up;
    const { interface: name } = this.config;
    if (up) this.#reason = null;
    else {
      const message = `the interface ${name} is down, or has no carrier`;
      this.#reason = reasonOf(new VringError(ERR_INTERFACE, message));
      this.#context.report('port-down', message);
    }
    await this.#tellLink();
  }

  async #tellLink(): Promise<void> {
    const up = this.linkUp && this.#carrier;
    await this.#context.worker.request('setLink', { port: this.number, up, mtu: this.#mtu });
  }

  #lookSoon(): void {
    const look = () => this.#look().catch((error: Error) => this.#fail(error));
    this.#work = this.#work.then(look, look);
  }

  /** Brings the port to where its interface is. */
  async #look(): Promise<void> {
    if (this.#resting) return;
    const { interface: name } = this.config;
    const state = interfaceState(name);
    if (this.#sockets !== null && state?.index !== this.#index) {
      await this.#disconnect();
      this.#carrier = false;
      const message = `the interface ${name} is gone; it is used again when it is back`;
      this.#fail(new VringError(ERR_INTERFACE_GONE, message));
    }
    if (state === null) return;
    // XDP has chunks for frames of the interface's size.
    if (this.config.kind === 'xdp' && state.mtu !== this.#socketsMtu) await this.#disconnect();
    if (this.#sockets === null) {
      clearTimeout(this.#retry); // each news would add one for ever
      this.#retry = setTimeout(() => this.#lookSoon(), RETRY_MS).unref();
      await this.#connect(this.#raise(state));
      clearTimeout(this.#retry);
      return;
    }
    if (state.up !== this.#carrier) {
      await this.#setCarrier(state.up);
      if (state.up) this.#context.report('port-up', `the interface ${name} is up`);
    }
  }

  /** Says why the port is down, once. */
  #fail(error: Error): void {
    if (this.#resting || this.#reason?.message === error.message) return;
    this.#reason = reasonOf(error);
    this.#context.report('port-down', error.message);
  }

  plan(_fds: SentFds): PortPlan {
    const { vlan, policy } = this.#context;
    const settings = { vlan: vlan(), policy: policy(), mtu: this.#mtu };
    const config = { ...this.config, ...settings } as PortPlan['config'];
    return { number: this.number, config, linkUp: this.linkUp, tap: null, memory: null };
  }

  /** A queue has one XDP socket: the successor opens its own when this one let go. */
  async suspend(): Promise<PortFinal> {
    await this.close();
    const status = { port: this.number };
    const { counters } = await this.#context.worker.request<NetPortStatus>('portStatus', status);
    return {
      number: this.number,
      listener: null,
      sessions: 0,
      reason: this.#reason,
      device: null,
      switchCounters: this.#context.switchCounters(),
      tapCounters: counters,
      session: null,
    };
  }

  async resume(): Promise<void> {
    this.#start();
    this.#lookSoon();
    await this.#work;
  }

  async surrender(): Promise<void> {
    await this.close();
    this.release();
  }

  async adopt(plan: PortPlan, _fds: ReceivedFds): Promise<void> {
    this.linkUp = plan.linkUp;
    await this.#add();
  }

  async restore(state: PortFinal): Promise<void> {
    const { tapCounters, switchCounters } = state;
    const load: LoadUplinkCounters = {
      port: this.number,
      counters: tapCounters ?? {},
      switchCounters,
    };
    await this.#context.worker.request('loadUplinkCounters', load);
  }

  async close(): Promise<void> {
    this.#resting = true;
    clearTimeout(this.#retry);
    this.#watch?.close();
    this.#watch = null;
    await this.#work;
    // Before a worker forgets the port: none may learn an address from its frames after that.
    await this.#disconnect();
  }

  release(): void {
    this.#sockets?.close();
    this.#sockets = null;
  }

  async setMtu(mtu: number): Promise<void> {
    const { interface: name } = this.config;
    const state = interfaceState(name);
    if (state !== null && state.mtu < mtu) {
      throw new VringError(ERR_INTERFACE, mtuTooSmall(name, state, mtu));
    }
    this.#mtu = mtu;
    await this.#tellLink();
  }

  async setLink(up: boolean): Promise<void> {
    this.linkUp = up;
    await this.#tellLink();
  }

  planeEvent(): void {
    throw new VringError('ERR_VRING_ASSERTION', 'an uplink has no virtqueues that could break');
  }

  status(_plane: NetPortStatus): Omit<PortStatus, 'counters' | 'vlan' | 'policy'> {
    const { config } = this;
    return {
      name: config.name,
      kind: config.kind,
      endpoint: config.interface,
      state: this.linkUp && this.#carrier && this.#sockets !== null ? 'up' : 'down',
      reason: this.#reason,
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
}

function countQueues(interfaceName: string): number {
  using scratch = PrivateMemory.allocate(ETHTOOL_CHANNELS_BYTES);
  return interfaceQueues(interfaceName, scratch.offset);
}

function tooFewQueues(name: string, queues: number, workers: number): string {
  const has = queues === 1 ? '1 queue' : `${queues} queues`;
  return (
    `the interface ${name} has ${has} and the switch ${workers} workers, each of which sends by ` +
    `a queue of its own; give it more (ethtool -L ${name} combined ${workers}), use ` +
    `packet:${name}, or fewer workers`
  );
}

function noInterface(name: string): string {
  return `there is no interface ${name} in this network namespace; make it, or use tap:${name}`;
}

function isLoopback(name: string): string {
  return (
    `${name} is the loopback interface: as a port it would take from this host what it says to ` +
    'itself, or have it twice; use an interface that leads somewhere else'
  );
}

function mtuTooSmall(name: string, state: InterfaceState, mtu: number): string {
  return (
    `the interface ${name} has an MTU of ${state.mtu} and the port one of ${mtu}; ` +
    `set the interface's (ip link set ${name} mtu ${mtu}) or lower the port's`
  );
}

/** Which rights a kind needs, and which of them this process lacks. */
function rightsText(kind: UplinkPortConfig['kind']): string {
  const needed: Capability[] = ['CAP_NET_RAW', 'CAP_NET_ADMIN'];
  if (kind === 'xdp') needed.push('CAP_BPF');
  const all = `${needed.slice(0, -1).join(', ')} and ${needed.at(-1)}`;
  const missing = missingCapabilities(needed);
  return missing.length > 0
    ? `${all} (missing: ${missing.join(', ')})`
    : `${all} of the host (missing: none, but a user namespace or a security module is in the way)`;
}

/** What people can do about it. */
function explain({ kind, interface: name }: UplinkPortConfig, error: unknown): unknown {
  if (error instanceof VringError && !(error instanceof SysError)) {
    return new VringError(error.code, `${kind}:${name}: ${error.message}`, { cause: error });
  }
  if (!(error instanceof SysError)) return error;
  if (error.errnoName === 'EPERM' || error.errnoName === 'EACCES') {
    const text = `${kind}:${name} needs root, or ${rightsText(kind)}: ${messageOf(error)}`;
    return new VringError(ERR_PERMISSION, text, { cause: error });
  }
  if (error.errnoName === 'ENOBUFS' && missingCapabilities(['CAP_IPC_LOCK']).length > 0) {
    const text =
      `${kind}:${name} locks more memory than this process may; raise its limit ` +
      `(ulimit -l unlimited), or run it with CAP_IPC_LOCK: ${messageOf(error)}`;
    return new VringError(ERR_PERMISSION, text, { cause: error });
  }
  if (error.errnoName === 'EAFNOSUPPORT') {
    const option = kind === 'xdp' ? 'CONFIG_XDP_SOCKETS' : 'CONFIG_PACKET';
    const text = `${kind}:${name}: this kernel has no such sockets (${option})`;
    return new VringError(ERR_INTERFACE, text, { cause: error });
  }
  return error;
}
