/**
 * What a back-end session drives: the contract between the protocol and whoever runs the rings.
 *
 * Calls come strictly one after the other, but for those that start or stop several rings, which
 * come at once; a call that returns a promise holds the next message back. Fds and the memory
 * table are lent: they stay the session's, which closes them when the target can no longer use
 * them (see each call). What a call throws ends the session; a device that merely refuses returns
 * false or null.
 */
import type { MemoryTable } from '../memory/index.ts';
import type { AddressMap } from '../memory/address-map.ts';
import type { Fd, RegionHandle } from '../sys/index.ts';

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
  /** With it `call` is no eventfd but a VDUSE device, told by VDUSE_VQ_INJECT_IRQ of this queue. */
  readonly injectedQueue?: number;
  readonly err: Fd | null;
  /** What descriptors address: guest-physical, or with an IOTLB the entries known so far. */
  readonly map: AddressMap;
  /** True: `map` is an IOTLB; what it does not have is a miss and no fault. */
  readonly iotlb: boolean;
  /** Null: nobody logs. A change stops and restarts the ring. */
  readonly log: VringLog | null;
  /** This ring's part of the inflight region; null without INFLIGHT_SHMFD. Lent like the memory. */
  readonly inflight: InflightArea | null;
  /** SET_VRING_ENDIAN: a legacy ring whose numbers are big-endian. */
  readonly bigEndian: boolean;
};

/** The dirty log, as one ring uses it. */
export type VringLog = {
  /** Arena offset and size of the bitmap; bit n is guest page n of 4096 bytes. */
  readonly offset: number;
  readonly sizeBytes: number;
  /** Region handle, for `retainRegion` and `regionFaults`. */
  readonly handle: RegionHandle;
  /** Guest-physical address under which writes to the used ring are logged; -1: they are not. */
  readonly usedGpa: number;
  /** Guest-physical map: says which guest page an arena offset is in. */
  readonly gpa: AddressMap;
};

/** QueueRegionSplit or QueueRegionPacked of one ring. */
export type InflightArea = {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly handle: RegionHandle;
};

/** One IOTLB entry, translated: IOVA to arena. */
export type IotlbUpdate = {
  readonly iova: number;
  readonly sizeBytes: number;
  readonly offset: number;
  /** Bit 0 read, bit 1 write. */
  readonly permissions: number;
};

/**
 * What a target may ask of the front-end over the backend channel. Each rejects with
 * ERR_VRING_NOT_NEGOTIATED where the front-end cannot do it, ERR_VRING_REFUSED where it will not.
 */
export interface FrontendRequests {
  /** Whether the protocol feature (bit) was acked and, where it needs one, a channel is there. */
  can(protocolFeature: number): boolean;
  /** The data plane missed `iova`. Repeated misses of one page are one message. */
  iotlbMiss(iova: number, write: boolean): void;
  configChanged(): Promise<void>;
  /** Null takes the notifier away. The fd stays the caller's. */
  setHostNotifier(index: number, area: MappableArea | null): Promise<void>;
  addSharedObject(uuid: Uint8Array): Promise<void>;
  removeSharedObject(uuid: Uint8Array): Promise<void>;
  /** Null: nobody has it. The fd is the caller's. */
  lookUpSharedObject(uuid: Uint8Array): Promise<Fd | null>;
  /** Maps part of `fd` at `shmOffset` of shared memory region `shmId`. */
  mapShmem(shmId: number, shmOffset: number, area: MappableArea, writable: boolean): Promise<void>;
  unmapShmem(shmId: number, shmOffset: number, sizeBytes: number): Promise<void>;
}

/** Something behind an fd that can be mapped. */
export type MappableArea = {
  readonly fd: number;
  readonly offset: number;
  readonly sizeBytes: number;
};

export interface BackendTarget {
  /** Virtio device ID, for the names of feature bits in messages. */
  readonly deviceId?: number;
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

  /*
   * What a device opts in to. The session offers the feature that gates a message only where the
   * target has the method (and the bit in `protocolFeatures`). Dirty log, IOTLB, inflight region,
   * in-band notifications, postcopy and memory slots need none: they come with every target.
   */

  /** A session begins; `requests` is good until `sessionClosed`. */
  sessionOpened?(requests: FrontendRequests): void;
  /** IOTLB_MSG update, for rings with `iotlb`. */
  updateIotlb?(entry: IotlbUpdate): Promise<void>;
  /** IOTLB_MSG invalidate; when it resolves nobody uses a translation of the range. */
  invalidateIotlb?(iova: number, sizeBytes: number): Promise<void>;
  /** RESET_DEVICE: rings are stopped and disabled; forget what the driver had set. */
  resetDevice?(): Promise<void>;
  /** SEND_RARP: six bytes. */
  sendRarp?(mac: Uint8Array): Promise<void>;
  /** DEVICE_STATE: all of it; the session moves it through the fd. */
  saveState?(): Promise<Uint8Array>;
  /** @throws VringError: the state cannot be taken over; CHECK_DEVICE_STATE says so. */
  loadState?(state: Uint8Array): Promise<void>;
  /** SHARED_OBJECT: an fd of the object that the session closes after sending; null: unknown. */
  sharedObject?(uuid: Uint8Array): Fd | null;
  /** SHMEM: size of each region, by id. */
  readonly shmemRegions?: readonly number[];
  /** CRYPTO_SESSION: bytes in, bytes out as the device defines them. */
  createCryptoSession?(parameters: Uint8Array): Promise<Uint8Array>;
  closeCryptoSession?(id: bigint): Promise<boolean>;
  /** GPU_SET_SOCKET: the socket is the target's from here on. */
  setGpuSocket?(socket: Fd): void;
  /** The session is over. When it resolves nothing of it is in use; called once. */
  sessionClosed(reason: Error | null): Promise<void>;
}
