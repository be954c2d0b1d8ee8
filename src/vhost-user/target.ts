/**
 * What a back-end session drives: the contract between the protocol and whoever runs the rings.
 *
 * Calls come strictly one after the other; a call that returns a promise holds the next message
 * back. Fds and the memory table are lent: they stay the session's, which closes them when the
 * target can no longer use them (see each call). What a call throws ends the session; a device
 * that merely refuses returns false or null.
 */
import type { MemoryTable } from '../memory/index.ts';
import type { AddressMap } from '../memory/address-map.ts';
import type { Fd } from '../sys/index.ts';

/** A ring that is complete: configured, checked, translated. */
export type StartVring = {
  /** Descriptors; split: a power of two. */
  readonly size: number;
  readonly packed: boolean;
  /** As SET_VRING_BASE had it: split next avail index; packed four fields in 32 bits. */
  readonly base: number;
  /** Arena offsets. Packed: avail is the driver's, used the device's event suppression. */
  readonly descOffset: number;
  readonly availOffset: number;
  readonly usedOffset: number;
  /** Acked virtio features. */
  readonly features: bigint;
  /** Whether the ring is enabled now; changes come by `setVringEnabled`. */
  readonly enabled: boolean;
  /** Lent until `stopVring` resolves. Null: the driver does not kick, poll. */
  readonly kick: Fd | null;
  /** Lent until `setVringCall` or `stopVring` resolves. Null: nobody to notify. */
  readonly call: Fd | null;
  readonly err: Fd | null;
  /** Guest-physical addresses: those of descriptors. */
  readonly map: AddressMap;
};

export interface BackendTarget {
  /** Virtio features offered. Bit 30 is the session's: it is offered always and never passed on. */
  readonly features: bigint;
  /** Protocol features offered; the session offers those of them that it implements. */
  readonly protocolFeatures: bigint;
  /** Vrings; every index of a message must be below it. */
  readonly queueCount: number;
  /** What GET_QUEUE_NUM answers: for net that is queue *pairs*. Without it: `queueCount`. */
  readonly queueNum?: number;
  /** Largest size of a ring. Without it: MAX_RING_SIZE. */
  readonly queueSizeMax?: number;

  setFeatures(acked: bigint): void | Promise<void>;
  setProtocolFeatures(acked: bigint): void | Promise<void>;
  /**
   * No ring runs during the call. When it resolves nobody uses the old table's memory any more,
   * and the session closes what left the table.
   */
  setMemTable(table: MemoryTable): Promise<void>;
  /** Size, addresses, base and kick are known: the ring may be worked on, enabled or not. */
  startVring(index: number, vring: StartVring): Promise<void>;
  /** Resolves to the base once nobody touches the ring, its memory or its fds. */
  stopVring(index: number): Promise<number>;
  /** Also for rings that do not run; only when the state changes. */
  setVringEnabled(index: number, enabled: boolean): Promise<void>;
  /** For a running ring; when it resolves the old fd is not used any more. */
  setVringCall(index: number, fd: Fd | null): Promise<void>;
  setVringErr(index: number, fd: Fd | null): Promise<void>;
  /** Null where the range is outside the configuration space. */
  getConfig(offset: number, sizeBytes: number): Uint8Array | null;
  /** `flags`: 0 the driver wrote, 1 migration. False refuses. */
  setConfig(offset: number, bytes: Uint8Array, flags: number): boolean;
  /**
   * The driver's status byte, for devices that care. Rings are stopped by GET_VRING_BASE alone:
   * QEMU 7.2 sends 0 *before* it asks for the bases, so a 0 must not lose ring positions.
   */
  setStatus(status: number): Promise<void>;
  getStatus(): number;
  /** False refuses. */
  setMtu(mtu: number): boolean;
  /** The session is over. When it resolves nothing of it is in use; called once. */
  sessionClosed(reason: Error | null): Promise<void>;
}
