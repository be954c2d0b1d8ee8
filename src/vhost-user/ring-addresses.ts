/**
 * From the addresses of SET_VRING_ADDR to arena offsets: alignment and the full extent of each
 * area are checked before anything reads the ring. Virtio 1.2, 2.7 (split) and 2.8 (packed).
 */
import { ProtocolError } from '../base/errors.ts';
import type { AddressMap } from '../memory/address-map.ts';
import { translate } from '../memory/index.ts';
import type { VringAddr } from '../wire/vhost-user.ts';

/** Feature bits that decide the format; spelled here, they are the driver's and ring's. */
const VIRTIO_RING_F_EVENT_IDX = 1n << 29n;
const VIRTIO_F_RING_PACKED = 1n << 34n;

const REQUEST = 'VHOST_USER_SET_VRING_ADDR';

export type RingOffsets = { descOffset: number; availOffset: number; usedOffset: number };

export type RingArea = {
  readonly field: 'descUva' | 'availUva' | 'usedUva';
  /** In `struct vhost_vring_addr`. */
  readonly name: string;
  readonly align: number;
  readonly bytes: number;
  /** What the device does with it: bit 0 reads, bit 1 writes. */
  readonly permissions: number;
};

const READ = 1;
const WRITE = 2;

function area(
  field: RingArea['field'],
  align: number,
  bytes: number,
  permissions: number,
): RingArea {
  return { field, name: field.replace('Uva', '_user_addr'), align, bytes, permissions };
}

export function isPacked(features: bigint): boolean {
  return (features & VIRTIO_F_RING_PACKED) !== 0n;
}

/** What each area of a ring occupies and how it is aligned. */
export function ringAreas(size: number, features: bigint): readonly RingArea[] {
  if (isPacked(features)) {
    return [
      area('descUva', 16, 16 * size, READ | WRITE),
      area('availUva', 4, 4, READ),
      area('usedUva', 4, 4, WRITE),
    ];
  }
  const event = (features & VIRTIO_RING_F_EVENT_IDX) !== 0n ? 2 : 0;
  return [
    area('descUva', 16, 16 * size, READ),
    area('availUva', 2, 4 + 2 * size + event, READ),
    area('usedUva', 4, 4 + 8 * size + event, WRITE),
  ];
}

/** From an address of SET_VRING_ADDR to the arena; -1: not all of the range is there. */
export type RingLookup = (address: number, lenBytes: number, permissions: number) => number;

/** User addresses, or guest-physical ones with GPA_ADDRESSES. */
export function memoryLookup(map: AddressMap): RingLookup {
  return (address, lenBytes) => translate(map, address, lenBytes);
}

/**
 * @throws ProtocolError ERR_VRING_RING_ALIGNMENT or ERR_VRING_RING_ADDRESS, field
 *   `vrings[n].descUva` and so on.
 */
export function translateRing(
  index: number,
  addr: VringAddr,
  size: number,
  features: bigint,
  lookup: RingLookup,
): RingOffsets {
  const offsets = ringAreas(size, features).map((each) => {
    const { field, name: areaName, align, bytes } = each;
    const name = `vrings[${index}].${areaName}`;
    const uva = Number(addr[field]); // below 2^53, checked when it was parsed
    const text = `0x${uva.toString(16)}`;
    if (uva % align !== 0) {
      const problem = `${text} is not a multiple of ${align}`;
      throw new ProtocolError('ERR_VRING_RING_ALIGNMENT', REQUEST, name, problem);
    }
    const offset = lookup(uva, bytes, each.permissions);
    if (offset < 0) {
      const problem =
        `${text} + ${bytes} bytes of a ring of ${size} is not in shared memory; ` +
        'send the memory table before the ring, and user addresses (UVA), ' +
        'or guest-physical ones with GPA_ADDRESSES';
      throw new ProtocolError('ERR_VRING_RING_ADDRESS', REQUEST, name, problem);
    }
    // A region may begin at any user address: what is aligned there need not be aligned here.
    if (offset % align !== 0) {
      const problem = `${text} is not at a multiple of ${align} in its region`;
      throw new ProtocolError('ERR_VRING_RING_ALIGNMENT', REQUEST, name, problem);
    }
    return offset;
  });
  return { descOffset: offsets[0]!, availOffset: offsets[1]!, usedOffset: offsets[2]! };
}

/**
 * The size and base of a ring, which only mean something together with its format.
 * @throws ProtocolError ERR_VRING_RING_SIZE or ERR_VRING_RING_BASE.
 */
export function checkSizeAndBase(
  index: number,
  size: number,
  base: number,
  features: bigint,
): void {
  if (isPacked(features)) {
    // Bits 0-14 and 16-30 are positions in the ring, 15 and 31 their wrap counters.
    const avail = base & 0x7fff;
    const used = (base >>> 16) & 0x7fff;
    if (avail < size && used < size) return;
    const text = `0x${base.toString(16)}`;
    const problem = `${text} has positions ${avail} and ${used}, the ring's size is ${size}`;
    throw new ProtocolError(
      'ERR_VRING_RING_BASE',
      'VHOST_USER_SET_VRING_BASE',
      `vrings[${index}].num`,
      problem,
    );
  }
  if ((size & (size - 1)) !== 0) {
    const problem = `${size}, expected a power of two for a split ring`;
    const field = `vrings[${index}].num`;
    throw new ProtocolError('ERR_VRING_RING_SIZE', 'VHOST_USER_SET_VRING_NUM', field, problem);
  }
  if (base > 0xffff) {
    const problem = `${base}, expected at most 65535 for a split ring`;
    const field = `vrings[${index}].num`;
    throw new ProtocolError('ERR_VRING_RING_BASE', 'VHOST_USER_SET_VRING_BASE', field, problem);
  }
}
