/** Which bucket of a RequestLatency a time is in. */

const BUCKETS = 27; // of request-latency.ts

/** 0: below a microsecond; n: from 2^(n-1) to below 2^n; the last: all that is more. */
export function latencyBucket(ms: number): number {
  const us = ms * 1000;
  if (us < 1) return 0;
  if (us >= 33554432) return BUCKETS - 1; // 2^25
  return 32 - Math.clz32(us);
}
