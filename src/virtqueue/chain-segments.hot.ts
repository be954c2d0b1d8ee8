/**
 * From guest-physical ranges to arena segments: the part that split and packed chains share. Runs
 * for buffers that are not in the range of the one before; the hit is inlined in the takers.
 *
 * Address words are passed as int32, not as one double: a double argument of a function that is
 * not inlined is boxed, which is garbage per descriptor.
 */
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';

const FAULT_DESC_ADDRESS = -3; // as in faults.ts; device-queue.test.ts holds them equal
const FAULT_INDIRECT_LENGTH = -8;
const FAULT_DESC_LENGTH = -12;

const NO_ROOM = 1; // the batch's segment columns are full; the chain stays in the ring

/**
 * Appends the buffer of one descriptor to `batch`, from `batch.segments` on. Returns 0, NO_ROOM,
 * or a fault, and leaves the range of the buffer's end in `q.lastRange`.
 *
 * A buffer may cross from one range of guest memory into the next when the guest sees no gap
 * (memory added by hotplug): it becomes several segments then.
 *
 * A descriptor of length zero adds nothing and is no fault: Linux' vhost and DPDK accept it (DPDK
 * drivers send one for an empty mbuf segment), QEMU does not. It counts towards the chain's length.
 */
export function addSegments(
  q: DeviceQueue,
  batch: ChainBatch,
  lo: number, //  int32, low word of the GPA
  hi: number, //  int32, high word
  len: number, // int32: lengths of 2^31 and more are negative here
): number {
  if (len < 0) return FAULT_DESC_LENGTH;
  const { mapStart: start, mapEnd: end, mapDelta: delta, mapCount: ranges } = q;
  let address = (lo >>> 0) + hi * 4294967296; // negative for hi >= 2^31: in no range
  let range = q.lastRange;
  let left = len;
  while (left > 0) {
    if (!(address >= start[range] && address < end[range])) {
      let first = 0; // first range that ends behind the address
      let behind = ranges;
      while (first < behind) {
        const middle = (first + behind) >> 1;
        if (end[middle] <= address) first = middle + 1;
        else behind = middle;
      }
      if (first === ranges || address < start[first]) return FAULT_DESC_ADDRESS;
      range = first;
    }
    if (batch.segments >= batch.segCapacity) return NO_ROOM;
    const room = end[range] - address;
    const here = left < room ? left : room;
    batch.segOffset[batch.segments] = address + delta[range];
    batch.segLen[batch.segments] = here;
    batch.segments++;
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
  // 2^16 entries is all that `next` can name, and what Linux' vhost accepts.
  if (len <= 0 || len > 16 * 65536 || (len & 15) !== 0) return FAULT_INDIRECT_LENGTH;
  const { mapStart: start, mapEnd: end, mapDelta: delta, mapCount: ranges } = q;
  const address = (lo >>> 0) + hi * 4294967296;
  let range = q.lastRange;
  if (!(address >= start[range] && address < end[range])) {
    let first = 0;
    let behind = ranges;
    while (first < behind) {
      const middle = (first + behind) >> 1;
      if (end[middle] <= address) first = middle + 1;
      else behind = middle;
    }
    if (first === ranges || address < start[first]) return FAULT_DESC_ADDRESS;
    range = first; // q.lastRange stays: the buffers are rarely where the tables are
  }
  if (address + len > end[range]) return FAULT_DESC_ADDRESS;
  q.tableAt[0] = address + delta[range];
  return len >> 4;
}
