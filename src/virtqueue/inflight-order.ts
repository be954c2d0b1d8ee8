/**
 * The numbers by which an inflight region knows in which order chains were taken. They stay a
 * chain's own across the end of the process, so a device can tell by them what it had done.
 */
import * as layout from '../wire/inflight.ts';
import type { DeviceQueue } from './device-queue.ts';

/** From now on the numbers are `atLeast` or more. Without a region there are none. */
export function startOrderAt({ inflight }: DeviceQueue, atLeast: number): void {
  inflight.counter[0] = Math.max(inflight.counter[0]!, atLeast);
}

/** Of a chain that is out, by its head; 0 without a region. */
export function orderOf(queue: DeviceQueue, head: number): number {
  if (queue.tracked === 0) return 0;
  const { view, entryOf } = queue.inflight;
  const at =
    queue.packed === 0
      ? layout.INFLIGHT_SPLIT_DESC +
        layout.INFLIGHT_SPLIT_ENTRY_BYTES * head +
        layout.INFLIGHT_SPLIT_COUNTER
      : layout.INFLIGHT_PACKED_DESC +
        layout.INFLIGHT_PACKED_ENTRY_BYTES * entryOf[head]! +
        layout.INFLIGHT_PACKED_COUNTER;
  // The front-end may have changed it, and would lose its own requests: nothing is read outside.
  const order = view.getUint32(at, true) + 4294967296 * view.getUint32(at + 4, true);
  return order <= Number.MAX_SAFE_INTEGER ? order : 0;
}

/** The batch that was taken last had been taken before, by a process that died. */
export function isTakenAgain({ tracked, inflight }: DeviceQueue): boolean {
  return tracked !== 0 && inflight.retaken !== 0;
}
