/** Which request comes next: a mix over a region of the disk, or one sweep over it. */
import type { BlkJournal } from './blk-journal.ts';

export const OP_READ = 0;
export const OP_WRITE = 1;
export const OP_FLUSH = 2;
export const OP_DISCARD = 3;
export const OP_ZERO = 4;
export const OP_NAMES = ['read', 'write', 'flush', 'discard', 'zero'] as const;
export type OpName = (typeof OP_NAMES)[number];

export type Choice = { op: number; offset: number; bytes: number };

export interface BlkChooser {
  /** All was chosen. */
  readonly exhausted: boolean;
  /** False: nothing can be begun now. */
  choose(into: Choice): boolean;
}

export type BlkRegion = { readonly offset: number; readonly sizeBytes: number };

export type BlkMix = {
  readonly random: boolean;
  /** Of all requests but flushes; what is left are writes. */
  readonly readPercent: number;
  readonly discardPercent: number;
  readonly zeroPercent: number;
  /** A flush after so many writes; 0 for none. */
  readonly flushEvery: number;
  /** Sizes are multiples of the least one. */
  readonly minBytes: number;
  readonly maxBytes: number;
  /** Discards begin and end at multiples of it. */
  readonly discardAlignment: number;
};

/** Places that are tried for one request while others are in the way. */
const TRIES = 16;

/** Requests without end. */
export class MixChooser implements BlkChooser {
  readonly exhausted = false;
  readonly #mix: BlkMix;
  readonly #region: BlkRegion;
  readonly #random: () => number;
  readonly #journal: BlkJournal | null;
  readonly #places: number;
  #next = 0;
  #writes = 0;

  /** `random`: numbers from 0 to below 1. */
  constructor(mix: BlkMix, region: BlkRegion, random: () => number, journal: BlkJournal | null) {
    this.#mix = mix;
    this.#region = region;
    this.#random = random;
    this.#journal = journal;
    this.#places = Math.floor(region.sizeBytes / mix.minBytes);
  }

  choose(into: Choice): boolean {
    const { flushEvery } = this.#mix;
    if (flushEvery > 0 && this.#writes >= flushEvery) {
      this.#writes = 0;
      into.op = OP_FLUSH;
      into.offset = into.bytes = 0;
      return true;
    }
    into.op = this.#op();
    for (let i = 0; i < TRIES; i++) {
      this.#place(into);
      if (!this.#isFree(into)) continue;
      if (into.op === OP_WRITE) this.#writes++;
      return true;
    }
    return false;
  }

  #op(): number {
    const { readPercent, discardPercent, zeroPercent } = this.#mix;
    if (readPercent === 100) return OP_READ;
    const draw = this.#random() * 100;
    if (draw < readPercent) return OP_READ;
    if (draw < readPercent + discardPercent) return OP_DISCARD;
    return draw < readPercent + discardPercent + zeroPercent ? OP_ZERO : OP_WRITE;
  }

  #place(into: Choice): void {
    const { random, minBytes, maxBytes, discardAlignment } = this.#mix;
    const sizes = maxBytes / minBytes;
    const most = sizes === 1 ? 1 : 1 + Math.floor(this.#random() * sizes);
    const place = random ? Math.floor(this.#random() * this.#places) : this.#next;
    const count = Math.min(most, this.#places - place);
    if (!random) this.#next = (place + count) % this.#places;
    into.offset = this.#region.offset + place * minBytes;
    into.bytes = count * minBytes;
    if (into.op !== OP_DISCARD) return;
    const start = Math.ceil(into.offset / discardAlignment) * discardAlignment;
    const end = Math.floor((into.offset + into.bytes) / discardAlignment) * discardAlignment;
    if (end <= start) {
      into.op = OP_WRITE; // too short to be discarded
      return;
    }
    into.offset = start;
    into.bytes = end - start;
  }

  #isFree({ offset, bytes }: Choice): boolean {
    const journal = this.#journal;
    return journal === null || journal.isFree(journal.unitAt(offset), bytes / this.#mix.minBytes);
  }
}

/** Every byte of the region once, in order. */
export class SweepChooser implements BlkChooser {
  readonly #op: number;
  readonly #region: BlkRegion;
  readonly #bytes: number;
  #at = 0;

  constructor(op: number, region: BlkRegion, requestBytes: number) {
    this.#op = op;
    this.#region = region;
    this.#bytes = requestBytes;
  }

  get exhausted(): boolean {
    return this.#at >= this.#region.sizeBytes;
  }

  choose(into: Choice): boolean {
    if (this.exhausted) return false;
    into.op = this.#op;
    into.offset = this.#region.offset + this.#at;
    into.bytes = Math.min(this.#bytes, this.#region.sizeBytes - this.#at);
    this.#at += into.bytes;
    return true;
  }
}

/** Numbers from 0 to below 1 that are the same for the same seed: two words of xorshift. */
export function seededRandom(seed: number): () => number {
  let state = (seed | 0) ^ 0x6d2b79f5 || 1;
  const word = (): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
  return () => (word() + (word() >>> 11) / 2 ** 21) / 2 ** 32;
}
