/**
 * A SCSI host adapter of the storage target: one socket, one worker, and units, each of which is a
 * disk (`ScsiDisk`). Units may come and go under a driver, which hears of it. An adapter that
 * cannot be served, because its socket is another one's, is `failed` and tried again; a unit whose
 * image cannot be opened is `failed` alone, and the driver does not find it until it can.
 */
import { VringError } from '../../base/errors.ts';
import type { ReceivedFds, SentFds } from '../hand-over-channel.ts';
import type { EndpointPart } from '../endpoint-hand-over.ts';
import type { DiskContext } from './disk.ts';
import { NO_COUNTS } from './disk-counts.ts';
import { DiskEndpoint } from './disk-endpoint.ts';
import { DiskFailures } from './disk-failures.ts';
import { DiskMeter } from './disk-meter.ts';
import type { DiskOrigin, DiskState } from './disk-types.ts';
import { adapterFailed, ScsiDisk, type UnitWay } from './scsi-disk.ts';
import type { AdapterFinal, AdapterPlan } from './scsi-hand-over.ts';
import { ScsiHost } from './scsi-host.ts';
import { adapterInput, parseUnit } from './scsi-input.ts';
import type { AdapterConfig, AdapterStatus, UnitConfig } from './scsi-types.ts';
import { Turns } from './turns.ts';

export type AdapterContext = {
  readonly spinMs: number;
  /** Reports what people want to know, of the adapter or of one of its units. */
  readonly report: (kind: string, disk: string, message: string) => void;
};

const WORDS = { failed: 'scsi-failed', works: 'scsi-recovered', remedy: '' };

export class ScsiAdapter implements UnitWay {
  readonly origin: DiskOrigin;
  /** Of the set of units. */
  readonly turns = new Turns();
  readonly units = new Map<string, ScsiDisk>();
  readonly #config: AdapterConfig;
  readonly #context: AdapterContext;
  readonly #endpoint: DiskEndpoint;
  readonly #failures: DiskFailures;
  readonly #meter = new DiskMeter();
  #host: ScsiHost | null = null;
  #isClosed = false;
  #suspending: Promise<unknown> = Promise.resolve();

  /** Its units of the configuration are made, and opened with it. */
  constructor(config: AdapterConfig, origin: DiskOrigin, context: AdapterContext) {
    this.#config = config;
    this.origin = origin;
    this.#context = context;
    for (const unit of config.units) this.make(unit, origin);
    const report: DiskContext['report'] = (kind, text) => context.report(kind, config.name, text);
    const retry = (): void => void this.turns.run(() => this.#tryAgain());
    this.#failures = new DiskFailures(retry, report, WORDS);
    this.#endpoint = new DiskEndpoint({
      label: `SCSI adapter ${config.name}`,
      kind: 'scsi',
      report,
      onReason: (reason) => (this.#failures.reason = reason),
    });
  }

  /** With the units that it has now. */
  get config(): AdapterConfig {
    return { ...this.#config, units: [...this.units.values()].map(({ config }) => config) };
  }

  get name(): string {
    return this.#config.name;
  }

  get socket(): string {
    return this.#config.socket;
  }

  get queues(): number {
    return this.#config.queues;
  }

  get sessions(): number {
    return this.#endpoint.sessions;
  }

  get state(): DiskState {
    return this.#host === null ? 'failed' : this.#endpoint.state;
  }

  /** @throws VringError ERR_VRING_DISK_FAILED with the reason. */
  get host(): ScsiHost {
    if (this.#host !== null) return this.#host;
    throw adapterFailed(this.name, this.#failures.reason?.message ?? null);
  }

  /**
   * Serves when it resolves. `strictly`: with all its units, or not at all.
   * @throws VringError, SysError, ConfigError; nothing is left open.
   */
  async open(strictly: boolean): Promise<void> {
    const host = this.#makeHost();
    this.#host = host;
    try {
      await host.begin();
      const opened = [...this.units.values()].map((disk) => {
        return disk.turns.run(() => (strictly ? disk.open() : disk.tryAgain()));
      });
      const failed = (await Promise.allSettled(opened)).find(({ status }) => status === 'rejected');
      if (failed !== undefined) throw (failed as PromiseRejectedResult).reason;
      if (host.failure !== null) throw host.failure;
      this.#endpoint.listen(this.#config, host.host);
    } catch (error) {
      await this.#letGo(error as Error);
      throw error;
    }
    this.#failures.works();
  }

  /** As `open`; an adapter that cannot be served says so, and is tried again. */
  async openOrFail(): Promise<void> {
    try {
      await this.open(false);
    } catch (error) {
      this.#failures.failed(error as Error);
    }
  }

  /** Idempotent. Ends its session, removes its socket, closes all images. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#failures.stop();
    await this.#endpoint.close();
    await this.#closeUnits();
    await this.#host?.close();
    this.#host = null;
  }

  async status(): Promise<AdapterStatus> {
    await this.#meter.read(this.#host);
    const { name, socket, origin, state, queues, sessions } = this;
    const { faults, counters } = this.#meter.counts;
    const { reason } = this.#failures;
    const units = [...this.units.keys()];
    return { name, socket, origin, state, reason, queues, units, sessions, faults, counters };
  }

  /** Known, and not opened. */
  make(config: UnitConfig, origin: DiskOrigin): ScsiDisk {
    const disk = new ScsiDisk(config, origin, this.#unitContext(config.name), this);
    this.units.set(config.name, disk);
    return disk;
  }

  /** What is under way ends first; the driver hears of it. The image stays. */
  async detach(disk: ScsiDisk): Promise<void> {
    this.units.delete(disk.config.name);
    await disk.turns.run(() => disk.close());
  }

  plan(fds: SentFds): AdapterPlan {
    return {
      config: adapterInput({ ...this.#config, units: [] }),
      origin: this.origin,
      works: this.#host !== null,
      memory: this.#endpoint.plan(fds),
      units: [...this.units.values()].map((disk) => disk.plan()),
    };
  }

  /** Its rings stand still, and all images are closed: a successor can open them. */
  suspend(fds: SentFds): Promise<AdapterFinal> {
    const suspended = this.#suspend(fds);
    this.#suspending = suspended.catch(() => undefined);
    return suspended;
  }

  async #suspend(fds: SentFds): Promise<AdapterFinal> {
    this.#endpoint.isQuiet = true;
    this.#failures.stop();
    const { name, sessions } = this;
    const still: Promise<EndpointPart> = this.#endpoint.suspend(fds);
    const disks = [...this.units.values()];
    const suspended = await Promise.allSettled(disks.map((disk) => disk.suspend(still)));
    const part = await still;
    const units = suspended.map((outcome) => {
      if (outcome.status === 'rejected') throw outcome.reason;
      return outcome.value;
    });
    const { reason } = this.#failures;
    const common = { name, sessions, reason, ...part, units };
    const host = this.#host;
    if (host === null) {
      const sizes = { cdbBytes: 32, senseBytes: 96 };
      return { ...common, ...sizes, hasEvents: false, counts: this.#meter.counts };
    }
    await this.#meter.read(host);
    const { hasEvents } = await host.status();
    return { ...common, ...host.device.driverSizes, hasEvents, counts: this.#meter.counts };
  }

  /** Undoes `suspend`; also what begins the work of an adapter that was restored. */
  async resume(): Promise<void> {
    await this.#suspending;
    await Promise.allSettled([...this.units.values()].map((disk) => disk.resume()));
    if (this.#host !== null) await this.#endpoint.resume(this.#config, this.#host.host);
    this.#endpoint.beLoud();
    // Nobody waits for it.
    if (this.#host === null) void this.turns.run(() => this.#tryAgain());
  }

  /** Lets go of everything without ending or removing it: it is a successor's. */
  async surrender(): Promise<void> {
    this.#isClosed = true;
    this.#endpoint.isQuiet = true;
    this.#failures.stop();
    await this.#endpoint.surrender();
    await Promise.allSettled([...this.units.values()].map((disk) => disk.surrender()));
    await this.#host?.close();
  }

  /** Instead of `open`: everything but the images, which the predecessor has. */
  adopt({ works, memory, units }: AdapterPlan, fds: ReceivedFds): void {
    this.#endpoint.isQuiet = true;
    if (works) {
      this.#host = this.#makeHost();
      this.#endpoint.adopt(memory, fds);
    }
    for (const plan of units) {
      this.make(parseUnit(plan.config, this.name), plan.origin).adopt(plan);
    }
  }

  /** With what changed last at the predecessor, which has closed the images. */
  async restore(state: AdapterFinal, fds: ReceivedFds): Promise<void> {
    this.#endpoint.beginWith(state.sessions);
    this.#meter.beginWith({ ...NO_COUNTS, ...state.counts, inFlight: 0 });
    this.#failures.reason = state.reason;
    const host = this.#host;
    if (host === null) return;
    host.device.driverSizes = state;
    // Before anything else that the worker is asked: its requests are carried out in order.
    const begun = host.begin(state.hasEvents);
    const units = state.units.map((unit) => this.units.get(unit.name)?.restore(unit));
    const endpoint = this.#endpoint.restore(state, this.#config, host.host, fds);
    const all = await Promise.allSettled([begun, endpoint, ...units]);
    for (const outcome of all) if (outcome.status === 'rejected') throw outcome.reason;
  }

  #makeHost(): ScsiHost {
    const { queues, packed, iommu } = this.#config;
    const host: ScsiHost = new ScsiHost({
      shape: { queues, packed, iommu },
      spinMs: this.#context.spinMs,
      onFault: ({ queue, fault, code }) => {
        const where = queue === -1 ? 'its memory' : `queue ${queue}`;
        this.#context.report('fault', this.name, `${where} is broken: ${fault}`);
        this.#endpoint.punish(code);
      },
      onChange: () => this.#endpoint.reportUp(),
      onCrash: (error) => void this.turns.run(() => this.#crashed(host, error)),
    });
    return host;
  }

  async #crashed(host: ScsiHost, error: Error): Promise<void> {
    if (this.#isClosed || this.#host !== host) return;
    this.#failures.failed(error); // first: it shows why while the session ends
    await this.#letGo(error);
  }

  async #tryAgain(): Promise<void> {
    if (this.#isClosed || this.#endpoint.isQuiet || this.#host !== null) return;
    await this.openOrFail();
  }

  /** Units stay known, without a worker to serve them. */
  async #letGo(error: Error): Promise<void> {
    const host = this.#host;
    await this.#endpoint.close();
    await this.#meter.read(host);
    this.#meter.settle();
    this.#host = null;
    const failed = new VringError('ERR_VRING_SCSI_ADAPTER', `its adapter: ${error.message}`);
    const disks = [...this.units.values()];
    await Promise.allSettled(disks.map((disk) => disk.turns.run(() => disk.fail(failed))));
    await host?.close();
  }

  async #closeUnits(): Promise<void> {
    const disks = [...this.units.values()];
    await Promise.allSettled(disks.map((disk) => disk.turns.run(() => disk.close())));
  }

  #unitContext(name: string): DiskContext {
    const { spinMs, report } = this.#context;
    return { spinMs, report: (kind, message) => report(kind, name, message) };
  }
}
