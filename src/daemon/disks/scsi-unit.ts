/** A logical unit of a SCSI host adapter: an image, and what the adapter's worker does with it. */
import { setTimeout as sleep } from 'node:timers/promises';
import { ConfigError } from '../../base/errors.ts';
import type { AddUnit, LunState, UnitStatus, UnparkUnit } from '../../devices/scsi/index.ts';
import type { DiskImage } from '../../storage/index.ts';
import type { PlaneCounts } from './disk-counts.ts';
import type { ScsiHost } from './scsi-host.ts';
import { type ImageFacts, openImage, ServedUnit, type ServedUnitOptions } from './served-unit.ts';

export type ScsiUnitOptions = ServedUnitOptions & {
  readonly host: ScsiHost;
  readonly target: number;
  readonly lun: number;
  /** Logical blocks: 512 or 4096 bytes. */
  readonly blockBytes: number;
  /** At most 36 characters of ASCII. */
  readonly serial: string;
};

/** A unit whose commands are under way is looked at so often. */
const IDLE_POLL_MS = 5;

export class ScsiUnit extends ServedUnit {
  /** `Lun.save` of whoever served it before, or null. */
  state: LunState | null = null;
  readonly #options: ScsiUnitOptions;
  #sizeBytes: number;
  #isInPlane = false;

  /**
   * Opens the image; the driver hears of the unit, and finds it.
   * @throws VringError, SysError, ConfigError: what was asked for cannot be; nothing is left open.
   */
  static async open(options: ScsiUnitOptions): Promise<ScsiUnit> {
    const image = await openImage(options);
    const unit = new ScsiUnit(options, image);
    try {
      await unit.begin(image);
      return unit;
    } catch (error) {
      await unit.close();
      await image.close();
      throw error;
    }
  }

  /** Everything but the image, which another process has: `attachImage` follows. */
  static without(options: ScsiUnitOptions, facts: ImageFacts): ScsiUnit {
    return new ScsiUnit(options, facts);
  }

  private constructor(options: ScsiUnitOptions, { sizeBytes, readOnly }: ImageFacts) {
    super(options, readOnly);
    this.#options = options;
    this.#sizeBytes = sizeBytes;
    const { host, target, lun, onEvent } = options;
    host.onUnitError(target, lun, (error) => {
      onEvent({ kind: 'io-error', image: this.description, ...error });
    });
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  set sizeBytes(sizeBytes: number) {
    checkBlocks(this.#name, 'its size', sizeBytes, this.#options.blockBytes);
    this.#sizeBytes = sizeBytes;
  }

  status(): Promise<UnitStatus> {
    return this.#options.host.request<UnitStatus>('unitStatus', this.#address);
  }

  async counts(): Promise<PlaneCounts> {
    const { totals, ...status } = await this.status();
    const { unmaps = 0, ...rest } = totals;
    return { ...status, totals: { ...rest, discards: unmaps }, faults: 0 };
  }

  /** The driver hears of it; what is under way ends first. Idempotent. */
  close(): Promise<void> {
    return this.letGo();
  }

  protected get workerFailure(): Error | null {
    return this.#options.host.failure;
  }

  protected async addToPlane(image: DiskImage): Promise<void> {
    const { host, blockBytes, serial } = this.#options;
    if ((image.zones ?? null) !== null) {
      const text = 'is zoned, and this device has no zoned units (ZBC): serve it by virtio-blk';
      throw new ConfigError(this.#name, `${image.description} ${text}`);
    }
    checkBlocks(this.#name, image.description, image.sizeBytes, blockBytes);
    const common = { ...this.#address, image: image.spec, failedFlush: this.failedFlush };
    if (this.#isInPlane) {
      await host.request('unparkUnit', common satisfies Omit<UnparkUnit, 'device'>);
    } else {
      const state = this.state === null ? {} : { state: this.state };
      const add: Omit<AddUnit, 'device'> = { ...common, ...state, blockBytes, serial };
      await host.request('addUnit', add);
    }
    this.#isInPlane = true;
    this.#sizeBytes = image.sizeBytes;
  }

  /** Commands are told to come again, until there is an image anew; those under way end first. */
  async park(): Promise<void> {
    const { host } = this.#options;
    while (!(await host.request<boolean>('parkUnit', this.#address))) await sleep(IDLE_POLL_MS);
  }

  protected async parkInPlane(): Promise<void> {
    await this.park();
    ({ state: this.state, failedFlush: this.failedFlush } = await this.status());
  }

  protected async removeFromPlane(): Promise<void> {
    const { host, target, lun } = this.#options;
    host.onUnitError(target, lun, null);
    if (!this.#isInPlane) return;
    this.#isInPlane = false;
    if (host.isClosed) return;
    while (!(await host.request<boolean>('removeUnit', this.#address))) await sleep(IDLE_POLL_MS);
  }

  protected async resizeInPlane(sizeBytes: number): Promise<void> {
    await this.#options.host.request('resizeUnit', { ...this.#address, sizeBytes });
  }

  /** The plane has told the driver. */
  protected async announce(): Promise<void> {}

  get #address(): { target: number; lun: number } {
    const { target, lun } = this.#options;
    return { target, lun };
  }

  get #name(): string {
    return `${this.#options.target}:${this.#options.lun}`;
  }
}

function checkBlocks(name: string, what: string, sizeBytes: number, blockBytes: number): void {
  if (sizeBytes > 0 && sizeBytes % blockBytes === 0) return;
  const text = `${what} has ${sizeBytes} bytes, no whole blocks of ${blockBytes}`;
  throw new ConfigError(name, text);
}
