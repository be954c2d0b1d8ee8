import type { AddressMap } from '../memory/address-map.ts';
import type { InflightArea, IotlbUpdate, VringLog } from '../vhost-user/index.ts';
import type { VringConfig } from '../virtqueue/device-queue.ts';

/** A vring that a host hands to the data plane. All addresses are checked arena offsets. */
export type VringAttach = {
  /** Which device of the plane; chosen by the control plane. */
  readonly device: number;
  /** Virtqueue index within the device. */
  readonly index: number;
  readonly config: VringConfig;
  /** Guest-physical address space of the guest. */
  readonly map: AddressMap;
  /** Region handles of the guest's memory; see `regionFaults`. */
  readonly regions: readonly number[];
  /** Negotiated virtio features. */
  readonly features: bigint;
  /** Owned by the host until `detachVring` has been answered; -1 for none. */
  readonly kickFd: number;
  readonly callFd: number;
  /** -1: `callFd` is an eventfd. Else it is a VDUSE device, and this the queue to interrupt. */
  readonly injectedQueue: number;
  readonly errFd: number;
  readonly enabled: boolean;
  /** True: `map` is an IOTLB; what it lacks is a miss, reported as an event, and no fault. */
  readonly iotlb: boolean;
  readonly log: VringLog | null;
  readonly inflight: InflightArea | null;
  /**
   * True: `detachVring` lets requests finish. False where GET_VRING_BASE_INFLIGHT was negotiated:
   * those under way stay recorded in `inflight`, for who continues with the ring.
   */
  readonly drain: boolean;
  /** Positions of a ring that several workers write, SHARED_RING_WORDS; see shared-ring.hot.ts. */
  readonly shared?: Int32Array;
  /** Where what is taken from the ring is added up, in memory that the plane was given. */
  readonly loadSlot?: number;
  /** Of another worker that had the ring until now. */
  readonly resumed?: ResumedVring;
};

/** What goes with a ring from one worker to the next; `base` is where it stands. */
export type ResumedVring = {
  readonly base: number;
  readonly started: boolean;
  readonly counters: Readonly<Record<string, number>>;
};

/** Something that the control plane must hear of; rare by construction. */
export type PlaneEvent =
  | PlaneFault
  | PlaneIotlbMiss
  | PlaneIoError
  | PlaneDriverState
  | PlaneUnwatched;

/**
 * The driver set something that the other workers of the device must know: they get the request
 * `loadDriver`, and who told it `driverHeard` when all have it. Until then it tells nothing more.
 */
export type PlaneDriverState = {
  readonly kind: 'driver-state';
  readonly device: number;
  /** -1: it concerns the whole device. */
  readonly index: number;
  readonly state: unknown;
};

export type PlaneFault = {
  readonly kind: 'fault';
  readonly device: number;
  /** Virtqueue index, or -1 where the whole device is concerned. */
  readonly index: number;
  /** FAULT_* code. */
  readonly code: number;
};

/** The kernel would not watch what the device waits for, which is looked at by a timer instead. */
export type PlaneUnwatched = {
  readonly kind: 'unwatched';
  readonly device: number;
  readonly index: -1;
  /** Why, and what can be done. */
  readonly message: string;
};

/** A ring stands still until `updateIotlb` brings a translation of `iova`. */
export type PlaneIotlbMiss = {
  readonly kind: 'iotlb-miss';
  readonly device: number;
  readonly index: number;
  readonly iova: number;
  readonly write: boolean;
};

/**
 * What is below the device failed: a medium, a file. The driver has its status; this is for people.
 * A plane says so once in a while, and counts the rest.
 */
export type PlaneIoError = {
  readonly kind: 'io-error';
  readonly device: number;
  readonly index: number;
  /** Of a device with several media, which: of SCSI units target * 256 + LUN. Of others 0. */
  readonly part: number;
  /** What was asked for: `read`, `flush`. */
  readonly op: string;
  /** Position on the disk, bytes. */
  readonly at: number;
  /** Positive. */
  readonly errno: number;
  /** Errors of it so far. */
  readonly count: number;
};

/**
 * `detachVring`: requests are still under way; the worker asks again in its next round. There is no
 * limit to that: a device sees to it that what it began ends, or GET_VRING_BASE never answers.
 */
export const DRAINING = -1;

/** What a worker gives its plane. */
export type PlaneContext = {
  /** Reports `token` to `DataPlane.ready` whenever `fd` becomes readable (edge-triggered). */
  watch(fd: number, token: number): void;
  unwatch(fd: number): void;
  emit(event: PlaneEvent): void;
  /** How long an empty source is polled before it is armed, milliseconds. */
  readonly spinMs: number;
  /** Whatever the owner of the worker passed for its plane. */
  readonly options: unknown;
};

/**
 * The data half of what a worker runs: a set of sources (virtqueues, uplinks), each either awake
 * (polled every round) or asleep (armed, waiting for its descriptor to become readable). The
 * worker's loop owns time and sleeping, the plane owns its sources. All calls come from one
 * thread and none of them waits.
 */
export interface DataPlane {
  /** One round over the awake sources. Returns how much was done: frames or requests. */
  poll(nowMs: number): number;
  /** How many sources are awake; with none the worker sleeps until a descriptor is readable. */
  readonly awake: number;
  /** Rounds with work in a row that may all be told the time of the first (1). */
  readonly roundsOfClock?: number;
  /** `Atomics.pause`s before an empty round is repeated (1), while it is worth no system call. */
  readonly lull?: number;
  /**
   * Looks at sleeping sources without a system call. True: what else may come is not urgent, so
   * descriptors need to be looked at less often.
   */
  peek?(nowMs: number): boolean;
  /** A watched descriptor became readable. */
  ready(token: number, nowMs: number): void;

  attachVring(vring: VringAttach): void;
  /**
   * Takes the ring out of use; it is not touched afterwards. Returns its base, or DRAINING: then
   * nothing more is taken from the ring, and the worker calls again.
   */
  detachVring(device: number, index: number): number;
  enableVring(device: number, index: number, enabled: boolean): void;
  /** -1 for none. A new one is signalled: it may have missed what the old one was told. */
  setCallFd(device: number, index: number, callFd: number): void;
  setErrFd(device: number, index: number, errFd: number): void;
  /** The session of the device is over: what its driver had set is forgotten. */
  resetDevice(device: number): void;

  /** IOTLB of a device; rings that missed are looked at again. */
  updateIotlb(device: number, entry: IotlbUpdate): void;
  invalidateIotlb(device: number, iova: number, sizeBytes: number): void;

  /** Everything that is particular to the plane: ports, tables, captures. */
  command(name: string, payload: unknown): unknown;

  /** The worker ends, and watches nothing any more: descriptors of the plane's own are closed. */
  close?(): void;
}

/** What a plane module exports as `createPlane`. */
export type CreatePlane = (context: PlaneContext) => DataPlane;

/** What the worker says of itself. */
export type WorkerCounters = {
  readonly polls: number;
  readonly emptyPolls: number;
  readonly sleeps: number;
  readonly wakeups: number;
  readonly work: number;
  readonly busyMs: number;
  readonly cpuSeconds: number;
};
