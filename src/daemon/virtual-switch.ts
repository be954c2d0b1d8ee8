/**
 * A virtual switch as a library object: ports on the control plane, data-plane workers that
 * forward between them. What the daemon wraps in an API and the CLI in commands.
 */
import { EventEmitter } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { ConfigError, VringError } from '../base/errors.ts';
import { MAX_PORTS } from '../base/limits.ts';
import type { CaptureStream } from '../capture/index.ts';
import type { NetPortStatus } from '../devices/net/index.ts';
import type { PlaneEvent, WorkerGroup } from '../runtime/index.ts';
import { MacTable } from '../switch/index.ts';
import type { VdpaPresence } from '../vhost-kernel/index.ts';
import { faultName } from '../virtqueue/faults.ts';
import { type Fd, hurryThread } from '../sys/index.ts';
import { type StoragePlan, StorageTarget } from './disks/storage-target.ts';
import type { ReceivedFds, SentFds } from './hand-over-channel.ts';
import {
  type HandOverPlan,
  type HandOverState,
  monotonicMs,
  type PortPlan,
} from './hand-over-format.ts';
import { PortCaptures } from './port-captures.ts';
import { portCounters } from './port-counters.ts';
import { endpointOf, PortTable } from './port-table.ts';
import { type PortUpdate, type SwitchControl, portExists } from './switch-control.ts';
import {
  entryOf,
  type PortContext,
  type PortEntry,
  policyOf,
  setRules,
  type SwitchPort,
} from './switch-port.ts';
import type {
  MacEntry,
  PortConfig,
  PortStatus,
  SwitchConfig,
  SwitchEvent,
  WorkerStatus,
} from './switch-types.ts';
import { workersProblem } from './port-workers.ts';
import { refusalOf, SwitchWorkers } from './switch-workers.ts';
import { checkCores } from './worker-cores.ts';
import { rehearse } from './rehearsal.ts';
import { TapPort } from './tap-port.ts';
import { UplinkPort } from './uplink-port.ts';
import { VdusePort } from './vduse-port.ts';
import { VERSION } from './version.ts';
import { VhostUserPort } from './vhost-user-port.ts';

/** Events kept for `events()`. */
const EVENTS_MAX = 1000;

/** What a session that does not let go of its rings may cost a hand-over that fails, ms. */
const RESUME_PATIENCE_MS = 1000;

/** Reads of the MAC table until V8 has compiled the loop. */
const REHEARSED_SNAPSHOTS = 3;

export class VirtualSwitch extends EventEmitter implements SwitchControl {
  readonly disks: StorageTarget;
  readonly #config: SwitchConfig;
  readonly #workers: SwitchWorkers;
  readonly #worker: WorkerGroup;
  readonly #macTable: MacTable;
  readonly #table = new PortTable();
  /** Of the port that has the number, or had it last. */
  readonly #queuePairs: number[] = [];
  readonly #events: SwitchEvent[] = [];
  readonly #captures: PortCaptures;
  /** Changes of the set of ports happen one after the other. */
  #changes: Promise<unknown> = Promise.resolve();
  #closed = false;
  #suspending: Promise<unknown> = Promise.resolve();
  #calmDown: (() => void) | null = null;

  private constructor(config: SwitchConfig) {
    super();
    checkCores(config);
    this.#config = config;
    const { ageingSeconds, limit } = config.mac;
    const count = config.workers ?? 1;
    this.#macTable = MacTable.create({ ageingSeconds, capacity: limit, shared: count > 1 });
    this.disks = new StorageTarget({
      stateFile: config.stateFile ?? config.control.path.replace(/(\.sock)?$/, '.disks.json'),
      spinMs: config.spinMicroseconds / 1000,
      report: (kind, disk, message) => this.#report(kind, null, message, disk),
      socketOwner: (path) => this.#portOf(path),
    });
    this.#workers = new SwitchWorkers({
      count,
      macTable: this.#macTable.memory,
      queuePairsOf: (number) => this.#queuePairs[number] ?? 1,
      spinMs: config.spinMicroseconds / 1000,
      cores: config.workerCores ?? null,
      onEvent: (event) => this.#planeEvent(event),
      onRefused: (refused) =>
        this.#report('queue-refused', this.#nameOf(refused.device), refusalOf(refused)),
      onCrash: (error) => {
        this.#report('worker-ended', null, error.message);
        if (this.listenerCount('error') > 0) this.emit('error', error); // else: start fails
      },
    });
    this.#worker = this.#workers.group;
    this.#captures = new PortCaptures(this.#worker);
  }

  /**
   * Starts the worker and opens ports and disks; closes everything again when a port cannot be
   * opened. A disk that cannot be is `failed`, and tried again.
   */
  static async start(config: SwitchConfig): Promise<VirtualSwitch> {
    const self = new VirtualSwitch(config);
    try {
      await self.#worker.counters(); // all run, where they are to
      for (const port of config.ports) await self.addPort(port);
      await self.disks.start(config.disks ?? [], config.scsi ?? []);
      return self;
    } catch (error) {
      await self.close();
      throw error;
    }
  }

  /**
   * Builds what a predecessor planned, beside it: ports that stand still until `resume`.
   * @throws VringError; everything is let go of then, and nothing ended.
   */
  static async adopt(
    config: SwitchConfig,
    plans: StoragePlan & { readonly ports: readonly PortPlan[] },
    events: readonly SwitchEvent[],
    fds: ReceivedFds,
  ): Promise<VirtualSwitch> {
    const self = new VirtualSwitch(config);
    try {
      self.#events.push(...events);
      await self.#worker.request('suspend', undefined);
      for (const plan of plans.ports) {
        const port = self.#create(plan.config, plan.number);
        self.#table.set(plan.number, entryOf(port, self.#config));
        await port.adopt(plan, fds);
      }
      await self.disks.adopt(plans, fds);
      return self;
    } catch (error) {
      await self.surrender();
      throw error;
    }
  }

  /** With what changed last at the predecessor. */
  async restore(state: HandOverState, macs: Uint8Array, fds: ReceivedFds): Promise<void> {
    const words = new Int32Array(macs.length >> 2);
    new Uint8Array(words.buffer).set(macs.subarray(0, words.byteLength));
    this.#calmDown ??= hurryThread();
    await this.#worker.request('learnMacs', words);
    await Promise.all([
      ...state.ports.map((each) => this.#table.at(each.number)?.port.restore(each, fds)),
      this.disks.restore(state, fds),
    ]);
  }

  plan(fds: SentFds, control: Fd): HandOverPlan {
    const { control: own, http, stateFile = null, mac, spinMicroseconds } = this.#config;
    const { workers = 1, workerCores } = this.#config;
    const cores = workerCores ? [...workerCores] : null;
    const rest = { policy: policyOf({}, this.#config), workers, workerCores: cores };
    return {
      version: VERSION,
      pid: process.pid,
      config: { control: own, http, stateFile, mac, spinMicroseconds, ...rest },
      control: fds.add(control),
      ports: this.#ports().map((port) => port.plan(fds)),
      ...this.disks.plan(fds),
      events: this.events(),
    };
  }

  /** Stands still: first the data plane, so that no frame finds its way half open. */
  async suspend(fds: SentFds): Promise<{ state: HandOverState; macs: Uint8Array }> {
    const stoppedAtMs = monotonicMs();
    this.#calmDown ??= hurryThread(); // until `resume`, here or at the successor
    await this.#worker.request('suspend', undefined);
    const ports = this.#ports().map((port) => port.suspend(fds));
    const disks = this.disks.suspend(fds);
    this.#suspending = Promise.allSettled([...ports, disks]);
    const state = { stoppedAtMs, ports: await Promise.all(ports), ...(await disks) };
    const words = this.#macTable.snapshot();
    return { state, macs: new Uint8Array(words.buffer) };
  }

  /**
   * Both sides of a hand-over, with a port of its own: see rehearsal.ts. With no two numbers free
   * it is left out, and the pause is longer.
   */
  async rehearse(): Promise<void> {
    const numbers = [MAX_PORTS - 1, MAX_PORTS - 2];
    if (numbers.some((number) => this.#table.at(number) !== null)) return;
    const failed = (error: Error): void => {
      this.#report('rehearsal-failed', null, `the pause will be longer: ${error.message}`);
    };
    await rehearse({
      make: (config, which) => {
        const port = this.#create(config, numbers[which]!, () => undefined);
        port.linkUp = false; // nobody floods to it
        return port;
      },
      strike: async (port, which) => {
        await port.close();
        await this.#worker.request('removePort', { port: numbers[which] });
        port.release();
      },
    }).catch(failed);
    for (let i = 0; i < REHEARSED_SNAPSHOTS; i++) this.#macTable.snapshot();
    await this.#worker.request('learnMacs', new Int32Array(0));
  }

  /** Goes on after `suspend`, or begins after `restore`. */
  async resume(): Promise<void> {
    const patience = sleep(RESUME_PATIENCE_MS, undefined, { ref: false });
    await Promise.race([this.#suspending, patience]);
    const disks = this.disks.resume(); // they have threads of their own, and wait for none of ours
    await Promise.allSettled(this.#ports().map((port) => port.resume()));
    await this.#worker.request('resume', undefined);
    await disks;
    this.#calmDown?.();
    this.#calmDown = null;
  }

  /** Ends without ending anything: sessions, sockets and interfaces are a successor's. */
  async surrender(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#calmDown?.();
    this.#calmDown = null;
    this.#captures.close();
    const ports = this.#ports().map((port) => port.surrender());
    await Promise.allSettled([...ports, this.disks.surrender()]);
    await this.#workers.close();
  }

  /** Runs while no port or disk is added, removed or changed. */
  exclusively<T>(work: () => Promise<T>): Promise<T> {
    return this.#exclusively(() => this.disks.exclusively(work));
  }

  report(kind: string, message: string): void {
    this.#report(kind, null, message);
  }

  addPort(config: PortConfig): Promise<PortStatus> {
    return this.#exclusively(async () => {
      this.#refuseTwins(config);
      const problem = workersProblem(config.kind, this.#config.workers ?? 1);
      if (problem !== null) throw new ConfigError('kind', problem);
      const number = this.#table.freeNumber(config.name);
      const port = this.#create(config, number);
      this.#workers.clearCounters(number);
      try {
        await port.open();
      } catch (error) {
        await port.close();
        port.release();
        throw error;
      }
      const entry = entryOf(port, this.#config);
      this.#table.set(number, entry);
      this.#report('port-added', config.name, `added, ${endpointOf(config)}`);
      return await this.#status(entry);
    });
  }

  removePort(name: string): Promise<void> {
    return this.#exclusively(async () => {
      const entry = this.#table.named(name);
      await this.#remove(entry);
      this.#report('port-removed', name, 'removed');
    });
  }

  updatePort(name: string, update: PortUpdate): Promise<PortStatus> {
    return this.#exclusively(async () => {
      const entry = this.#table.named(name);
      if (update.vlan !== undefined || update.policy !== undefined) {
        await setRules(this.#worker, entry, update);
      }
      if (update.mtu !== undefined) {
        await entry.port.setMtu(update.mtu);
        this.#report('mtu', name, `MTU set to ${update.mtu}`);
      }
      if (update.linkUp !== undefined && update.linkUp !== entry.port.linkUp) {
        await entry.port.setLink(update.linkUp);
        this.#report('link', name, `link set ${update.linkUp ? 'up' : 'down'}`);
      }
      return await this.#status(entry);
    });
  }

  async ports(): Promise<PortStatus[]> {
    return await Promise.all(this.#table.entries().map((entry) => this.#status(entry)));
  }

  /** What Linux made of the device of a VDUSE port; null for others. */
  presence(name: string): (VdpaPresence & { readonly resumed: boolean }) | null {
    const { port } = this.#table.named(name);
    return port instanceof VdusePort ? port.presence : null;
  }

  async port(name: string): Promise<PortStatus> {
    return await this.#status(this.#table.named(name));
  }

  async macTable(): Promise<MacEntry[]> {
    await this.#worker.request('macClock', undefined);
    return this.#macTable.list().map(({ mac, vlan, port, ageSeconds }) => {
      return { mac, vlan, port: this.#nameOf(port) ?? `#${port}`, ageSeconds };
    });
  }

  async flushMacTable(port?: string): Promise<number> {
    const number = port === undefined ? {} : { port: this.#table.named(port).port.number };
    return await this.#worker.request<number>('flushMacs', number);
  }

  workers(): Promise<WorkerStatus[]> {
    return this.#workers.status((number) => this.#nameOf(number) ?? `#${number}`);
  }

  /** One capture per port at a time; it ends with the port. */
  capture(name: string, options: { snapLen: number }): Promise<CaptureStream> {
    return this.#exclusively(async () => {
      const { port } = this.#table.named(name);
      const stream = await this.#captures.start(name, port.number, options.snapLen);
      this.#report('capture', name, `capture started, ${options.snapLen} bytes per frame`);
      return stream;
    });
  }

  events(): SwitchEvent[] {
    return [...this.#events];
  }

  /** Idempotent. Ends all sessions, then the worker. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#changes.catch(() => undefined);
    const failures: unknown[] = []; // a data plane that failed fails each
    for (const entry of this.#table.entries()) {
      await this.#remove(entry).catch((error) => failures.push(error));
    }
    await this.disks.close().finally(() => this.#workers.close());
    if (failures.length > 0) throw failures[0];
  }

  #nameOf(number: number): string | null {
    return this.#table.at(number)?.port.config.name ?? null;
  }

  #ports(): SwitchPort[] {
    return this.#table.entries().map(({ port }) => port);
  }

  #create(
    config: PortConfig,
    number: number,
    report: PortContext['report'] = (kind, message) => this.#report(kind, config.name, message),
  ): SwitchPort {
    this.#queuePairs[number] = config.kind === 'vhost-user' ? config.queuePairs : 1;
    const context: PortContext = {
      worker: this.#worker,
      workers: this.#config.workers ?? 1,
      number,
      vlan: () => this.#table.at(number)?.vlan ?? config.vlan,
      policy: () => this.#table.at(number)?.policy ?? policyOf(config, this.#config),
      learned: () => this.#macTable.list().filter((entry) => entry.port === number),
      switchCounters: () => this.#workers.counters(number),
      report,
    };
    if (config.kind === 'tap') return new TapPort(config, context);
    if (config.kind === 'packet' || config.kind === 'xdp') return new UplinkPort(config, context);
    if (config.kind === 'vduse') return new VdusePort(config, context);
    return new VhostUserPort(config, context);
  }

  async #remove(entry: PortEntry): Promise<void> {
    this.#captures.end(entry.port.number);
    // Sessions first: they ask the worker to let go of their rings.
    await entry.port.close();
    await this.#worker.request('removePort', { port: entry.port.number });
    entry.port.release();
    this.#table.set(entry.port.number, null);
  }

  async #status(entry: PortEntry): Promise<PortStatus> {
    const { port } = entry;
    const plane = await this.#worker.request<NetPortStatus>('portStatus', { port: port.number });
    const counters = portCounters(this.#workers.counters(port.number), plane.counters);
    return { ...port.status(plane), vlan: entry.vlan, policy: entry.policy, counters };
  }

  #refuseTwins(config: PortConfig): void {
    this.#table.refuseTwins(config);
    const disk = config.kind === 'vhost-user' ? this.disks.ownerOf(config.path) : null;
    if (disk !== null) throw portExists(endpointOf(config), `(${disk})`);
  }

  /** Name of the port that has the socket, or null. */
  #portOf(socket: string): string | null {
    const isOwner = ({ config }: SwitchPort) =>
      config.kind === 'vhost-user' && config.path === socket;
    return this.#ports().find(isOwner)?.config.name ?? null;
  }

  #planeEvent(event: PlaneEvent): void {
    const port = this.#table.at(event.device)?.port;
    if (port === undefined) return;
    const { name } = port.config;
    if (event.kind === 'unwatched') return this.#report('uplink-unwatched', name, event.message);
    if (event.kind === 'fault') {
      const where = event.index === -1 ? 'its memory' : `queue ${event.index}`;
      this.#report('fault', name, `${where} is broken: ${faultName(event.code)}`);
    }
    port.planeEvent(event);
  }

  #report(kind: string, port: string | null, message: string, disk = ''): void {
    const about = disk === '' ? { port } : { port, disk };
    const event: SwitchEvent = { at: new Date().toISOString(), kind, ...about, message };
    if (this.#events.length === EVENTS_MAX) this.#events.shift();
    this.#events.push(event);
    this.emit('event', event);
  }

  #exclusively<T>(change: () => Promise<T>): Promise<T> {
    if (this.#closed) {
      return Promise.reject(new VringError('ERR_VRING_CLOSED', 'the switch was closed'));
    }
    const start = (): Promise<T> => {
      if (this.#closed) throw new VringError('ERR_VRING_CLOSED', 'the switch was closed');
      return change();
    };
    const done = this.#changes.then(start, start);
    this.#changes = done.catch(() => undefined);
    return done;
  }
}
