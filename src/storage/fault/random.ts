/** Random numbers that a seed repeats: what a fault test did is done again. */
export class SeededRandom {
  readonly seed: number;
  #state: number;

  /** `seed`: 32 bits of it are used. */
  constructor(seed: number) {
    this.seed = seed >>> 0;
    this.#state = this.seed;
  }

  /** 0 <= x < 1. Mulberry32: 32 bits of state, good enough to choose a sector. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let x = this.#state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number from 0 to `below` - 1. */
  below(below: number): number {
    return Math.floor(this.next() * below);
  }
}
