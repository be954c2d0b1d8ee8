/**
 * Syntax of vhost-user payloads: sizes, reserved bits, ranges and overflow. What a rule returns
 * needs no further look at its syntax; whether it is allowed *now* is the session's question.
 *
 * Codes: ERR_VRING_MESSAGE_SIZE for a wrong payload size, ERR_VRING_MESSAGE_VALUE for a field.
 */
import { ProtocolError } from '../base/errors.ts';
import { MAX_RING_SIZE } from '../base/limits.ts';
import type { AnyStruct } from './struct.ts';
import {
  CONFIG_MIGRATION,
  ConfigHeader,
  DeviceStateTransfer,
  InflightDescription,
  IotlbMessage,
  LogDescription,
  MemoryRegion,
  MemoryTableHeader,
  SharedObject,
  ShmemConfigHeader,
  ShmemMap,
  SingleMemoryRegion,
  U64Payload,
  VHOST_MEMORY_BASELINE_NREGIONS,
  VHOST_USER_MAX_CONFIG_SIZE,
  VHOST_USER_MAX_SHMEM_REGIONS,
  VHOST_USER_VRING_IDX_MASK,
  VHOST_USER_VRING_NOFD_MASK,
  VHOST_VRING_F_LOG,
  VringAddr,
  VringArea,
  VringState,
} from './vhost-user.ts';

/** How the payload of one message looks. */
export type PayloadRule<T> = {
  /** For error messages: "one u64". */
  readonly shape: string;
  /** Field by field, for whoever shows, generates or mutates payloads. */
  readonly layout: PayloadLayout;
  readonly minBytes: number;
  readonly maxBytes: number;
  /** The value; `payload` has between minBytes and maxBytes. @throws ProtocolError */
  parse(request: string, payload: Uint8Array): T;
  /** How many fds this value demands, where the table's range does not say it all. */
  fdCount?(value: T): number;
};

/** What a payload consists of, in this order; absent parts are not there. */
export type PayloadLayout = {
  readonly head?: AnyStruct;
  /** Repeated as often as the payload has room. */
  readonly each?: AnyStruct;
  /** Bytes whose meaning is the device's: what they are. */
  readonly tail?: string;
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

/** A payload that is one struct and nothing else. */
function exactly<T>(
  shape: string,
  head: AnyStruct,
  parse: (request: string, payload: Uint8Array) => T,
): PayloadRule<T> {
  return { shape, layout: { head }, minBytes: head.size, maxBytes: head.size, parse };
}

/** No payload at all. */
export const noPayload: PayloadRule<null> = {
  shape: 'nothing',
  layout: {},
  minBytes: 0,
  maxBytes: 0,
  parse: () => null,
};

/** Messages that carry an fd and nothing else; QEMU and libvhost-user pad some with a u64. */
export const paddedFdPayload: PayloadRule<null> = { ...noPayload, maxBytes: U64Payload.size };

export const u64Payload = exactly(
  'one u64',
  U64Payload,
  (_request, payload) => U64Payload.decode(payload).value,
);

/** NET_SET_MTU: bytes of IP in one frame. The lower bound is IPv4's, RFC 791. */
export const mtuPayload = exactly('u64 MTU', U64Payload, (request, payload) => {
  const { value } = U64Payload.decode(payload);
  if (value < 68n || value > 65535n) bad(request, 'mtu', `${value}, expected 68 to 65535`);
  return Number(value);
});

/** SET_STATUS: the virtio device status is one byte (virtio 1.2, 2.1). */
export const statusPayload = exactly('u64 status', U64Payload, (request, payload) => {
  const { value } = U64Payload.decode(payload);
  if (value > 0xffn) bad(request, 'status', `${hex(value)}, expected at most 0xff`);
  return Number(value);
});

/** Ring index and a number that the message gives a meaning. */
export const vringStatePayload = exactly('u32 index, u32 num', VringState, (_request, p) =>
  VringState.decode(p),
);

/** SET_VRING_NUM. That a split ring's size is a power of two is checked when it starts. */
export const vringNumPayload = exactly('u32 index, u32 num', VringState, (request, p) => {
  const state = VringState.decode(p);
  if (state.num < 1 || state.num > MAX_RING_SIZE) {
    bad(request, 'num', `ring size ${state.num}, expected 1 to ${MAX_RING_SIZE}`);
  }
  return state;
});

/** SET_VRING_ENABLE. */
export const vringEnablePayload = exactly('u32 index, u32 num', VringState, (request, p) => {
  const { index, num } = VringState.decode(p);
  if (num > 1) bad(request, 'num', `${num}, expected 0 (disable) or 1 (enable)`);
  return { index, enabled: num === 1 };
});

/** SET_VRING_ADDR. Alignment depends on the ring's format: checked when the ring starts. */
export const vringAddrPayload = exactly('struct vhost_vring_addr', VringAddr, (request, p) => {
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
  ...exactly('u64 index and no-fd bit', U64Payload, (request, payload) => {
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
  layout: { head: MemoryTableHeader, each: MemoryRegion },
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
  SingleMemoryRegion,
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
  layout: { head: ConfigHeader, tail: 'configuration bytes' },
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

/** SET_LOG_BASE: where the log of dirty pages is in its fd. One bit is 4096 bytes of guest. */
export const logPayload = exactly('u64 size, u64 offset', LogDescription, (request, payload) => {
  const log = LogDescription.decode(payload);
  if (log.sizeBytes === 0n) bad(request, 'log.size', '0, expected at least one byte');
  if (log.fdOffset + log.sizeBytes > MAX_ADDRESS) {
    bad(request, 'log.offset', `${hex(log.fdOffset)} + ${hex(log.sizeBytes)} ends above 2^53`);
  }
  return log;
});

export const IOTLB_MISS = 1;
export const IOTLB_UPDATE = 2;
export const IOTLB_INVALIDATE = 3;
export const IOTLB_ACCESS_FAIL = 4;
export const IOTLB_ACCESS_RO = 1;
export const IOTLB_ACCESS_WO = 2;
export const IOTLB_ACCESS_RW = 3;

/** IOTLB_MSG in both directions. Invalidations may cover the whole space: size is not limited. */
export const iotlbPayload = exactly('struct vhost_iotlb_msg', IotlbMessage, (request, payload) => {
  const { padding: _padding, ...message } = IotlbMessage.decode(payload);
  if (message.type < IOTLB_MISS || message.type > IOTLB_ACCESS_FAIL) {
    bad(request, 'iotlb.type', `${message.type}, expected 1 (miss) to 4 (access fail)`);
  }
  // QEMU 7.2 leaves in an invalidation whatever its stack had there.
  if (message.type !== IOTLB_INVALIDATE && message.permissions > IOTLB_ACCESS_RW) {
    bad(request, 'iotlb.perm', `${message.permissions}, expected 0 to 3`);
  }
  if (message.type === IOTLB_UPDATE) {
    if (message.sizeBytes === 0n) bad(request, 'iotlb.size', '0, expected at least one byte');
    for (const [name, start] of [
      ['iotlb.iova', message.iova],
      ['iotlb.uaddr', message.userAddr],
    ] as const) {
      if (start + message.sizeBytes <= MAX_ADDRESS) continue;
      bad(request, name, `${hex(start)} + ${hex(message.sizeBytes)} ends above 2^53`);
    }
  }
  return message;
});
/** Without the padding. */
export type IotlbEvent = ReturnType<typeof iotlbPayload.parse>;

/** GET_INFLIGHT_FD and SET_INFLIGHT_FD; C pads the 20 bytes to 24, and both are seen. */
export const inflightPayload: PayloadRule<InflightDescription> = {
  shape: 'u64 mmap size, u64 mmap offset, u16 queues, u16 queue size',
  layout: { head: InflightDescription },
  minBytes: InflightDescription.size - 4,
  maxBytes: InflightDescription.size,
  parse(request, payload) {
    const padded = new Uint8Array(InflightDescription.size);
    padded.set(payload);
    const value = InflightDescription.decode(padded);
    if (value.queueSize > MAX_RING_SIZE) {
      bad(request, 'queue size', `${value.queueSize}, expected at most ${MAX_RING_SIZE}`);
    }
    if (value.fdOffset + value.mapBytes > MAX_ADDRESS) {
      bad(request, 'mmap offset', `${hex(value.fdOffset)} + ${hex(value.mapBytes)}: above 2^53`);
    }
    return value;
  },
};

/** SET_VRING_ENDIAN: 0 little-endian, 1 big-endian. */
export const vringEndianPayload = exactly('u32 index, u32 num', VringState, (request, p) => {
  const { index, num } = VringState.decode(p);
  if (num > 1) bad(request, 'num', `${num}, expected 0 (little-endian) or 1 (big-endian)`);
  return { index, bigEndian: num === 1 };
});

/** VRING_KICK, BACKEND_VRING_CALL and BACKEND_VRING_ERR: the number is reserved. */
export const vringSignalPayload = exactly('u32 index, u32 zero', VringState, (request, p) => {
  const { index, num } = VringState.decode(p);
  if (num !== 0) bad(request, 'num', `${num}, expected 0 (reserved)`);
  return index;
});

/** Six bytes of a MAC address, then two that mean nothing. */
export const macPayload = exactly('u64 with a MAC address', U64Payload, (_request, payload) =>
  payload.slice(0, 6),
);

/** Shared objects are named by a UUID. */
export const uuidPayload = exactly(
  '16 bytes of UUID',
  SharedObject,
  (_request, payload) => SharedObject.decode(payload).uuid,
);

export const DEVICE_STATE_SAVE = 0;
export const DEVICE_STATE_LOAD = 1;

/** SET_DEVICE_STATE_FD. Phase 0, all vrings stopped, is the only one that exists. */
export const deviceStatePayload = exactly(
  'u32 direction, u32 phase',
  DeviceStateTransfer,
  (request, payload) => {
    const value = DeviceStateTransfer.decode(payload);
    if (value.direction > DEVICE_STATE_LOAD) {
      bad(request, 'direction', `${value.direction}, expected 0 (save) or 1 (load)`);
    }
    if (value.phase !== 0) bad(request, 'phase', `${value.phase}, expected 0 (stopped)`);
    return { direction: value.direction };
  },
);

/** BACKEND_VRING_HOST_NOTIFIER_MSG. */
export const vringAreaPayload: PayloadRule<{
  index: number;
  hasFd: boolean;
  sizeBytes: bigint;
  fdOffset: bigint;
}> = {
  ...exactly('u64 index and no-fd bit, u64 size, u64 offset', VringArea, (_request, payload) => {
    const { indexAndFlags, sizeBytes, fdOffset } = VringArea.decode(payload);
    return {
      index: Number(indexAndFlags & VHOST_USER_VRING_IDX_MASK),
      hasFd: (indexAndFlags & VHOST_USER_VRING_NOFD_MASK) === 0n,
      sizeBytes,
      fdOffset,
    };
  }),
  fdCount: (value) => (value.hasFd ? 1 : 0),
};

/** BACKEND_SHMEM_MAP and BACKEND_SHMEM_UNMAP. */
export const shmemPayload = exactly('VhostUserMMap', ShmemMap, (request, payload) => {
  const { padding: _padding, ...map } = ShmemMap.decode(payload);
  if (map.sizeBytes === 0n) bad(request, 'len', '0, expected at least one byte');
  for (const [name, start] of [
    ['fd_offset', map.fdOffset],
    ['shm_offset', map.shmOffset],
  ] as const) {
    if (start + map.sizeBytes <= MAX_ADDRESS) continue;
    bad(request, name, `${hex(start)} + ${hex(map.sizeBytes)} ends above 2^53`);
  }
  return map;
});
export type ShmemMapping = ReturnType<typeof shmemPayload.parse>;

/** Reply to GET_SHMEM_CONFIG: how many regions, then the size of each of the 256 ids. */
export const shmemConfigPayload: PayloadRule<{ count: number; sizes: bigint[] }> = {
  shape: 'u32 count, u32 padding, 256 u64 sizes',
  layout: { head: ShmemConfigHeader, each: U64Payload },
  minBytes: ShmemConfigHeader.size + 8 * VHOST_USER_MAX_SHMEM_REGIONS,
  maxBytes: ShmemConfigHeader.size + 8 * VHOST_USER_MAX_SHMEM_REGIONS,
  parse(_request, payload) {
    const sizes = Array.from({ length: VHOST_USER_MAX_SHMEM_REGIONS }, (_, i) => {
      return U64Payload.decode(payload, ShmemConfigHeader.size + 8 * i).value;
    });
    return { count: ShmemConfigHeader.decode(payload).count, sizes };
  },
};

/**
 * CREATE_CRYPTO_SESSION: the specification names a "crypto session description" and shows no
 * layout; QEMU sends its own structs. The bytes are the device's.
 */
export const cryptoSessionPayload: PayloadRule<Uint8Array> = {
  shape: 'crypto session description',
  layout: { tail: 'crypto session description' },
  minBytes: 8,
  maxBytes: 2048,
  parse: (_request, payload) => payload.slice(),
};
