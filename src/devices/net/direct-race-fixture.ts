/** For direct-race.test.ts: a driver that changes its ring all the time, in a thread. */
import { workerData } from 'node:worker_threads';
import { arena } from '../../sys/arena.ts';

/** Cells of `RaceData.words`. */
export const STOP = 0;
export const PASSES = 1;

export type RaceData = {
  /** Slots of the ring, and the arena offset of their descriptors. */
  readonly size: number;
  readonly descAt: number;
  /** Of the entries of a split ring's avail ring; null: packed. */
  readonly availAt: number | null;
  readonly words: SharedArrayBuffer;
};

/** Bits of every `step`th cell, which are flipped all there, and then all back. */
type Flip = {
  readonly cells: Int32Array | Uint16Array;
  readonly first: number;
  readonly step: number;
  readonly bits: number;
};

if (workerData !== null) race(workerData as RaceData);

function race({ size, descAt, availAt, words }: RaceData): void {
  const { buffer } = arena();
  const desc = new Int32Array(buffer, descAt, 4 * size);
  const ofDesc = (first: number, bits: number): Flip => ({ cells: desc, first, step: 4, bits });
  const flips: Flip[] = [
    ofDesc(0, 0x10000000), // address, low and high
    ofDesc(1, 0x100),
    ofDesc(2, 0x7ff00000), // length
  ];
  if (availAt === null) {
    flips.push(ofDesc(3, 7 << 16)); // NEXT, WRITE, INDIRECT
    flips.push(ofDesc(3, 0x4000)); // id
  } else {
    flips.push(ofDesc(3, 7));
    flips.push({ cells: new Uint16Array(buffer, availAt, size), first: 0, step: 1, bits: 0x4000 });
  }
  const control = new Int32Array(words);
  for (let pass = 0; Atomics.load(control, STOP) === 0; pass++) {
    const { cells, first, step, bits } = flips[(pass >> 1) % flips.length]!;
    for (let at = first; at < cells.length; at += step) cells[at]! ^= bits;
    Atomics.store(control, PASSES, pass + 1);
  }
}
