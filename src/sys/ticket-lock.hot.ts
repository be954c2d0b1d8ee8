import { awaitTurn } from './lock-wait.ts';

/**
 * A fair lock between threads: two words of shared memory, the next ticket and the one that is
 * being served. Whoever comes first goes first, so no thread starves however often another returns.
 * Held for one batch at most, and never two of them by one thread. A thread that waits pauses for a
 * while and then gives its processor away: the holder may be the one who needs it. It throws when
 * that one is no more (lock-wait.ts).
 *
 * Whoever throws with a lock in its hands leaves it taken for good, over something whose state
 * nobody knows. It need not say so where that ends its thread; who catches asks `locksHeld`.
 */
export const LOCK_WORDS = 2;

const SERVING = 1;
/** `Atomics.pause`s, some 20 ns each, before a waiting thread yields: about what a batch takes. */
const PAUSES = 64;

/** Of this thread. */
let held = 0;

/** Locks that this thread took and did not let go of. */
export function locksHeld(): number {
  return held;
}

/** Returns once the lock whose words begin at `at` is ours. */
export function lockTicket(words: Int32Array, at: number): void {
  const ticket = Atomics.add(words, at, 1);
  let pauses = 0;
  while (Atomics.load(words, at + SERVING) !== ticket) {
    if (pauses === PAUSES) {
      awaitTurn(words, at + SERVING, ticket);
      break;
    }
    pauses++;
    Atomics.pause();
  }
  held++;
}

/** Everything written before is seen by the next holder. */
export function unlockTicket(words: Int32Array, at: number): void {
  held--;
  Atomics.add(words, at + SERVING, 1);
}
