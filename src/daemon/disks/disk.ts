/**
 * One disk of the storage target: its unit, the socket that front-ends come to, and what people
 * want to know of it. A disk whose image cannot be opened is a disk all the same: it is `failed`,
 * has no socket, and is tried again.
 *
 * Everything that changes it takes its turn (`turns`), so that a resize never meets a snapshot; the
 * turns of one disk are not those of another.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { ConfigError, VringError } from '../../base/errors.ts';
import { CACHE_WRITEBACK } from '../../devices/blk/index.ts';
import type { StackSpec } from '../../storage/index.ts';
import type { Fd } from '../../sys/index.ts';
import {
  BackendListener,
  type EndpointEvent,
  type EndpointOptions,
  type PreparedMemory,
} from '../../vhost-user/index.ts';
import { planMemory, suspendEndpoint, takeMemory, takeSession } from '../endpoint-hand-over.ts';
import type { ReceivedFds, SentFds } from '../hand-over-channel.ts';
import { offenceOf } from '../port-session.ts';
import { reasonOf } from '../switch-port.ts';
import { DiskMeter } from './disk-meter.ts';
import { DiskFailures } from './disk-failures.ts';
import type { DiskFinal, DiskPlan } from './disk-hand-over.ts';
import { diskInput } from './disk-input.ts';
import type {
  DiskConfig,
  DiskExport,
  DiskLimits,
  DiskOrigin,
  DiskState,
  DiskStatus,
  DiskUpdate,
} from './disk-types.ts';
import { DiskUnit, type DiskUnitEvent, type DiskUnitOptions } from './disk-unit.ts';
import { layerText } from './layer-input.ts';
import { Turns } from './turns.ts';

export type DiskContext = {
  readonly spinMs: number;
  /** Reports something that people want to know; shown by `vring events`. */
  readonly report: (kind: string, message: string) => void;
};

/** The successor that failed may have the image still. */
const TAKE_BACK_TRIES = 40;
const TAKE_BACK_MS = 50;

export const ERR_DISK_BUSY = 'ERR_VRING_DISK_BUSY';
export const ERR_DISK_FAILED = 'ERR_VRING_DISK_FAILED';

export class Disk {
  readonly origin: DiskOrigin;
  readonly turns = new Turns();
  #config: DiskConfig;
  readonly #context: DiskContext;
  readonly #failures: DiskFailures;
  #unit: DiskUnit | null = null;
  #endpoint: BackendListener | null = null;
  #exportUri: string | null = null;
  readonly #meter = new DiskMeter();
  #sessionsBefore = 0;
  #wasUp = false;
  /** While rings stop and start without anybody being told. */
  #isQuiet = false;
  #isClosed = false;
  #suspending: Promise<unknown> = Promise.resolve();
  /** Of a predecessor, until the endpoint has them. */
  #adopted: Fd | null = null;
  #prepared: PreparedMemory | null = null;

  constructor(config: DiskConfig, origin: DiskOrigin, context: DiskContext) {
    this.#config = config;
    this.origin = origin;
    this.#context = context;
    const retry = (): void => void this.turns.run(() => this.#tryAgain());
    this.#failures = new DiskFailures(retry, context.report);
  }

  get config(): DiskConfig {
    return this.#config;
  }

  /** @throws VringError, SysError, ConfigError: it cannot be served; nothing is left open. */
  async open(): Promise<void> {
    this.#unit = await DiskUnit.open(this.#unitOptions());
    try {
      this.#endpoint = this.#listen();
    } catch (error) {
      await this.#letGo();
      throw error;
    }
    this.#failures.works();
    await this.#startExport();
  }

  /** As `open`; a disk that cannot be served says so, and is tried again. */
  async openOrFail(): Promise<void> {
    try {
      await this.open();
    } catch (error) {
      this.#failures.failed(error as Error);
    }
  }

  /** Idempotent. Ends its session, removes its socket, closes the image. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#failures.stop();
    await this.#letGo();
  }

  async status(): Promise<DiskStatus> {
    const { name, socket, queues, blockSize, serial, limits } = this.#config;
    const unit = this.#unit;
    await this.#meter.read(unit);
    const readOnly = unit?.hasImage ? unit.image.readOnly : this.#config.readOnly;
    return {
      name,
      socket,
      origin: this.origin,
      state: this.#state(),
      reason: this.#failures.reason,
      image: unit?.hasImage ? unit.image.description : null,
      sizeBytes: unit?.device.sizeBytes ?? null,
      readOnly,
      queues,
      blockSize,
      serial,
      layers: this.#config.layers.map(layerText),
      limits,
      export: this.#exportUri,
      sessions: this.#sessions,
      ...this.#meter.counts,
      layerCounters: this.#meter.layers,
    };
  }

  /** @throws ConfigError, VringError; what could not be changed is as it was. */
  async update({ limits, sizeBytes, shrink }: DiskUpdate): Promise<void> {
    const unit = this.#working();
    if (sizeBytes !== undefined && sizeBytes !== unit.device.sizeBytes) {
      const now = unit.device.sizeBytes;
      if (sizeBytes < now && shrink !== true) {
        const text = `${sizeBytes} bytes are fewer than the ${now} of disk ${this.#config.name}`;
        throw new ConfigError('sizeBytes', `${text}; say shrink as well, if the rest may go`);
      }
      await unit.resize(sizeBytes);
      this.#context.report('disk-resized', `has ${sizeBytes} bytes now, ${now} before`);
    }
    if (limits !== undefined) await this.#setLimits(limits);
  }

  /** What a layer can be asked to do: `Layer.control`. */
  control(name: string, payload: unknown): Promise<unknown> {
    return this.#working().image.control(name, payload);
  }

  /** Refuses what changes bytes under a driver, which has some of them in its cache. */
  refuseDriver(doing: string): void {
    if (this.#state() !== 'up') return;
    const text = `disk ${this.#config.name}: a driver uses it, and would not know that ${doing}`;
    throw new VringError(ERR_DISK_BUSY, `${text}; stop the guest, or say force`);
  }

  /** Looks at the image's size again; a driver is told. */
  async lookAtSize(): Promise<void> {
    await this.#working().lookAtSize();
  }

  /** Null ends the export. */
  async setExport(wanted: DiskExport | null): Promise<void> {
    const unit = this.#working();
    if (this.#exportUri !== null) {
      await unit.image.control('unexport', { uri: this.#exportUri });
      this.#exportUri = null;
    }
    if (wanted !== null) this.#exportUri = await exportDisk(unit, this.#config.name, wanted);
    this.#config = { ...this.#config, export: wanted };
  }

  /**
   * Opens the image anew: what a failed disk does by itself now and then. Of a disk that works the
   * session goes on, and a flush that failed is forgotten: somebody has decided what is true.
   */
  async reopen(): Promise<void> {
    if (this.#unit === null) await this.open();
    else await this.#exchange(this.#config, true);
  }

  plan(fds: SentFds): DiskPlan {
    const unit = this.#unit;
    const facts = unit?.hasImage
      ? { sizeBytes: unit.device.sizeBytes, readOnly: unit.image.readOnly }
      : null;
    const memory = planMemory(this.#endpoint, fds, this.#label);
    return { config: diskInput(this.#config), origin: this.origin, facts, memory };
  }

  /** Its rings stand still, and the image is closed: a successor can open it. */
  suspend(fds: SentFds): Promise<DiskFinal> {
    const suspended = this.#suspend(fds);
    this.#suspending = suspended.catch(() => undefined);
    return suspended;
  }

  async #suspend(fds: SentFds): Promise<DiskFinal> {
    this.#isQuiet = true;
    this.#failures.stop();
    const { name } = this.#config;
    const common = { name, sessions: this.#sessions, reason: this.#failures.reason };
    if (this.#unit === null || this.#endpoint === null) {
      const nothing = { listener: null, session: null, writeback: true, failedFlush: 0 };
      return { ...common, ...nothing, counts: this.#meter.counts };
    }
    const part = await suspendEndpoint(this.#endpoint, fds, this.#label);
    await this.#detach();
    const { device, failedFlush } = this.#unit;
    const writeback = Atomics.load(device.cache, CACHE_WRITEBACK) === 1;
    return { ...common, ...part, writeback, failedFlush, counts: this.#meter.counts };
  }

  /** Undoes `suspend`; also what begins the work of a disk that was restored. */
  async resume(): Promise<void> {
    await this.#suspending;
    const unit = this.#unit;
    if (unit !== null) {
      if (!unit.hasImage && !(await this.#takeBack())) return;
      this.#endpoint ??= this.#listen(this.#adopted);
      this.#adopted = null;
      await this.#endpoint.resume();
      await this.#startExport();
    }
    this.#isQuiet = false;
    this.#wasUp = this.#state() === 'up';
    // Nobody waits for it: it may take as long as a server elsewhere lets it.
    if (unit === null) void this.turns.run(() => this.#tryAgain());
  }

  /** Lets go of everything without ending or removing it: it is a successor's. */
  async surrender(): Promise<void> {
    this.#isQuiet = true;
    this.#isClosed = true;
    this.#failures.stop();
    this.#prepared?.close();
    this.#adopted?.close();
    await this.#endpoint?.surrender();
    await this.#unit?.close();
  }

  /** Instead of `open`: everything but the image, which the predecessor has. */
  adopt({ facts, memory }: DiskPlan, fds: ReceivedFds): void {
    this.#isQuiet = true;
    if (facts === null) return; // it had failed there, and is tried anew here
    this.#unit = DiskUnit.without(this.#unitOptions(), facts);
    if (memory !== null) this.#prepared = takeMemory(memory, fds, `the memory of ${this.#label}`);
  }

  /** With what changed last at the predecessor, which has closed the image. */
  async restore(state: DiskFinal, fds: ReceivedFds): Promise<void> {
    this.#sessionsBefore = state.sessions;
    this.#meter.beginWith(state.counts);
    this.#failures.reason = state.reason;
    const unit = this.#unit;
    if (unit === null) return;
    unit.failedFlush = state.failedFlush;
    const opened = unit.attachImage();
    opened.catch(() => undefined); // whoever waits for it below is told
    Atomics.store(unit.device.cache, CACHE_WRITEBACK, state.writeback ? 1 : 0);
    const take = (at: number): Fd => fds.take(at, this.#label);
    this.#adopted = take(state.listener ?? -1);
    if (state.session !== null) {
      this.#sessionsBefore--;
      const adopt = takeSession(state.session, take, this.#prepared);
      this.#endpoint = this.#listen(this.#adopted, adopt);
      this.#adopted = null;
      this.#prepared = null;
      await this.#endpoint.adopted;
    }
    await opened.catch((error: Error) => {
      throw new VringError(ERR_DISK_FAILED, `${this.#label}: ${error.message}`, { cause: error });
    });
  }

  /** In messages. */
  get #label(): string {
    return `disk ${this.#config.name}`;
  }

  get #sessions(): number {
    return this.#sessionsBefore + (this.#endpoint?.sessions ?? 0);
  }

  /** @throws VringError ERR_VRING_DISK_FAILED with the reason. */
  #working(): DiskUnit {
    if (this.#unit !== null) return this.#unit;
    const why = this.#failures.reason?.message ?? 'it is being opened';
    throw new VringError(ERR_DISK_FAILED, `${this.#label} does not work: ${why}`);
  }

  #unitOptions(): DiskUnitOptions {
    const { readOnly, queues, serial, blockSize: blockBytes, packed, iommu } = this.#config;
    const { secureErase, lifetime } = this.#config;
    const stack = stackOf(this.#config);
    return {
      shape: { stack, readOnly, queues, serial, blockBytes, packed, iommu, secureErase, lifetime },
      spinMs: this.#context.spinMs,
      onEvent: (event) => this.#unitEvent(event),
      onChange: () => this.#reportUp(),
      onCrash: (error) => void this.turns.run(() => this.#crashed(error)),
    };
  }

  #listen(listener: Fd | null = null, adopt?: EndpointOptions['adopt']): BackendListener {
    const { socket, socketMode, socketOwner } = this.#config;
    return new BackendListener({
      path: socket,
      target: this.#working().host,
      mode: socketMode,
      onEvent: (event) => this.#endpointEvent(event),
      ...(socketOwner === null ? {} : { owner: socketOwner }),
      ...(listener === null ? {} : { listener }),
      ...(adopt === undefined ? {} : { adopt }),
    });
  }

  async #tryAgain(): Promise<void> {
    if (!this.#isClosed && !this.#isQuiet && this.#unit === null) await this.openOrFail();
  }

  async #crashed(error: Error): Promise<void> {
    if (this.#isClosed) return;
    await this.#letGo();
    this.#failures.failed(error);
  }

  async #letGo(): Promise<void> {
    const [endpoint, unit] = [this.#endpoint, this.#unit];
    this.#endpoint = null;
    this.#exportUri = null;
    await endpoint?.close();
    await this.#meter.read(unit);
    this.#unit = null;
    this.#meter.settle();
    await unit?.close();
  }

  async #setLimits(limits: DiskLimits | null): Promise<void> {
    const before = this.#config;
    const after = { ...before, limits };
    if (limits !== null && before.limits !== null) {
      await this.control('limits', limits);
      this.#config = after;
    } else if ((limits === null) !== (before.limits === null)) {
      await this.#exchange(after);
    }
    this.#context.report('disk-limits', `limits: ${JSON.stringify(limits)}`);
  }

  /** Another stack under the same session: rings stand still meanwhile. */
  async #exchange(after: DiskConfig, forgets = false): Promise<void> {
    const [before, endpoint, unit] = [this.#config, this.#endpoint!, this.#working()];
    this.#isQuiet = true;
    try {
      await endpoint.suspend();
      await this.#detach();
      if (forgets) unit.failedFlush = 0;
      await unit.attachImage(stackOf(after)).catch(async (error: unknown) => {
        await unit.attachImage(stackOf(before));
        throw error;
      });
      this.#config = after;
      await endpoint.resume();
    } catch (error) {
      await this.#afterFailedExchange(error as Error, endpoint, unit);
      throw error;
    } finally {
      this.#isQuiet = false;
    }
    this.#failures.works();
    await this.#startExport();
    await unit.lookAtSize();
  }

  /** With the image it goes on as before; without one it has failed, and is tried again. */
  async #afterFailedExchange(
    error: Error,
    endpoint: BackendListener,
    unit: DiskUnit,
  ): Promise<void> {
    this.#isQuiet = false;
    if (unit.hasImage) {
      await endpoint.resume();
      await this.#startExport();
      return;
    }
    await this.#letGo();
    this.#failures.failed(error);
  }

  async #detach(): Promise<void> {
    await this.#meter.read(this.#unit);
    this.#meter.settle();
    this.#exportUri = null;
    await this.#unit?.detachImage();
  }

  /** The image that a successor did not take; false: it is not to be had, and the disk failed. */
  async #takeBack(): Promise<boolean> {
    for (let tries = 1; ; tries++) {
      try {
        await this.#unit!.attachImage();
        return true;
      } catch (error) {
        if (tries < TAKE_BACK_TRIES) {
          await sleep(TAKE_BACK_MS);
          continue;
        }
        this.#isQuiet = false;
        await this.#letGo();
        this.#failures.failed(error as Error);
        return false;
      }
    }
  }

  /** A disk without its export is served all the same. */
  async #startExport(): Promise<void> {
    const { name, export: wanted } = this.#config;
    if (wanted === null || this.#exportUri !== null) return;
    try {
      this.#exportUri = await exportDisk(this.#working(), name, wanted);
    } catch (error) {
      this.#context.report('export-failed', (error as Error).message);
    }
  }

  #state(): DiskState {
    const unit = this.#unit;
    if (unit === null || this.#endpoint === null) return 'failed';
    if (this.#endpoint.session === null) return 'listening';
    const { vrings } = unit.host;
    if (vrings.some(({ fault }) => fault !== null)) return 'broken';
    const runs = vrings.some(({ attached, enabled }) => attached && enabled);
    return runs ? 'up' : 'negotiating';
  }

  #reportUp(): void {
    if (this.#isQuiet) return;
    const up = this.#state() === 'up';
    if (up === this.#wasUp) return;
    this.#wasUp = up;
    if (up) this.#failures.reason = null;
    this.#context.report(up ? 'disk-up' : 'disk-down', up ? 'rings run' : 'rings no longer run');
  }

  #endpointEvent(event: EndpointEvent): void {
    if (this.#isQuiet) return; // its session changes hands, and neither begins nor ends
    if (event.kind === 'connected') {
      return this.#context.report('session-started', 'a front-end connected');
    }
    const { reason } = event;
    if (reason !== null) this.#failures.reason = reasonOf(reason);
    const kind = event.kind === 'failed' ? 'endpoint-failed' : 'session-ended';
    this.#context.report(kind, reason?.message ?? 'the front-end disconnected');
  }

  #unitEvent(event: DiskUnitEvent): void {
    const { report } = this.#context;
    if (event.kind === 'problem') return report('problem', event.reason);
    if (event.kind === 'io-error') {
      const { image, op, at, error, count } = event;
      return report(
        'io-error',
        `${image}: ${op} at byte ${at} failed with ${error}, ${count} so far`,
      );
    }
    const where = event.queue === -1 ? 'its memory' : `queue ${event.queue}`;
    report('fault', `${where} is broken: ${event.fault}`);
    const offence = offenceOf(event.code);
    if (offence !== null) void this.#endpoint?.session?.close(offence);
  }
}

function stackOf({ limits, layers }: DiskConfig): StackSpec {
  return limits === null ? layers : [{ kind: 'limit', ...limits }, ...layers];
}

async function exportDisk(unit: DiskUnit, name: string, wanted: DiskExport): Promise<string> {
  const { socket, readOnly } = wanted;
  const options = { at: { socket, mode: 0o660 }, name, readOnly };
  const { uri } = (await unit.image.control('export', options)) as { uri: string };
  return uri;
}
