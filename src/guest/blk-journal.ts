/**
 * What the block workload knows of the disk: for every unit of its region the write that was
 * acknowledged last, so that a read can be judged. Units under way are nobody else's: what a read
 * finds beside a write, or one of two writes, is not said.
 *
 * A write that was answered with an error, or a discard, leaves its units unknown: what is read
 * there then is not judged, until the next write.
 */
import { assert } from '../base/assert.ts';
import { ConfigError } from '../base/errors.ts';
import {
  UNIT_FOREIGN,
  UNIT_GOOD,
  UNIT_MISPLACED,
  UNIT_TORN,
  UNIT_ZERO,
  checkUnit,
  fillUnit,
} from './blk-pattern.hot.ts';

/** Five bytes each are kept: 160 MiB. */
export const MAX_JOURNAL_UNITS = 2 ** 25;
const MAX_EXAMPLES = 16;

const UNKNOWN = 0;
const ZEROED = 1;
const FIRST_GENERATION = 2;

export type Finding = {
  readonly kind: FindingKind;
  /** Byte offset on the disk: of the unit, and in it of what is wrong. */
  readonly offset: number;
  readonly wrongAt: number;
  readonly expected: string;
  readonly found: string;
};

/**
 * `lost`: an older write than the acknowledged one, or none. `stray`: a later write, which was not
 * acknowledged. `torn`: two writes in one unit. `misplaced`: another unit's. `corrupt`: no write.
 */
export type FindingKind = 'lost' | 'stray' | 'torn' | 'misplaced' | 'corrupt';

export type JournalReport = {
  /** Units that were compared, and that were read while nothing was known of them. */
  readonly checked: number;
  readonly unjudged: number;
  readonly wrong: Readonly<Record<FindingKind, number>>;
  /** The first of them. */
  readonly examples: readonly Finding[];
};

export type JournalRegion = {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly unitBytes: number;
};

export class BlkJournal {
  readonly region: JournalRegion;
  readonly units: number;
  readonly unitWords: number;
  readonly #run: number;
  readonly #state: Uint32Array;
  readonly #busy: Uint8Array;
  readonly #found = new Int32Array(4);
  readonly #wrong = { lost: 0, stray: 0, torn: 0, misplaced: 0, corrupt: 0 };
  readonly #examples: Finding[] = [];
  #generation = FIRST_GENERATION - 1;
  #checked = 0;
  #unjudged = 0;

  /** `run`: tells this run's writes from another's. @throws ConfigError for a region too large. */
  constructor(region: JournalRegion, run: number) {
    assert(region.sizeBytes % region.unitBytes === 0, 'whole units');
    this.region = region;
    this.units = region.sizeBytes / region.unitBytes;
    this.unitWords = region.unitBytes / 4;
    if (this.units > MAX_JOURNAL_UNITS) {
      const text =
        `${this.units} blocks of ${region.unitBytes} bytes are too many to be remembered, at ` +
        `most ${MAX_JOURNAL_UNITS}: give a smaller --size, or larger blocks with --block-size`;
      throw new ConfigError('--size', text);
    }
    this.#run = run | 0;
    this.#state = new Uint32Array(this.units);
    this.#busy = new Uint8Array(this.units);
  }

  /** Number of the unit at a byte offset of the disk. */
  unitAt(offset: number): number {
    return (offset - this.region.offset) / this.region.unitBytes;
  }

  isFree(first: number, count: number): boolean {
    for (let i = first; i < first + count; i++) if (this.#busy[i] !== 0) return false;
    return true;
  }

  begin(first: number, count: number): void {
    this.#busy.fill(1, first, first + count);
  }

  end(first: number, count: number): void {
    this.#busy.fill(0, first, first + count);
  }

  /** Fills the data of a write. Returns its generation. */
  write(words: Int32Array, at: number, first: number, count: number): number {
    const last = this.#generation;
    const generation = last >= 0x7fff_ffff ? FIRST_GENERATION : last + 1;
    this.#generation = generation;
    for (let i = 0; i < count; i++) {
      const start = at + i * this.unitWords;
      fillUnit(words, start, this.unitWords, first + i, generation, this.#run);
    }
    return generation;
  }

  acknowledge(first: number, count: number, generation: number): void {
    this.#state.fill(generation, first, first + count);
  }

  zeroed(first: number, count: number): void {
    this.#state.fill(ZEROED, first, first + count);
  }

  forget(first: number, count: number): void {
    this.#state.fill(UNKNOWN, first, first + count);
  }

  /** Judges what was read. Returns how many units were wrong. */
  check(words: Int32Array, at: number, first: number, count: number): number {
    let wrong = 0;
    for (let i = 0; i < count; i++) {
      const expected = this.#state[first + i]!;
      if (expected === UNKNOWN) {
        this.#unjudged++;
        continue;
      }
      this.#checked++;
      const { unitWords } = this;
      const found = this.#found;
      const verdict = checkUnit(words, at + i * unitWords, unitWords, first + i, this.#run, found);
      const kind = judge(verdict, found[1]!, expected);
      if (kind === null) continue;
      wrong++;
      this.#note(kind, first + i, expected, verdict);
    }
    return wrong;
  }

  get wrong(): number {
    return Object.values(this.#wrong).reduce((sum, count) => sum + count, 0);
  }

  report(): JournalReport {
    return {
      checked: this.#checked,
      unjudged: this.#unjudged,
      wrong: { ...this.#wrong },
      examples: [...this.#examples],
    };
  }

  #note(kind: FindingKind, unit: number, expected: number, verdict: number): void {
    this.#wrong[kind]++;
    if (this.#examples.length >= MAX_EXAMPLES) return;
    const { offset, unitBytes } = this.region;
    const [, generation, named, wrongAt] = this.#found;
    this.#examples.push({
      kind,
      offset: offset + unit * unitBytes,
      wrongAt: verdict === UNIT_TORN ? wrongAt! : 0,
      expected: expected === ZEROED ? 'zeroes' : `write ${expected}`,
      found: describe(verdict, generation!, offset + named! * unitBytes, wrongAt!),
    });
  }
}

function judge(verdict: number, generation: number, expected: number): FindingKind | null {
  switch (verdict) {
    case UNIT_ZERO:
      return expected === ZEROED ? null : 'lost';
    case UNIT_TORN:
      return 'torn';
    case UNIT_MISPLACED:
      return 'misplaced';
    case UNIT_GOOD:
      if (generation === expected) return null;
      return expected !== ZEROED && generation > expected ? 'stray' : 'lost';
    default:
      assert(verdict === UNIT_FOREIGN, 'a verdict');
      return 'corrupt';
  }
}

function describe(verdict: number, generation: number, named: number, wrongAt: number): string {
  switch (verdict) {
    case UNIT_ZERO:
      return 'zeroes';
    case UNIT_TORN:
      return `write ${generation} up to byte ${wrongAt}, and something else from there on`;
    case UNIT_MISPLACED:
      return `write ${generation} of offset ${named}`;
    case UNIT_GOOD:
      return `write ${generation}`;
    default:
      return wrongAt > 0 ? `other bytes from ${wrongAt} on` : 'other bytes';
  }
}
