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

/** One translation of an IOMMU: IOVA to the user address under which the memory table has it. */
export type IotlbMapping = {
  readonly iova: bigint;
  readonly sizeBytes: bigint;
  readonly userAddr: bigint;
  /** VHOST_ACCESS_*: bit 0 read, bit 1 write. */
  readonly permissions: number;
};

/** For a driver that negotiated VIRTIO_F_ACCESS_PLATFORM: what its addresses mean. */
export interface BackendIotlb {
  /**
   * True: the back-end asks for what it lacks. False: it never asks, and all that its rings will
   * use must be told before they start.
   */
  readonly asks: boolean;
  /** Resolves when the back-end has it. */
  update(mapping: IotlbMapping): Promise<void>;
  /** When it resolves nobody uses a translation of the range, which may be (0, 2^64 - 1). */
  invalidate(iova: bigint, sizeBytes: bigint): Promise<void>;
}

/** For a back-end that offers VHOST_F_LOG_ALL. */
export interface BackendDirtyLog {
  /** The bitmap of written pages: bit n is guest page n of 4096 bytes. The fd stays yours. */
  setLogBase(fd: number, sizeBytes: number): Promise<void>;
}

/**
 * A device that works in its driver's own thread, when it is called and at no other time: the
 * traditional path. There the driver that kicks stands still until the device is done.
 */
export interface InThreadDevice {
  /** Instead of a signal to the kick descriptor: the ring's work is done when it returns. */
  kicked(index: number): void;
  /** For drivers that hold the event loop for long: what came from elsewhere is worked on. */
  turn(): void;
}

export interface VhostBackend {
  /** What the path is, for people: `vhost-user:/run/vm0.sock`. */
  readonly description: string;
  /** Null: addresses are guest-physical, no IOMMU can stand between. */
  readonly iotlb: BackendIotlb | null;
  /** Null: what the back-end writes cannot be followed. */
  readonly dirtyLog: BackendDirtyLog | null;
  /**
   * True: to stop one ring is to stop the device. What stopped goes on only after a reset: with
   * features, memory, rings and status anew, as with a device that was just opened.
   */
  readonly restartsWhole: boolean;
  /** Absent: the back-end runs somewhere else, and kicks are signals. */
  readonly inThread?: InThreadDevice;

  getFeatures(): Promise<bigint>;
  setFeatures(acked: bigint): Promise<void>;
  setOwner(): Promise<void>;
  /** How many vrings the back-end can serve. */
  getQueueNum(): Promise<number>;
  setMemTable(regions: readonly BackendMemoryRegion[]): Promise<void>;

  setVringNum(index: number, size: number): Promise<void>;
  /**
   * `usedLogGpa`: where writes to the used ring are marked in the dirty log, which has been set;
   * null, the default: they are not.
   */
  setVringAddr(index: number, addresses: VringAddresses, usedLogGpa?: bigint | null): Promise<void>;
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
