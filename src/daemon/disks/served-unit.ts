/**
 * An image behind a data plane: opened, given to the plane, resized, taken back. What `DiskUnit`
 * and `ScsiUnit` have in common, which know the plane.
 *
 * A unit can be without its image while somebody else has it (`detachImage`): it answers for the
 * device then, and nothing is carried out.
 */
import { assert } from '../../base/assert.ts';
import { VringError } from '../../base/errors.ts';
import { workerEnvironment } from '../../runtime/index.ts';
import { type DiskImage, openStack, type StackSpec, type ZoneShape } from '../../storage/index.ts';
import type { PlaneCounts } from './disk-counts.ts';
import type { Metered } from './disk-meter.ts';

/** What a driver sees of an image. */
export type ImageFacts = {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly zones?: ZoneShape | null | undefined;
};

/** What is said of a unit. `queue` -1: the memory of all of them. */
export type DiskUnitEvent =
  | { readonly kind: 'problem'; readonly reason: string }
  | {
      readonly kind: 'fault';
      readonly code: number;
      readonly queue: number;
      readonly fault: string;
    }
  | {
      readonly kind: 'io-error';
      readonly image: string;
      readonly queue: number;
      readonly op: string;
      readonly at: number;
      readonly error: string;
      readonly count: number;
    };

export type ServedUnitOptions = {
  /** From top to bottom. */
  readonly stack: StackSpec;
  readonly readOnly: boolean;
  readonly onEvent: (event: DiskUnitEvent) => void;
  /** The worker, or the storage thread of the image, ended by itself: close the unit. */
  readonly onCrash: (error: Error) => void;
  /** NBD exports have ended by themselves, and nothing else. */
  readonly onExportsLost?: () => void;
};

export abstract class ServedUnit implements Metered {
  /**
   * `failedFlush` of the plane when the image was closed last: it goes on failing with the next
   * one, until somebody who has decided what is true sets it to 0.
   */
  failedFlush = 0;
  readonly #options: ServedUnitOptions;
  #image: DiskImage | null = null;
  #stack: StackSpec;
  readonly #readOnly: boolean;

  protected constructor(options: ServedUnitOptions, readOnly: boolean) {
    this.#options = options;
    this.#stack = options.stack;
    this.#readOnly = readOnly;
  }

  /** What the driver is told; the setter throws ConfigError where those are no whole blocks. */
  abstract get sizeBytes(): number;
  abstract set sizeBytes(sizeBytes: number);

  /** What the plane has counted since it has the image. */
  abstract counts(): Promise<PlaneCounts>;

  /** By this what carries its requests out has ended, whatever image it has; null. */
  protected abstract get workerFailure(): Error | null;

  protected abstract addToPlane(image: DiskImage): Promise<void>;
  /** The plane is done with the image, which goes on with another one. */
  protected abstract parkInPlane(): Promise<void>;
  /** For good; nothing where the plane has no image. */
  protected abstract removeFromPlane(): Promise<void>;
  protected abstract resizeInPlane(sizeBytes: number): Promise<void>;
  /** The driver is to look at the size again; a plane may have told it by itself. */
  protected abstract announce(): Promise<void>;

  /** @throws VringError ERR_VRING_DISK_AWAY while another process has it. */
  get image(): DiskImage {
    if (this.#image !== null) return this.#image;
    const text = 'the disk is changing hands; ask again in a moment';
    throw new VringError('ERR_VRING_DISK_AWAY', text, { recovery: 'retry' });
  }

  get hasImage(): boolean {
    return this.#image !== null;
  }

  get isCounting(): boolean {
    return this.hasImage;
  }

  layers(): Promise<Record<string, number>> {
    return this.image.counters();
  }

  /** By this its worker or its image has ended; another image may be well. */
  get failure(): Error | null {
    return this.workerFailure ?? this.#image?.failure ?? null;
  }

  get description(): string {
    return this.#image?.description ?? 'nothing';
  }

  /** The first one. @throws whatever the plane does not take; the image is the caller's then. */
  protected async begin(image: DiskImage): Promise<void> {
    await this.addToPlane(image);
    this.#image = image;
  }

  /**
   * After `detachImage`, or the first one of a unit that was made without. A driver that runs
   * relies on what it was told: an image that has become read-only is refused, another size is told
   * by `lookAtSize`.
   */
  async attachImage(stack: StackSpec = this.#stack): Promise<void> {
    assert(this.#image === null, 'a unit has one image');
    const image = await openImage(this.#options, stack);
    try {
      if (image.readOnly !== this.#readOnly) {
        const [is, was] = image.readOnly ? ['read-only', 'writable'] : ['writable', 'read-only'];
        const text = `${image.description} is ${is} now, and was ${was} when the driver began`;
        throw new VringError('ERR_VRING_DISK_FILE', text);
      }
      await this.begin(image);
      this.#stack = stack;
    } catch (error) {
      await image.close();
      throw error;
    }
  }

  /** Closes the image, so that another process can open it. What is under way ends first. */
  async detachImage(): Promise<void> {
    const image = this.image;
    await this.parkInPlane();
    this.#image = null;
    await image.close();
  }

  /** The image may have another size by now; true: it had, and the driver was told. */
  async lookAtSize(): Promise<boolean> {
    const sizeBytes = await this.image.measure();
    if (sizeBytes === this.sizeBytes) return false;
    await this.resize(sizeBytes);
    return true;
  }

  /**
   * A larger disk is announced when it is there, a smaller one before it is gone.
   * @throws VringError ERR_VRING_DISK_RESIZE, ConfigError: no whole blocks.
   */
  async resize(sizeBytes: number): Promise<void> {
    const { image } = this;
    const before = this.sizeBytes;
    if (sizeBytes >= before) {
      this.sizeBytes = sizeBytes; // throws what is wrong with it
      this.sizeBytes = before;
      await image.resize(sizeBytes);
      await this.resizeInPlane(sizeBytes);
      this.sizeBytes = sizeBytes;
      return this.announce();
    }
    try {
      this.sizeBytes = sizeBytes;
      await this.announce();
      await this.resizeInPlane(sizeBytes);
      await image.resize(sizeBytes);
    } catch (error) {
      this.sizeBytes = before;
      await this.resizeInPlane(before);
      await this.announce();
      throw error;
    }
  }

  /** Takes the image from the plane, and closes it. Idempotent. */
  protected async letGo(): Promise<void> {
    const image = this.#image;
    this.#image = null;
    try {
      await this.removeFromPlane();
    } catch (error) {
      if (!(error instanceof VringError)) throw error; // the worker is gone, and that was said
    }
    await this.afterPlane();
    await image?.close();
  }

  /** Between the plane's end and the image's. */
  protected async afterPlane(): Promise<void> {}
}

/** @throws VringError, SysError, ConfigError: what was asked for cannot be. */
export function openImage(
  options: ServedUnitOptions,
  stack: StackSpec = options.stack,
): Promise<DiskImage> {
  const { readOnly, onEvent, onCrash, onExportsLost } = options;
  return openStack({
    stack,
    readOnly,
    environment: workerEnvironment(import.meta.url.endsWith('.ts')),
    onProblem: (reason) => onEvent({ kind: 'problem', reason }),
    onCrash,
    onExportsLost: () => onExportsLost?.(),
  });
}
