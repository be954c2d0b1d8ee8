/**
 * The inflight region (specification, "Inflight I/O tracking"): memory that survives a back-end
 * and says which requests it had taken. The session makes it, maps it and gives each ring its
 * part; what is in it is the queues' business (virtqueue).
 */
import { ProtocolError } from '../base/errors.ts';
import type { SharedArea } from './session-area.ts';
import { isPacked } from './ring-addresses.ts';
import type { InflightArea } from './target.ts';

/** Bytes of QueueRegionSplit and DescStateSplit, of QueueRegionPacked and DescStatePacked. */
const SPLIT_HEADER_BYTES = 16;
const SPLIT_ENTRY_BYTES = 16;
const PACKED_HEADER_BYTES = 32;
const PACKED_ENTRY_BYTES = 32;
/** "Each queue region is aligned to 64 bytes". */
const ALIGN_BYTES = 64;

/** From one ring's part to the next. */
export function inflightStrideBytes(queueSize: number, packed: boolean): number {
  const bytes = packed
    ? PACKED_HEADER_BYTES + PACKED_ENTRY_BYTES * queueSize
    : SPLIT_HEADER_BYTES + SPLIT_ENTRY_BYTES * queueSize;
  return Math.ceil(bytes / ALIGN_BYTES) * ALIGN_BYTES;
}

export type InflightShape = { readonly queueCount: number; readonly queueSize: number };

/** @throws ProtocolError ERR_VRING_INFLIGHT: no rings, or more than the device has. */
export function checkInflightShape(request: string, shape: InflightShape, rings: number): void {
  const { queueCount, queueSize } = shape;
  const bad = (field: string, problem: string): never => {
    throw new ProtocolError('ERR_VRING_INFLIGHT', request, field, problem);
  };
  if (queueCount < 1 || queueCount > rings) {
    bad('num queues', `${queueCount}, this device has ${rings} vrings`);
  }
  if (queueSize < 1) bad('queue size', '0, expected at least one descriptor');
}

/** Bytes of a region. Without acked features for either format: packed is the larger one. */
export function inflightBytes(shape: InflightShape, features: bigint | null): number {
  const packed = features === null || isPacked(features);
  return shape.queueCount * inflightStrideBytes(shape.queueSize, packed);
}

export class InflightRegion {
  readonly shape: InflightShape;
  readonly area: SharedArea;

  constructor(area: SharedArea, shape: InflightShape) {
    this.area = area;
    this.shape = shape;
  }

  /**
   * The part of one ring; null for a ring that the region does not have.
   * @throws ProtocolError ERR_VRING_INFLIGHT: the region does not fit the ring.
   */
  of(index: number, size: number, features: bigint): InflightArea | null {
    const { area, shape } = this;
    if (index >= shape.queueCount) return null;
    const request = 'VHOST_USER_SET_INFLIGHT_FD';
    if (size > shape.queueSize) {
      const problem = `${shape.queueSize}, vring ${index} has ${size} descriptors`;
      throw new ProtocolError('ERR_VRING_INFLIGHT', request, 'queue size', problem);
    }
    const sizeBytes = inflightStrideBytes(shape.queueSize, isPacked(features));
    if ((index + 1) * sizeBytes > area.sizeBytes) {
      const due = shape.queueCount * sizeBytes;
      const problem = `${area.sizeBytes}, expected at least ${due} with the acked features`;
      throw new ProtocolError('ERR_VRING_INFLIGHT', request, 'mmap size', problem);
    }
    return { offset: area.offset + index * sizeBytes, sizeBytes, handle: area.handle };
  }

  /** Idempotent. */
  close(): void {
    this.area.close();
  }
}
