/** eventfds: the kicks and calls of a virtqueue. */
import { check } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';
import { watchThread } from './thread.ts';

/**
 * A counter at zero; non-blocking.
 * @syscalls eventfd2
 */
export function createEventfd(what: string): Fd {
  return new Fd(
    check('eventfd', native.eventfdCreate(), () => what),
    what,
  );
}

/**
 * Adds one. Hot: errors are ignored (a full counter means that the peer has its wake-up already, a
 * closed one that the session is about to end), nothing is allocated. Returns 0, or -EINTR when a
 * peer that made its eventfd a blocking one held the call until `watchThread` ended it: see
 * native/event.c.
 * @syscalls poll write
 */
export const signalEventfd: (fd: number) => number = native.eventfdSignal;

/** Longest that `signalForeignEventfd` takes, milliseconds. */
const HELD_MS = 20;

/**
 * As `signalEventfd`, in a thread without a watch of its own. Returns false when the peer held it.
 * @syscalls poll write timer_create timer_settime timer_delete rt_sigaction
 */
export function signalForeignEventfd(fd: number): boolean {
  watchThread(HELD_MS);
  try {
    return signalEventfd(fd) >= 0;
  } finally {
    watchThread(0);
  }
}

/**
 * Takes the counter: its value, or 0 when nobody signalled.
 * @syscalls read
 */
export const drainEventfd: (fd: number) => number = native.eventfdDrain;
