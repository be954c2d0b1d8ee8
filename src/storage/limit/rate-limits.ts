/**
 * How much a disk may do: requests and bytes a second, each a token bucket. For a layer and for an
 * engine alike; the rates may be changed from another thread.
 *
 * A request goes when neither bucket is in debt, and its cost is taken, which may bring a bucket
 * into debt. So a request of any size goes at some time, and the rate holds over time: a burst is
 * what a bucket holds, and one request.
 */
import { ConfigError } from '../../base/errors.ts';

/** 0 and what is left out: no limit. */
export type Rates = {
  readonly iops?: number;
  readonly bytesPerSecond?: number;
  /** What a bucket holds, in seconds of its rate; 1 when left out. */
  readonly burstSeconds?: number;
};

const MAX_BURST_SECONDS = 3600;

/** @throws ConfigError. */
export function checkRates(rates: unknown, path: string): Rates {
  if (typeof rates !== 'object' || rates === null) {
    throw new ConfigError(path, 'expected { iops, bytesPerSecond, burstSeconds }');
  }
  for (const [name, value] of Object.entries(rates)) {
    if (name === 'kind') continue; // of a LimitSpec
    if (!['iops', 'bytesPerSecond', 'burstSeconds'].includes(name)) {
      throw new ConfigError(`${path}.${name}`, 'is no limit');
    }
    const max = name === 'burstSeconds' ? MAX_BURST_SECONDS : Number.MAX_SAFE_INTEGER;
    if (typeof value === 'number' && value >= 0 && value <= max) continue;
    throw new ConfigError(`${path}.${name}`, `is ${String(value)}, expected 0 to ${max}`);
  }
  return rates;
}

/** Rates and counters, between the thread that is limited and the one that is asked. */
export class LimitCells {
  /** Structured clone, and what another thread makes the same cells of. */
  readonly buffer: SharedArrayBuffer;
  readonly #generation: Int32Array;
  readonly #numbers: Float64Array;

  constructor(buffer = new SharedArrayBuffer(CELLS_AT + CELLS * 8)) {
    this.buffer = buffer;
    this.#generation = new Int32Array(buffer, 0, 1);
    this.#numbers = new Float64Array(buffer, CELLS_AT, CELLS);
  }

  /** Odd while somebody writes; another number: the rates are others. */
  get generation(): number {
    return Atomics.load(this.#generation, 0);
  }

  get rates(): Required<Rates> {
    const [iops, bytesPerSecond, burstSeconds] = this.#numbers as unknown as number[];
    return { iops: iops!, bytesPerSecond: bytesPerSecond!, burstSeconds: burstSeconds! };
  }

  /** By one thread only. */
  set rates({ iops = 0, bytesPerSecond = 0, burstSeconds = 1 }: Rates) {
    Atomics.add(this.#generation, 0, 1);
    this.#numbers.set([iops, bytesPerSecond, burstSeconds]);
    Atomics.add(this.#generation, 0, 1);
  }

  /** What one of the two has done: of each number only it adds to its own. */
  add(who: Limited, what: number, count: number): void {
    this.#numbers[OWN_AT + who * OWN + what]! += count;
  }

  sum(who: Limited, what: number): number {
    return this.#numbers[OWN_AT + who * OWN + what]!;
  }

  get counters(): Record<string, number> {
    const both = (what: number): number =>
      this.sum(LIMITED_FIRST, what) + this.sum(LIMITED_SECOND, what);
    return { limitDelayed: both(DELAYED), limitWaitedMs: both(WAITED_MS) };
  }
}

/**
 * Two threads may be limited together: each has buckets of its own and takes from them what the
 * other one has used as well. So neither waits for the other, and over time both together have the
 * rate; at once they may have two bursts.
 */
export type Limited = typeof LIMITED_FIRST | typeof LIMITED_SECOND;
export const LIMITED_FIRST = 0;
export const LIMITED_SECOND = 1;

const CELLS_AT = 8;
/** After the rates: numbers of each of the two. */
const OWN_AT = 3;
const OWN = 4;
const CELLS = OWN_AT + 2 * OWN;
const DELAYED = 0;
const WAITED_MS = 1;
const REQUESTS = 2;
const BYTES = 3;

export class RateLimits {
  readonly #cells: LimitCells;
  readonly #who: Limited;
  readonly #other: Limited;
  readonly #requests = new TokenBucket();
  readonly #bytes = new TokenBucket();
  #generation = -1;
  /** What the other one had used when we looked last. */
  #otherRequests: number;
  #otherBytes: number;

  constructor(cells: LimitCells, who: Limited = LIMITED_FIRST) {
    this.#cells = cells;
    this.#who = who;
    this.#other = who === LIMITED_FIRST ? LIMITED_SECOND : LIMITED_FIRST;
    this.#otherRequests = cells.sum(this.#other, REQUESTS);
    this.#otherBytes = cells.sum(this.#other, BYTES);
  }

  /** Takes the cost of a request if it may go now. */
  admit(sizeBytes: number, nowMs: number): boolean {
    this.#refill(nowMs);
    if (this.#requests.isInDebt || this.#bytes.isInDebt) return false;
    this.#take(sizeBytes);
    return true;
  }

  /** Takes the cost of a request that goes in any case. */
  charge(sizeBytes: number, nowMs: number): void {
    this.#refill(nowMs);
    this.#take(sizeBytes);
  }

  /** Requests that had to wait, and how long, all of them together. */
  count(delayed: number, waitedMs: number): void {
    this.#cells.add(this.#who, DELAYED, delayed);
    this.#cells.add(this.#who, WAITED_MS, waitedMs);
  }

  /** Until the next request may go; as of the last `admit`. */
  get waitMs(): number {
    return Math.max(this.#requests.waitMs, this.#bytes.waitMs);
  }

  #refill(nowMs: number): void {
    const { generation } = this.#cells;
    if (generation !== this.#generation && (generation & 1) === 0) {
      const { iops, bytesPerSecond, burstSeconds } = this.#cells.rates;
      this.#requests.setRate(iops, burstSeconds);
      this.#bytes.setRate(bytesPerSecond, burstSeconds);
      this.#generation = generation;
    }
    const requests = this.#cells.sum(this.#other, REQUESTS);
    const bytes = this.#cells.sum(this.#other, BYTES);
    this.#requests.refill(nowMs, requests - this.#otherRequests);
    this.#bytes.refill(nowMs, bytes - this.#otherBytes);
    this.#otherRequests = requests;
    this.#otherBytes = bytes;
  }

  #take(sizeBytes: number): void {
    this.#requests.take(1);
    this.#bytes.take(sizeBytes);
    this.#cells.add(this.#who, REQUESTS, 1);
    this.#cells.add(this.#who, BYTES, sizeBytes);
  }
}

/** Less than this is a matter of rounding. */
const DEBT = 1e-6;

/** Fills at a rate, holds so much; below zero it is in debt. */
class TokenBucket {
  #perMs = 0;
  #capacity = 0;
  #level = 0;
  #filledMs = -1;

  get isInDebt(): boolean {
    return this.#perMs > 0 && this.#level < -DEBT;
  }

  get waitMs(): number {
    return this.isInDebt ? -this.#level / this.#perMs : 0;
  }

  /** 0: no limit. What is in the bucket stays, as far as it fits; one that is new is full. */
  setRate(perSecond: number, burstSeconds: number): void {
    const isNew = this.#perMs === 0;
    this.#perMs = perSecond / 1000;
    this.#capacity = perSecond * burstSeconds;
    this.#level = isNew ? this.#capacity : Math.min(this.#level, this.#capacity);
  }

  /**
   * What has flowed in since the last time, less what the other one took meanwhile. Both before the
   * bucket is full: who looks seldom would lose the one and owe the other, and would owe it for as
   * long as the other one uses the rate up.
   */
  refill(nowMs: number, otherTook: number): void {
    if (this.#perMs > 0) this.#level -= otherTook;
    if (this.#filledMs >= 0 && nowMs > this.#filledMs) {
      const level = this.#level + (nowMs - this.#filledMs) * this.#perMs;
      this.#level = Math.min(level, this.#capacity);
    }
    this.#filledMs = nowMs;
  }

  take(tokens: number): void {
    if (this.#perMs > 0) this.#level -= tokens;
  }
}
