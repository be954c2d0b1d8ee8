/**
 * From one descriptor's words to segments of a batch: the part that split and packed chains
 * share. Runs for chains of several descriptors and for addresses outside the last range; the
 * common case, one descriptor in the range of the one before, is inlined in the takers.
 *
 * Words are passed as int32, not as one double address: a double argument of a function that is
 * not inlined is boxed, which is garbage per descriptor.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';

const FAULT_DESC_ADDRESS = -3; //    as in faults.ts; device-queue.test.ts holds them equal
const FAULT_DESC_LENGTH = -12;
const FAULT_INDIRECT_LENGTH = -8;

const NO_ROOM = 1; // the batch's segment columns are full; the chain stays in the ring
const MAX_CHAIN_BYTES = 0x7fffffff;

/** Starts row `row` of the batch: nothing in it yet. */
export function startChain(batch: ChainBatch, row: number): void {
  batch.slots[row] = 1;
  batch.segFirst[row] = batch.segments;
  batch.readSegs[row] = 0;
  batch.writeSegs[row] = 0;
  batch.readBytes[row] = 0;
  batch.writeBytes[row] = 0;
  batch.written[row] = 0;
}

/**
 * Adds the buffer of one descriptor to row `row`. Returns 0, NO_ROOM, or a fault.
 *
 * A buffer may cross from one range of guest memory into the next when the guest sees no gap
 * (memory added by hotplug): it becomes several segments then.
 *
 * A descriptor of length zero adds nothing and is no fault: Linux' vhost and DPDK accept it (DPDK
 * drivers send one for an empty mbuf segment), QEMU does not. It counts towards the chain's length.
 */
export function addBuffer(
  q: DeviceQueue,
  batch: ChainBatch,
  row: number,
  lo: number, //       int32, low word of the GPA
  hi: number, //       int32, high word
  len: number, //      int32: lengths of 2^31 and more are negative here
  writable: number, // 0 or 1
): number {
  if (len < 0) return FAULT_DESC_LENGTH;
  if (len === 0) return 0;
  const bytes = writable === 0 ? batch.readBytes : batch.writeBytes;
  const total = bytes[row] + len;
  if (total > MAX_CHAIN_BYTES) return FAULT_DESC_LENGTH;
  bytes[row] = total;

  const segs = writable === 0 ? batch.readSegs : batch.writeSegs;
  const start = q.mapStart;
  const end = q.mapEnd;
  let address = (lo >>> 0) + hi * 4294967296; // negative for hi >= 2^31: in no range
  let range = q.lastRange;
  let left = len;
  while (left > 0) {
    if (!(address >= start[range] && address < end[range])) {
      let first = 0; // first range that ends behind the address
      let behind = q.mapCount;
      while (first < behind) {
        const middle = (first + behind) >> 1;
        if (end[middle] <= address) first = middle + 1;
        else behind = middle;
      }
      if (first === q.mapCount || address < start[first]) return FAULT_DESC_ADDRESS;
      range = first;
    }
    if (batch.segments >= batch.segCapacity) return NO_ROOM;
    const room = end[range] - address;
    const here = left < room ? left : room;
    batch.segOffset[batch.segments] = address + q.mapDelta[range];
    batch.segLen[batch.segments] = here;
    batch.segments++;
    segs[row]++;
    address += here;
    left -= here;
  }
  q.lastRange = range;
  return 0;
}

/**
 * Finds an indirect table and leaves its arena offset in `q.tableAt[0]`. Returns its entries or a
 * fault. The whole table must lie in one range of guest memory.
 */
export function findTable(q: DeviceQueue, lo: number, hi: number, len: number): number {
  // 2^16 entries is all that `next` can name; it also keeps the length far from 2^31.
  if (len <= 0 || len > 16 * 65536 || (len & 15) !== 0) return FAULT_INDIRECT_LENGTH;
  const start = q.mapStart;
  const end = q.mapEnd;
  const address = (lo >>> 0) + hi * 4294967296;
  let range = q.lastRange;
  if (!(address >= start[range] && address < end[range])) {
    let first = 0;
    let behind = q.mapCount;
    while (first < behind) {
      const middle = (first + behind) >> 1;
      if (end[middle] <= address) first = middle + 1;
      else behind = middle;
    }
    if (first === q.mapCount || address < start[first]) return FAULT_DESC_ADDRESS;
    range = first; // q.lastRange stays: the buffers are rarely where the tables are
  }
  if (address + len > end[range]) return FAULT_DESC_ADDRESS;
  q.tableAt[0] = address + q.mapDelta[range];
  return len >> 4;
}
