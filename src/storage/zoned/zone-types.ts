/** What zones are, for the parts of this folder and for whoever drives a zoned disk. */
import { EIO } from '../../sys/index.ts';
import {
  VIRTIO_BLK_ZS_CLOSED,
  VIRTIO_BLK_ZS_EMPTY,
  VIRTIO_BLK_ZS_EOPEN,
  VIRTIO_BLK_ZS_FULL,
  VIRTIO_BLK_ZS_IOPEN,
  VIRTIO_BLK_ZS_NOT_WP,
  VIRTIO_BLK_ZS_OFFLINE,
  VIRTIO_BLK_ZS_RDONLY,
} from '../../wire/virtio-blk.ts';
import { LayerError } from '../layer/layer.ts';

/** Conditions of a zone, with the numbers that ZBC, NVMe, Linux and virtio share. */
export const ZONE_NOT_WP = VIRTIO_BLK_ZS_NOT_WP; // conventional
export const ZONE_EMPTY = VIRTIO_BLK_ZS_EMPTY;
export const ZONE_IMPLICIT_OPEN = VIRTIO_BLK_ZS_IOPEN;
export const ZONE_EXPLICIT_OPEN = VIRTIO_BLK_ZS_EOPEN;
export const ZONE_CLOSED = VIRTIO_BLK_ZS_CLOSED;
export const ZONE_READ_ONLY = VIRTIO_BLK_ZS_RDONLY;
export const ZONE_FULL = VIRTIO_BLK_ZS_FULL;
export const ZONE_OFFLINE = VIRTIO_BLK_ZS_OFFLINE;

/** What a driver has to know of a host-managed zoned disk; plain data. */
export type ZoneShape = {
  readonly zoneBytes: number;
  /** 0: no limit. */
  readonly maxOpen: number;
  readonly maxActive: number;
  /** Largest append. */
  readonly maxAppendBytes: number;
  /** Writes to sequential zones begin and end at multiples of it. */
  readonly granularityBytes: number;
};

/** One zone as a report has it; bytes. */
export type ZoneInfo = {
  readonly at: number;
  readonly capacityBytes: number;
  /** Where the next write goes. */
  readonly pointer: number;
  readonly conventional: boolean;
  /** ZONE_*. */
  readonly condition: number;
};

/** Who asked for an append: the same again after a crash, and nobody else ever. */
export type AppendTag = { readonly queue: number; readonly order: number };

/** What can be asked of one zone, or of all (`reset-all`). */
export type ZoneAction = 'open' | 'close' | 'finish' | 'reset' | 'reset-all';

export type ZoneWriteOptions = {
  /** Durable when it resolves. */
  readonly fua: boolean;
  /** It was begun before, by a process that died: it may have been done already. */
  readonly again: boolean;
};

/** What a layer has beside the others when its disk is zoned. Rejects with a ZoneError. */
export type ZonedMedium = {
  readonly shape: ZoneShape;
  /** Within one zone, or within the conventional ones. */
  read(at: number, into: Uint8Array): Promise<void>;
  write(at: number, from: Uint8Array, options: ZoneWriteOptions): Promise<void>;
  /** To the zone that begins at `at`. Resolves with where the bytes went. */
  append(
    at: number,
    from: Uint8Array,
    options: ZoneWriteOptions,
    tag: AppendTag | null,
  ): Promise<number>;
  /** Zones from that of byte `at` on. */
  report(at: number, most: number): ZoneInfo[];
  /** Durable when it resolves, but for `open` and `close`, which survive the process alone. */
  manage(action: ZoneAction, at: number, options: { readonly again: boolean }): Promise<void>;
};

/** Why the rules of zones forbid a request. */
export type ZoneProblem = 'invalid' | 'unaligned' | 'open-limit' | 'active-limit';

/** The request was wrong, not the medium; who knows no zones sees EIO. */
export class ZoneError extends LayerError {
  readonly problem: ZoneProblem;

  constructor(problem: ZoneProblem, message: string) {
    super(EIO, message);
    this.problem = problem;
  }
}
