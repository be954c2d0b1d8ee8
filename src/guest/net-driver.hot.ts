/**
 * The data half of the guest's net driver: fills the receive ring, turns used buffers into frames,
 * sends slots and takes them back. Batch-wise, over state that GuestQueue and RxFrames own;
 * nothing here allocates or throws. A back-end that breaks virtio makes the functions return a
 * negative FAULT_* (virtqueue/faults.ts).
 */
import { copySmall } from '../memory/copy.hot.ts';
import type { CopyPlan } from '../sys/index.ts';
import { addChains, publish, reapUsed } from '../virtqueue/driver/driver.hot.ts';
import type { GuestQueue } from './guest-queue.ts';
import type { RxFrames } from './rx-frames.ts';

const HEADER = 12; //           virtio_net_hdr_v1
const NUM_BUFFERS = 10;
const FAULT_DEVICE_HEADER = -17; // as in virtqueue/faults.ts
const FAULT_USED_LENGTH = -20;
const SMALL = 256; //           longer copies go to the plan

/**
 * Puts all free slots into the ring as writable buffers, and publishes them. Returns how many.
 */
export function refillRx(queue: GuestQueue): number {
  const { batch, ring, freeSlots, slotOfId } = queue;
  let total = 0;
  while (queue.freeCount > 0) {
    const wanted = queue.freeCount < batch.capacity ? queue.freeCount : batch.capacity;
    describeSlots(queue, queue.freeCount - wanted, wanted, queue.slotBytes, false, false);
    const added = addChains(ring, batch, 0, wanted);
    for (let i = 0; i < added; i++) {
      slotOfId[batch.id[i]] = freeSlots[queue.freeCount - 1 - i];
    }
    queue.freeCount -= added;
    total += added;
    if (added < wanted) break;
  }
  if (total > 0) publish(ring);
  queue.chains += total;
  return total;
}

/**
 * Describes slots `freeSlots[first, first + count)`, the last one first, as chains of the batch.
 */
function describeSlots(
  queue: GuestQueue,
  first: number,
  count: number,
  lenBytes: number,
  readable: boolean,
  headerApart: boolean,
): void {
  const { batch, freeSlots, slotGpa, segmentBytes } = queue;
  const { segFirst, readSegs, writeSegs, indirect, segGpa, segLen } = batch;
  batch.count = count;
  if (lenBytes <= segmentBytes && !headerApart) {
    const reads = readable ? 1 : 0;
    const top = first + count - 1;
    for (let i = 0; i < count; i++) {
      segFirst[i] = i;
      readSegs[i] = reads;
      writeSegs[i] = 1 - reads;
      indirect[i] = 0;
      segGpa[i] = slotGpa[freeSlots[top - i]];
      segLen[i] = lenBytes;
    }
    batch.segments = count;
    return;
  }
  let segments = 0;
  for (let i = 0; i < count; i++) {
    const slot = freeSlots[first + count - 1 - i];
    let gpa = slotGpa[slot];
    let left = lenBytes;
    segFirst[i] = segments;
    if (headerApart) {
      segGpa[segments] = gpa;
      segLen[segments++] = HEADER;
      gpa += HEADER;
      left -= HEADER;
    }
    while (left > 0) {
      const piece = left < segmentBytes ? left : segmentBytes;
      segGpa[segments] = gpa;
      segLen[segments++] = piece;
      gpa += piece;
      left -= piece;
    }
    const used = segments - segFirst[i];
    readSegs[i] = readable ? used : 0;
    writeSegs[i] = readable ? 0 : used;
    indirect[i] = used > 1 ? 1 : 0;
  }
  batch.segments = segments;
}

/**
 * Sends the `count` slots on top of the free stack, each with `lenBytes` of header and frame, the
 * top one first. Returns how many the ring had room for; the others stay free.
 */
export function sendSlots(
  queue: GuestQueue,
  count: number,
  lenBytes: number,
  headerApart: boolean,
): number {
  const { batch, ring, freeSlots, slotOfId } = queue;
  describeSlots(queue, queue.freeCount - count, count, lenBytes, true, headerApart);
  const added = addChains(ring, batch, 0, count);
  for (let i = 0; i < added; i++) slotOfId[batch.id[i]] = freeSlots[queue.freeCount - 1 - i];
  queue.freeCount -= added;
  queue.chains += added;
  if (added > 0) publish(ring);
  return added;
}

/** Takes sent slots back. Returns how many, or a fault. */
export function reclaimTx(queue: GuestQueue): number {
  const { ring, used, freeSlots, slotOfId } = queue;
  let total = 0;
  for (;;) {
    const count = reapUsed(ring, used, used.capacity);
    if (count < 0) return count;
    let free = queue.freeCount;
    // Backwards, so that the oldest is on top and goes out first again.
    for (let i = count - 1; i >= 0; i--) freeSlots[free++] = slotOfId[used.id[i]];
    queue.freeCount = free;
    total += count;
    if (count < used.capacity) return total;
  }
}

/**
 * Takes used buffers as frames: `frames.offset` and `frames.len` name them, Ethernet header
 * first; the virtio-net header stands in front of it. Their slots are `releaseRx`'s. A frame in
 * several mergeable buffers is gathered in the bounce area. Returns how many frames, or a fault.
 */
export function reapRx(queue: GuestQueue, frames: RxFrames, mergeable: boolean): number {
  const { ring, used, slotOfId, slotOffset, arena } = queue;
  if (frames.mergeLeft > 0) keepPartial(frames);
  else frames.bounceUsed = 0;
  frames.count = 0;
  frames.slotCount = 0;
  const count = reapUsed(ring, used, frames.capacity);
  if (count < 0) return count;
  let n = 0;
  for (let i = 0; i < count; i++) {
    const slot = slotOfId[used.id[i]];
    const len = used.len[i];
    const start = slotOffset[slot];
    frames.slots[frames.slotCount++] = slot;
    if (frames.mergeLeft > 0) {
      if (!appendPartial(frames, start, len)) return FAULT_USED_LENGTH;
      if (frames.mergeLeft === 0) {
        frames.offset[n] = frames.bounceOffset + frames.partialAt + HEADER;
        frames.len[n++] = frames.partialLen - HEADER;
      }
      continue;
    }
    if (len < HEADER) return FAULT_USED_LENGTH;
    const buffers = mergeable ? arena.getUint16(start + NUM_BUFFERS, true) : 1;
    if (buffers === 1) {
      frames.offset[n] = start + HEADER;
      frames.len[n++] = len - HEADER;
      continue;
    }
    if (buffers === 0 || buffers > frames.maxBuffers) return FAULT_DEVICE_HEADER;
    frames.mergeLeft = buffers;
    frames.partialAt = frames.bounceUsed;
    frames.partialLen = 0;
    if (!appendPartial(frames, start, len)) return FAULT_USED_LENGTH;
  }
  frames.plan.run();
  frames.count = n;
  return n;
}

/** Gives the slots of the last `reapRx` back to the free stack. */
export function releaseRx(queue: GuestQueue, frames: RxFrames): void {
  let free = queue.freeCount;
  for (let i = frames.slotCount - 1; i >= 0; i--) queue.freeSlots[free++] = frames.slots[i];
  queue.freeCount = free;
  frames.slotCount = 0;
}

/** One more buffer of a frame. False: the frame grows beyond what a frame can be. */
function appendPartial(frames: RxFrames, start: number, len: number): boolean {
  if (frames.partialLen + len > frames.maxFrameBytes) return false;
  const plan = frames.plan;
  plan.source[plan.count] = start;
  plan.target[plan.count] = frames.bounceOffset + frames.bounceUsed;
  plan.length[plan.count] = len;
  plan.count++;
  frames.bounceUsed += len;
  frames.partialLen += len;
  frames.mergeLeft--;
  return true;
}

/** A frame whose last buffers have not come yet moves to the start of the bounce area. */
function keepPartial(frames: RxFrames): void {
  const plan = frames.plan;
  plan.source[0] = frames.bounceOffset + frames.partialAt;
  plan.target[0] = frames.bounceOffset;
  plan.length[0] = frames.partialLen;
  plan.count = 1;
  plan.run();
  frames.partialAt = 0;
  frames.bounceUsed = frames.partialLen;
}

/**
 * Copies received frames `[first, first + count)` into the slots on top of `tx`'s free stack, with
 * source and destination MAC address swapped, and sends them one by one as long as there is room.
 * Returns how many were sent.
 */
export function reflectFrames(
  tx: GuestQueue,
  frames: RxFrames,
  first: number,
  count: number,
  plan: CopyPlan,
): number {
  const arena = tx.arena;
  let n = 0;
  for (let i = first; i < first + count && n < tx.freeCount; i++) {
    const slot = tx.freeSlots[tx.freeCount - 1 - n];
    const len = frames.len[i] + HEADER;
    if (len > tx.slotBytes || len < HEADER + 14) continue; // cannot be returned
    const from = frames.offset[i] - HEADER;
    const to = tx.slotOffset[slot];
    const small = len < SMALL ? len : SMALL;
    copySmall(arena, to, arena, from, small);
    if (len > SMALL) {
      plan.source[plan.count] = from + SMALL;
      plan.target[plan.count] = to + SMALL;
      plan.length[plan.count++] = len - SMALL;
    }
    arena.setUint8(to, arena.getUint8(to) & 1); // NEEDS_CSUM only; DATA_VALID is the device's
    arena.setUint16(to + NUM_BUFFERS, 0, true);
    swapMacs(arena, to + HEADER);
    frames.len[first + n] = len - HEADER; // those that are skipped leave no gap
    n++;
  }
  plan.run();
  return sendFrames(tx, frames, first, n);
}

/** As `sendSlots`, with the lengths of received frames. */
function sendFrames(tx: GuestQueue, frames: RxFrames, first: number, count: number): number {
  const { batch, ring, freeSlots, slotOfId, slotGpa, segmentBytes } = tx;
  let done = 0;
  while (done < count) {
    let rows = 0;
    let segments = 0;
    while (rows < batch.capacity && done + rows < count) {
      let gpa = slotGpa[freeSlots[tx.freeCount - 1 - rows]];
      let left = frames.len[first + done + rows] + HEADER;
      batch.segFirst[rows] = segments;
      while (left > 0) {
        const piece = left < segmentBytes ? left : segmentBytes;
        batch.segGpa[segments] = gpa;
        batch.segLen[segments++] = piece;
        gpa += piece;
        left -= piece;
      }
      batch.readSegs[rows] = segments - batch.segFirst[rows];
      batch.writeSegs[rows] = 0;
      batch.indirect[rows] = batch.readSegs[rows] > 1 ? 1 : 0;
      rows++;
    }
    const added = addChains(ring, batch, 0, rows);
    for (let i = 0; i < added; i++) slotOfId[batch.id[i]] = freeSlots[tx.freeCount - 1 - i];
    tx.freeCount -= added;
    tx.chains += added;
    done += added;
    if (added < rows) break;
  }
  if (done > 0) publish(ring);
  return done;
}

function swapMacs(arena: DataView, at: number): void {
  const destinationLo = arena.getInt32(at, true);
  const destinationHi = arena.getUint16(at + 4, true);
  arena.setInt32(at, arena.getInt32(at + 6, true), true);
  arena.setUint16(at + 4, arena.getUint16(at + 10, true), true);
  arena.setInt32(at + 6, destinationLo, true);
  arena.setUint16(at + 10, destinationHi, true);
}
