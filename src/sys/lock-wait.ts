/**
 * The long part of waiting for a lock (ticket-lock.hot.ts), which may never end by itself: whoever
 * holds it, or came before us, may be a thread that is no more.
 */
import { VringError } from '../base/errors.ts';
import { yieldThread } from './thread.ts';

/** A word for all threads that share locks; not 0 once one of them ended that may hold a lock. */
export const ALARM_WORDS = 1;

let alarm: Int32Array = new Int32Array(ALARM_WORDS);

/** From now on this thread gives up waiting when the alarm is raised. */
export function heedLockAlarm(words: Int32Array): void {
  alarm = words;
}

export function raiseLockAlarm(words: Int32Array): void {
  Atomics.store(words, 0, 1);
}

/**
 * Returns when the word at `serving` is `ticket`.
 * @throws VringError ERR_VRING_WORKER: it never will be. What the lock guards is of no use any
 *   more, nor is the calling thread.
 * @syscalls sched_yield
 */
export function awaitTurn(words: Int32Array, serving: number, ticket: number): void {
  while (Atomics.load(words, serving) !== ticket) {
    if (Atomics.load(alarm, 0) !== 0) {
      throw new VringError('ERR_VRING_WORKER', 'another thread ended, and may have held our lock');
    }
    yieldThread();
  }
}
