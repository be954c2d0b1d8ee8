/**
 * The memory in which a back-end notes what it has taken and not yet used, so that a successor can
 * go on. Specification, "Inflight I/O tracking". One queue region per vring, at multiples of
 * INFLIGHT_ALIGN; a region is a head and one entry per descriptor.
 */

/** Regions of two vrings never share a cache line; the specification leaves the distance open. */
export const INFLIGHT_ALIGN = 64;

/** `version` of a region that is in use; 0 is fresh memory. */
export const INFLIGHT_VERSION = 1;

// Both formats.
export const INFLIGHT_FEATURES = 0; // u64, always 0
export const INFLIGHT_VERSION_AT = 8; // u16
export const INFLIGHT_DESC_NUM = 10; //  u16, the ring's size

// QueueRegionSplit
export const INFLIGHT_SPLIT_LAST_BATCH_HEAD = 12; // u16
export const INFLIGHT_SPLIT_USED_IDX = 14; //        u16
export const INFLIGHT_SPLIT_DESC = 16;
export const INFLIGHT_SPLIT_ENTRY_BYTES = 16;
// DescStateSplit
export const INFLIGHT_SPLIT_INFLIGHT = 0; // u8
export const INFLIGHT_SPLIT_NEXT = 6; //     u16
export const INFLIGHT_SPLIT_COUNTER = 8; //  u64

// QueueRegionPacked
export const INFLIGHT_PACKED_FREE_HEAD = 12; //     u16
export const INFLIGHT_PACKED_OLD_FREE_HEAD = 14; // u16
export const INFLIGHT_PACKED_USED_IDX = 16; //      u16
export const INFLIGHT_PACKED_OLD_USED_IDX = 18; //  u16
export const INFLIGHT_PACKED_USED_WRAP = 20; //     u8
export const INFLIGHT_PACKED_OLD_USED_WRAP = 21; // u8
export const INFLIGHT_PACKED_DESC = 32;
export const INFLIGHT_PACKED_ENTRY_BYTES = 32;
// DescStatePacked
export const INFLIGHT_PACKED_INFLIGHT = 0; // u8
export const INFLIGHT_PACKED_NEXT = 2; //     u16
export const INFLIGHT_PACKED_LAST = 4; //     u16
export const INFLIGHT_PACKED_NUM = 6; //      u16
export const INFLIGHT_PACKED_COUNTER = 8; //  u64
export const INFLIGHT_PACKED_ID = 16; //      u16
export const INFLIGHT_PACKED_FLAGS = 18; //   u16
export const INFLIGHT_PACKED_LEN = 20; //     u32
export const INFLIGHT_PACKED_ADDR = 24; //    u64

/** Bytes of one vring's region, and the distance of two: a multiple of INFLIGHT_ALIGN. */
export function inflightQueueBytes(queueSize: number, packed: boolean): number {
  const bytes = packed
    ? INFLIGHT_PACKED_DESC + INFLIGHT_PACKED_ENTRY_BYTES * queueSize
    : INFLIGHT_SPLIT_DESC + INFLIGHT_SPLIT_ENTRY_BYTES * queueSize;
  return Math.ceil(bytes / INFLIGHT_ALIGN) * INFLIGHT_ALIGN;
}
