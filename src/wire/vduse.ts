/**
 * VDUSE, vDPA devices in user space: ioctls of /dev/vduse/control and /dev/vduse/NAME, and what is
 * read from and written to the latter. linux/vduse.h; what is younger than Linux 6.1 is marked.
 */
import { io, type Ioctl, ior, iow, iowr } from './ioctl.ts';
import { bytes, struct, u16, u32, u64, u8 } from './struct.ts';

const VDUSE_BASE = 0x81;
const U32 = 4;
const U64 = 8;

export const VDUSE_API_VERSION = 0;
export const VDUSE_NAME_MAX = 256;

export const VDUSE_ACCESS_RO = 0x1;
export const VDUSE_ACCESS_WO = 0x2;
export const VDUSE_ACCESS_RW = 0x3;

/** -1 as it stands in an unsigned field. */
export const VDUSE_EVENTFD_DEASSIGN = 0xffff_ffff;
export const VDUSE_IOVA_CAP_UMEM = 1;

export const VDUSE_REQ_RESULT_OK = 0;
export const VDUSE_REQ_RESULT_FAILED = 1;

/** enum vduse_req_type */
export const VDUSE_GET_VQ_STATE = 0;
export const VDUSE_SET_STATUS = 1;
export const VDUSE_UPDATE_IOTLB = 2;

// ---- layouts -----------------------------------------------------------------------------------

/** The configuration space follows. */
export const VduseDevConfig = struct('vduse_dev_config', 336, {
  name: bytes(0, VDUSE_NAME_MAX), // NUL-terminated
  vendorId: u32(256),
  deviceId: u32(260),
  features: u64(264),
  vqNum: u32(272),
  vqAlign: u32(276),
  reserved: bytes(280, 52),
  configSize: u32(332),
});

export const VduseIotlbEntry = struct('vduse_iotlb_entry', 32, {
  offset: u64(0), // of `start` in the fd
  start: u64(8),
  last: u64(16), //  inclusive
  perm: u8(24),
  padding: bytes(25, 7),
});

/** The bytes follow. */
export const VduseConfigData = struct('vduse_config_data', 8, { offset: u32(0), length: u32(4) });

export const VduseVqConfig = struct('vduse_vq_config', 32, {
  index: u32(0),
  maxSize: u16(4),
  reserved: bytes(6, 26),
});

/** The union of the two ring states as words; packed has four, split the first one. */
export const VduseVqInfo = struct('vduse_vq_info', 48, {
  index: u32(0),
  num: u32(4),
  descAddr: u64(8), //   IOVAs
  driverAddr: u64(16),
  deviceAddr: u64(24),
  state: bytes(32, 8), // VduseVqStateSplit or VduseVqStatePacked
  ready: u8(40),
  padding: bytes(41, 7),
});

export const VduseVqStateSplit = struct('vduse_vq_state_split', 2, { availIndex: u16(0) });
export const VduseVqStatePacked = struct('vduse_vq_state_packed', 8, {
  lastAvailCounter: u16(0),
  lastAvailIdx: u16(2),
  lastUsedCounter: u16(4),
  lastUsedIdx: u16(6),
});

export const VduseVqEventfd = struct('vduse_vq_eventfd', 8, { index: u32(0), fd: u32(4) });

export const VduseIovaUmem = struct('vduse_iova_umem', 48, {
  uaddr: u64(0),
  iova: u64(8),
  size: u64(16),
  reserved: bytes(24, 24),
});

export const VduseIovaInfo = struct('vduse_iova_info', 48, {
  start: u64(0),
  last: u64(8),
  capability: u64(16),
  reserved: bytes(24, 24),
});

/** What read(2) gives; `payload` is one of the request's own structs. */
export const VduseDevRequest = struct('vduse_dev_request', 152, {
  type: u32(0),
  requestId: u32(4),
  reserved: bytes(8, 16),
  payload: bytes(24, 128),
});

/** What write(2) takes; `payload` is a VduseVqState for GET_VQ_STATE. */
export const VduseDevResponse = struct('vduse_dev_response', 152, {
  requestId: u32(0),
  result: u32(4),
  reserved: bytes(8, 16),
  payload: bytes(24, 128),
});

/** `struct vduse_vq_state`, in request and response of GET_VQ_STATE. */
export const VduseVqState = struct('vduse_vq_state', 12, { index: u32(0), state: bytes(4, 8) });
export const VduseIovaRange = struct('vduse_iova_range', 16, { start: u64(0), last: u64(8) });

// ---- ioctls ------------------------------------------------------------------------------------

const entry = (name: string, request: number, since = '5.15'): Ioctl => ({ name, request, since });

/** Every ioctl of VDUSE, by its name without the prefix VDUSE_. */
export const VDUSE_IOCTL = {
  GET_API_VERSION: entry('VDUSE_GET_API_VERSION', ior(VDUSE_BASE, 0x00, U64)),
  SET_API_VERSION: entry('VDUSE_SET_API_VERSION', iow(VDUSE_BASE, 0x01, U64)),
  CREATE_DEV: entry('VDUSE_CREATE_DEV', iow(VDUSE_BASE, 0x02, VduseDevConfig.size)),
  DESTROY_DEV: entry('VDUSE_DESTROY_DEV', iow(VDUSE_BASE, 0x03, VDUSE_NAME_MAX)),
  /** Returns an fd. */
  IOTLB_GET_FD: entry('VDUSE_IOTLB_GET_FD', iowr(VDUSE_BASE, 0x10, VduseIotlbEntry.size)),
  DEV_GET_FEATURES: entry('VDUSE_DEV_GET_FEATURES', ior(VDUSE_BASE, 0x11, U64)),
  DEV_SET_CONFIG: entry('VDUSE_DEV_SET_CONFIG', iow(VDUSE_BASE, 0x12, VduseConfigData.size)),
  DEV_INJECT_CONFIG_IRQ: entry('VDUSE_DEV_INJECT_CONFIG_IRQ', io(VDUSE_BASE, 0x13)),
  VQ_SETUP: entry('VDUSE_VQ_SETUP', iow(VDUSE_BASE, 0x14, VduseVqConfig.size)),
  VQ_GET_INFO: entry('VDUSE_VQ_GET_INFO', iowr(VDUSE_BASE, 0x15, VduseVqInfo.size)),
  VQ_SETUP_KICKFD: entry('VDUSE_VQ_SETUP_KICKFD', iow(VDUSE_BASE, 0x16, VduseVqEventfd.size)),
  VQ_INJECT_IRQ: entry('VDUSE_VQ_INJECT_IRQ', iow(VDUSE_BASE, 0x17, U32)),
  IOTLB_REG_UMEM: entry('VDUSE_IOTLB_REG_UMEM', iow(VDUSE_BASE, 0x18, VduseIovaUmem.size), '6.0'),
  IOTLB_DEREG_UMEM: entry(
    'VDUSE_IOTLB_DEREG_UMEM',
    iow(VDUSE_BASE, 0x19, VduseIovaUmem.size),
    '6.0',
  ),
  IOTLB_GET_INFO: entry('VDUSE_IOTLB_GET_INFO', iowr(VDUSE_BASE, 0x1a, VduseIovaInfo.size), '6.0'),
} as const satisfies Readonly<Record<string, Ioctl>>;
