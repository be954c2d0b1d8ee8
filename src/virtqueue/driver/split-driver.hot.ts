/** Driver side of split virtqueues. Virtio 1.2, 2.7.13 and 2.7.14. */
import type { DriverBatch, UsedBatch } from './driver-batch.ts';
import type { DriverQueue } from './driver-queue.ts';
import { writableBytes, writeTable } from './tables.hot.ts';

const NEXT = 1; //     VIRTQ_DESC_F_NEXT
const WRITE = 2; //    VIRTQ_DESC_F_WRITE
const INDIRECT = 4; // VIRTQ_DESC_F_INDIRECT

const SEG_FIRST = 0; // columns of DriverBatch.rows
const READ_SEGS = 256;
const WRITE_SEGS = 512;
const INDIRECT_COLUMN = 768;
const ID = 1024;

const UNIT = 1 / 4294967296;

const AVAIL_FLAGS = 0; // u16 index in q.avail
const AVAIL_IDX = 1;
const AVAIL_RING = 2;
const USED_FLAGS = 0; // u16 index in q.usedCells
const USED_IDX = 1;
const USED_RING = 1; //  i32 index in q.used

const FAULT_USED_IDX = -18; // as in faults.ts; driver-queue.test.ts holds them equal
const FAULT_USED_ID = -19;
const FAULT_USED_LENGTH = -20;
const FAULT_USED_ORDER = -21;

/** `addChains` of a split queue. */
export function addSplit(q: DriverQueue, batch: DriverBatch, first: number, count: number): number {
  const { avail, desc, stack, out, order, size, inOrder } = q;
  const { rows, segGpa, segLen } = batch;
  const mask = size - 1;
  const orderAt = q.orderAt + q.outstanding;
  let nextFree = q.nextFree;
  let free = q.free;
  let nextAvail = q.nextAvail;
  let n = 0;
  while (n < count) {
    // The inner loop calls nothing, so that what it needs of each array is loaded once.
    for (; n < count && free > 0; n++) {
      const row = first + n;
      const write = rows[row + WRITE_SEGS];
      if (rows[row + READ_SEGS] + write !== 1) break;
      const segment = rows[row + SEG_FIRST];
      const gpa = segGpa[segment];
      const len = segLen[segment];
      let head = nextFree;
      if (inOrder === 0) head = stack[free - 1];
      else {
        nextFree = (head + 1) & mask;
        order[(orderAt + n) & mask] = head;
      }
      const at = head << 2;
      desc[at] = gpa | 0;
      desc[at + 1] = (gpa * UNIT) | 0;
      desc[at + 2] = len;
      desc[at + 3] = write << 1;
      out[2 * head] = 1;
      out[2 * head + 1] = len & -write;
      rows[row + ID] = head;
      avail[AVAIL_RING + (nextAvail & mask)] = head;
      nextAvail++;
      free--;
    }
    if (n === count || free === 0) break;
    q.nextFree = nextFree;
    const head = inOrder !== 0 ? nextFree : stack[free - 1];
    const need = writeChain(q, batch, first + n, head, free);
    if (need === 0) break;
    if (inOrder !== 0) {
      nextFree = (head + need) & mask;
      order[(orderAt + n) & mask] = head;
    }
    avail[AVAIL_RING + (nextAvail & mask)] = head;
    nextAvail++;
    free -= need;
    n++;
  }
  q.nextFree = nextFree;
  q.free = free;
  q.nextAvail = nextAvail & 0xffff;
  q.outstanding += n;
  q.unpublished += n;
  return n;
}

/** A chain of several descriptors or a table. Returns the descriptors it took, 0: not enough. */
function writeChain(
  q: DriverQueue,
  batch: DriverBatch,
  row: number,
  head: number,
  free: number,
): number {
  const { rows } = batch;
  const segs = rows[row + READ_SEGS] + rows[row + WRITE_SEGS];
  const viaTable = rows[row + INDIRECT_COLUMN] !== 0 && segs <= q.tableEntries;
  const need = viaTable ? 1 : segs;
  if (need > free) return 0;
  if (viaTable) {
    writeTable(q, batch, row, head);
    const gpa = q.tableBase[1] + 16 * q.tableEntries * head;
    const at = head << 2;
    q.desc[at] = gpa | 0;
    q.desc[at + 1] = (gpa * UNIT) | 0;
    q.desc[at + 2] = segs << 4;
    q.desc[at + 3] = INDIRECT;
  } else writeList(q, batch, row, free, segs);
  q.out[2 * head] = need;
  q.out[2 * head + 1] = writableBytes(batch, row);
  rows[row + ID] = head;
  return need;
}

/** A chain of several descriptors, linked by `next`; the `free` top ones of the stack. */
function writeList(
  q: DriverQueue,
  batch: DriverBatch,
  row: number,
  free: number,
  segs: number,
): void {
  const { desc, stack, link, size, inOrder } = q;
  const first = batch.segFirst[row];
  const reads = batch.readSegs[row];
  let index = inOrder !== 0 ? q.nextFree : stack[free - 1];
  for (let k = 0; k < segs; k++) {
    const gpa = batch.segGpa[first + k];
    const at = index << 2;
    const write = k < reads ? 0 : WRITE;
    desc[at] = gpa | 0;
    desc[at + 1] = (gpa * UNIT) | 0;
    desc[at + 2] = batch.segLen[first + k];
    if (k + 1 === segs) {
      desc[at + 3] = write;
      return;
    }
    // 2.7.5: with IN_ORDER, `next` is the following index, and 0 behind the last.
    const next = inOrder !== 0 ? (index + 1) & (size - 1) : stack[free - 2 - k];
    desc[at + 3] = write | NEXT | (next << 16);
    link[index] = next;
    index = next;
  }
}

/** `publish` of a split queue. */
export function publishSplit(q: DriverQueue): void {
  Atomics.store(q.avail, AVAIL_IDX, q.nextAvail);
  q.sinceKick += q.unpublished;
  q.unpublished = 0;
}

/** `reapUsed` of a split queue. */
export function reapSplit(q: DriverQueue, into: UsedBatch, max: number): number {
  into.count = 0;
  if (q.fault !== 0) return q.fault;
  const { used, size, out, stack } = q;
  const { id: ids, len: lens } = into;
  const pending = (Atomics.load(q.usedCells, USED_IDX) - q.nextUsed) & 0xffff;
  if (pending === 0) return 0;
  if (pending > q.outstanding - q.unpublished) return (q.fault = FAULT_USED_IDX);
  let limit = pending < max ? pending : max;
  if (limit > into.capacity) limit = into.capacity;
  if (q.inOrder !== 0) return reapInOrder(q, into, limit, pending);
  const mask = size - 1;
  const nextUsed = q.nextUsed;
  let free = q.free;
  let n = 0;
  let fault = 0;
  while (n < limit) {
    let id = 0;
    for (; n < limit; n++) {
      const at = USED_RING + (((nextUsed + n) & mask) << 1);
      id = used[at];
      const len = used[at + 1];
      if (id < 0 || id >= size || out[2 * id] === 0) {
        fault = FAULT_USED_ID;
        break;
      }
      if (len < 0 || len > out[2 * id + 1]) {
        fault = FAULT_USED_LENGTH;
        break;
      }
      ids[n] = id;
      lens[n] = len;
      if (out[2 * id] !== 1) break;
      out[2 * id] = 0;
      stack[free++] = id;
    }
    if (n === limit || fault !== 0) break;
    q.free = free;
    freeChain(q, id);
    free = q.free;
    n++;
  }
  if (n === 0) return (q.fault = fault);
  q.free = free;
  q.nextUsed = (nextUsed + n) & 0xffff;
  q.outstanding -= n;
  into.count = n;
  return n;
}

/** Puts the descriptors of chain `id` back on the stack, its head on top. */
function freeChain(q: DriverQueue, id: number): void {
  const { stack, link, out } = q;
  const count = out[2 * id];
  out[2 * id] = 0;
  let top = q.free + count;
  q.free = top;
  let index = id;
  for (let k = 0; k < count; k++) {
    stack[--top] = index;
    index = link[index];
  }
}

/** IN_ORDER: a used entry covers all chains up to its id, oldest first. 2.7.9. */
function reapInOrder(q: DriverQueue, into: UsedBatch, limit: number, pending: number): number {
  const { used, size, out, order } = q;
  const mask = size - 1;
  let n = 0;
  let fault = 0;
  for (; n < limit; n++) {
    if (q.batchId < 0) {
      const at = USED_RING + ((q.nextUsed & mask) << 1);
      const id = used[at];
      const len = used[at + 1];
      if (id < 0 || id >= size || out[2 * id] === 0) {
        fault = FAULT_USED_ID;
        break;
      }
      if (len < 0 || len > out[2 * id + 1]) {
        fault = FAULT_USED_LENGTH;
        break;
      }
      q.batchId = id;
      q.batchLen = len;
    }
    const oldest = order[q.orderAt];
    const last = oldest === q.batchId;
    // idx covers whole batches, so the end of what is published is the end of a batch.
    if (!last && n + 1 === pending) {
      fault = FAULT_USED_ORDER;
      break;
    }
    into.id[n] = oldest;
    into.len[n] = last ? q.batchLen : out[2 * oldest + 1]; // skipped: "used completely"
    if (last) q.batchId = -1;
    q.orderAt = (q.orderAt + 1) & mask;
    q.free += out[2 * oldest];
    out[2 * oldest] = 0;
    q.nextUsed = (q.nextUsed + 1) & 0xffff;
  }
  if (n === 0) return (q.fault = fault);
  q.outstanding -= n;
  into.count = n;
  return n;
}

export function hasUsedSplit(q: DriverQueue): boolean {
  return Atomics.load(q.usedCells, USED_IDX) !== q.nextUsed;
}

/** Does the device want a kick for the `q.sinceKick` chains before `q.nextAvail`? 2.7.13.4. */
export function wantsKickSplit(q: DriverQueue): boolean {
  if (q.eventIdx === 0) return (Atomics.load(q.usedCells, USED_FLAGS) & 1) === 0; // NO_NOTIFY
  const event = Atomics.load(q.usedCells, 2 + 4 * q.size); // avail_event
  return ((q.nextAvail - event - 1) & 0xffff) < q.sinceKick;
}

export function disableCallsSplit(q: DriverQueue): void {
  if (q.eventIdx === 0) Atomics.store(q.avail, AVAIL_FLAGS, 1); // NO_INTERRUPT
  // The entry just passed: the device reaches it again in 65536 entries.
  else Atomics.store(q.avail, AVAIL_RING + q.size, (q.nextUsed - 1) & 0xffff);
}

export function enableCallsSplit(q: DriverQueue): void {
  if (q.eventIdx === 0) Atomics.store(q.avail, AVAIL_FLAGS, 0);
  else Atomics.store(q.avail, AVAIL_RING + q.size, q.nextUsed); // used_event
}
