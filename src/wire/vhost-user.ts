/**
 * The vhost-user protocol: constants and byte layouts, as QEMU's `docs/interop/vhost-user.rst`
 * has them. Pure. What makes a message acceptable is in `vhost-user-parse.ts`; who may send it
 * when is the session's business (`src/vhost-user/`).
 *
 * "Native byte order" of the specification is little-endian here, see `struct.ts`.
 */
import { bytes, struct, u16, u32, u64, u8, type Value } from './struct.ts';

/** First bytes of every message. Section "Header". */
export const VhostUserHeader = struct('VhostUserHeader', 12, {
  request: u32(0), // a front-end or back-end request; the socket says which
  flags: u32(4), //   bits 0-1 version, always 1 | bit 2 reply | bit 3 need_reply
  size: u32(8), //    payload bytes after this header
});
export type VhostUserHeader = Value<typeof VhostUserHeader.fields>;

export const VHOST_USER_VERSION = 1;
export const VHOST_USER_VERSION_MASK = 0x3;
export const VHOST_USER_REPLY_MASK = 1 << 2;
export const VHOST_USER_NEED_REPLY_MASK = 1 << 3;
/** Every bit of `flags` that has a meaning. */
export const VHOST_USER_FLAGS_MASK = 0xf;

/** Regions of one SET_MEM_TABLE, hence also the most fds of one message. */
export const VHOST_MEMORY_BASELINE_NREGIONS = 8;
/** Bytes of configuration space that one message carries. QEMU: VHOST_USER_MAX_CONFIG_SIZE. */
export const VHOST_USER_MAX_CONFIG_SIZE = 256;
/** SET_VRING_KICK / CALL / ERR, bits 0-7: the ring. */
export const VHOST_USER_VRING_IDX_MASK = 0xffn;
/** The same, bit 8: no fd comes with this message. */
export const VHOST_USER_VRING_NOFD_MASK = 0x100n;
/** SET_VRING_ADDR, flags bit 0: log writes to the used ring. */
export const VHOST_VRING_F_LOG = 1;
/** GET_SHMEM_CONFIG: shared memory regions of one device. */
export const VHOST_USER_MAX_SHMEM_REGIONS = 256;

/** Virtio feature bits that vhost-user took for itself. */
export const VHOST_F_LOG_ALL = 26;
export const VHOST_USER_F_PROTOCOL_FEATURES = 30;

/** Protocol feature bits. Section "Protocol features"; bits 17 and up are of QEMU 8.1 and later. */
export const VHOST_USER_PROTOCOL_F_MQ = 0;
export const VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1;
export const VHOST_USER_PROTOCOL_F_RARP = 2;
export const VHOST_USER_PROTOCOL_F_REPLY_ACK = 3;
export const VHOST_USER_PROTOCOL_F_MTU = 4;
export const VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5;
export const VHOST_USER_PROTOCOL_F_CROSS_ENDIAN = 6;
export const VHOST_USER_PROTOCOL_F_CRYPTO_SESSION = 7;
export const VHOST_USER_PROTOCOL_F_PAGEFAULT = 8;
export const VHOST_USER_PROTOCOL_F_CONFIG = 9;
export const VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10;
export const VHOST_USER_PROTOCOL_F_HOST_NOTIFIER = 11;
export const VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12;
export const VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13;
export const VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS = 14;
export const VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15;
export const VHOST_USER_PROTOCOL_F_STATUS = 16;
export const VHOST_USER_PROTOCOL_F_XEN_MMAP = 17;
export const VHOST_USER_PROTOCOL_F_SHARED_OBJECT = 18;
export const VHOST_USER_PROTOCOL_F_DEVICE_STATE = 19;
export const VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT = 20;
/** Drafts of SHMEM used this bit; it is a different feature since QEMU 11.1. */
export const VHOST_USER_PROTOCOL_F_GPA_ADDRESSES = 21;
export const VHOST_USER_PROTOCOL_F_SHMEM = 22;

/** Name of each protocol feature; the index is the bit. */
export const PROTOCOL_FEATURE_NAMES = [
  'MQ',
  'LOG_SHMFD',
  'RARP',
  'REPLY_ACK',
  'MTU',
  'BACKEND_REQ',
  'CROSS_ENDIAN',
  'CRYPTO_SESSION',
  'PAGEFAULT',
  'CONFIG',
  'BACKEND_SEND_FD',
  'HOST_NOTIFIER',
  'INFLIGHT_SHMFD',
  'RESET_DEVICE',
  'INBAND_NOTIFICATIONS',
  'CONFIGURE_MEM_SLOTS',
  'STATUS',
  'XEN_MMAP',
  'SHARED_OBJECT',
  'DEVICE_STATE',
  'GET_VRING_BASE_INFLIGHT',
  'GPA_ADDRESSES',
  'SHMEM',
] as const;

/** Names of the set bits, lowest first; unknown bits as `BIT_n`. */
export function protocolFeatureNames(bits: bigint): string[] {
  const names: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    if ((bits >> BigInt(bit)) & 1n) names.push(PROTOCOL_FEATURE_NAMES[bit] ?? `BIT_${bit}`);
  }
  return names;
}

/** Front-end → back-end. Section "Front-end message types". */
export const VHOST_USER_GET_FEATURES = 1;
export const VHOST_USER_SET_FEATURES = 2;
export const VHOST_USER_SET_OWNER = 3;
export const VHOST_USER_RESET_OWNER = 4;
export const VHOST_USER_SET_MEM_TABLE = 5;
export const VHOST_USER_SET_LOG_BASE = 6;
export const VHOST_USER_SET_LOG_FD = 7;
export const VHOST_USER_SET_VRING_NUM = 8;
export const VHOST_USER_SET_VRING_ADDR = 9;
export const VHOST_USER_SET_VRING_BASE = 10;
export const VHOST_USER_GET_VRING_BASE = 11;
export const VHOST_USER_SET_VRING_KICK = 12;
export const VHOST_USER_SET_VRING_CALL = 13;
export const VHOST_USER_SET_VRING_ERR = 14;
export const VHOST_USER_GET_PROTOCOL_FEATURES = 15;
export const VHOST_USER_SET_PROTOCOL_FEATURES = 16;
export const VHOST_USER_GET_QUEUE_NUM = 17;
export const VHOST_USER_SET_VRING_ENABLE = 18;
export const VHOST_USER_SEND_RARP = 19;
export const VHOST_USER_NET_SET_MTU = 20;
export const VHOST_USER_SET_BACKEND_REQ_FD = 21;
export const VHOST_USER_IOTLB_MSG = 22;
export const VHOST_USER_SET_VRING_ENDIAN = 23;
export const VHOST_USER_GET_CONFIG = 24;
export const VHOST_USER_SET_CONFIG = 25;
export const VHOST_USER_CREATE_CRYPTO_SESSION = 26;
export const VHOST_USER_CLOSE_CRYPTO_SESSION = 27;
export const VHOST_USER_POSTCOPY_ADVISE = 28;
export const VHOST_USER_POSTCOPY_LISTEN = 29;
export const VHOST_USER_POSTCOPY_END = 30;
export const VHOST_USER_GET_INFLIGHT_FD = 31;
export const VHOST_USER_SET_INFLIGHT_FD = 32;
export const VHOST_USER_GPU_SET_SOCKET = 33;
export const VHOST_USER_RESET_DEVICE = 34;
export const VHOST_USER_VRING_KICK = 35;
export const VHOST_USER_GET_MAX_MEM_SLOTS = 36;
export const VHOST_USER_ADD_MEM_REG = 37;
export const VHOST_USER_REM_MEM_REG = 38;
export const VHOST_USER_SET_STATUS = 39;
export const VHOST_USER_GET_STATUS = 40;
export const VHOST_USER_GET_SHARED_OBJECT = 41;
export const VHOST_USER_SET_DEVICE_STATE_FD = 42;
export const VHOST_USER_CHECK_DEVICE_STATE = 43;
export const VHOST_USER_GET_SHMEM_CONFIG = 44;

/** Back-end → front-end, over the backend channel. Section "Back-end message types". */
export const VHOST_USER_BACKEND_IOTLB_MSG = 1;
export const VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2;
export const VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG = 3;
export const VHOST_USER_BACKEND_VRING_CALL = 4;
export const VHOST_USER_BACKEND_VRING_ERR = 5;
export const VHOST_USER_BACKEND_SHARED_OBJECT_ADD = 6;
export const VHOST_USER_BACKEND_SHARED_OBJECT_REMOVE = 7;
export const VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP = 8;
export const VHOST_USER_BACKEND_SHMEM_MAP = 9;
export const VHOST_USER_BACKEND_SHMEM_UNMAP = 10;

/** Payload of many messages. "A single 64-bit integer". */
export const U64Payload = struct('u64', 8, { value: u64(0) });

/** "A vring state description"; `struct vhost_vring_state`. */
export const VringState = struct('vhost_vring_state', 8, {
  index: u32(0),
  num: u32(4), // ring size, base or enable flag, as the message says
});
export type VringState = Value<typeof VringState.fields>;

/** "A vring address description"; `struct vhost_vring_addr`. */
export const VringAddr = struct('vhost_vring_addr', 40, {
  index: u32(0),
  flags: u32(4), //      bit 0: VHOST_VRING_F_LOG
  descUva: u64(8), //    16-byte aligned
  usedUva: u64(16), //   4-byte aligned; packed: device event suppression
  availUva: u64(24), //  2-byte aligned; packed: driver event suppression, 4-byte aligned
  logGpa: u64(32), //    where used-ring writes are logged
});
export type VringAddr = Value<typeof VringAddr.fields>;

/** One entry of SET_MEM_TABLE; entry n owns the n-th fd of the message. "A region is". */
export const MemoryRegion = struct('VhostUserMemoryRegion', 32, {
  guestPhysAddr: u64(0), //  GPA of the first byte
  sizeBytes: u64(8), //      zero is a protocol error
  userAddr: u64(16), //      UVA in the front-end; vring addresses use this space
  fdOffset: u64(24), //      where the region starts inside the fd
});
export type MemoryRegion = Value<typeof MemoryRegion.fields>;

/** In front of the regions. "Memory regions description". */
export const MemoryTableHeader = struct('VhostUserMemory', 8, {
  count: u32(0),
  padding: u32(4), // not looked at: the specification names no value
});

/** ADD_MEM_REG and REM_MEM_REG. "Single memory region description". */
export const SingleMemoryRegion = struct('VhostUserMemRegMsg', 40, {
  padding: u64(0),
  guestPhysAddr: u64(8),
  sizeBytes: u64(16),
  userAddr: u64(24),
  fdOffset: u64(32),
});

/** SET_LOG_BASE. "Log description". */
export const LogDescription = struct('VhostUserLog', 16, {
  sizeBytes: u64(0),
  fdOffset: u64(8),
});

/** "An IOTLB message"; `struct vhost_iotlb_msg`, which C pads to 32 bytes. */
export const IotlbMessage = struct('vhost_iotlb_msg', 32, {
  iova: u64(0),
  sizeBytes: u64(8),
  userAddr: u64(16),
  permissions: u8(24), // 0 none, 1 read, 2 write, 3 both
  type: u8(25), //        1 miss, 2 update, 3 invalidate, 4 access fail
  padding: bytes(26, 6),
});

/** In front of the configuration bytes. "Virtio device config space". */
export const ConfigHeader = struct('VhostUserConfig', 12, {
  offset: u32(0),
  sizeBytes: u32(4),
  flags: u32(8), // CONFIG_WRITABLE or CONFIG_MIGRATION
});

/** Flags of SET_CONFIG: the driver wrote a field / the state of a migrated device. */
export const CONFIG_WRITABLE = 0;
export const CONFIG_MIGRATION = 1;

/** VRING_HOST_NOTIFIER_MSG. "Vring area description". */
export const VringArea = struct('VhostUserVringArea', 24, {
  indexAndFlags: u64(0), // bits 0-7 ring, bit 8 no fd
  sizeBytes: u64(8),
  fdOffset: u64(16),
});

/** GET_INFLIGHT_FD and SET_INFLIGHT_FD. "Inflight description"; C pads it from 20 to 24 bytes. */
export const InflightDescription = struct('VhostUserInflight', 24, {
  mapBytes: u64(0),
  fdOffset: u64(8),
  queueCount: u16(16),
  queueSize: u16(18),
  padding: u32(20),
});
export type InflightDescription = Value<typeof InflightDescription.fields>;

/** Shared object messages. "VhostUserShared". */
export const SharedObject = struct('VhostUserShared', 16, {
  uuid: bytes(0, 16), // RFC 4122 order: the first three fields are big-endian
});

/** SET_DEVICE_STATE_FD. "Device state transfer parameters". */
export const DeviceStateTransfer = struct('VhostUserTransferDeviceState', 8, {
  direction: u32(0), // 0 save, 1 load
  phase: u32(4), //     0 stopped
});

/** In front of 256 sizes in the reply to GET_SHMEM_CONFIG. "VIRTIO Shared Memory Region". */
export const ShmemConfigHeader = struct('VhostUserShMemConfig', 8, {
  count: u32(0),
  padding: u32(4),
});

/** SHMEM_MAP and SHMEM_UNMAP. "VhostUserMMap". */
export const ShmemMap = struct('VhostUserMMap', 40, {
  shmId: u8(0),
  padding: bytes(1, 7),
  fdOffset: u64(8),
  shmOffset: u64(16),
  sizeBytes: u64(24),
  flags: u64(32), // bit 0: writable
});
