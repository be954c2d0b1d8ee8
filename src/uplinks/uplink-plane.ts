import type { PortPlane } from '../switch/index.ts';

/** What an uplink counts of its own; a counter that a kind has no use for stays at 0. */
export type UplinkCounters = {
  /** Frames that came while the link was set down. */
  rxDropDisabled: number;
  /** Frames that could not be understood, or failed reads. */
  rxErrors: number;
  /** The kernel had no room to put frames: we were too slow. */
  rxDropNoRoom: number;
  /** The kernel has no room for more. */
  txDropBusy: number;
  /** The interface is down on the host's side. */
  txDropDown: number;
  /** The kernel refused the frame or its header, or it was in too many pieces. */
  txDropRefused: number;
  /** Any other failed write. */
  txDropError: number;
  /** Times that the kernel would not watch the descriptors; they were looked at by a timer. */
  watchesRefused: number;
};

export function newUplinkCounters(): UplinkCounters {
  return {
    rxDropDisabled: 0,
    rxErrors: 0,
    rxDropNoRoom: 0,
    txDropBusy: 0,
    txDropDown: 0,
    txDropRefused: 0,
    txDropError: 0,
    watchesRefused: 0,
  };
}

/** An uplink whose descriptors come and go with the interface; without any it is not ready. */
export interface AttachedPlane<Queue> extends UplinkPlane {
  attach(queues: readonly Queue[]): void;
  /** What `attach` gave is not used any more. */
  detach(): void;
}

/** An interface of the host as a port of the switch. */
export interface UplinkPlane extends PortPlane {
  linkUp: boolean;
  mtu: number;
  readonly counters: UplinkCounters;
  /** The worker watches these, edge-triggered; `receive` looks at all of them. */
  readonly fds: readonly number[];
  /** Looking whether there is something is cheap, and may go on for a while. */
  readonly spins: boolean;
  /** Asks the kernel for what it counts. Not for every round. */
  readKernelCounters(): void;
  /** Idempotent. Descriptors and memory are their owner's to give back. */
  close(): void;
}
