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

const EVENTS_ENABLE = 0; //  RING_EVENT_FLAGS_*
const EVENTS_DISABLE = 1;
const EVENTS_DESC = 2;

const FAULT_USED_ID = -19; // as in faults.ts; driver-queue.test.ts holds them equal
const FAULT_USED_LENGTH = -20;

/** `addChains` of a packed queue. The first head's flags are withheld until `publish`. */
export function addPacked(q: DriverQueue, batch: DriverBatch, first: number, count: number): number {
  const { desc, slots, writeBytes, order, stack, size, inOrder, tableEntries } = q;
  const { segFirst, readSegs, writeSegs, indirect, id: ids, segGpa, segLen } = batch;
  let slot = q.nextAvail;
  let wrap = q.availWrap;
  let free = q.free;
  let n = 0;
  for (; n < count; n++) {
    const row = first + n;
    const segs = readSegs[row] + writeSegs[row];
    const viaTable = indirect[row] !== 0 && segs > 1 && segs <= tableEntries;
    const need = viaTable ? 1 : segs;
    if (need > free) break;
    // With IN_ORDER the head's slot is its id, as in Linux and DPDK. Without, ids are fewer out
    // than slots, so the stack never runs dry before the slots do.
    const id = inOrder !== 0 ? slot : stack[size - 1 - q.outstanding - n];
    const state = wrap === 1 ? AVAIL_BIT : USED_BIT;
    let headWord = id | state;
    if (segs === 1 || viaTable) {
      const segment = segFirst[row];
      let gpa = segGpa[segment];
      let len = segLen[segment];
      if (viaTable) {
        writeTable(q, batch, row, id);
        gpa = q.tableBase[1] + 16 * tableEntries * id;
        len = segs << 4;
        headWord |= INDIRECT;
        writeBytes[id] = writableBytes(batch, row);
      } else if (writeSegs[row] !== 0) {
        headWord |= WRITE;
        writeBytes[id] = len;
      } else writeBytes[id] = 0;
      const at = slot << 2;
      desc[at] = gpa | 0;
      desc[at + 1] = (gpa / 4294967296) | 0;
      desc[at + 2] = len;
    } else {
      headWord = writeList(q, batch, row, slot, wrap, id);
      writeBytes[id] = writableBytes(batch, row);
    }
    if (q.heldAt < 0) {
      q.heldAt = slot;
      q.heldWord = headWord;
    } else desc[(slot << 2) + 3] = headWord;
    if (inOrder !== 0) {
      let at = q.orderAt + q.outstanding + n;
      if (at >= size) at -= size;
      order[at] = id;
    }
    slots[id] = need;
    ids[row] = id;
    free -= need;
    q.unpublished += need;
    slot += need;
    if (slot >= size) {
      slot -= size;
      wrap ^= 1;
    }
  }
  q.nextAvail = slot;
  q.availWrap = wrap;
  q.free = free;
  q.outstanding += n;
  return n;
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
    desc[at + 1] = (gpa / 4294967296) | 0;
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
  const { desc, size, slots, writeBytes, stack } = q;
  const limit = max < into.capacity ? max : into.capacity;
  if (q.inOrder !== 0) return reapInOrder(q, into, limit);
  const run = scoutUsed(q, limit);
  if (run === 0) return 0;
  let slot = q.nextUsed;
  let wrap = q.usedWrap;
  let n = 0;
  let fault = 0;
  for (; n < run; n++) {
    const at = slot << 2;
    const word = desc[at + 3];
    if ((word & STATE) !== (wrap === 1 ? STATE : 0)) break; // taken back by a hostile device
    const len = desc[at + 2];
    const id = word & 0xffff;
    const need = id < size ? slots[id] : 0;
    if (need === 0) {
      fault = FAULT_USED_ID;
      break;
    }
    if (len < 0 || len > writeBytes[id]) {
      fault = FAULT_USED_LENGTH;
      break;
    }
    slots[id] = 0;
    stack[size - q.outstanding + n] = id;
    q.free += need;
    into.id[n] = id;
    into.len[n] = len;
    slot += need;
    if (slot >= size) {
      slot -= size;
      wrap ^= 1;
    }
  }
  if (n === 0) return (q.fault = fault);
  q.nextUsed = slot;
  q.usedWrap = wrap;
  q.outstanding -= n;
  into.count = n;
  return n;
}

/** How many used descriptors can be read now, the loads ordered as in `packed-device.hot.ts`. */
function scoutUsed(q: DriverQueue, max: number): number {
  const { desc, size, slots } = q;
  let slot = q.nextUsed;
  let want = q.usedWrap === 1 ? STATE : 0;
  let word = Atomics.load(desc, (slot << 2) + 3);
  let run = 0;
  while (run < max && run < q.outstanding && (word & STATE) === want) {
    run++;
    const id = word & 0xffff;
    const need = id < size ? slots[id] : 0;
    if (need === 0) break; // the fault is found, and named, when it is read again
    slot += need;
    if (slot >= size) {
      slot -= size;
      want ^= STATE;
    }
    word = desc[(slot << 2) + 3];
  }
  if (run > 1 && q.weakOrder !== 0) {
    Atomics.store(q.fence, 0, 0);
    Atomics.load(q.fence, 0);
  }
  return run;
}

/** IN_ORDER: a used descriptor covers all chains up to its id, oldest first. 2.8.8. */
function reapInOrder(q: DriverQueue, into: UsedBatch, limit: number): number {
  const { desc, size, slots, writeBytes, order } = q;
  let n = 0;
  let fault = 0;
  for (; n < limit && n < q.outstanding; n++) {
    if (q.batchId < 0) {
      const at = q.nextUsed << 2;
      const word = Atomics.load(desc, at + 3);
      if ((word & STATE) !== (q.usedWrap === 1 ? STATE : 0)) break;
      const len = desc[at + 2];
      const id = word & 0xffff;
      if (id >= size || slots[id] === 0) {
        fault = FAULT_USED_ID;
        break;
      }
      if (len < 0 || len > writeBytes[id]) {
        fault = FAULT_USED_LENGTH;
        break;
      }
      q.batchId = id;
      q.batchLen = len;
    }
    const oldest = order[q.orderAt];
    const last = oldest === q.batchId;
    into.id[n] = oldest;
    into.len[n] = last ? q.batchLen : writeBytes[oldest]; // skipped: "used completely"
    if (last) q.batchId = -1;
    if (++q.orderAt === size) q.orderAt = 0;
    q.free += slots[oldest];
    q.nextUsed += slots[oldest];
    slots[oldest] = 0;
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
