/**
 * The ways a driver can break a virtqueue. Hot functions return these negative codes; the caller
 * marks the queue broken, counts the fault by name and serves the other queues. Nothing throws.
 */
export const FAULT_AVAIL_IDX = -1; //       split: avail.idx is further ahead than the ring is long
export const FAULT_HEAD = -2; //            split: a head is not a descriptor of this ring
export const FAULT_DESC_ADDRESS = -3; //    a descriptor points outside the memory table
export const FAULT_DESC_NEXT = -4; //       `next` is not a descriptor of its table
export const FAULT_CHAIN_TOO_LONG = -5; //  longer than the ring, or than MAX_CHAIN_DESCRIPTORS
export const FAULT_CHAIN_LOOP = -6; //      split: more descriptors than its table has
export const FAULT_INDIRECT_NESTED = -7; // an indirect table inside an indirect table
export const FAULT_INDIRECT_LENGTH = -8; // zero, no multiple of 16, or over 2^16 entries
export const FAULT_INDIRECT_NEXT = -9; //   INDIRECT and NEXT in one descriptor; packed: in one list
export const FAULT_INDIRECT_FEATURE = -10; // INDIRECT without VIRTIO_F_INDIRECT_DESC
export const FAULT_DESC_ORDER = -11; //     a readable descriptor behind a writable one
export const FAULT_DESC_LENGTH = -12; //    2^31 bytes or more in one direction of a chain
export const FAULT_BUFFER_ID = -13; //      packed: the id of a chain is not below the ring size
export const FAULT_CHAIN_DIRECTION = -14; // device-level: writable for readable, or reverse
export const FAULT_CHAIN_SHORT = -15; //    device-level: too short for the device's header
export const FAULT_MEMORY_GONE = -16; //    the memory under the queue was truncated by its owner
export const FAULT_DEVICE_HEADER = -17; //  device-level: a header contradicts frame or features

// The other direction: ways a device can break a virtqueue, seen by our driver side.
export const FAULT_USED_IDX = -18; //     split: used.idx says that more came back than is out
export const FAULT_USED_ID = -19; //      no id of this ring, or not outstanding
export const FAULT_USED_LENGTH = -20; //  more bytes written than the chain has room for
export const FAULT_USED_ORDER = -21; //   IN_ORDER: a used entry covers more than was published

/** The front-end's call eventfd blocks those who signal it: see `watchThread`. */
export const FAULT_NOTIFY_BLOCKED = -22;

/** Name of each fault, for counters, events and the API; index is the negated code. */
export const FAULT_NAMES = [
  'NONE',
  'AVAIL_IDX',
  'HEAD',
  'DESC_ADDRESS',
  'DESC_NEXT',
  'CHAIN_TOO_LONG',
  'CHAIN_LOOP',
  'INDIRECT_NESTED',
  'INDIRECT_LENGTH',
  'INDIRECT_NEXT',
  'INDIRECT_FEATURE',
  'DESC_ORDER',
  'DESC_LENGTH',
  'BUFFER_ID',
  'CHAIN_DIRECTION',
  'CHAIN_SHORT',
  'MEMORY_GONE',
  'DEVICE_HEADER',
  'USED_IDX',
  'USED_ID',
  'USED_LENGTH',
  'USED_ORDER',
  'NOTIFY_BLOCKED',
] as const;

export function faultName(code: number): string {
  return FAULT_NAMES[-code] ?? `UNKNOWN_${code}`;
}
