import { assert } from '../../base/assert.ts';
import { checkRingMemory, type VringConfig } from '../device-queue.ts';

export type DriverConfig = Omit<VringConfig, 'base'> & {
  /**
   * Memory for indirect tables: `entries` descriptors for each of the ring's `size` ids, one
   * behind the other. Absent: `DriverBatch.indirect` is ignored.
   */
  readonly tables?: {
    /** Arena offset. */
    readonly offset: number;
    readonly gpa: number;
    readonly entries: number;
  };
};

/** Bytes that `DriverConfig.tables` points at. */
export function tableBytes(size: number, entries: number): number {
  return 16 * entries * size;
}

/**
 * The driver side of one virtqueue, split or packed: its cells and positions, no behaviour; see
 * `driver.hot.ts`. It owns the ring's memory and never believes the device: what comes back is
 * compared with what is out, so that a hostile device cannot corrupt the driver's own state.
 */
export class DriverQueue {
  readonly size: number;
  /** 0 or 1 each. */
  readonly packed: number;
  readonly eventIdx: number;
  readonly inOrder: number;
  /** Entries of each indirect table, 0 without. */
  readonly tableEntries: number;
  /** [arena offset, GPA] of the first table. */
  readonly tableBase = new Float64Array(2);

  /** Sticky: the FAULT_USED_* that broke the queue, 0 while it works. */
  fault = 0;
  /** Free descriptors (packed: free slots), and chains that are out. */
  free = 0;
  outstanding = 0;
  /** Split: free-running, 16 bits. Packed: slot of the ring. */
  nextAvail = 0;
  nextUsed = 0;
  availWrap = 1;
  usedWrap = 1;
  /** Chains (packed: slots) published since `needsKick` was last asked; saturates. */
  sinceKick = 0;
  /** Packed, 1: this processor may perform loads out of order. */
  weakOrder = process.arch === 'x64' ? 0 : 1;
  readonly fence = new Int32Array(1);
  /** Added, not yet published. Packed: the withheld flags of the first one; slot -1 for none. */
  unpublished = 0;
  heldAt = -1;
  heldWord = 0;
  /** IN_ORDER: the used entry that covers a batch, while the batch is being reaped; -1 for none. */
  batchId = -1;
  batchLen = 0;
  /** IN_ORDER: where in `order` the oldest chain is. Split: the next free descriptor. */
  orderAt = 0;
  nextFree = 0;

  readonly desc: Int32Array; //        as in DeviceQueue
  readonly avail: Uint16Array;
  readonly used: Int32Array;
  readonly usedCells: Uint16Array;
  readonly driverEvent: Int32Array;
  readonly deviceEvent: Int32Array;
  readonly arena: DataView;

  /** Free descriptors (packed: ids), a stack: the one used last is the one in the cache. */
  readonly stack: Uint16Array;
  /** IN_ORDER: ids of the chains that are out, a ring from `orderAt` on. */
  readonly order: Uint16Array;
  /**
   * By id, two words: descriptors (packed: slots) of the chain that is out, 0 when it is not; and
   * the bytes that the device may write, at most 2^31 - 1.
   */
  readonly out: Int32Array;
  /** Split: by descriptor, the next of its chain; what the table says is the device's copy. */
  readonly link: Uint16Array;

  /** Zeroes the ring. @throws VringError ERR_VRING_RING_*, as for DeviceQueue. */
  constructor(config: DriverConfig, buffer: ArrayBufferLike) {
    const { size, packed, eventIdx, tables } = config;
    checkRingMemory(config, buffer.byteLength);
    this.size = size | 0; // a boxed double would make the field one, see DeviceQueue
    this.packed = packed ? 1 : 0;
    this.eventIdx = eventIdx ? 1 : 0;
    this.inOrder = config.inOrder ? 1 : 0;
    this.tableEntries = config.indirect && tables !== undefined ? tables.entries | 0 : 0;
    if (tables !== undefined) {
      const end = tables.offset + tableBytes(size, tables.entries);
      assert(end <= buffer.byteLength, 'indirect tables leave the arena');
      this.tableBase.set([tables.offset, tables.gpa]);
    }
    this.arena = new DataView(buffer);
    this.desc = new Int32Array(buffer, config.descOffset, 4 * size);
    const event = eventIdx ? 1 : 0;
    if (packed) {
      this.avail = new Uint16Array(0);
      this.used = new Int32Array(0);
      this.usedCells = new Uint16Array(0);
      this.driverEvent = new Int32Array(buffer, config.availOffset, 1);
      this.deviceEvent = new Int32Array(buffer, config.usedOffset, 1);
    } else {
      this.avail = new Uint16Array(buffer, config.availOffset, 2 + size + event);
      this.used = new Int32Array(buffer, config.usedOffset, 1 + 2 * size);
      this.usedCells = new Uint16Array(buffer, config.usedOffset, 2 + 4 * size + event);
      this.driverEvent = new Int32Array(0);
      this.deviceEvent = new Int32Array(0);
    }
    this.stack = new Uint16Array(size);
    this.order = new Uint16Array(size);
    this.out = new Int32Array(2 * size);
    this.link = new Uint16Array(size);
    this.reset();
  }

  /** Forgets all chains and zeroes the ring; only while no device works on it. */
  reset(): void {
    this.desc.fill(0);
    this.avail.fill(0);
    this.usedCells.fill(0);
    this.driverEvent.fill(0);
    this.deviceEvent.fill(0);
    this.out.fill(0);
    this.fault = 0;
    this.free = this.size;
    this.outstanding = 0;
    this.nextAvail = 0;
    this.nextUsed = 0;
    this.availWrap = 1;
    this.usedWrap = 1;
    this.sinceKick = 0;
    this.unpublished = 0;
    this.heldAt = -1;
    this.heldWord = 0;
    this.batchId = -1;
    this.batchLen = 0;
    this.orderAt = 0;
    this.nextFree = 0;
    for (let i = 0; i < this.size; i++) this.stack[i] = this.size - 1 - i;
  }
}
