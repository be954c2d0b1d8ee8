/**
 * The control half of a virtio-blk device: what it offers and its configuration space.
 * Virtio 1.2, 5.2.3 "Feature bits" and 5.2.4 "Device configuration layout".
 */
import { ConfigError } from '../../base/errors.ts';
import type { VirtioDevice } from '../../base/virtio-device.ts';
import { MAX_DISK_BYTES, SECTOR_BYTES, type ZoneShape } from '../../storage/index.ts';
import * as blk from '../../wire/virtio-blk.ts';
import * as virtio from '../../wire/virtio.ts';
import {
  BLK_SEG_MAX,
  BLK_SIZE_MAX,
  MAX_BLK_QUEUES,
  MAX_DISCARD_SECTORS,
  MAX_RANGES,
  MAX_ZEROES_SECTORS,
} from './limits.ts';

export type BlkDeviceOptions = {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** 1 .. MAX_BLK_QUEUES; more than one is offered as VIRTIO_BLK_F_MQ. */
  readonly queues: number;
  /** Logical block: 512, 1024, 2048 or 4096 bytes. */
  readonly blockBytes: number;
  readonly packed: boolean;
  /** Offer ACCESS_PLATFORM: the driver may give I/O virtual addresses, translated by an IOTLB. */
  readonly iommu: boolean;
  /** Offer SECURE_ERASE: the engine can (`canErase`). */
  readonly secureErase?: boolean;
  /** What is known of the wear of the medium; offered as LIFETIME unless it is null. */
  readonly lifetime?: blk.BlkLifetime | null;
  /** Host-managed zones: offered as ZONED, and no driver without it. */
  readonly zones?: ZoneShape | null;
};

/** Largest ring: QEMU takes no more, and a request in each keeps a worker busy for long. */
const QUEUE_SIZE_MAX = 1024;
/** What a file system lives in, whatever its logical block: topology says so. */
const PHYSICAL_BYTES = 4096;
const WRITEBACK_AT = blk.BlkConfig.fields.writeback.at;

/** Cell of `BlkDevice.cache`. */
export const CACHE_WRITEBACK = 0;

export class BlkDevice implements VirtioDevice {
  readonly deviceId = virtio.VIRTIO_ID_BLOCK;
  readonly queueSizeMax = QUEUE_SIZE_MAX;
  readonly queueCount: number;
  readonly features: bigint;
  /**
   * Shared with the worker: 1, writes complete when they are in the cache and a flush makes them
   * durable; 0, each is durable when it completes. One cell, so that a driver that was told that
   * its change has happened never has a request that missed it.
   */
  readonly cache = new Int32Array(new SharedArrayBuffer(4));
  readonly #config = new Uint8Array(blk.BlkConfig.size);

  /** @throws ConfigError. */
  constructor(options: BlkDeviceOptions) {
    const { queues, blockBytes } = options;
    if (!Number.isInteger(queues) || queues < 1 || queues > MAX_BLK_QUEUES) {
      throw new ConfigError('queues', `${queues} is not in 1..${MAX_BLK_QUEUES}`);
    }
    if (![512, 1024, 2048, PHYSICAL_BYTES].includes(blockBytes)) {
      const text = `${blockBytes} bytes, expected 512, 1024, 2048 or 4096`;
      throw new ConfigError('blockBytes', text);
    }
    checkBlocks(options.sizeBytes, blockBytes);
    checkLifetime(options.lifetime ?? null);
    const { zones = null } = options;
    checkZones(zones, options);
    this.queueCount = queues;
    this.features = offeredFeatures(options);
    Atomics.store(this.cache, CACHE_WRITEBACK, 1);
    const physical = PHYSICAL_BYTES / blockBytes;
    blk.BlkConfig.write(new DataView(this.#config.buffer), 0, {
      ...blk.BlkConfig.read(new DataView(this.#config.buffer), 0),
      capacity: BigInt(options.sizeBytes / SECTOR_BYTES),
      sizeMax: BLK_SIZE_MAX,
      segMax: BLK_SEG_MAX,
      blkSize: blockBytes,
      physicalBlockExp: Math.log2(physical),
      minIoSize: physical,
      numQueues: queues,
      maxDiscardSectors: MAX_DISCARD_SECTORS,
      maxDiscardSeg: MAX_RANGES,
      discardSectorAlignment: PHYSICAL_BYTES / SECTOR_BYTES,
      maxWriteZeroesSectors: MAX_ZEROES_SECTORS,
      maxWriteZeroesSeg: MAX_RANGES,
      writeZeroesMayUnmap: 1,
      maxSecureEraseSectors: MAX_ZEROES_SECTORS,
      maxSecureEraseSeg: MAX_RANGES,
      // Linux takes the smaller one of both for its discards.
      secureEraseSectorAlignment: PHYSICAL_BYTES / SECTOR_BYTES,
      ...(zones === null ? {} : zonedFields(zones)),
    });
  }

  get sizeBytes(): number {
    return Number(new DataView(this.#config.buffer).getBigUint64(0, true)) * SECTOR_BYTES;
  }

  /** What the driver sees once it reads the space again. @throws ConfigError: no whole blocks. */
  set sizeBytes(sizeBytes: number) {
    checkBlocks(sizeBytes, this.blockBytes);
    new DataView(this.#config.buffer).setBigUint64(0, BigInt(sizeBytes / SECTOR_BYTES), true);
  }

  get blockBytes(): number {
    return new DataView(this.#config.buffer).getUint32(blk.BlkConfig.fields.blkSize.at, true);
  }

  /** 5.2.5: a host-managed disk is no disk for a driver that does not know zones. */
  refuses(acked: bigint): string | null {
    const { VIRTIO_BLK_F_ZONED: ZONED } = blk;
    if (!virtio.hasFeature(this.features, ZONED) || virtio.hasFeature(acked, ZONED)) return null;
    return 'the disk is zoned, and the driver does not know zones (ZONED; Linux does from 6.3 on)';
  }

  readConfig(offset: number, sizeBytes: number): Uint8Array | null {
    if (offset < 0 || offset >= this.#config.length || sizeBytes < 0) return null;
    this.#config[WRITEBACK_AT] = Atomics.load(this.cache, CACHE_WRITEBACK);
    // What lies behind the space, such as fields of a younger header, reads as zero.
    const bytes = new Uint8Array(sizeBytes);
    bytes.set(this.#config.subarray(offset, offset + sizeBytes));
    return bytes;
  }

  /** The driver may set the cache's mode, and nothing else (5.2.4). */
  writeConfig(offset: number, bytes: Uint8Array): boolean {
    if (offset !== WRITEBACK_AT || bytes.length !== 1 || bytes[0]! > 1) return false;
    Atomics.store(this.cache, CACHE_WRITEBACK, bytes[0]!);
    return true;
  }
}

function checkBlocks(sizeBytes: number, blockBytes: number): void {
  const whole = Number.isInteger(sizeBytes) && sizeBytes > 0 && sizeBytes % blockBytes === 0;
  if (whole && sizeBytes <= MAX_DISK_BYTES) return;
  const text = `${sizeBytes} bytes are no whole number of blocks of ${blockBytes} bytes`;
  throw new ConfigError('sizeBytes', text);
}

/** 5.2.6.2: PRE_EOL_INFO up to URGENT, estimates in tenths, 11 is more than all of it. */
function checkLifetime(lifetime: blk.BlkLifetime | null): void {
  if (lifetime === null) return;
  const { preEolInfo, deviceLifetimeEstTypA, deviceLifetimeEstTypB } = lifetime;
  for (const [name, value, max] of [
    ['preEolInfo', preEolInfo, 3],
    ['deviceLifetimeEstTypA', deviceLifetimeEstTypA, 11],
    ['deviceLifetimeEstTypB', deviceLifetimeEstTypB, 11],
  ] as const) {
    if (Number.isInteger(value) && value >= 0 && value <= max) continue;
    throw new ConfigError(`lifetime.${name}`, `${value} is not in 0..${max}`);
  }
}

function checkZones(zones: ZoneShape | null, options: BlkDeviceOptions): void {
  if (zones === null) return;
  const { blockBytes, secureErase = false } = options;
  if (secureErase) throw new ConfigError('secureErase', 'zones are reset, not erased; remove it');
  if (blockBytes <= zones.granularityBytes) return;
  const text = `${blockBytes} bytes, and zones are written in ${zones.granularityBytes}`;
  throw new ConfigError('blockBytes', text);
}

function zonedFields(zones: ZoneShape) {
  return {
    zoneSectors: zones.zoneBytes / SECTOR_BYTES,
    maxOpenZones: zones.maxOpen,
    maxActiveZones: zones.maxActive,
    maxAppendSectors: zones.maxAppendBytes / SECTOR_BYTES,
    writeGranularity: zones.granularityBytes,
    zonedModel: blk.VIRTIO_BLK_Z_HM,
  };
}

function offeredFeatures(options: BlkDeviceOptions): bigint {
  const { readOnly, queues, packed, iommu, secureErase = false, lifetime = null } = options;
  const isZoned = (options.zones ?? null) !== null;
  // 5.2.5: no DISCARD beside zones; data goes by resets.
  const changes = [blk.VIRTIO_BLK_F_DISCARD, blk.VIRTIO_BLK_F_WRITE_ZEROES];
  return virtio.featureSet(
    virtio.VIRTIO_F_VERSION_1,
    virtio.VIRTIO_RING_F_INDIRECT_DESC,
    virtio.VIRTIO_RING_F_EVENT_IDX,
    blk.VIRTIO_BLK_F_SIZE_MAX,
    blk.VIRTIO_BLK_F_SEG_MAX,
    blk.VIRTIO_BLK_F_BLK_SIZE,
    blk.VIRTIO_BLK_F_FLUSH,
    blk.VIRTIO_BLK_F_TOPOLOGY,
    blk.VIRTIO_BLK_F_CONFIG_WCE,
    ...(packed ? [virtio.VIRTIO_F_RING_PACKED] : []),
    ...(iommu ? [virtio.VIRTIO_F_ACCESS_PLATFORM] : []),
    ...(queues > 1 ? [blk.VIRTIO_BLK_F_MQ] : []),
    ...(readOnly ? [blk.VIRTIO_BLK_F_RO] : isZoned ? [] : changes),
    ...(isZoned ? [blk.VIRTIO_BLK_F_ZONED] : []),
    ...(secureErase && !readOnly ? [blk.VIRTIO_BLK_F_SECURE_ERASE] : []),
    ...(lifetime === null ? [] : [blk.VIRTIO_BLK_F_LIFETIME]),
  );
}
