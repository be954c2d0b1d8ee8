/**
 * One part of a disk's stack whose work takes time: a format, a cipher, a server elsewhere. A layer
 * stands on the one below it and is written with promises; it runs on the storage thread of its
 * disk, never on a data plane's. What needs no layers (a file, memory) is an `Engine` directly.
 */
import { VringError, type VringErrorOptions } from '../../base/errors.ts';
import type { ZonedMedium } from '../zoned/zone-types.ts';

/**
 * Requests may overlap in time. Those that overlap on the disk as well have no order that anybody
 * may rely on, but each sector is one request's or the other's. Ranges are inside the disk and
 * whole sectors of 512 bytes, `into` and `from` are private memory of the caller until the promise
 * settles.
 *
 * A method that cannot do what it was asked for rejects: with a `LayerError`, or a `SysError`,
 * whose `errno` the guest's status is made from. It never half succeeds in silence.
 */
export interface Layer {
  /** With all that is below it, for messages: `crypt over file:/srv/a.img`. */
  readonly description: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Of writes, where they must be whole blocks that are larger than sectors. */
  readonly blockBytes?: number;
  /** The disk is zoned: then what a device asks for goes through this. */
  readonly zones?: ZonedMedium;

  read(at: number, into: Uint8Array): Promise<void>;
  /** `fua`: durable when it resolves. */
  write(at: number, from: Uint8Array, fua: boolean): Promise<void>;
  /**
   * What had resolved before this was called is durable when it resolves. Once it has failed it
   * fails for good: what was lost is lost (see README.md, "A failed flush stays failed").
   */
  flush(): Promise<void>;
  /** Advice: the range may be given back. What it reads as afterwards is not promised. */
  discard(at: number, sizeBytes: number): Promise<void>;
  /** The range reads as zeros; with `unmap` it may be given back. */
  zero(at: number, sizeBytes: number, options: ZeroOptions): Promise<void>;
  /**
   * What is known of a range, in order and without gaps, neighbours of one kind joined; at most
   * MAX_EXTENTS, so the answer may end before the range does. Never wrong, perhaps coarse:
   * `data` is always a right answer.
   */
  extents(at: number, sizeBytes: number): Promise<Extent[]>;

  /** How large what is below is now; somebody may have changed it. */
  measure(): Promise<number>;
  /** @throws VringError ERR_VRING_DISK_RESIZE. */
  resize(sizeBytes: number): Promise<void>;
  /**
   * What this layer can be asked to do beside (`snapshot` of an overlay, `limits`, `cut` of a
   * fault): a layer that does not know the name asks the one below; the last one refuses with
   * ERR_VRING_DISK_CONTROL. Structured clone both ways.
   */
  control(name: string, payload: unknown): Promise<unknown>;
  /**
   * True: somebody waits for what is under way, so nothing of it, and of what comes, is held back
   * for the sake of a limit. Until it is told false, as often as it was told true.
   */
  hurry(isHurried: boolean): void;

  /** Counters of this layer and those below, by name; read at any time. */
  counters(): Record<string, number>;
  /** Idempotent; when nothing is under way. Closes what is below. Says what it could not do. */
  close(): Promise<void>;
}

export type ZeroOptions = { readonly unmap: boolean; readonly fua: boolean };

export type Extent = {
  readonly at: number;
  readonly sizeBytes: number;
  /** `zero`: known to read as zeros. `hole`: the same, and nothing is allocated for it. */
  readonly kind: 'data' | 'zero' | 'hole';
};

/** Most that one call of `extents` returns. */
export const MAX_EXTENTS = 1024;

/** A request failed. `errno` is positive: EIO, ENOSPC, EROFS, EINVAL, EOPNOTSUPP, ETIMEDOUT. */
export class LayerError extends VringError {
  readonly errno: number;

  constructor(errno: number, message: string, options: VringErrorOptions = {}) {
    super('ERR_VRING_DISK_IO', message, options);
    this.errno = errno;
  }
}
