import type { FrameBatch } from './frame-batch.ts';

/** What a port's receiver can finish by itself, in `PortPlane.accepts`. */
export const ACCEPT_CSUM = 1; //     frames with an unfinished checksum
export const ACCEPT_TSO4 = 2;
export const ACCEPT_TSO6 = 4;
export const ACCEPT_ECN = 8;
export const ACCEPT_UFO = 16;
export const ACCEPT_USO = 32;

/**
 * The data-plane half of a port, as the switch sees it. Everything is batch-wise; nothing throws.
 *
 * One round of the switch: `receive` fills the batch, the switch judges it and calls `transmit` of
 * the destinations, then `release` hands the source's buffers back, then `flush` of every port
 * that was touched publishes and notifies once.
 */
export interface PortPlane {
  /** ACCEPT_* bits: offloads that this port's receiver completes itself. */
  readonly accepts: number;
  /** Longest frame without GSO that the receiver takes, Ethernet header included. */
  readonly maxFrameBytes: number;
  /** False while nothing can be delivered (no session, link down, queue not started). */
  readonly ready: boolean;

  /**
   * Takes up to `batch.capacity` frames. Returns how many; 0 when there are none. A fault of the
   * guest is handled inside (queue broken, counted) and looks like "none".
   */
  receive(batch: FrameBatch): number;
  /** The frames of the last `receive` were forwarded or dropped: their buffers go back. */
  release(batch: FrameBatch): void;
  /**
   * Delivers frames `list[0 .. count)` of the batch, in order. Counts what it delivers and what it
   * must drop (with reason) itself. Returns how many were delivered; `txBytes` of the switch is
   * exact when those are the first ones of the list.
   *
   * All bytes are copied (or handed to the kernel) when it returns, or when the switch next calls
   * `SwitchOptions.settle`, which it does before it edits a header: it then edits them for the next
   * port and reuses its scratch memory. Frames of the switch's own scratch come in a batch that is
   * not the one of `receive` and never `plain`; they are copied at once.
   */
  transmit(batch: FrameBatch, list: Int32Array, count: number): number;
  /** Publishes what `transmit` and `release` did, and notifies the other side if it asked. */
  flush(): void;
  /** `flush` left frames that the next one may send: it is called in each round until then. */
  readonly isUnsent?: boolean;
}
