import { SECTOR_BYTES } from '../../storage/index.ts';
import { BlkLifetime, VIRTIO_BLK_ID_BYTES } from '../../wire/virtio-blk.ts';
import { MAX_RANGES } from './limits.ts';

/** Header of a request, and its ranges: copied from guest memory before they are judged. */
const SCRATCH_BYTES = 16 * MAX_RANGES;

/** What requests to a disk are judged by: read by `readRequests`, kept current by the disk. */
export class RequestRules {
  /** 0 or 1 each: changes are refused; a request that changes something must be durable. */
  readOnly = 0;
  fua = 0;
  /** 0 or 1: the driver negotiated the feature. */
  discards = 0;
  zeroes = 0;
  erases = 0;
  lifetimes = 0;
  /** The disk is zoned, and its driver knows. */
  zones = 0;
  maxAppendBytes = 0;
  /** What GET_ID answers. */
  readonly serial = new Uint8Array(VIRTIO_BLK_ID_BYTES);
  /** What GET_LIFETIME answers: `struct virtio_blk_lifetime`. */
  readonly lifetime = new Uint8Array(BlkLifetime.size);
  readonly scratch = new DataView(new ArrayBuffer(SCRATCH_BYTES));
  /** Sectors; a cell, because a field would be boxed above 2^31. */
  readonly capacity = new Float64Array(1);

  setSize(sizeBytes: number): void {
    this.capacity[0] = sizeBytes / SECTOR_BYTES;
  }
}
