/**
 * The data half of the guest's block driver: requests into the ring, and out of it. Batch-wise,
 * over state that BlkQueue owns; nothing here allocates or throws. A back-end that breaks virtio
 * makes the functions return a negative FAULT_* (virtqueue/faults.ts).
 */
import { addChains, publish, reapUsed } from '../virtqueue/driver/driver.hot.ts';
import type { BlkQueue } from './blk-queue.ts';

const HEADER_BYTES = 16; //     virtio_blk_outhdr: type, ioprio, sector
const SECTOR = 8;
const STATUS = 32; //           of a slot: the byte that the device writes last
const T_ZONE_APPEND = 15; //    VIRTIO_BLK_T_*
const APPEND_BYTES = 8; //      in front of the status: the sector that data went to
const NO_STATUS = 0xff; //      no VIRTIO_BLK_S_* has this value
const FAULT_DEVICE_HEADER = -17; // as in virtqueue/faults.ts
const UNIT = 1 / 4294967296;

/**
 * Puts what is ready into the ring, oldest first, and publishes it. Returns how many had room; the
 * others stay ready.
 */
export function submitReady(q: BlkQueue): number {
  const { queue, ready, order } = q;
  const { batch, ring, slotOfId } = queue;
  const count = q.readyCount;
  let done = 0;
  while (done < count) {
    const left = count - done;
    const rows = describe(q, done, left < batch.capacity ? left : batch.capacity);
    const added = addChains(ring, batch, 0, rows);
    for (let i = 0; i < added; i++) {
      const slot = ready[done + i];
      slotOfId[batch.id[i]] = slot;
      order[slot] = q.submitted++;
    }
    done += added;
    if (added < rows) break;
  }
  if (done === 0) return 0;
  publish(ring);
  ready.copyWithin(0, done, count);
  q.readyCount = count - done;
  q.outstanding += done;
  queue.chains += done;
  return done;
}

/** Describes slots `ready[first, first + count)` as chains of the batch, and writes headers. */
function describe(q: BlkQueue, first: number, count: number): number {
  const { queue, ready, type, sector, dataBytes, toDevice, dataGpa, segmentBytes } = q;
  const { batch, slotOffset, slotGpa, arena } = queue;
  const { segFirst, readSegs, writeSegs, indirect, segGpa, segLen } = batch;
  let segments = 0;
  for (let i = 0; i < count; i++) {
    const slot = ready[first + i];
    const at = slotOffset[slot];
    arena.setInt32(at, type[slot], true);
    arena.setInt32(at + 4, 0, true);
    arena.setInt32(at + SECTOR, sector[slot] | 0, true);
    arena.setInt32(at + SECTOR + 4, (sector[slot] * UNIT) | 0, true);
    arena.setUint8(at + STATUS, NO_STATUS);
    segFirst[i] = segments;
    segGpa[segments] = slotGpa[slot];
    segLen[segments++] = HEADER_BYTES;
    let gpa = dataGpa[slot];
    let left = dataBytes[slot];
    let pieces = 0;
    while (left > 0) {
      const piece = left < segmentBytes ? left : segmentBytes;
      segGpa[segments] = gpa;
      segLen[segments++] = piece;
      gpa += piece;
      left -= piece;
      pieces++;
    }
    const answer = type[slot] === T_ZONE_APPEND ? APPEND_BYTES : 0;
    segGpa[segments] = slotGpa[slot] + STATUS - answer;
    segLen[segments++] = 1 + answer;
    const reads = toDevice[slot] === 1 ? pieces : 0;
    readSegs[i] = 1 + reads;
    writeSegs[i] = 1 + pieces - reads;
    indirect[i] = 1;
  }
  batch.count = count;
  batch.segments = segments;
  return count;
}

/**
 * Takes a batch of finished requests out of the ring into the `done` columns. Their slots, with
 * the data, are the caller's until `releaseBlk`. Returns how many, or a fault.
 */
export function reapBlk(q: BlkQueue): number {
  const { queue, doneSlot, doneStatus, doneBytes, order, toDevice, dataBytes, type } = q;
  const { ring, used, slotOfId, slotOffset, arena } = queue;
  q.doneCount = 0;
  const count = reapUsed(ring, used, used.capacity);
  if (count <= 0) return count;
  let faults = 0;
  for (let i = 0; i < count; i++) {
    const slot = slotOfId[used.id[i]];
    const status = arena.getUint8(slotOffset[slot] + STATUS);
    const len = used.len[i];
    doneSlot[i] = slot;
    doneStatus[i] = status;
    doneBytes[i] = len;
    order[slot] = -1;
    if (status === NO_STATUS) faults++;
    const answer = type[slot] === T_ZONE_APPEND ? APPEND_BYTES : 0;
    const due = toDevice[slot] === 1 ? 1 + answer : dataBytes[slot] + 1;
    if (status === 0 && len !== due) q.wrongLengths++;
  }
  q.doneCount = count;
  q.outstanding -= count;
  return faults > 0 ? FAULT_DEVICE_HEADER : count;
}

/** Gives the slots of the last `reapBlk` back. */
export function releaseBlk(q: BlkQueue): void {
  const { queue, doneSlot } = q;
  let free = queue.freeCount;
  for (let i = q.doneCount - 1; i >= 0; i--) queue.freeSlots[free++] = doneSlot[i];
  queue.freeCount = free;
  q.doneCount = 0;
}
