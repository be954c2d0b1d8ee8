/**
 * Syntax of vhost-user payloads: sizes, reserved bits, ranges and overflow. What a rule returns
 * needs no further look at its syntax; whether it is allowed *now* is the session's question.
 *
 * Codes: ERR_VRING_MESSAGE_SIZE for a wrong payload size, ERR_VRING_MESSAGE_VALUE for a field.
 */
import { ProtocolError } from '../base/errors.ts';
import { MAX_RING_SIZE } from '../base/limits.ts';
import {
  CONFIG_MIGRATION,
  ConfigHeader,
  MemoryRegion,
  MemoryTableHeader,
  SingleMemoryRegion,
  U64Payload,
  VHOST_MEMORY_BASELINE_NREGIONS,
  VHOST_USER_MAX_CONFIG_SIZE,
  VHOST_USER_VRING_IDX_MASK,
  VHOST_USER_VRING_NOFD_MASK,
  VHOST_VRING_F_LOG,
  VringAddr,
  VringState,
} from './vhost-user.ts';

/** How the payload of one message looks. */
export type PayloadRule<T> = {
  /** For error messages: "one u64". */
  readonly shape: string;
  readonly minBytes: number;
  readonly maxBytes: number;
  /** The value; `payload` has between minBytes and maxBytes. @throws ProtocolError */
  parse(request: string, payload: Uint8Array): T;
  /** How many fds this value demands, where the table's range does not say it all. */
  fdCount?(value: T): number;
};

/** Addresses and offsets are plain numbers in the data plane; they must end at or below this. */
export const MAX_ADDRESS = 2n ** 53n;

function bad(request: string, field: string, problem: string): never {
  throw new ProtocolError('ERR_VRING_MESSAGE_VALUE', request, field, problem);
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}

/** @throws ProtocolError ERR_VRING_MESSAGE_SIZE, field `size`. */
export function parsePayload<T>(rule: PayloadRule<T>, request: string, payload: Uint8Array): T {
  const { length } = payload;
  if (length < rule.minBytes || length > rule.maxBytes) {
    const due =
      rule.minBytes === rule.maxBytes ? `${rule.minBytes}` : `${rule.minBytes} to ${rule.maxBytes}`;
    const problem = `${length} bytes of payload, expected ${due} (${rule.shape})`;
    throw new ProtocolError('ERR_VRING_MESSAGE_SIZE', request, 'size', problem);
  }
  return rule.parse(request, payload);
}

function exactly<T>(
  shape: string,
  size: number,
  parse: (request: string, payload: Uint8Array) => T,
): PayloadRule<T> {
  return { shape, minBytes: size, maxBytes: size, parse };
}

/** No payload at all. */
export const noPayload = exactly('nothing', 0, () => null);

/** A payload that nobody here reads yet. */
export function opaquePayload(
  shape: string,
  minBytes: number,
  maxBytes = minBytes,
): PayloadRule<Uint8Array> {
  return { shape, minBytes, maxBytes, parse: (_request, payload) => payload };
}

export const u64Payload = exactly(
  'one u64',
  U64Payload.size,
  (_request, payload) => U64Payload.decode(payload).value,
);

/** NET_SET_MTU: bytes of IP in one frame. The lower bound is IPv4's, RFC 791. */
export const mtuPayload = exactly('u64 MTU', U64Payload.size, (request, payload) => {
  const { value } = U64Payload.decode(payload);
  if (value < 68n || value > 65535n) bad(request, 'mtu', `${value}, expected 68 to 65535`);
  return Number(value);
});

/** SET_STATUS: the virtio device status is one byte (virtio 1.2, 2.1). */
export const statusPayload = exactly('u64 status', U64Payload.size, (request, payload) => {
  const { value } = U64Payload.decode(payload);
  if (value > 0xffn) bad(request, 'status', `${hex(value)}, expected at most 0xff`);
  return Number(value);
});

/** Ring index and a number that the message gives a meaning. */
export const vringStatePayload = exactly('u32 index, u32 num', VringState.size, (_request, p) =>
  VringState.decode(p),
);

/** SET_VRING_NUM. That a split ring's size is a power of two is checked when it starts. */
export const vringNumPayload = exactly('u32 index, u32 num', VringState.size, (request, p) => {
  const state = VringState.decode(p);
  if (state.num < 1 || state.num > MAX_RING_SIZE) {
    bad(request, 'num', `ring size ${state.num}, expected 1 to ${MAX_RING_SIZE}`);
  }
  return state;
});

/** SET_VRING_ENABLE. */
export const vringEnablePayload = exactly('u32 index, u32 num', VringState.size, (request, p) => {
  const { index, num } = VringState.decode(p);
  if (num > 1) bad(request, 'num', `${num}, expected 0 (disable) or 1 (enable)`);
  return { index, enabled: num === 1 };
});

/** SET_VRING_ADDR. Alignment depends on the ring's format: checked when the ring starts. */
export const vringAddrPayload = exactly('struct vhost_vring_addr', VringAddr.size, (request, p) => {
  const addr = VringAddr.decode(p);
  if (addr.flags & ~VHOST_VRING_F_LOG) {
    bad(
      request,
      'flags',
      `0x${addr.flags.toString(16)}, only bit 0 (VHOST_VRING_F_LOG) is defined`,
    );
  }
  for (const [name, uva] of [
    ['desc_user_addr', addr.descUva],
    ['used_user_addr', addr.usedUva],
    ['avail_user_addr', addr.availUva],
  ] as const) {
    if (uva >= MAX_ADDRESS) bad(request, name, `${hex(uva)}, expected an address below 2^53`);
  }
  return addr;
});

/** A ring's index and whether an fd comes with it. */
export type VringFd = { readonly index: number; readonly hasFd: boolean };

/** SET_VRING_KICK, CALL and ERR. */
export const vringFdPayload: PayloadRule<VringFd> = {
  ...exactly('u64 index and no-fd bit', U64Payload.size, (request, payload) => {
    const { value } = U64Payload.decode(payload);
    const reserved = value & ~(VHOST_USER_VRING_IDX_MASK | VHOST_USER_VRING_NOFD_MASK);
    if (reserved !== 0n) {
      bad(request, 'u64', `${hex(value)} has reserved bits set, expected bits 0-8 only`);
    }
    return {
      index: Number(value & VHOST_USER_VRING_IDX_MASK),
      hasFd: (value & VHOST_USER_VRING_NOFD_MASK) === 0n,
    };
  }),
  fdCount: (value) => (value.hasFd ? 1 : 0),
};

/** @throws ProtocolError naming `regions[1].memory_size` and so on, as the specification does. */
function checkRegion(request: string, field: string, region: MemoryRegion): MemoryRegion {
  const { sizeBytes } = region;
  if (sizeBytes === 0n) bad(request, `${field}.memory_size`, '0, expected at least one byte');
  for (const [name, start] of [
    ['guest_phys_addr', region.guestPhysAddr],
    ['userspace_addr', region.userAddr],
    ['mmap_offset', region.fdOffset],
  ] as const) {
    if (start + sizeBytes <= MAX_ADDRESS) continue;
    const range = `${hex(start)} + memory_size ${hex(sizeBytes)}`;
    bad(request, `${field}.${name}`, `${range} ends above 2^53`);
  }
  return region;
}

/** SET_MEM_TABLE: 1 to 8 regions, and the size that belongs to their number. */
export const memoryTablePayload: PayloadRule<readonly MemoryRegion[]> = {
  shape: 'u32 count, u32 padding, 32 bytes for each region',
  minBytes: MemoryTableHeader.size,
  maxBytes: MemoryTableHeader.size + VHOST_MEMORY_BASELINE_NREGIONS * MemoryRegion.size,
  parse(request, payload) {
    const { count } = MemoryTableHeader.decode(payload);
    if (count < 1 || count > VHOST_MEMORY_BASELINE_NREGIONS) {
      bad(request, 'count', `${count} regions, expected 1 to ${VHOST_MEMORY_BASELINE_NREGIONS}`);
    }
    const due = MemoryTableHeader.size + count * MemoryRegion.size;
    if (payload.length !== due) {
      const problem = `${payload.length} bytes of payload, expected ${due} for ${count} regions`;
      throw new ProtocolError('ERR_VRING_MESSAGE_SIZE', request, 'size', problem);
    }
    return Array.from({ length: count }, (_, i) => {
      const at = MemoryTableHeader.size + i * MemoryRegion.size;
      return checkRegion(request, `regions[${i}]`, MemoryRegion.decode(payload, at));
    });
  },
  fdCount: (regions) => regions.length,
};

/** ADD_MEM_REG and REM_MEM_REG. */
export const memoryRegionPayload = exactly(
  'u64 padding, one region',
  SingleMemoryRegion.size,
  (request, payload): MemoryRegion => {
    const { padding: _padding, ...region } = SingleMemoryRegion.decode(payload);
    return checkRegion(request, 'region', region);
  },
);

export type ConfigAccess = {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly flags: number;
  readonly data: Uint8Array;
};

/** GET_CONFIG and SET_CONFIG: the bytes follow the header in both directions. */
export const configPayload: PayloadRule<ConfigAccess> = {
  shape: 'u32 offset, size, flags, then size bytes',
  minBytes: ConfigHeader.size,
  maxBytes: ConfigHeader.size + VHOST_USER_MAX_CONFIG_SIZE,
  parse(request, payload) {
    const header = ConfigHeader.decode(payload);
    const data = payload.subarray(ConfigHeader.size);
    if (header.sizeBytes !== data.length) {
      const problem = `config.size says ${header.sizeBytes}, ${data.length} bytes follow it`;
      throw new ProtocolError('ERR_VRING_MESSAGE_SIZE', request, 'size', problem);
    }
    if (header.sizeBytes === 0) bad(request, 'config.size', '0, expected at least one byte');
    if (header.offset + header.sizeBytes > VHOST_USER_MAX_CONFIG_SIZE) {
      const end = header.offset + header.sizeBytes;
      bad(request, 'config.offset', `access ends at ${end}, the space has at most 256 bytes`);
    }
    if (header.flags > CONFIG_MIGRATION) {
      bad(request, 'config.flags', `${header.flags}, expected 0 (writable) or 1 (migration)`);
    }
    return { ...header, data };
  },
};
