/**
 * The kernel's vhost: ioctls and layouts of /dev/vhost-net, /dev/vhost-vsock and
 * /dev/vhost-vdpa-N. linux/vhost.h, linux/vhost_types.h. What is younger than Linux 6.1, whose
 * headers Debian 12 has, is from Linux 6.12 and compared with headers where they know it
 * (test/abi.test.ts). `struct vhost_vring_state`, `_addr` and `vhost_iotlb_msg` are those of
 * vhost-user.
 */
import { io, type Ioctl, ior, iow, iowr } from './ioctl.ts';
import { bytes, struct, u32, u64, u8, type Value } from './struct.ts';
import { IotlbMessage, VringAddr, VringState } from './vhost-user.ts';

const VHOST = 0xaf;

const U8 = 1;
const U16 = 2;
const INT = 4;
const U64 = 8;

// ---- layouts -----------------------------------------------------------------------------------

/** `struct vhost_vring_file`: which ring, and an fd; VHOST_FILE_UNBIND takes it away. */
export const VringFile = struct('vhost_vring_file', 8, { index: u32(0), fd: u32(4) });
/** -1 as it stands in an unsigned field. */
export const VHOST_FILE_UNBIND = 0xffff_ffff;

/** `struct vhost_memory`; its regions follow. */
export const VhostMemoryHeader = struct('vhost_memory', 8, { nregions: u32(0), padding: u32(4) });
export const VhostMemoryRegion = struct('vhost_memory_region', 32, {
  guestPhysAddr: u64(0),
  memorySize: u64(8), //     bytes
  userspaceAddr: u64(16), // in the process that owns the device
  flagsPadding: u64(24),
});

/** `struct vhost_msg_v2`, read from and written to the device; bytes behind the message are 0. */
export const VhostMessageV2 = struct('vhost_msg_v2', 72, {
  type: u32(0), // VHOST_IOTLB_MSG_V2
  asid: u32(4), // with VHOST_BACKEND_F_IOTLB_ASID
  iova: u64(8),
  sizeBytes: u64(16),
  userAddr: u64(24),
  permissions: u8(32), // VHOST_ACCESS_*
  iotlbType: u8(33), //   VHOST_IOTLB_*
  padding: bytes(34, 38),
});
export type VhostMessageV2 = Value<typeof VhostMessageV2.fields>;

/** `struct vhost_msg`, the first version: for devices without IOTLB_MSG_V2. */
export const VhostMessage = struct('vhost_msg', 72, {
  type: u32(0), // VHOST_IOTLB_MSG
  hole: u32(4), // alignment
  iova: u64(8),
  sizeBytes: u64(16),
  userAddr: u64(24),
  permissions: u8(32),
  iotlbType: u8(33),
  padding: bytes(34, 38),
});

/** `struct vhost_vdpa_config`; its bytes follow. */
export const VdpaConfigHeader = struct('vhost_vdpa_config', 8, { off: u32(0), len: u32(4) });
export const VdpaIovaRange = struct('vhost_vdpa_iova_range', 16, { first: u64(0), last: u64(8) });

/** `struct vhost_worker_state`, Linux 6.5. */
export const VhostWorkerState = struct('vhost_worker_state', 4, { workerId: u32(0) });
/** `struct vhost_vring_worker`, Linux 6.5. */
export const VhostVringWorker = struct('vhost_vring_worker', 8, {
  index: u32(0),
  workerId: u32(4),
});

// ---- constants ---------------------------------------------------------------------------------

export const VHOST_IOTLB_MSG = 1;
export const VHOST_IOTLB_MSG_V2 = 2;
export const VHOST_IOTLB_MISS = 1;
export const VHOST_IOTLB_UPDATE = 2;
export const VHOST_IOTLB_INVALIDATE = 3;
export const VHOST_IOTLB_ACCESS_FAIL = 4;
export const VHOST_IOTLB_BATCH_BEGIN = 5;
export const VHOST_IOTLB_BATCH_END = 6;
export const VHOST_ACCESS_RO = 1;
export const VHOST_ACCESS_WO = 2;
export const VHOST_ACCESS_RW = 3;
export const VHOST_PAGE_SIZE = 0x1000;

/** Bits of GET_FEATURES that are vhost's own; VHOST_F_LOG_ALL is in `vhost-user.ts`. */
export const VHOST_NET_F_VIRTIO_NET_HDR = 27;

/** Bits of GET_BACKEND_FEATURES. */
export const VHOST_BACKEND_F_IOTLB_MSG_V2 = 1;
export const VHOST_BACKEND_F_IOTLB_BATCH = 2;
export const VHOST_BACKEND_F_IOTLB_ASID = 3;
export const VHOST_BACKEND_F_SUSPEND = 4;
export const VHOST_BACKEND_F_RESUME = 5; //                 Linux 6.6
export const VHOST_BACKEND_F_ENABLE_AFTER_DRIVER_OK = 6; // Linux 6.6
export const VHOST_BACKEND_F_DESC_ASID = 7; //              Linux 6.7
export const VHOST_BACKEND_F_IOTLB_PERSIST = 8; //          Linux 6.7

// ---- ioctls ------------------------------------------------------------------------------------

const entry = (name: string, request: number, since = '2.6.34'): Ioctl => ({
  name,
  request,
  since,
});

/** Every ioctl of a vhost device, by its name without the prefix VHOST_. */
export const VHOST_IOCTL = {
  GET_FEATURES: entry('VHOST_GET_FEATURES', ior(VHOST, 0x00, U64)),
  SET_FEATURES: entry('VHOST_SET_FEATURES', iow(VHOST, 0x00, U64)),
  SET_OWNER: entry('VHOST_SET_OWNER', io(VHOST, 0x01)),
  RESET_OWNER: entry('VHOST_RESET_OWNER', io(VHOST, 0x02)),
  SET_MEM_TABLE: entry('VHOST_SET_MEM_TABLE', iow(VHOST, 0x03, VhostMemoryHeader.size)),
  /** Its argument points to the address of the bitmap in this process. */
  SET_LOG_BASE: entry('VHOST_SET_LOG_BASE', iow(VHOST, 0x04, U64)),
  SET_LOG_FD: entry('VHOST_SET_LOG_FD', iow(VHOST, 0x07, INT)),
  NEW_WORKER: entry('VHOST_NEW_WORKER', ior(VHOST, 0x08, VhostWorkerState.size), '6.5'),
  FREE_WORKER: entry('VHOST_FREE_WORKER', iow(VHOST, 0x09, VhostWorkerState.size), '6.5'),
  SET_VRING_NUM: entry('VHOST_SET_VRING_NUM', iow(VHOST, 0x10, VringState.size)),
  SET_VRING_ADDR: entry('VHOST_SET_VRING_ADDR', iow(VHOST, 0x11, VringAddr.size)),
  SET_VRING_BASE: entry('VHOST_SET_VRING_BASE', iow(VHOST, 0x12, VringState.size)),
  GET_VRING_BASE: entry('VHOST_GET_VRING_BASE', iowr(VHOST, 0x12, VringState.size)),
  SET_VRING_ENDIAN: entry('VHOST_SET_VRING_ENDIAN', iow(VHOST, 0x13, VringState.size), '4.2'),
  GET_VRING_ENDIAN: entry('VHOST_GET_VRING_ENDIAN', iow(VHOST, 0x14, VringState.size), '4.2'),
  ATTACH_VRING_WORKER: entry(
    'VHOST_ATTACH_VRING_WORKER',
    iow(VHOST, 0x15, VhostVringWorker.size),
    '6.5',
  ),
  GET_VRING_WORKER: entry(
    'VHOST_GET_VRING_WORKER',
    iowr(VHOST, 0x16, VhostVringWorker.size),
    '6.5',
  ),
  SET_VRING_KICK: entry('VHOST_SET_VRING_KICK', iow(VHOST, 0x20, VringFile.size)),
  SET_VRING_CALL: entry('VHOST_SET_VRING_CALL', iow(VHOST, 0x21, VringFile.size)),
  SET_VRING_ERR: entry('VHOST_SET_VRING_ERR', iow(VHOST, 0x22, VringFile.size)),
  SET_VRING_BUSYLOOP_TIMEOUT: entry(
    'VHOST_SET_VRING_BUSYLOOP_TIMEOUT',
    iow(VHOST, 0x23, VringState.size),
    '4.6',
  ),
  GET_VRING_BUSYLOOP_TIMEOUT: entry(
    'VHOST_GET_VRING_BUSYLOOP_TIMEOUT',
    iow(VHOST, 0x24, VringState.size),
    '4.6',
  ),
  SET_BACKEND_FEATURES: entry('VHOST_SET_BACKEND_FEATURES', iow(VHOST, 0x25, U64), '4.19'),
  GET_BACKEND_FEATURES: entry('VHOST_GET_BACKEND_FEATURES', ior(VHOST, 0x26, U64), '4.19'),
  NET_SET_BACKEND: entry('VHOST_NET_SET_BACKEND', iow(VHOST, 0x30, VringFile.size)),
  VSOCK_SET_GUEST_CID: entry('VHOST_VSOCK_SET_GUEST_CID', iow(VHOST, 0x60, U64), '4.8'),
  VSOCK_SET_RUNNING: entry('VHOST_VSOCK_SET_RUNNING', iow(VHOST, 0x61, INT), '4.8'),
  VDPA_GET_DEVICE_ID: entry('VHOST_VDPA_GET_DEVICE_ID', ior(VHOST, 0x70, INT), '5.7'),
  VDPA_GET_STATUS: entry('VHOST_VDPA_GET_STATUS', ior(VHOST, 0x71, U8), '5.7'),
  VDPA_SET_STATUS: entry('VHOST_VDPA_SET_STATUS', iow(VHOST, 0x72, U8), '5.7'),
  VDPA_GET_CONFIG: entry('VHOST_VDPA_GET_CONFIG', ior(VHOST, 0x73, VdpaConfigHeader.size), '5.7'),
  VDPA_SET_CONFIG: entry('VHOST_VDPA_SET_CONFIG', iow(VHOST, 0x74, VdpaConfigHeader.size), '5.7'),
  VDPA_SET_VRING_ENABLE: entry(
    'VHOST_VDPA_SET_VRING_ENABLE',
    iow(VHOST, 0x75, VringState.size),
    '5.7',
  ),
  VDPA_GET_VRING_NUM: entry('VHOST_VDPA_GET_VRING_NUM', ior(VHOST, 0x76, U16), '5.7'),
  VDPA_SET_CONFIG_CALL: entry('VHOST_VDPA_SET_CONFIG_CALL', iow(VHOST, 0x77, INT), '5.8'),
  VDPA_GET_IOVA_RANGE: entry(
    'VHOST_VDPA_GET_IOVA_RANGE',
    ior(VHOST, 0x78, VdpaIovaRange.size),
    '5.11',
  ),
  VDPA_GET_CONFIG_SIZE: entry('VHOST_VDPA_GET_CONFIG_SIZE', ior(VHOST, 0x79, INT), '5.18'),
  VDPA_GET_AS_NUM: entry('VHOST_VDPA_GET_AS_NUM', ior(VHOST, 0x7a, INT), '5.19'),
  VDPA_GET_VRING_GROUP: entry(
    'VHOST_VDPA_GET_VRING_GROUP',
    iowr(VHOST, 0x7b, VringState.size),
    '5.19',
  ),
  VDPA_SET_GROUP_ASID: entry(
    'VHOST_VDPA_SET_GROUP_ASID',
    iow(VHOST, 0x7c, VringState.size),
    '5.19',
  ),
  VDPA_SUSPEND: entry('VHOST_VDPA_SUSPEND', io(VHOST, 0x7d), '6.1'),
  VDPA_RESUME: entry('VHOST_VDPA_RESUME', io(VHOST, 0x7e), '6.6'),
  VDPA_GET_VRING_DESC_GROUP: entry(
    'VHOST_VDPA_GET_VRING_DESC_GROUP',
    iowr(VHOST, 0x7f, VringState.size),
    '6.7',
  ),
  VDPA_GET_VQS_COUNT: entry('VHOST_VDPA_GET_VQS_COUNT', ior(VHOST, 0x80, INT), '5.18'),
  VDPA_GET_GROUP_NUM: entry('VHOST_VDPA_GET_GROUP_NUM', ior(VHOST, 0x81, INT), '5.19'),
  VDPA_GET_VRING_SIZE: entry(
    'VHOST_VDPA_GET_VRING_SIZE',
    iowr(VHOST, 0x82, VringState.size),
    '6.10',
  ),
} as const satisfies Readonly<Record<string, Ioctl>>;

export { IotlbMessage, VringAddr, VringState };
