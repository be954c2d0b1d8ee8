/** What requests to a zoned disk carry beside: who they are, and whether they were begun before. */
import { IO_AGAIN, IO_ZONE_APPEND, type IoBatch } from '../../storage/io-batch.ts';
import type { DeviceQueue } from '../../virtqueue/device-queue.ts';
import { isTakenAgain, orderOf } from '../../virtqueue/inflight-order.ts';
import { type Flight, ringOfId, rowOfId } from '../disk/flight.ts';

/** All requests of `io` are of this flight. */
export function tagRequests(queue: DeviceQueue, flight: Flight, io: IoBatch): void {
  const again = isTakenAgain(queue) ? IO_AGAIN : 0;
  for (let row = 0; row < io.count; row++) {
    io.flags[row]! |= again;
    if (io.op[row] !== IO_ZONE_APPEND) continue;
    const id = io.id[row]!;
    io.tagQueue[row] = ringOfId(id);
    io.tagOrder[row] = orderOf(queue, flight.chains.head[rowOfId(id)]!);
  }
}
