import { awaitTurn } from './lock-wait.ts';

/**
 * A fair lock between threads: two words of shared memory, the next ticket and the one that is
 * being served. Whoever comes first goes first, so no thread starves however often another returns.
 * Held for one batch at most, and never two of them by one thread. A thread that waits pauses for a
 * while and then gives its processor away: the holder may be the one who needs it. It throws when
 * that one is no more (lock-wait.ts).
 */
export const LOCK_WORDS = 2;

const SERVING = 1;
/** `Atomics.pause`s, some 20 ns each, before a waiting thread yields: about what a batch takes. */
const PAUSES = 64;

/** Returns once the lock whose words begin at `at` is ours. */
export function lockTicket(words: Int32Array, at: number): void {
  const ticket = Atomics.add(words, at, 1);
  let pauses = 0;
  while (Atomics.load(words, at + SERVING) !== ticket) {
    if (pauses === PAUSES) return awaitTurn(words, at + SERVING, ticket);
    pauses++;
    Atomics.pause();
  }
}

/** Everything written before is seen by the next holder. */
export function unlockTicket(words: Int32Array, at: number): void {
  Atomics.add(words, at + SERVING, 1);
}
