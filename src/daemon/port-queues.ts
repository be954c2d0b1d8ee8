/** What status displays show of a port's queues, however they came here. */
import type { NetPortStatus } from '../devices/net/index.ts';
import type { HostedVring } from '../runtime/index.ts';
import type { QueueStatus } from './switch-types.ts';

/** As in virtio 1.2, 5.1.2, without the control queue: receiveq1, transmitq1, receiveq2 ... */
export function pairQueueName(index: number): string {
  return `${index % 2 === 0 ? 'receiveq' : 'transmitq'}${(index >> 1) + 1}`;
}

/** Those that the worker has. */
export function queueStatuses(
  vrings: readonly HostedVring[],
  plane: NetPortStatus,
  nameOf: (index: number) => string,
): QueueStatus[] {
  return vrings
    .filter((vring) => vring.attached)
    .map(({ index, size, enabled, fault }) => {
      const running = plane.vrings.find((candidate) => candidate.index === index);
      return {
        index,
        name: nameOf(index),
        size,
        enabled,
        started: running?.started ?? false,
        fault,
        counters: running?.counters ?? {},
      };
    });
}

/** A port with a pair of them is up. */
export function runs(vring: HostedVring | undefined): boolean {
  return vring !== undefined && vring.attached && vring.enabled;
}
