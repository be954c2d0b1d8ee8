/**
 * What the block workload writes, and how it is recognised. Every *unit* of the disk (the smallest
 * block of the run) names itself: a magic number, the generation of the write, the number of the
 * unit, the run, a check over these, and from there on words that follow from the check. So a unit
 * that is read says which write it is of, whether it belongs here, and whether it is whole.
 */

const MAGIC = 0x6b6c4276; //   'vBlk'
const HEAD_WORDS = 5;
const STEP = 0x9e3779b1 | 0; // odd: all words of a unit differ
const SECTOR_WORDS = 128;

/** What `checkUnit` finds. Columns of `found`: verdict, generation, unit, first wrong byte. */
export const UNIT_GOOD = 0; //     whole, of this place and run
export const UNIT_ZERO = 1; //     zeroes only
export const UNIT_TORN = 2; //     begins with one write, and goes on with another
export const UNIT_MISPLACED = 3; // whole, and of another place
export const UNIT_FOREIGN = 4; //  none of this run's writes

/** The word that a unit's header is checked with, and that its other words follow from. */
function mix(generation: number, unit: number, run: number): number {
  let h = Math.imul(generation ^ 0x2545f491, 0x85ebca6b) ^ Math.imul(unit ^ run, 0xc2b2ae35);
  h ^= h >>> 15;
  h = Math.imul(h, 0x27d4eb2f);
  return h ^ (h >>> 13);
}

/** Writes `words` words at `at`: unit `unit` as generation `generation` of run `run` has it. */
export function fillUnit(
  into: Int32Array,
  at: number,
  words: number,
  unit: number,
  generation: number,
  run: number,
): void {
  const check = mix(generation, unit, run);
  into[at] = MAGIC;
  into[at + 1] = generation;
  into[at + 2] = unit;
  into[at + 3] = run;
  into[at + 4] = check;
  let value = check;
  for (let i = HEAD_WORDS; i < words; i++) {
    value = (value + STEP) | 0;
    into[at + i] = value;
  }
}

/** Looks at a unit that was read from place `unit`. The verdict is `found[0]`, too. */
export function checkUnit(
  from: Int32Array,
  at: number,
  words: number,
  unit: number,
  run: number,
  found: Int32Array,
): number {
  const generation = from[at + 1];
  const named = from[at + 2];
  found[1] = generation;
  found[2] = named;
  found[3] = 0;
  const check = from[at + 4];
  const isOurs =
    from[at] === MAGIC && from[at + 3] === run && check === mix(generation, named, run);
  if (!isOurs) return (found[0] = isZero(from, at, words) ? UNIT_ZERO : UNIT_FOREIGN);
  let value = check;
  for (let i = HEAD_WORDS; i < words; i++) {
    value = (value + STEP) | 0;
    if (from[at + i] === value) continue;
    found[3] = 4 * i;
    return (found[0] = isRegular(from, at, i, words) ? UNIT_TORN : UNIT_FOREIGN);
  }
  return (found[0] = named === unit ? UNIT_GOOD : UNIT_MISPLACED);
}

function isZero(from: Int32Array, at: number, words: number): boolean {
  let bits = 0;
  for (let i = 0; i < words; i++) bits |= from[at + i];
  return bits === 0;
}

/** Whether the sector in which a unit changes is another write's from that word on, or zeroes. */
function isRegular(from: Int32Array, at: number, first: number, words: number): boolean {
  const sectorEnd = (Math.floor(first / SECTOR_WORDS) + 1) * SECTOR_WORDS;
  const end = sectorEnd < words ? sectorEnd : words;
  const isCleared = from[at + first] === 0;
  for (let i = first + 1; i < end; i++) {
    const due = isCleared ? 0 : (from[at + i - 1] + STEP) | 0;
    if (from[at + i] !== due) return false;
  }
  return true;
}
