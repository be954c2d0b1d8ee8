import type { AddressMap } from '../../memory/address-map.ts';
import { ringLayout } from '../../wire/virtio.ts';
import { PACKED_BASE_FRESH } from '../../wire/virtio.ts';
import { DeviceQueue, type QueueExtras } from '../device-queue.ts';
import { DriverQueue, tableBytes, type DriverConfig } from './driver-queue.ts';

export type QueuePairOptions = {
  readonly size: number;
  readonly packed?: boolean;
  readonly eventIdx?: boolean;
  readonly indirect?: boolean;
  readonly inOrder?: boolean;
  /** Bytes of guest memory for buffers. */
  readonly dataBytes?: number;
  /** Entries of each indirect table. */
  readonly tableEntries?: number;
  /** Memory to use instead of an ArrayBuffer of its own: its start, size and where it begins. */
  readonly memory?: { readonly buffer: ArrayBufferLike; readonly offset: number };
  /** Of the device: a dirty log, an inflight region. */
  readonly extras?: QueueExtras;
};

/** Where the guest sees its memory: above 4 GiB, so that both address words matter. */
export const PAIR_BASE_GPA = 0x1_4000_0000;

/** Bytes of memory that a pair with these options needs. */
export function queuePairBytes(options: QueuePairOptions): number {
  const rings = ringLayout(options.size, options.packed ?? false).totalBytes;
  const tables = tableBytes(options.size, options.tableEntries ?? 16);
  return rings + tables + (options.dataBytes ?? 1 << 20);
}

/**
 * A driver and a device on one ring in one block of memory: guest-physical addresses start at
 * PAIR_BASE_GPA, the rings come first, then the indirect tables, then the buffers. For tests and
 * benches of everything that has a virtqueue in it.
 */
export class QueuePair {
  readonly buffer: ArrayBufferLike;
  /** Arena offset of the block, and its bytes. */
  readonly offset: number;
  readonly sizeBytes: number;
  readonly config: DriverConfig;
  readonly driver: DriverQueue;
  device: DeviceQueue;
  readonly map: AddressMap;
  /** GPA of the first byte for buffers, and how many there are. */
  readonly dataGpa: number;
  readonly dataBytes: number;
  readonly #extras: QueueExtras;

  constructor(options: QueuePairOptions) {
    const { size, packed = false, memory } = options;
    const sizeBytes = queuePairBytes(options);
    // Not at offset zero in memory of our own: an address that is not translated must not work.
    this.offset = memory?.offset ?? 4096;
    this.buffer = memory?.buffer ?? new ArrayBuffer(this.offset + sizeBytes);
    this.sizeBytes = sizeBytes;
    const layout = ringLayout(size, packed);
    const tablesAt = layout.totalBytes;
    const entries = options.tableEntries ?? 16;
    this.config = {
      size,
      packed,
      eventIdx: options.eventIdx ?? false,
      indirect: options.indirect ?? false,
      inOrder: options.inOrder ?? false,
      descOffset: this.offset,
      availOffset: this.offset + layout.availAt,
      usedOffset: this.offset + layout.usedAt,
      tables: { offset: this.offset + tablesAt, gpa: PAIR_BASE_GPA + tablesAt, entries },
    };
    this.map = {
      count: 1,
      start: new Float64Array([PAIR_BASE_GPA]),
      end: new Float64Array([PAIR_BASE_GPA + sizeBytes]),
      delta: new Float64Array([this.offset - PAIR_BASE_GPA]),
    };
    const dataAt = tablesAt + tableBytes(size, entries);
    this.dataGpa = PAIR_BASE_GPA + dataAt;
    this.dataBytes = sizeBytes - dataAt;
    this.#extras = options.extras ?? {};
    this.driver = new DriverQueue(this.config, this.buffer);
    this.device = this.#attach(packed ? PACKED_BASE_FRESH : 0);
  }

  /** A new device on the same ring, as after a restart of the back-end. */
  restart(base: number): void {
    this.device = this.#attach(base);
  }

  #attach(base: number): DeviceQueue {
    return new DeviceQueue({ ...this.config, base }, this.map, this.buffer, this.#extras);
  }
}
