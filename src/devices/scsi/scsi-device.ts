/**
 * The control half of a virtio-scsi device: what it offers and its configuration space. Virtio 1.2,
 * 5.6.3 "Feature bits" and 5.6.4 "Device configuration layout".
 */
import { ConfigError } from '../../base/errors.ts';
import type { VirtioDevice } from '../../base/virtio-device.ts';
import * as scsi from '../../wire/virtio-scsi.ts';
import * as virtio from '../../wire/virtio.ts';
import {
  CMD_PER_LUN,
  MAX_CDB_BYTES,
  MAX_LUN,
  MAX_SCSI_QUEUES,
  MAX_SENSE_BYTES,
  MAX_TARGET,
  MAX_TRANSFER_BYTES,
  SCSI_SEG_MAX,
} from './limits.ts';

export type ScsiDeviceOptions = {
  /** Request queues, 1 .. MAX_SCSI_QUEUES. */
  readonly queues: number;
  readonly packed: boolean;
  /** Offer ACCESS_PLATFORM: the driver may give I/O virtual addresses, translated by an IOTLB. */
  readonly iommu: boolean;
};

/** Bytes of CDBs, and of sense data. */
export type DriverSizes = { readonly cdbBytes: number; readonly senseBytes: number };

const QUEUE_SIZE_MAX = 1024;
const SECTOR_BYTES = 512;

/** Cells of `ScsiDevice.sizes`. */
export const CDB_SIZE = 0;
export const SENSE_SIZE = 1;

/** What a reset sets `ScsiDevice.sizes` to. */
export function resetSizes(sizes: Int32Array): void {
  Atomics.store(sizes, CDB_SIZE, scsi.VIRTIO_SCSI_CDB_DEFAULT_SIZE);
  Atomics.store(sizes, SENSE_SIZE, scsi.VIRTIO_SCSI_SENSE_DEFAULT_SIZE);
}

export class ScsiDevice implements VirtioDevice {
  readonly deviceId = virtio.VIRTIO_ID_SCSI;
  readonly queueSizeMax = QUEUE_SIZE_MAX;
  readonly queueCount: number;
  readonly features: bigint;
  /** Shared with the worker: bytes of CDBs and of sense data, which the driver may set. */
  readonly sizes = new Int32Array(new SharedArrayBuffer(8));
  readonly #queues: number;

  /** @throws ConfigError. */
  constructor({ queues, packed, iommu }: ScsiDeviceOptions) {
    if (!Number.isInteger(queues) || queues < 1 || queues > MAX_SCSI_QUEUES) {
      throw new ConfigError('queues', `${queues} is not in 1..${MAX_SCSI_QUEUES}`);
    }
    this.#queues = queues;
    this.queueCount = scsi.VIRTIO_SCSI_REQUESTQ + queues;
    this.features = virtio.featureSet(
      virtio.VIRTIO_F_VERSION_1,
      virtio.VIRTIO_RING_F_INDIRECT_DESC,
      virtio.VIRTIO_RING_F_EVENT_IDX,
      scsi.VIRTIO_SCSI_F_HOTPLUG,
      scsi.VIRTIO_SCSI_F_CHANGE,
      ...(packed ? [virtio.VIRTIO_F_RING_PACKED] : []),
      ...(iommu ? [virtio.VIRTIO_F_ACCESS_PLATFORM] : []),
    );
    resetSizes(this.sizes);
  }

  /** What a driver has set, for who serves it next. */
  get driverSizes(): DriverSizes {
    const [cdbBytes, senseBytes] = [CDB_SIZE, SENSE_SIZE].map((at) => Atomics.load(this.sizes, at));
    return { cdbBytes: cdbBytes!, senseBytes: senseBytes! };
  }

  set driverSizes({ cdbBytes, senseBytes }: DriverSizes) {
    Atomics.store(this.sizes, CDB_SIZE, cdbBytes);
    Atomics.store(this.sizes, SENSE_SIZE, senseBytes);
  }

  readConfig(offset: number, sizeBytes: number): Uint8Array | null {
    if (offset < 0 || offset >= scsi.ScsiConfig.size || sizeBytes < 0) return null;
    const config = scsi.ScsiConfig.encode({
      numQueues: this.#queues,
      segMax: SCSI_SEG_MAX,
      maxSectors: MAX_TRANSFER_BYTES / SECTOR_BYTES,
      cmdPerLun: CMD_PER_LUN,
      eventInfoSize: scsi.ScsiEvent.size,
      senseSize: Atomics.load(this.sizes, SENSE_SIZE),
      cdbSize: Atomics.load(this.sizes, CDB_SIZE),
      maxChannel: 0,
      maxTarget: MAX_TARGET,
      maxLun: MAX_LUN,
    });
    // What lies behind the space, such as fields of a younger header, reads as zero.
    const bytes = new Uint8Array(sizeBytes);
    bytes.set(config.subarray(offset, offset + sizeBytes));
    return bytes;
  }

  /** The driver may set the two sizes before it starts, each as a whole (5.6.4). */
  writeConfig(offset: number, bytes: Uint8Array): boolean {
    if (bytes.length !== 4) return false;
    const value = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
    const { senseSize, cdbSize } = scsi.ScsiConfig.fields;
    if (offset === senseSize.at && value <= MAX_SENSE_BYTES) {
      Atomics.store(this.sizes, SENSE_SIZE, value);
    } else if (offset === cdbSize.at && value >= 16 && value <= MAX_CDB_BYTES) {
      Atomics.store(this.sizes, CDB_SIZE, value);
    } else {
      return false;
    }
    return true;
  }
}
