/**
 * virtio-blk: feature bits, configuration space, requests. Pure; section numbers are those of
 * virtio 1.2 and 1.3, which agree here (zoned devices came with 1.3, section 5.2.6.2 ff.).
 */
import { bytes, struct, u16, u32, u64, u8, type Value } from './struct.ts';

/** 5.2.4: capacity and positions are counted in these, whatever the block size is. */
export const VIRTIO_BLK_SECTOR_BYTES = 512;

// 5.2.3, "Feature bits"; BARRIER and SCSI are of legacy devices (5.2.3.1).
export const VIRTIO_BLK_F_BARRIER = 0;
export const VIRTIO_BLK_F_SIZE_MAX = 1;
export const VIRTIO_BLK_F_SEG_MAX = 2;
export const VIRTIO_BLK_F_GEOMETRY = 4;
export const VIRTIO_BLK_F_RO = 5;
export const VIRTIO_BLK_F_BLK_SIZE = 6;
export const VIRTIO_BLK_F_SCSI = 7;
export const VIRTIO_BLK_F_FLUSH = 9;
export const VIRTIO_BLK_F_TOPOLOGY = 10;
export const VIRTIO_BLK_F_CONFIG_WCE = 11;
export const VIRTIO_BLK_F_MQ = 12;
export const VIRTIO_BLK_F_DISCARD = 13;
export const VIRTIO_BLK_F_WRITE_ZEROES = 14;
export const VIRTIO_BLK_F_LIFETIME = 15;
export const VIRTIO_BLK_F_SECURE_ERASE = 16;
export const VIRTIO_BLK_F_ZONED = 17;

/** Name of each feature bit, for status displays. */
export const BLK_FEATURE_NAMES: Readonly<Record<number, string>> = {
  0: 'BARRIER',
  1: 'SIZE_MAX',
  2: 'SEG_MAX',
  4: 'GEOMETRY',
  5: 'RO',
  6: 'BLK_SIZE',
  7: 'SCSI',
  9: 'FLUSH',
  10: 'TOPOLOGY',
  11: 'CONFIG_WCE',
  12: 'MQ',
  13: 'DISCARD',
  14: 'WRITE_ZEROES',
  15: 'LIFETIME',
  16: 'SECURE_ERASE',
  17: 'ZONED',
};

/** `struct virtio_blk_config`, 5.2.4; a field exists when its feature was offered. */
export const BlkConfig = struct('virtio_blk_config', 96, {
  capacity: u64(0), //                    sectors
  sizeMax: u32(8), //                     SIZE_MAX; bytes of one segment
  segMax: u32(12), //                     SEG_MAX; data segments of one request
  cylinders: u16(16), //                  GEOMETRY, the next three
  heads: u8(18),
  sectors: u8(19),
  blkSize: u32(20), //                    BLK_SIZE; bytes
  physicalBlockExp: u8(24), //            TOPOLOGY, the next four; log2 of blocks per physical one
  alignmentOffset: u8(25), //             blocks
  minIoSize: u16(26), //                  blocks
  optIoSize: u32(28), //                  blocks
  writeback: u8(32), //                   CONFIG_WCE; the one field that a driver may write
  unused0: u8(33),
  numQueues: u16(34), //                  MQ
  maxDiscardSectors: u32(36), //          DISCARD, the next three; of one range
  maxDiscardSeg: u32(40), //              ranges of one request
  discardSectorAlignment: u32(44), //     sectors
  maxWriteZeroesSectors: u32(48), //      WRITE_ZEROES, the next three
  maxWriteZeroesSeg: u32(52),
  writeZeroesMayUnmap: u8(56),
  unused1: bytes(57, 3),
  maxSecureEraseSectors: u32(60), //      SECURE_ERASE, the next three
  maxSecureEraseSeg: u32(64),
  secureEraseSectorAlignment: u32(68),
  zoneSectors: u32(72), //                ZONED, all that follows
  maxOpenZones: u32(76),
  maxActiveZones: u32(80),
  maxAppendSectors: u32(84),
  writeGranularity: u32(88), //           bytes
  zonedModel: u8(92), //                  VIRTIO_BLK_Z_*
  unused2: bytes(93, 3),
});
export type BlkConfig = Value<typeof BlkConfig.fields>;

/** `struct virtio_blk_req`, 5.2.6: before the data. After it one byte, VIRTIO_BLK_S_*. */
export const BlkRequestHeader = struct('virtio_blk_outhdr', 16, {
  type: u32(0), //   VIRTIO_BLK_T_*
  ioprio: u32(4), // legacy; reserved
  sector: u64(8), // 0 where the type has no position
});
export type BlkRequestHeader = Value<typeof BlkRequestHeader.fields>;

// 5.2.6: request types.
export const VIRTIO_BLK_T_IN = 0;
export const VIRTIO_BLK_T_OUT = 1;
export const VIRTIO_BLK_T_SCSI_CMD = 2; // legacy
export const VIRTIO_BLK_T_FLUSH = 4;
export const VIRTIO_BLK_T_GET_ID = 8;
export const VIRTIO_BLK_T_GET_LIFETIME = 10;
export const VIRTIO_BLK_T_DISCARD = 11;
export const VIRTIO_BLK_T_WRITE_ZEROES = 13;
export const VIRTIO_BLK_T_SECURE_ERASE = 14;
export const VIRTIO_BLK_T_ZONE_APPEND = 15;
export const VIRTIO_BLK_T_ZONE_REPORT = 16;
export const VIRTIO_BLK_T_ZONE_OPEN = 18;
export const VIRTIO_BLK_T_ZONE_CLOSE = 20;
export const VIRTIO_BLK_T_ZONE_FINISH = 22;
export const VIRTIO_BLK_T_ZONE_RESET = 24;
export const VIRTIO_BLK_T_ZONE_RESET_ALL = 26;
export const VIRTIO_BLK_T_BARRIER = 0x8000_0000; // legacy flag beside a type

const TYPE_NAMES: Readonly<Record<number, string>> = {
  [VIRTIO_BLK_T_IN]: 'IN',
  [VIRTIO_BLK_T_OUT]: 'OUT',
  [VIRTIO_BLK_T_SCSI_CMD]: 'SCSI_CMD',
  [VIRTIO_BLK_T_FLUSH]: 'FLUSH',
  [VIRTIO_BLK_T_GET_ID]: 'GET_ID',
  [VIRTIO_BLK_T_GET_LIFETIME]: 'GET_LIFETIME',
  [VIRTIO_BLK_T_DISCARD]: 'DISCARD',
  [VIRTIO_BLK_T_WRITE_ZEROES]: 'WRITE_ZEROES',
  [VIRTIO_BLK_T_SECURE_ERASE]: 'SECURE_ERASE',
  [VIRTIO_BLK_T_ZONE_APPEND]: 'ZONE_APPEND',
  [VIRTIO_BLK_T_ZONE_REPORT]: 'ZONE_REPORT',
  [VIRTIO_BLK_T_ZONE_OPEN]: 'ZONE_OPEN',
  [VIRTIO_BLK_T_ZONE_CLOSE]: 'ZONE_CLOSE',
  [VIRTIO_BLK_T_ZONE_FINISH]: 'ZONE_FINISH',
  [VIRTIO_BLK_T_ZONE_RESET]: 'ZONE_RESET',
  [VIRTIO_BLK_T_ZONE_RESET_ALL]: 'ZONE_RESET_ALL',
};

export function blkRequestName(type: number): string {
  return TYPE_NAMES[type] ?? `TYPE_${type}`;
}

// 5.2.6: the status byte; the last four are of zoned devices.
export const VIRTIO_BLK_S_OK = 0;
export const VIRTIO_BLK_S_IOERR = 1;
export const VIRTIO_BLK_S_UNSUPP = 2;
export const VIRTIO_BLK_S_ZONE_INVALID_CMD = 3;
export const VIRTIO_BLK_S_ZONE_UNALIGNED_WP = 4;
export const VIRTIO_BLK_S_ZONE_OPEN_RESOURCE = 5;
export const VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE = 6;

/** 5.2.6: what GET_ID fills: a string padded with zeros, which ends with none if it is full. */
export const VIRTIO_BLK_ID_BYTES = 20;

/** `struct virtio_blk_discard_write_zeroes`, 5.2.6: one range of such a request. */
export const BlkRange = struct('virtio_blk_discard_write_zeroes', 16, {
  sector: u64(0),
  numSectors: u32(8),
  flags: u32(12), // VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
});
export type BlkRange = Value<typeof BlkRange.fields>;

export const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;

/** `struct virtio_blk_lifetime`, 5.2.6: what GET_LIFETIME fills. */
export const BlkLifetime = struct('virtio_blk_lifetime', 6, {
  preEolInfo: u16(0), //       VIRTIO_BLK_PRE_EOL_INFO_*: 0 undefined, 1 normal, 2 warning, 3 urgent
  deviceLifetimeEstTypA: u16(2), // tenths of its life, 0 undefined, 11 exceeded
  deviceLifetimeEstTypB: u16(4),
});
export type BlkLifetime = Value<typeof BlkLifetime.fields>;

// `zonedModel`.
export const VIRTIO_BLK_Z_NONE = 0;
export const VIRTIO_BLK_Z_HM = 1; // host-managed
export const VIRTIO_BLK_Z_HA = 2; // host-aware

/** ZONE_APPEND: between data and status, le64 where the device says at which sector data went. */
export const VIRTIO_BLK_APPEND_SECTOR_BYTES = 8;

/** `struct virtio_blk_zone_report` without its zones: what ZONE_REPORT begins with. */
export const BlkZoneReport = struct('virtio_blk_zone_report', 64, {
  nrZones: u64(0), // descriptors that follow
  reserved: bytes(8, 56),
});

/** `struct virtio_blk_zone_descriptor`; sectors. */
export const BlkZoneDescriptor = struct('virtio_blk_zone_descriptor', 64, {
  zCap: u64(0), //   writable
  zStart: u64(8),
  zWp: u64(16), //   undefined for conventional, read-only, full and offline zones
  zType: u8(24), //  VIRTIO_BLK_ZT_*
  zState: u8(25), // VIRTIO_BLK_ZS_*
  reserved: bytes(26, 38),
});
export type BlkZoneDescriptor = Value<typeof BlkZoneDescriptor.fields>;

// `zType`.
export const VIRTIO_BLK_ZT_CONV = 1;
export const VIRTIO_BLK_ZT_SWR = 2; // sequential writes required
export const VIRTIO_BLK_ZT_SWP = 3; // sequential writes preferred

// `zState`.
export const VIRTIO_BLK_ZS_NOT_WP = 0;
export const VIRTIO_BLK_ZS_EMPTY = 1;
export const VIRTIO_BLK_ZS_IOPEN = 2;
export const VIRTIO_BLK_ZS_EOPEN = 3;
export const VIRTIO_BLK_ZS_CLOSED = 4;
export const VIRTIO_BLK_ZS_RDONLY = 13;
export const VIRTIO_BLK_ZS_FULL = 14;
export const VIRTIO_BLK_ZS_OFFLINE = 15;
