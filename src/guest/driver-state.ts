import { assert } from '../base/assert.ts';
import type { DriverQueue } from '../virtqueue/driver/index.ts';

/**
 * Makes `to`, over a copy of the memory, the same queue as `from`: positions, chains that are out,
 * free descriptors. The cells of the ring itself are copied with the memory.
 */
export function adoptDriverState(to: DriverQueue, from: DriverQueue): void {
  assert(to.size === from.size && to.packed === from.packed, 'the same ring');
  to.fault = from.fault;
  to.free = from.free;
  to.outstanding = from.outstanding;
  to.nextAvail = from.nextAvail;
  to.nextUsed = from.nextUsed;
  to.availWrap = from.availWrap;
  to.usedWrap = from.usedWrap;
  to.sinceKick = from.sinceKick;
  to.unpublished = from.unpublished;
  to.heldAt = from.heldAt;
  to.heldWord = from.heldWord;
  to.batchId = from.batchId;
  to.batchLen = from.batchLen;
  to.orderAt = from.orderAt;
  to.nextFree = from.nextFree;
  to.stack.set(from.stack);
  to.order.set(from.order);
  to.out.set(from.out);
  to.link.set(from.link);
}
