/** The block device's configuration space: what the disk is, and what it takes in one request. */
import { VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import {
  BlkConfig,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_F_ZONED,
  VIRTIO_BLK_SECTOR_BYTES,
  VIRTIO_BLK_Z_HM,
} from '../wire/virtio-blk.ts';
import { hasFeature } from '../wire/virtio.ts';

/** Null where the field's feature was not negotiated. */
export type BlkDeviceConfig = {
  readonly capacityBytes: number;
  readonly readOnly: boolean;
  /** Logical block: requests are multiples of it. 512 where the device does not say. */
  readonly blockBytes: number;
  readonly sizeMax: number | null;
  readonly segMax: number | null;
  readonly topology: {
    readonly physicalBlockBytes: number;
    readonly alignmentBytes: number;
    readonly minIoBytes: number;
    readonly optIoBytes: number;
  } | null;
  readonly writeback: boolean | null;
  readonly queues: number | null;
  readonly discard: RangeLimits | null;
  readonly writeZeroes: (RangeLimits & { readonly mayUnmap: boolean }) | null;
  readonly secureErase: RangeLimits | null;
  /** Of a host-managed zoned disk; null also of those that may be used as plain ones. */
  readonly zones: BlkZones | null;
};

export type BlkZones = {
  readonly zoneBytes: number;
  /** 0: no limit. */
  readonly maxOpen: number;
  readonly maxActive: number;
  readonly maxAppendBytes: number;
  /** Writes to sequential zones begin and end at multiples of it. */
  readonly granularityBytes: number;
};

/** Of the requests that name ranges instead of carrying data. */
export type RangeLimits = {
  /** Of one range. */
  readonly maxBytes: number;
  /** Ranges of one request. */
  readonly maxRanges: number;
  readonly alignmentBytes: number;
};

/** Bytes up to and with the last field of each feature: what a device may not have is not read. */
const FIELD_ENDS: readonly (readonly [bit: number, end: number])[] = [
  [VIRTIO_BLK_F_SIZE_MAX, 12],
  [VIRTIO_BLK_F_SEG_MAX, 16],
  [VIRTIO_BLK_F_BLK_SIZE, 24],
  [VIRTIO_BLK_F_TOPOLOGY, 32],
  [VIRTIO_BLK_F_CONFIG_WCE, 33],
  [VIRTIO_BLK_F_MQ, 36],
  [VIRTIO_BLK_F_DISCARD, 48],
  [VIRTIO_BLK_F_WRITE_ZEROES, 60],
  [VIRTIO_BLK_F_SECURE_ERASE, 72],
  [VIRTIO_BLK_F_ZONED, 96],
];
const CAPACITY_BYTES = 8;
/** Byte offsets of a disk are numbers here. */
const MAX_SECTORS = 2n ** 53n / 512n;

/**
 * @throws VringError ERR_VRING_GUEST_CONFIG: no configuration space, or one that no driver can use.
 */
export async function readBlkConfig(
  backend: VhostBackend,
  features: bigint,
): Promise<BlkDeviceConfig> {
  const has = (bit: number): boolean => hasFeature(features, bit);
  const ends = FIELD_ENDS.filter(([bit]) => has(bit)).map(([, end]) => end);
  const bytes = new Uint8Array(BlkConfig.size);
  bytes.set(await readBytes(backend, Math.max(CAPACITY_BYTES, ...ends)));
  const config = BlkConfig.decode(bytes);
  const problem = (text: string): VringError =>
    new VringError('ERR_VRING_GUEST_CONFIG', `${backend.description}: ${text}`);
  if (config.capacity > MAX_SECTORS) {
    throw problem(`a capacity of ${config.capacity} sectors; at most 2^53 bytes are expected`);
  }
  const blockBytes = has(VIRTIO_BLK_F_BLK_SIZE) ? config.blkSize : VIRTIO_BLK_SECTOR_BYTES;
  if (blockBytes < VIRTIO_BLK_SECTOR_BYTES || !Number.isInteger(Math.log2(blockBytes))) {
    throw problem(`a block size of ${blockBytes}; a power of two from 512 on is expected`);
  }
  const isZoned = has(VIRTIO_BLK_F_ZONED) && config.zonedModel === VIRTIO_BLK_Z_HM;
  if (isZoned && (config.zoneSectors === 0 || config.writeGranularity < 512)) {
    const [sectors, bytes] = [config.zoneSectors, config.writeGranularity];
    throw problem(`zones of ${sectors} sectors, written in ${bytes} bytes; neither can be`);
  }
  const limits = (sectors: number, ranges: number, alignment: number): RangeLimits => ({
    maxBytes: sectors * VIRTIO_BLK_SECTOR_BYTES,
    maxRanges: ranges,
    alignmentBytes: Math.max(1, alignment) * VIRTIO_BLK_SECTOR_BYTES,
  });
  return {
    capacityBytes: Number(config.capacity) * VIRTIO_BLK_SECTOR_BYTES,
    readOnly: has(VIRTIO_BLK_F_RO),
    blockBytes,
    sizeMax: has(VIRTIO_BLK_F_SIZE_MAX) ? config.sizeMax : null,
    segMax: has(VIRTIO_BLK_F_SEG_MAX) ? config.segMax : null,
    topology: has(VIRTIO_BLK_F_TOPOLOGY)
      ? {
          physicalBlockBytes: blockBytes * 2 ** config.physicalBlockExp,
          alignmentBytes: blockBytes * config.alignmentOffset,
          minIoBytes: blockBytes * config.minIoSize,
          optIoBytes: blockBytes * config.optIoSize,
        }
      : null,
    writeback: has(VIRTIO_BLK_F_CONFIG_WCE) ? config.writeback !== 0 : null,
    queues: has(VIRTIO_BLK_F_MQ) ? config.numQueues : null,
    discard: has(VIRTIO_BLK_F_DISCARD)
      ? limits(config.maxDiscardSectors, config.maxDiscardSeg, config.discardSectorAlignment)
      : null,
    writeZeroes: has(VIRTIO_BLK_F_WRITE_ZEROES)
      ? {
          ...limits(config.maxWriteZeroesSectors, config.maxWriteZeroesSeg, 1),
          mayUnmap: config.writeZeroesMayUnmap !== 0,
        }
      : null,
    secureErase: has(VIRTIO_BLK_F_SECURE_ERASE)
      ? limits(
          config.maxSecureEraseSectors,
          config.maxSecureEraseSeg,
          config.secureEraseSectorAlignment,
        )
      : null,
    zones: isZoned
      ? {
          zoneBytes: config.zoneSectors * VIRTIO_BLK_SECTOR_BYTES,
          maxOpen: config.maxOpenZones,
          maxActive: config.maxActiveZones,
          maxAppendBytes: config.maxAppendSectors * VIRTIO_BLK_SECTOR_BYTES,
          granularityBytes: config.writeGranularity,
        }
      : null,
  };
}

async function readBytes(backend: VhostBackend, sizeBytes: number): Promise<Uint8Array> {
  try {
    return await backend.getConfig(0, sizeBytes);
  } catch (cause) {
    const code = cause instanceof VringError ? cause.code : '';
    if (code !== 'ERR_VRING_NOT_NEGOTIATED' && code !== 'ERR_VRING_CONFIG_RANGE') throw cause;
    const text =
      `${backend.description} gives no ${sizeBytes} bytes of configuration space, and without ` +
      'its capacity a disk cannot be used; it may be the back-end of another kind of device';
    throw new VringError('ERR_VRING_GUEST_CONFIG', text, { cause });
  }
}
