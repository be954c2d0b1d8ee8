/**
 * How long requests of a disk take, from the chain that was taken to the chain that was used, in
 * buckets of powers of two. Filled by hot loops, one bucket for all rows that are used at once.
 */

/** What is told apart; the order of rows in `buckets`. */
export const LATENCY_OPS = ['read', 'write', 'flush', 'discard'] as const;
export type LatencyOp = (typeof LATENCY_OPS)[number];

/** See `latencyBucket`: the last begins at 2^25 us, half a minute. */
export const LATENCY_BUCKETS = 27;

/** Structured clone. */
export type LatencyStatus = { readonly [op in LatencyOp]: OpLatency };

export type OpLatency = {
  readonly count: number;
  readonly sumUs: number;
  /** Bucket n: requests below 2^n us that are in no bucket before; the last: all that is more. */
  readonly buckets: readonly number[];
};

export class RequestLatency {
  /** By op, then by bucket. Discard and write-zeroes are one op. */
  readonly buckets = new Float64Array(LATENCY_OPS.length * LATENCY_BUCKETS);
  /** By op. */
  readonly sumMs = new Float64Array(LATENCY_OPS.length);

  clear(): void {
    this.buckets.fill(0);
    this.sumMs.fill(0);
  }

  status(): LatencyStatus {
    return {
      read: this.#statusOf(0),
      write: this.#statusOf(1),
      flush: this.#statusOf(2),
      discard: this.#statusOf(3),
    };
  }

  #statusOf(op: number): OpLatency {
    const first = op * LATENCY_BUCKETS;
    const buckets = [...this.buckets.subarray(first, first + LATENCY_BUCKETS)];
    const count = buckets.reduce((sum, some) => sum + some, 0);
    return { count, sumUs: this.sumMs[op]! * 1000, buckets };
  }
}
