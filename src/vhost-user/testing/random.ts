/** Random numbers for fuzzers: small, fast, good enough, and the same everywhere. */

/** mulberry32. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** Of iteration `n` of a run: it can be run again without those before it. */
  static ofIteration(seed: number, n: number): Random {
    return new Random(seed + Math.imul(n, 0x9e3779b1));
  }

  /** One of its own for what happens beside, in no certain order. */
  fork(): Random {
    return new Random(this.next(2 ** 32));
  }

  /** 0 <= n < below. */
  next(below: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  }

  /** True once in `times`. */
  once(times: number): boolean {
    return this.next(times) === 0;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.next(list.length)]!;
  }

  bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.next(256));
  }

  u64(): bigint {
    return (BigInt(this.next(2 ** 32)) << 32n) | BigInt(this.next(2 ** 32));
  }
}

/** Where arithmetic goes wrong. */
export const INTERESTING: readonly bigint[] = [
  0n,
  1n,
  2n,
  7n,
  8n,
  0xffn,
  0x100n,
  0xfffn,
  0x1000n,
  0x7fffffffn,
  0xffffffffn,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 4096n,
  2n ** 64n - 1n,
];
