import type { LatencyHistogram } from './latency-histogram.ts';

/** A bucket per unit below 64 units, then 32 per power of two, up to 2^31 units. */
export const HISTOGRAM_BUCKETS = 64 + 32 * 25;
export const HISTOGRAM_UNITS_PER_US = 8;

const LARGEST = 0x7fffffff;
const PER_US = 8; // as above

/** `units`: a whole number from 0 to 2^31 - 1. */
export function bucketOf(units: number): number {
  if (units < 64) return units;
  const shift = 26 - Math.clz32(units); // so that 32 to 63 are left
  return (shift << 5) + (units >> shift);
}

/** Counts one request that took so long. */
export function recordLatency(into: LatencyHistogram, milliseconds: number): void {
  const us = milliseconds * 1000;
  const units = us * PER_US;
  into.buckets[bucketOf(units < 0 ? 0 : units < LARGEST ? units | 0 : LARGEST)]++;
  into.count++;
  into.sumUs += us;
  if (us < into.minUs) into.minUs = us;
  if (us > into.maxUs) into.maxUs = us;
}
