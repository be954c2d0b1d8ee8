/**
 * The first contract: what a front-end (a VMM, or our software guest) drives. One vocabulary,
 * several transports: vhost-user, the kernel's vhost-net and vhost-vDPA, and in-process.
 *
 * All calls are checked by the implementation; a refusal is a `VringError`. Ring addresses are in
 * the space that the transport uses (UVA for vhost), 64-bit values stay `bigint` on this plane.
 */

/** One range of guest memory that the back-end shall see. */
export type BackendMemoryRegion = {
  readonly guestPhysAddr: bigint;
  readonly sizeBytes: bigint;
  /** Where the front-end sees it; vring addresses are given in this space. */
  readonly userAddr: bigint;
  readonly fd: number;
  readonly fdOffset: bigint;
};

/** Addresses of a vring's three areas, in the front-end's user space (UVA). */
export type VringAddresses = {
  readonly descUva: bigint;
  /** Split: avail ring. Packed: driver event suppression. */
  readonly availUva: bigint;
  /** Split: used ring. Packed: device event suppression. */
  readonly usedUva: bigint;
};

export interface VhostBackend {
  /** What the path is, for people: `vhost-user:/run/vm0.sock`. */
  readonly description: string;

  getFeatures(): Promise<bigint>;
  setFeatures(acked: bigint): Promise<void>;
  setOwner(): Promise<void>;
  /** How many vrings the back-end can serve. */
  getQueueNum(): Promise<number>;
  setMemTable(regions: readonly BackendMemoryRegion[]): Promise<void>;

  setVringNum(index: number, size: number): Promise<void>;
  setVringAddr(index: number, addresses: VringAddresses): Promise<void>;
  /** Split: next avail index. Packed: avail index and wrap in bits 0-15, used in bits 16-31. */
  setVringBase(index: number, base: number): Promise<void>;
  /** Stops the ring; resolves once the back-end no longer touches it. */
  getVringBase(index: number): Promise<number>;
  /** The descriptor is duplicated by the transport and stays the caller's. `null`: polling. */
  setVringKick(index: number, fd: number | null): Promise<void>;
  setVringCall(index: number, fd: number | null): Promise<void>;
  setVringErr(index: number, fd: number | null): Promise<void>;
  setVringEnable(index: number, enabled: boolean): Promise<void>;

  getConfig(offset: number, sizeBytes: number): Promise<Uint8Array>;
  setConfig(offset: number, bytes: Uint8Array): Promise<void>;
  getStatus(): Promise<number>;
  setStatus(status: number): Promise<void>;

  /** Idempotent. Ends the session; the back-end keeps listening for the next one. */
  close(): Promise<void>;
  /** Resolves when the back-end went away, with the reason, or after `close()`. */
  readonly closed: Promise<Error | null>;
}
