/**
 * One disk of the storage target: its image, what people may do with it, and what they want to know
 * of it. How a driver comes to it is a subclass's: over a socket of its own (`BlkDisk`), or as a
 * unit of a SCSI adapter (`ScsiDisk`). A disk whose image cannot be opened is a disk all the same:
 * it is `failed`, no driver finds it, and it is tried again.
 *
 * Everything that changes it takes its turn (`turns`), so that a resize never meets a snapshot; the
 * turns of one disk are not those of another.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { ConfigError, VringError } from '../../base/errors.ts';
import type { StackSpec } from '../../storage/index.ts';
import type { DiskCounts } from './disk-counts.ts';
import { DiskExporter } from './disk-exporter.ts';
import { DiskFailures } from './disk-failures.ts';
import { DiskMeter } from './disk-meter.ts';
import type {
  DiskExport,
  DiskLimits,
  DiskOrigin,
  DiskReason,
  DiskState,
  DiskStatus,
  DiskUpdate,
  MediumConfig,
} from './disk-types.ts';
import { layerText } from './layer-input.ts';
import type { DiskUnitEvent, ImageFacts, ServedUnit, ServedUnitOptions } from './served-unit.ts';
import { Turns } from './turns.ts';

export type DiskContext = {
  readonly spinMs: number;
  /** Reports something that people want to know; shown by `vring events`. */
  readonly report: (kind: string, message: string) => void;
};

/** What of an image, and of what was said about it, goes over to another process last. */
export type ImageFinal = {
  readonly reason: DiskReason | null;
  /** -errno of a flush that failed, and goes on failing; 0. */
  readonly failedFlush: number;
  readonly counts: DiskCounts;
};

/** The successor that failed may have the image still. */
const TAKE_BACK_TRIES = 40;
const TAKE_BACK_MS = 50;

export const ERR_DISK_BUSY = 'ERR_VRING_DISK_BUSY';
export const ERR_DISK_FAILED = 'ERR_VRING_DISK_FAILED';

export abstract class Disk<
  Config extends MediumConfig = MediumConfig,
  Unit extends ServedUnit & { close(): Promise<void> } = ServedUnit & { close(): Promise<void> },
> {
  readonly origin: DiskOrigin;
  readonly turns = new Turns();
  /** Changes with all that belongs to them, such as remembering them; `turns` are within. */
  readonly changes = new Turns();
  protected unit: Unit | null = null;
  protected readonly context: DiskContext;
  protected readonly failures: DiskFailures;
  #config: Config;
  #isQuiet = false;
  readonly #exporter: DiskExporter;
  readonly #meter = new DiskMeter();
  #isClosed = false;
  #suspending: Promise<unknown> = Promise.resolve();

  protected constructor(config: Config, origin: DiskOrigin, context: DiskContext) {
    this.#config = config;
    this.origin = origin;
    this.context = context;
    const retry = (): void => void this.turns.run(() => this.tryAgain());
    this.failures = new DiskFailures(retry, context.report);
    const onRetry = (): void => {
      void this.turns.run(async () => {
        if (!this.#isClosed && this.unit?.hasImage === true) await this.#startExport();
      });
    };
    const { report } = context;
    this.#exporter = new DiskExporter({ name: config.name, report, onRetry });
  }

  get config(): Config {
    return this.#config;
  }

  /** @throws what ends the opening; nothing is left open then. */
  protected abstract openUnit(): Promise<Unit>;
  /** Without its image, which a predecessor has. */
  protected abstract unitWithout(facts: ImageFacts): Unit;
  /** The unit works: lets drivers come, where it is not somebody else's to let them. */
  protected abstract begin(unit: Unit): void;
  /** Undoes `begin`, and ends a session. Idempotent. */
  protected abstract end(): Promise<void>;
  /** Nothing comes from a driver until `goOn`, where the unit cannot keep it waiting by itself. */
  protected abstract standStill(): Promise<void>;
  protected abstract goOn(): Promise<void>;
  /** After a hand-over that came to nothing, or as a successor: it goes on, with its image. */
  protected abstract resumeWay(unit: Unit): Promise<void>;
  /** Of a disk whose unit works. */
  protected abstract get wayState(): DiskState;
  /** How a driver comes to it. */
  protected abstract get way(): Pick<DiskStatus, 'unit' | 'socket' | 'queues' | 'sessions'>;

  /** Rings stop and start without anybody being told. */
  protected get isQuiet(): boolean {
    return this.#isQuiet;
  }

  protected set isQuiet(isQuiet: boolean) {
    this.#isQuiet = isQuiet;
  }

  /** @throws VringError, SysError, ConfigError: it cannot be served; nothing is left open. */
  async open(): Promise<void> {
    const unit = await this.openUnit();
    this.unit = unit;
    try {
      if (unit.failure !== null) throw unit.failure;
      this.begin(unit);
    } catch (error) {
      await this.#letGo();
      throw error;
    }
    this.failures.works();
    await this.#startExport();
  }

  /** As `open`; a disk that cannot be served says so, and is tried again. */
  async openOrFail(): Promise<void> {
    try {
      await this.open();
    } catch (error) {
      this.failures.failed(error as Error);
    }
  }

  /** Idempotent. No driver has it any more, and the image is closed. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.failures.stop();
    await this.#letGo();
  }

  async status(): Promise<DiskStatus> {
    const { name, blockSize, serial, limits } = this.#config;
    const { unit } = this;
    await this.#meter.read(unit);
    const readOnly = unit?.hasImage ? unit.image.readOnly : this.#config.readOnly;
    return {
      name,
      ...this.way,
      origin: this.origin,
      state: this.state,
      reason: this.failures.reason,
      image: unit?.hasImage ? unit.image.description : null,
      sizeBytes: unit?.sizeBytes ?? null,
      readOnly,
      blockSize,
      serial,
      layers: this.#config.layers.map(layerText),
      limits,
      export: this.#exporter.uri,
      ...this.#meter.counts,
      layerCounters: this.#meter.layers,
    };
  }

  get state(): DiskState {
    return this.unit === null ? 'failed' : this.wayState;
  }

  /** @throws ConfigError, VringError; what could not be changed is as it was. */
  async update({ limits, sizeBytes, shrink }: DiskUpdate): Promise<void> {
    const unit = this.working();
    if (sizeBytes !== undefined && sizeBytes !== unit.sizeBytes) {
      const now = unit.sizeBytes;
      if (sizeBytes < now && shrink !== true) {
        const text = `${sizeBytes} bytes are fewer than the ${now} of ${this.label}`;
        throw new ConfigError('sizeBytes', `${text}; say shrink as well, if the rest may go`);
      }
      await unit.resize(sizeBytes);
      this.context.report('disk-resized', `has ${sizeBytes} bytes now, ${now} before`);
    }
    if (limits !== undefined) await this.#setLimits(limits);
  }

  /** What a layer can be asked to do: `Layer.control`. */
  control(name: string, payload: unknown): Promise<unknown> {
    return this.working().image.control(name, payload);
  }

  /** Refuses what changes bytes under a driver, which has some of them in its cache. */
  refuseDriver(doing: string): void {
    if (this.state !== 'up') return;
    const text = `${this.label}: a driver uses it, and would not know that ${doing}`;
    throw new VringError(ERR_DISK_BUSY, `${text}; stop the guest, or say force`);
  }

  /** Looks at the image's size again; a driver is told. */
  async lookAtSize(): Promise<void> {
    await this.working().lookAtSize();
  }

  /** Null ends the export; one that cannot be had leaves the one before. */
  async setExport(wanted: DiskExport | null): Promise<void> {
    const unit = this.working();
    await this.#exporter.replace(unit, this.#config.export, wanted);
    this.#config = { ...this.#config, export: wanted };
  }

  /**
   * Opens the image anew: what a failed disk does by itself now and then. Of a disk that works the
   * session goes on, and a flush that failed is forgotten: somebody has decided what is true.
   */
  async reopen(): Promise<void> {
    if (this.unit === null) await this.open();
    else await this.#exchange(this.#config, true);
  }

  /** What a driver was told of the image; null: the disk does not work. */
  protected get facts(): ImageFacts | null {
    const { unit } = this;
    if (!unit?.hasImage) return null;
    const { readOnly, zones = null } = unit.image;
    return { sizeBytes: unit.sizeBytes, readOnly, zones };
  }

  /** The image is closed once `still` has seen to it that nothing comes: for a successor. */
  protected suspendImage<T>(still: () => Promise<T>): Promise<ImageFinal & { readonly way: T }> {
    const suspend = async (): Promise<ImageFinal & { readonly way: T }> => {
      this.isQuiet = true;
      this.failures.stop();
      const way = await still();
      await this.#detach();
      const failedFlush = this.unit?.failedFlush ?? 0;
      const { reason } = this.failures;
      return { way, reason, failedFlush, counts: this.#meter.counts };
    };
    const suspended = suspend();
    this.#suspending = suspended.catch(() => undefined);
    return suspended;
  }

  /** Undoes `suspendImage`; also what begins the work of a disk that was restored. */
  async resume(): Promise<void> {
    await this.#suspending;
    const { unit } = this;
    if (unit !== null) {
      if (!unit.hasImage && !(await this.#takeBack())) return;
      await this.resumeWay(unit);
      await this.#startExport();
    }
    this.isQuiet = false;
    // Nobody waits for it: it may take as long as a server elsewhere lets it.
    if (unit === null) void this.turns.run(() => this.tryAgain());
  }

  /** Lets go of everything without ending or removing it: it is a successor's. */
  async surrender(): Promise<void> {
    this.isQuiet = true;
    this.#isClosed = true;
    this.failures.stop();
    await this.unit?.close();
  }

  /** Instead of `open`: everything but the image. Null: it had failed there, and is tried here. */
  protected adoptImage(facts: ImageFacts | null): void {
    this.isQuiet = true;
    if (facts !== null) this.unit = this.unitWithout(facts);
  }

  /**
   * With what changed last at the predecessor, which has closed the image. Resolves when it is open
   * here; whoever calls may prepare for that meanwhile.
   */
  protected async restoreImage({ reason, failedFlush, counts }: ImageFinal): Promise<void> {
    this.#meter.beginWith(counts);
    this.failures.reason = reason;
    if (this.unit === null) return;
    this.unit.failedFlush = failedFlush;
    await this.unit.attachImage().catch((cause: Error) => {
      throw new VringError(ERR_DISK_FAILED, `${this.label}: ${cause.message}`, { cause });
    });
  }

  /** In messages. */
  protected get label(): string {
    return `disk ${this.#config.name}`;
  }

  /** @throws VringError ERR_VRING_DISK_FAILED with the reason. */
  protected working(): Unit {
    if (this.unit !== null) return this.unit;
    const why = this.failures.reason?.message ?? 'it is being opened';
    throw new VringError(ERR_DISK_FAILED, `${this.label} does not work: ${why}`);
  }

  protected get unitOptions(): ServedUnitOptions {
    const { readOnly } = this.#config;
    return {
      stack: stackOf(this.#config),
      readOnly,
      onEvent: (event) => this.unitEvent(event),
      onCrash: (error) => void this.turns.run(() => this.#crashed(error)),
      onExportsLost: () => this.#exporter.lost(),
    };
  }

  /** Opens it, where it had failed. */
  async tryAgain(): Promise<void> {
    if (!this.#isClosed && !this.isQuiet && this.unit === null) await this.openOrFail();
  }

  /** What is out has failed with EIO. Its driver is told by the end of the session. */
  async #crashed(error: Error): Promise<void> {
    // It may have ended, or have another image, since then.
    if ((this.unit?.failure ?? null) !== null) await this.fail(error);
  }

  /** It works no more, and is tried again. */
  async fail(error: Error): Promise<void> {
    if (this.#isClosed) return;
    this.failures.failed(error); // first: it shows why while the session ends
    await this.#letGo();
  }

  async #letGo(): Promise<void> {
    const { unit } = this;
    this.#exporter.ended();
    await this.end();
    await this.#meter.read(unit);
    this.unit = null;
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
    this.context.report('disk-limits', `limits: ${JSON.stringify(limits)}`);
  }

  /** Another stack under the same session: its driver waits meanwhile. */
  async #exchange(after: Config, forgets = false): Promise<void> {
    const [before, unit] = [this.#config, this.working()];
    this.isQuiet = true;
    try {
      await this.standStill();
      await this.#detach();
      if (forgets) unit.failedFlush = 0;
      await unit.attachImage(stackOf(after)).catch(async (error: unknown) => {
        await unit.attachImage(stackOf(before));
        throw error;
      });
      this.#config = after;
      await this.goOn();
    } catch (error) {
      await this.#afterFailedExchange(error as Error, unit);
      throw error;
    } finally {
      this.isQuiet = false;
    }
    this.failures.works();
    await this.#startExport();
    await unit.lookAtSize();
  }

  /** With the image it goes on as before; without one it has failed, and is tried again. */
  async #afterFailedExchange(error: Error, unit: Unit): Promise<void> {
    this.isQuiet = false;
    if (unit.hasImage) {
      await this.goOn();
      await this.#startExport();
      return;
    }
    await this.#letGo();
    this.failures.failed(error);
  }

  async #detach(): Promise<void> {
    await this.#meter.read(this.unit);
    this.#meter.settle();
    this.#exporter.ended();
    await this.unit?.detachImage();
  }

  /** The image that a successor did not take; false: it is not to be had, and the disk failed. */
  async #takeBack(): Promise<boolean> {
    for (let tries = 1; ; tries++) {
      try {
        await this.unit!.attachImage();
        return true;
      } catch (error) {
        if (tries < TAKE_BACK_TRIES) {
          await sleep(TAKE_BACK_MS);
          continue;
        }
        this.isQuiet = false;
        await this.#letGo();
        this.failures.failed(error as Error);
        return false;
      }
    }
  }

  async #startExport(): Promise<void> {
    await this.#exporter.start(this.working(), this.#config.export);
  }

  protected unitEvent(event: DiskUnitEvent): void {
    const { report } = this.context;
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
  }
}

/** Whatever way a driver comes to it. */
export type AnyDisk = Pick<Disk, keyof Disk>;

function stackOf({ limits, layers }: MediumConfig): StackSpec {
  return limits === null ? layers : [{ kind: 'limit', ...limits }, ...layers];
}
