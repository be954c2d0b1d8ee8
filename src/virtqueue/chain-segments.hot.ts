/**
 * From guest-physical ranges to arena segments: what split and packed chains share.
 *
 * Address words are passed as int32, not as one double: a double argument of a function that is
 * not inlined is boxed, which is garbage per descriptor.
 */
import { assert } from '../base/assert.ts';
import type { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';

const FAULT_DESC_ADDRESS = -3; // as in faults.ts; device-queue.test.ts holds them equal
const FAULT_INDIRECT_LENGTH = -8;
const FAULT_DESC_LENGTH = -12;

const NO_ROOM = 1; // the batch's segment columns are full; the chain stays in the ring
const MISSED = 3; //  the IOTLB lacks an address, see `DeviceQueue.missed`; the chain stays, too

/** Above it numbers are not exact; the session refuses translations that go so far. */
const ADDRESS_END = 9007199254740992;

/** Addresses are compared in units of 2^32 bytes, see `takeSimple`. */
const UNIT = 1 / 4294967296;

const READ = 1; // access

const HEAD = 0; // columns of ChainBatch.rows, ROW_STRIDE words apart
const SLOTS = 256;
const SEG_FIRST = 512;
const READ_SEGS = 768;
const WRITE_SEGS = 1024;
const READ_BYTES = 1280;
const WRITE_BYTES = 1536;
const WRITTEN = 1792;

/** Appends the buffer of one descriptor; as `addSegments`, quickly where the range is the last. */
export function addBuffer(
  q: DeviceQueue,
  batch: ChainBatch,
  lo: number,
  hi: number,
  len: number,
  access: number, // 1 the device reads it, 2 writes it
): number {
  const range = q.lastRange;
  const segs = batch.segments;
  const address = hi + (lo >>> 0) * UNIT;
  if (len <= 0 || segs >= batch.segCapacity || (q.lastAllowed & access) === 0) {
    return addSegments(q, batch, lo, hi, len, access);
  }
  if (!(address >= q.mapStart[range] * UNIT && address + len * UNIT <= q.mapEnd[range] * UNIT)) {
    return addSegments(q, batch, lo, hi, len, access);
  }
  batch.segOffset[segs] = (address + q.mapDelta[range] * UNIT) * 4294967296;
  batch.segLen[segs] = len;
  batch.segments = segs + 1;
  return 0;
}

/** Completes row `row`: a chain whose segments begin at `firstSeg`, the writable at `writeSeg`. */
export function finishRow(
  batch: ChainBatch,
  row: number,
  head: number,
  slots: number,
  firstSeg: number,
  writeSeg: number, // -1: all are readable
  readBytes: number,
  bytes: number, //    of the direction that came last
): void {
  const rows = batch.rows;
  const readable = writeSeg < 0;
  const border = readable ? batch.segments : writeSeg;
  rows[row + HEAD] = head;
  rows[row + SLOTS] = slots;
  rows[row + SEG_FIRST] = firstSeg;
  rows[row + READ_SEGS] = border - firstSeg;
  rows[row + WRITE_SEGS] = batch.segments - border;
  rows[row + READ_BYTES] = readable ? bytes : readBytes;
  rows[row + WRITE_BYTES] = readable ? 0 : bytes;
  rows[row + WRITTEN] = 0;
}

/** Fills the rows of a uniform batch in, for those who look at more than its segments. */
export function fillRows(batch: ChainBatch, count: number): void {
  if (batch.unfilled === 2) assert(false, 'rows of a batch without segments are wanted');
  batch.unfilled = 0;
  const { rows, segLen } = batch;
  const write = batch.uniform - 1; // UNIFORM_READ 1, UNIFORM_WRITE 2
  for (let i = 0; i < count; i++) {
    const len = segLen[i];
    rows[i + SEG_FIRST] = i;
    rows[i + READ_SEGS] = 1 - write;
    rows[i + WRITE_SEGS] = write;
    rows[i + READ_BYTES] = len & (write - 1);
    rows[i + WRITE_BYTES] = len & -write;
  }
}

/**
 * Appends the buffer of one descriptor to `batch`, from `batch.segments` on. Returns 0, NO_ROOM,
 * MISSED or a fault, and leaves the range of the buffer's end in `q.lastRange`.
 *
 * A buffer may cross from one range of guest memory into the next when the guest sees no gap
 * (memory added by hotplug, pages behind a virtual IOMMU): it becomes several segments then.
 *
 * A descriptor of length zero adds nothing and is no fault: Linux' vhost and DPDK accept it (DPDK
 * drivers send one for an empty mbuf segment), QEMU does not. It counts towards the chain's length.
 */
function addSegments(
  q: DeviceQueue,
  batch: ChainBatch,
  lo: number, //  int32, low word of the GPA
  hi: number, //  int32, high word
  len: number, // int32: lengths of 2^31 and more are negative here
  access: number,
): number {
  if (len < 0) return FAULT_DESC_LENGTH;
  const permission = q.mapPermission;
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
      if (first === ranges || address < start[first]) return miss(q, address, access);
      range = first;
      if (left === len && q.iotlb !== 0) q.rangeHint[(lo >>> 12) & 1023] = range;
    }
    if ((permission[range] & access) === 0) return miss(q, address, access);
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
  q.lastAllowed = permission[range];
  return 0;
}

/**
 * An address that nothing is known of: with an IOTLB the front-end is asked for it and the chain
 * waits in the ring, else it is a fault. So is one that no translation could have.
 */
function miss(q: DeviceQueue, address: number, access: number): number {
  if (q.iotlb === 0 || address < 0 || address >= ADDRESS_END) return FAULT_DESC_ADDRESS;
  q.missed = access;
  q.missedAt[0] = address;
  return MISSED;
}

/**
 * Finds an indirect table and leaves its arena offset in `q.tableAt[0]`. Returns its entries, 0 for
 * a miss of the IOTLB, or a fault. The whole table must lie in one piece of the arena, which is
 * true of what a driver allocates in one piece; ranges may meet in it that differ in permissions.
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
    range = first; // q.lastRange stays: the buffers are rarely where the tables are
  }
  const offset = range < ranges ? delta[range] : 0;
  let at = address;
  do {
    if (range === ranges || at < start[range] || (q.mapPermission[range] & READ) === 0) {
      const result = miss(q, at, READ);
      return result === MISSED ? 0 : result;
    }
    if (delta[range] !== offset) return FAULT_DESC_ADDRESS;
    at = end[range++];
  } while (at - address < len); // a sum would round above 2^53
  q.tableAt[0] = address + offset;
  return len >> 4;
}
