/** Driver side of packed virtqueues. Virtio 1.2, 2.8.21 and 2.8.22. */
import type { DriverBatch, UsedBatch } from './driver-batch.ts';
import type { DriverQueue } from './driver-queue.ts';
import { writableBytes, writeTable } from './tables.hot.ts';

// Last word of a descriptor: id | flags << 16.
const NEXT = 1 << 16;
const WRITE = 1 << 17;
const INDIRECT = 1 << 18;
const AVAIL_BIT = 1 << 23;
const USED_BIT = 1 << 31;
const STATE = AVAIL_BIT | USED_BIT;

const SEG_FIRST = 0; // columns of DriverBatch.rows
const READ_SEGS = 256;
const WRITE_SEGS = 512;
const INDIRECT_COLUMN = 768;
const ID = 1024;

const UNIT = 1 / 4294967296;

const EVENTS_ENABLE = 0; //  RING_EVENT_FLAGS_*
const EVENTS_DISABLE = 1;
const EVENTS_DESC = 2;

const FAULT_USED_ID = -19; // as in faults.ts; driver-queue.test.ts holds them equal
const FAULT_USED_LENGTH = -20;

/** `addChains` of a packed queue. The first head's flags are withheld until `publish`. */
export function addPacked(
  q: DriverQueue,
  batch: DriverBatch,
  first: number,
  count: number,
): number {
  const { desc, out, order, stack, size, inOrder } = q;
  const { rows, segGpa, segLen } = batch;
  let slot = q.nextAvail;
  let wrap = q.availWrap;
  let state = wrap === 1 ? AVAIL_BIT : USED_BIT;
  let free = q.free;
  // Without IN_ORDER: fewer ids are out than slots, so the stack never runs dry before them.
  let top = size - 1 - q.outstanding;
  let orderAt = (q.orderAt + q.outstanding) % size;
  let n = 0;
  while (n < count && free > 0) {
    // The inner loop calls nothing, so that what it needs of each array is loaded once.
    for (; q.heldAt >= 0 && n < count && free > 0; n++) {
      const row = first + n;
      const write = rows[row + WRITE_SEGS];
      if (rows[row + READ_SEGS] + write !== 1) break;
      const segment = rows[row + SEG_FIRST];
      const gpa = segGpa[segment];
      const len = segLen[segment];
      let id = slot; // with IN_ORDER the head's slot is its id, as in Linux and DPDK
      if (inOrder === 0) id = stack[top--];
      else {
        order[orderAt] = id;
        if (++orderAt === size) orderAt = 0;
      }
      const at = slot << 2;
      desc[at] = gpa | 0;
      desc[at + 1] = (gpa * UNIT) | 0;
      desc[at + 2] = len;
      desc[at + 3] = id | state | (write << 17);
      out[2 * id] = 1;
      out[2 * id + 1] = len & -write;
      rows[row + ID] = id;
      free--;
      if (++slot === size) {
        slot = 0;
        wrap ^= 1;
        state ^= STATE;
      }
    }
    if (n === count || free === 0) break;
    const id = inOrder !== 0 ? slot : stack[top];
    const need = writeChain(q, batch, first + n, slot, wrap, id, free);
    if (need === 0) break;
    if (inOrder === 0) top--;
    else {
      order[orderAt] = id;
      if (++orderAt === size) orderAt = 0;
    }
    free -= need;
    n++;
    slot += need;
    if (slot >= size) {
      slot -= size;
      wrap ^= 1;
      state ^= STATE;
    }
  }
  q.unpublished += q.free - free;
  q.nextAvail = slot;
  q.availWrap = wrap;
  q.free = free;
  q.outstanding += n;
  return n;
}

/**
 * One chain of any shape, and the first one after `publish`. Returns the slots it took, 0: not
 * enough.
 */
function writeChain(
  q: DriverQueue,
  batch: DriverBatch,
  row: number,
  slot: number,
  wrap: number,
  id: number,
  free: number,
): number {
  const { desc, out } = q;
  const { rows } = batch;
  const segs = rows[row + READ_SEGS] + rows[row + WRITE_SEGS];
  const viaTable = rows[row + INDIRECT_COLUMN] !== 0 && segs > 1 && segs <= q.tableEntries;
  const need = viaTable ? 1 : segs;
  if (need > free) return 0;
  let headWord = id | INDIRECT | (wrap === 1 ? AVAIL_BIT : USED_BIT);
  if (viaTable) {
    writeTable(q, batch, row, id);
    const gpa = q.tableBase[1] + 16 * q.tableEntries * id;
    desc[slot << 2] = gpa | 0;
    desc[(slot << 2) + 1] = (gpa * UNIT) | 0;
    desc[(slot << 2) + 2] = segs << 4;
  } else headWord = writeList(q, batch, row, slot, wrap, id);
  if (q.heldAt < 0) {
    q.heldAt = slot;
    q.heldWord = headWord;
  } else desc[(slot << 2) + 3] = headWord;
  out[2 * id] = need;
  out[2 * id + 1] = writableBytes(batch, row);
  rows[row + ID] = id;
  return need;
}

/** Writes a list of descriptors; returns the head's last word, which the caller stores last. */
function writeList(
  q: DriverQueue,
  batch: DriverBatch,
  row: number,
  headSlot: number,
  headWrap: number,
  id: number,
): number {
  const { desc, size } = q;
  const first = batch.segFirst[row];
  const reads = batch.readSegs[row];
  const segs = reads + batch.writeSegs[row];
  let slot = headSlot;
  let state = headWrap === 1 ? AVAIL_BIT : USED_BIT;
  let headWord = 0;
  for (let k = 0; k < segs; k++) {
    const gpa = batch.segGpa[first + k];
    const at = slot << 2;
    const word = id | state | (k < reads ? 0 : WRITE) | (k + 1 < segs ? NEXT : 0);
    desc[at] = gpa | 0;
    desc[at + 1] = (gpa * UNIT) | 0;
    desc[at + 2] = batch.segLen[first + k];
    if (k === 0) headWord = word;
    else desc[at + 3] = word;
    if (++slot === size) {
      slot = 0;
      state ^= STATE;
    }
  }
  return headWord;
}

/** `publish` of a packed queue. */
export function publishPacked(q: DriverQueue): void {
  if (q.heldAt < 0) return;
  Atomics.store(q.desc, (q.heldAt << 2) + 3, q.heldWord);
  q.heldAt = -1;
  q.sinceKick += q.unpublished;
  q.unpublished = 0;
}

/** `reapUsed` of a packed queue. */
export function reapPacked(q: DriverQueue, into: UsedBatch, max: number): number {
  into.count = 0;
  if (q.fault !== 0) return q.fault;
  const { desc, size, out, stack } = q;
  const limit = max < into.capacity ? max : into.capacity;
  if (q.inOrder !== 0) return reapInOrder(q, into, limit);
  const run = scoutUsed(q, limit);
  if (run === 0) return 0;
  let slot = q.nextUsed;
  let wrap = q.usedWrap;
  const stackAt = size - q.outstanding;
  let freed = 0;
  let n = 0;
  let fault = 0;
  for (; n < run; n++) {
    const at = slot << 2;
    const word = desc[at + 3];
    if ((word & STATE) !== (wrap === 1 ? STATE : 0)) break;
    const id = word & 0xffff;
    const need = id < size ? out[2 * id] : 0;
    if (need === 0) {
      fault = FAULT_USED_ID;
      break;
    }
    // 2.8.10: the length is ignored where nothing could be written; DPDK leaves the driver's own.
    const room = out[2 * id + 1];
    const len = room === 0 ? 0 : desc[at + 2];
    if (len < 0 || len > room) {
      fault = FAULT_USED_LENGTH;
      break;
    }
    out[2 * id] = 0;
    stack[stackAt + n] = id;
    freed += need;
    into.id[n] = id;
    into.len[n] = len;
    slot += need;
    if (slot >= size) {
      slot -= size;
      wrap ^= 1;
    }
  }
  if (n === 0) return (q.fault = fault);
  q.free += freed;
  q.nextUsed = slot;
  q.usedWrap = wrap;
  q.outstanding -= n;
  into.count = n;
  return n;
}

/** How many used descriptors may be read; loads are ordered as in `packed-device.hot.ts`. */
function scoutUsed(q: DriverQueue, max: number): number {
  const { desc, size, out, outstanding } = q;
  let slot = q.nextUsed;
  let want = q.usedWrap === 1 ? STATE : 0;
  let word = Atomics.load(desc, (slot << 2) + 3);
  if ((word & STATE) !== want) return 0;
  if (q.weakOrder === 0) return max < outstanding ? max : outstanding;
  let run = 0;
  while (run < max && run < outstanding && (word & STATE) === want) {
    run++;
    const id = word & 0xffff;
    const need = id < size ? out[2 * id] : 0;
    if (need === 0) break; // the fault is found, and named, when it is read again
    slot += need;
    if (slot >= size) {
      slot -= size;
      want ^= STATE;
    }
    word = desc[(slot << 2) + 3];
  }
  if (run > 1) {
    Atomics.store(q.fence, 0, 0);
    Atomics.load(q.fence, 0);
  }
  return run;
}

/** IN_ORDER: a used descriptor covers all chains up to its id, oldest first. 2.8.8. */
function reapInOrder(q: DriverQueue, into: UsedBatch, limit: number): number {
  const { desc, size, out, order } = q;
  let n = 0;
  let fault = 0;
  for (; n < limit && n < q.outstanding; n++) {
    if (q.batchId < 0) {
      const at = q.nextUsed << 2;
      // Ordered once per call where the processor keeps the order of loads itself.
      const word = n === 0 || q.weakOrder !== 0 ? Atomics.load(desc, at + 3) : desc[at + 3];
      if ((word & STATE) !== (q.usedWrap === 1 ? STATE : 0)) break;
      const id = word & 0xffff;
      if (id >= size || out[2 * id] === 0) {
        fault = FAULT_USED_ID;
        break;
      }
      const room = out[2 * id + 1];
      const len = room === 0 ? 0 : desc[at + 2]; // as above
      if (len < 0 || len > room) {
        fault = FAULT_USED_LENGTH;
        break;
      }
      q.batchId = id;
      q.batchLen = len;
    }
    const oldest = order[q.orderAt];
    const last = oldest === q.batchId;
    into.id[n] = oldest;
    into.len[n] = last ? q.batchLen : out[2 * oldest + 1]; // skipped: "used completely"
    if (last) q.batchId = -1;
    if (++q.orderAt === size) q.orderAt = 0;
    q.free += out[2 * oldest];
    q.nextUsed += out[2 * oldest];
    out[2 * oldest] = 0;
    if (q.nextUsed >= size) {
      q.nextUsed -= size;
      q.usedWrap ^= 1;
    }
  }
  if (n === 0) return (q.fault = fault);
  q.outstanding -= n;
  into.count = n;
  return n;
}

export function hasUsedPacked(q: DriverQueue): boolean {
  if (q.outstanding === 0) return false;
  const word = Atomics.load(q.desc, (q.nextUsed << 2) + 3);
  return (word & STATE) === (q.usedWrap === 1 ? STATE : 0);
}

/** Does the device want a kick for the `q.sinceKick` slots before `q.nextAvail`? 2.8.10. */
export function wantsKickPacked(q: DriverQueue): boolean {
  const event = Atomics.load(q.deviceEvent, 0);
  const flags = (event >> 16) & 3;
  if (flags === EVENTS_DISABLE) return false;
  if (flags !== EVENTS_DESC || q.eventIdx === 0) return true;
  if (q.sinceKick > q.size) return true; // more than a round: the wrap bit cannot tell
  let position = event & 0x7fff;
  if (((event >> 15) & 1) !== q.availWrap) position -= q.size; // of the round before
  return ((q.nextAvail - position - 1) & 0xffff) < q.sinceKick;
}

export function disableCallsPacked(q: DriverQueue): void {
  Atomics.store(q.driverEvent, 0, EVENTS_DISABLE << 16);
}

export function enableCallsPacked(q: DriverQueue): void {
  const position = q.nextUsed | (q.usedWrap << 15);
  if (q.eventIdx === 0) Atomics.store(q.driverEvent, 0, EVENTS_ENABLE << 16);
  else Atomics.store(q.driverEvent, 0, position | (EVENTS_DESC << 16));
}
