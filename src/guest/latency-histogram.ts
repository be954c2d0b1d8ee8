/**
 * Times of many requests in little room: buckets of equal width within each power of two, so that
 * a percentile is right to within 3 %. From an eighth of a microsecond to four minutes.
 */
import { assert } from '../base/assert.ts';
import { HISTOGRAM_BUCKETS, HISTOGRAM_UNITS_PER_US, bucketOf } from './latency.hot.ts';

export type LatencySummary = {
  readonly count: number;
  readonly averageUs: number;
  readonly minUs: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly p999Us: number;
  readonly maxUs: number;
};

export class LatencyHistogram {
  /** Filled by `recordLatency`. */
  readonly buckets = new Float64Array(HISTOGRAM_BUCKETS);
  count = 0;
  sumUs = 0;
  minUs = Infinity;
  maxUs = 0;

  /** Microseconds below which `share` (0 to 1) of all times are. */
  percentileUs(share: number): number {
    assert(share > 0 && share <= 1, 'a share');
    const rank = Math.max(1, Math.ceil(share * this.count));
    let seen = 0;
    for (let i = 0; i < this.buckets.length; i++) {
      seen += this.buckets[i]!;
      if (seen >= rank) return Math.min(this.maxUs, Math.max(this.minUs, upperUs(i)));
    }
    return this.maxUs;
  }

  add(other: LatencyHistogram): void {
    for (let i = 0; i < this.buckets.length; i++) this.buckets[i]! += other.buckets[i]!;
    this.count += other.count;
    this.sumUs += other.sumUs;
    this.minUs = Math.min(this.minUs, other.minUs);
    this.maxUs = Math.max(this.maxUs, other.maxUs);
  }

  /** Null when nothing was recorded. */
  summary(): LatencySummary | null {
    if (this.count === 0) return null;
    return {
      count: this.count,
      averageUs: this.sumUs / this.count,
      minUs: this.minUs,
      p50Us: this.percentileUs(0.5),
      p99Us: this.percentileUs(0.99),
      p999Us: this.percentileUs(0.999),
      maxUs: this.maxUs,
    };
  }
}

/** The longest time that falls into a bucket. */
function upperUs(bucket: number): number {
  if (bucket < 64) return bucket / HISTOGRAM_UNITS_PER_US;
  const octave = (bucket >> 5) - 1;
  const from = (32 + (bucket & 31)) * 2 ** octave;
  assert(bucketOf(from) === bucket, 'buckets are numbered as they are read');
  return (from + 2 ** octave - 1) / HISTOGRAM_UNITS_PER_US;
}
