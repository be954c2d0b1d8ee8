/** For direct-race.test.ts: a driver that changes its descriptors all the time, in a thread. */
import { workerData } from 'node:worker_threads';
import { arena } from '../../sys/arena.ts';

/** Cells of `RaceData.words`. */
export const STOP = 0;
export const PASSES = 1;

export type RaceData = {
  /** Arena offset and slots of the ring. */
  readonly ringAt: number;
  readonly size: number;
  /** Of the last word of a descriptor: NEXT, WRITE and INDIRECT, where the format has them. */
  readonly flags: number;
  readonly words: SharedArrayBuffer;
};

/** Bits that are flipped, by word of a descriptor: each pass another word, of all descriptors. */
const FLIPPED = [0x10000000, 0x100, 0x7ff00000] as const; // the address, low and high; length

if (workerData !== null) race(workerData as RaceData);

function race({ ringAt, size, flags, words }: RaceData): void {
  const cells = new Int32Array(words);
  const ring = new Int32Array(arena().buffer, ringAt, 4 * size);
  for (let pass = 0; Atomics.load(cells, STOP) === 0; pass++) {
    const word = (pass >> 1) & 3; // there, and back
    const bits = FLIPPED[word] ?? flags;
    for (let at = word; at < ring.length; at += 4) ring[at]! ^= bits;
    Atomics.store(cells, PASSES, pass + 1);
  }
}
