/** The vocabulary of the storage target: what configuration, API and CLI speak of disks. */
import type { LimitSpec, StackSpec } from '../../storage/index.ts';
import type { BlkLifetime } from '../../wire/virtio-blk.ts';

export type DiskLimits = Omit<LimitSpec, 'kind'>;

/** A disk as an NBD server, on a Unix socket. */
export type DiskExport = { readonly socket: string; readonly readOnly: boolean };

/** What holds the bytes, and what a driver sees of them: of a disk, and of a unit of an adapter. */
export type MediumConfig = {
  /** Of a unit: `ADAPTER:TARGET:LUN`. */
  readonly name: string;
  readonly serial: string;
  readonly blockSize: number;
  readonly readOnly: boolean;
  /** From top to bottom. */
  readonly layers: StackSpec;
  readonly limits: DiskLimits | null;
  readonly export: DiskExport | null;
};

/** Where front-ends connect. */
export type SocketConfig = {
  readonly socket: string;
  readonly socketOwner: { readonly uid: number; readonly gid: number } | null;
  readonly socketMode: number;
};

export type DiskConfig = MediumConfig &
  SocketConfig & {
    readonly queues: number;
    readonly packed: boolean;
    readonly iommu: boolean;
    readonly secureErase: boolean;
    /** What the driver is told of the wear of the medium; null: it is not offered. */
    readonly lifetime: BlkLifetime | null;
  };

/** Whose a disk is: what the API added is remembered, what the configuration names is its. */
export type DiskOrigin = 'config' | 'api';

export type UnitPlace = {
  readonly adapter: string;
  readonly target: number;
  readonly lun: number;
};

export type DiskState =
  | 'listening' //   nobody is connected
  | 'negotiating' // connected, no ring runs
  | 'up' //          a ring runs
  | 'broken' //      a queue is broken until the driver resets it
  | 'failed'; //     the image could not be opened, or what served it ended; tried again by itself

export type DiskReason = { readonly code: string; readonly message: string; readonly at: string };

/**
 * Requests by how long they took. `counts[i]` took less than 2^i microseconds and not less than
 * half of that; the last one has all that took longer.
 */
export type DiskLatency = {
  readonly counts: readonly number[];
  readonly sumMicroseconds: number;
};

export type DiskStatus = {
  readonly name: string;
  /** Of which SCSI adapter it is a unit; null: it is a block device of its own. */
  readonly unit: UnitPlace | null;
  /** Of a unit: its adapter's, as are queues, sessions and, while it works, the state. */
  readonly socket: string;
  readonly origin: DiskOrigin;
  readonly state: DiskState;
  /** Why it failed, or why its last session ended. */
  readonly reason: DiskReason | null;
  /** Layers over source, as opened; null while there is none. */
  readonly image: string | null;
  readonly sizeBytes: number | null;
  readonly readOnly: boolean;
  readonly queues: number;
  readonly blockSize: number;
  readonly serial: string;
  readonly layers: readonly string[];
  readonly limits: DiskLimits | null;
  /** URI of its NBD export. */
  readonly export: string | null;
  readonly sessions: number;
  /** Batches of requests that are under way. */
  readonly inFlight: number;
  /** Requests that the medium failed, and the last of them. */
  readonly errors: number;
  readonly lastError: { readonly op: string; readonly at: number; readonly errno: string } | null;
  /** Times that the guest broke virtio. */
  readonly faults: number;
  /** reads, readBytes, writes, writeBytes, flushes, ... */
  readonly counters: Readonly<Record<string, number>>;
  readonly layerCounters: Readonly<Record<string, number>>;
  /** By operation: read, write, flush, discard. */
  readonly latency: Readonly<Record<string, DiskLatency>>;
};

/** What can change while a disk is served. Absent keys stay as they are. */
export type DiskUpdate = {
  /** Null: no limits. */
  readonly limits?: DiskLimits | null;
  readonly sizeBytes?: number;
  /** A smaller size takes bytes away; it must be said. */
  readonly shrink?: boolean;
};

export type RollbackOptions = {
  /** The last one when left out. */
  readonly name?: string;
  /** Also under a driver that runs, whose file system will not know what happened. */
  readonly force?: boolean;
};
