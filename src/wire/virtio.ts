/**
 * What all virtio devices share: device ids, feature bits, status bits, and the layout of the
 * two kinds of virtqueue. Pure; section numbers are those of virtio 1.2 and 1.3, which agree here.
 *
 * Feature constants are bit *numbers*, spelled as in the Linux headers; feature sets are `bigint`.
 */
import { struct, u16, u32, u64, type Value } from './struct.ts';
import { BLK_FEATURE_NAMES } from './virtio-blk.ts';
import { NET_FEATURE_NAMES } from './virtio-net.ts';
import { SCSI_FEATURE_NAMES } from './virtio-scsi.ts';

// Section 5, "Device Types": the ids that vring or its tests meet.
export const VIRTIO_ID_NET = 1;
export const VIRTIO_ID_BLOCK = 2;
export const VIRTIO_ID_CONSOLE = 3;
export const VIRTIO_ID_RNG = 4;
export const VIRTIO_ID_BALLOON = 5;
export const VIRTIO_ID_SCSI = 8;
export const VIRTIO_ID_9P = 9;
export const VIRTIO_ID_GPU = 16;
export const VIRTIO_ID_INPUT = 18;
export const VIRTIO_ID_VSOCK = 19;
export const VIRTIO_ID_CRYPTO = 20;
export const VIRTIO_ID_IOMMU = 23;
export const VIRTIO_ID_MEM = 24;
export const VIRTIO_ID_SOUND = 25;
export const VIRTIO_ID_FS = 26;
export const VIRTIO_ID_PMEM = 27;
export const VIRTIO_ID_I2C_ADAPTER = 34;
export const VIRTIO_ID_GPIO = 41;

const DEVICE_NAMES: Readonly<Record<number, string>> = {
  [VIRTIO_ID_NET]: 'net',
  [VIRTIO_ID_BLOCK]: 'blk',
  [VIRTIO_ID_CONSOLE]: 'console',
  [VIRTIO_ID_RNG]: 'rng',
  [VIRTIO_ID_BALLOON]: 'balloon',
  [VIRTIO_ID_SCSI]: 'scsi',
  [VIRTIO_ID_9P]: '9p',
  [VIRTIO_ID_GPU]: 'gpu',
  [VIRTIO_ID_INPUT]: 'input',
  [VIRTIO_ID_VSOCK]: 'vsock',
  [VIRTIO_ID_CRYPTO]: 'crypto',
  [VIRTIO_ID_IOMMU]: 'iommu',
  [VIRTIO_ID_MEM]: 'mem',
  [VIRTIO_ID_SOUND]: 'sound',
  [VIRTIO_ID_FS]: 'fs',
  [VIRTIO_ID_PMEM]: 'pmem',
  [VIRTIO_ID_I2C_ADAPTER]: 'i2c',
  [VIRTIO_ID_GPIO]: 'gpio',
};

/** Short name of a device type: `net`, `blk`; `device-63` where we have none. */
export function deviceName(deviceId: number): string {
  return DEVICE_NAMES[deviceId] ?? `device-${deviceId}`;
}

// Section 6, "Reserved Feature Bits", and 6.3 for the two legacy ones.
export const VIRTIO_F_NOTIFY_ON_EMPTY = 24;
export const VIRTIO_F_ANY_LAYOUT = 27;
export const VIRTIO_RING_F_INDIRECT_DESC = 28;
export const VIRTIO_RING_F_EVENT_IDX = 29;
export const VIRTIO_F_VERSION_1 = 32;
export const VIRTIO_F_ACCESS_PLATFORM = 33;
export const VIRTIO_F_RING_PACKED = 34;
export const VIRTIO_F_IN_ORDER = 35;
export const VIRTIO_F_ORDER_PLATFORM = 36;
export const VIRTIO_F_SR_IOV = 37;
export const VIRTIO_F_NOTIFICATION_DATA = 38;
export const VIRTIO_F_NOTIF_CONFIG_DATA = 39;
export const VIRTIO_F_RING_RESET = 40;
export const VIRTIO_F_ADMIN_VQ = 41;
export const VIRTIO_F_SUSPEND = 43; // virtio 1.4

/** Bits 26 and 30 are vhost's and vhost-user's own; they travel in the same 64 bits. */
const COMMON_FEATURE_NAMES: Readonly<Record<number, string>> = {
  24: 'NOTIFY_ON_EMPTY',
  26: 'LOG_ALL',
  27: 'ANY_LAYOUT',
  28: 'INDIRECT_DESC',
  29: 'EVENT_IDX',
  30: 'PROTOCOL_FEATURES',
  32: 'VERSION_1',
  33: 'ACCESS_PLATFORM',
  34: 'RING_PACKED',
  35: 'IN_ORDER',
  36: 'ORDER_PLATFORM',
  37: 'SR_IOV',
  38: 'NOTIFICATION_DATA',
  39: 'NOTIF_CONFIG_DATA',
  40: 'RING_RESET',
  41: 'ADMIN_VQ',
  43: 'SUSPEND',
};

const DEVICE_FEATURE_NAMES: Readonly<Record<number, Readonly<Record<number, string>>>> = {
  [VIRTIO_ID_NET]: NET_FEATURE_NAMES,
  [VIRTIO_ID_BLOCK]: BLK_FEATURE_NAMES,
  [VIRTIO_ID_SCSI]: SCSI_FEATURE_NAMES,
};

/** The set that holds just these bits. */
export function featureSet(...bits: readonly number[]): bigint {
  let set = 0n;
  for (const bit of bits) set |= 1n << BigInt(bit);
  return set;
}

export function hasFeature(features: bigint, bit: number): boolean {
  return ((features >> BigInt(bit)) & 1n) === 1n;
}

/**
 * Names of the bits that are set, lowest first, without their `VIRTIO_F_` or `VIRTIO_NET_F_`
 * prefix; `BIT_n` for those without a name. A device's own names win over the common ones.
 */
export function featureNames(features: bigint, deviceId: number): string[] {
  const own = DEVICE_FEATURE_NAMES[deviceId] ?? {};
  const names: string[] = [];
  for (let bit = 0, rest = features; rest !== 0n; bit++, rest >>= 1n) {
    if ((rest & 1n) === 0n) continue;
    names.push(own[bit] ?? COMMON_FEATURE_NAMES[bit] ?? `BIT_${bit}`);
  }
  return names;
}

// Section 2.1, "Device Status Field".
export const VIRTIO_CONFIG_S_ACKNOWLEDGE = 0x01;
export const VIRTIO_CONFIG_S_DRIVER = 0x02;
export const VIRTIO_CONFIG_S_DRIVER_OK = 0x04;
export const VIRTIO_CONFIG_S_FEATURES_OK = 0x08;
export const VIRTIO_CONFIG_S_SUSPEND = 0x10; // virtio 1.4
export const VIRTIO_CONFIG_S_NEEDS_RESET = 0x40;
export const VIRTIO_CONFIG_S_FAILED = 0x80;

// Section 2.7.5, "The Virtqueue Descriptor Table", and 2.8.1 for the two bits of packed rings.
export const VIRTQ_DESC_F_NEXT = 1;
export const VIRTQ_DESC_F_WRITE = 2;
export const VIRTQ_DESC_F_INDIRECT = 4;
export const VIRTQ_DESC_F_AVAIL = 1 << 7;
export const VIRTQ_DESC_F_USED = 1 << 15;

// Sections 2.7.6 and 2.7.8: flags of the avail and the used ring, without EVENT_IDX.
export const VIRTQ_AVAIL_F_NO_INTERRUPT = 1;
export const VIRTQ_USED_F_NO_NOTIFY = 1;

// Section 2.8.10, "Driver and Device Event Suppression".
export const RING_EVENT_FLAGS_ENABLE = 0;
export const RING_EVENT_FLAGS_DISABLE = 1;
export const RING_EVENT_FLAGS_DESC = 2;

/** `struct virtq_desc`, 2.7.5: one descriptor of a split ring or of its indirect tables. */
export const SplitDescriptor = struct('virtq_desc', 16, {
  addr: u64(0), //   GPA
  len: u32(8), //    bytes
  flags: u16(12), // VIRTQ_DESC_F_*
  next: u16(14), //  descriptor that follows, with VIRTQ_DESC_F_NEXT
});
export type SplitDescriptor = Value<typeof SplitDescriptor.fields>;

/** `struct pvirtq_desc`, 2.8.13: one descriptor of a packed ring or of its indirect tables. */
export const PackedDescriptor = struct('pvirtq_desc', 16, {
  addr: u64(0),
  len: u32(8),
  id: u16(12), //    buffer id; valid in the last descriptor of a chain
  flags: u16(14), // VIRTQ_DESC_F_*, AVAIL and USED included
});
export type PackedDescriptor = Value<typeof PackedDescriptor.fields>;

/** `struct pvirtq_event_suppress`, 2.8.14. */
export const EventSuppress = struct('pvirtq_event_suppress', 4, {
  desc: u16(0), //  ring offset in bits 0-14, wrap counter in bit 15
  flags: u16(2), // RING_EVENT_FLAGS_*
});
export type EventSuppress = Value<typeof EventSuppress.fields>;

/** Sizes and alignment of the areas of one vring. */
export type RingLayout = {
  /** Descriptor table or packed ring. */
  readonly descBytes: number;
  /** Split: avail ring. Packed: driver event suppression. */
  readonly availBytes: number;
  /** Split: used ring. Packed: device event suppression. */
  readonly usedBytes: number;
  /** Where the areas start when one block holds them all, descriptors first. */
  readonly availAt: number;
  readonly usedAt: number;
  readonly totalBytes: number;
};

/** Demands of 2.7 "Split Virtqueues" and 2.8.10.1 on the address of each area. */
export const RING_DESC_ALIGN = 16;
export const RING_AVAIL_ALIGN = 2;
export const RING_USED_ALIGN = 4;
export const RING_EVENT_ALIGN = 4;

/**
 * Layout of a vring of `size` descriptors. `eventIdx`: whether the split rings carry the
 * `used_event` and `avail_event` words; a driver that did not negotiate them may end its memory
 * before. The used ring starts a cache line of its own: two cores write the two rings.
 */
export function ringLayout(size: number, packed: boolean, eventIdx = true): RingLayout {
  const descBytes = 16 * size;
  const availBytes = packed ? 4 : 4 + 2 * size + (eventIdx ? 2 : 0);
  const usedBytes = packed ? 4 : 4 + 8 * size + (eventIdx ? 2 : 0);
  const availAt = alignUp(descBytes, 64);
  const usedAt = alignUp(availAt + availBytes, 64);
  const totalBytes = alignUp(usedAt + usedBytes, 64);
  return { descBytes, availBytes, usedBytes, availAt, usedAt, totalBytes };
}

function alignUp(value: number, align: number): number {
  return Math.ceil(value / align) * align;
}

/**
 * Base of a packed ring that was just made, in vhost's encoding: bits 0-14 avail index, 15 its wrap
 * counter, 16-30 used index, 31 its wrap counter. Both positions 0, both wrap counters 1.
 */
export const PACKED_BASE_FRESH = 0x8000_8000;
