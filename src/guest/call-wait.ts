/** Waiting for the device's calls, for a driver that polls otherwise. */
import { drainEventfd, pollFd, type Poll } from '../sys/index.ts';
import { disableCalls, enableCalls } from '../virtqueue/driver/index.ts';
import type { GuestQueue } from './guest-queue.ts';

/**
 * Asks for calls and resolves when one comes, when something is there already, after `timeoutMs`,
 * or when the function that `lend` is given is called; `lend` is given null in the end.
 */
export async function waitForCalls(
  queues: readonly GuestQueue[],
  timeoutMs: number,
  lend: (wake: (() => void) | null) => void,
): Promise<void> {
  const polls: Poll[] = [];
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, timeoutMs);
    const wake = (): void => {
      clearTimeout(timer);
      resolve();
    };
    lend(wake);
    for (const queue of queues) {
      polls.push(pollFd(queue.call.number, { read: true }, wake));
      if (enableCalls(queue.ring)) wake();
    }
  });
  lend(null);
  for (const poll of polls) poll.close();
}

/** Counts what came, and asks for no more. */
export function takeCalls(queues: readonly GuestQueue[]): void {
  for (const queue of queues) {
    if (drainEventfd(queue.call.number) > 0) queue.calls++;
    disableCalls(queue.ring);
  }
}
