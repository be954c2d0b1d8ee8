/** Median, spread and a bootstrap interval of few measurements. Pure. */

export type Summary = {
  readonly count: number;
  readonly median: number;
  readonly min: number;
  readonly max: number;
  /** 95 % interval of the median, by the percentile bootstrap. */
  readonly low: number;
  readonly high: number;
};

/** Resamples of the bootstrap; the interval's ends change by less than they are worth above it. */
const RESAMPLES = 4000;

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  if (sorted.length === 0) return NaN;
  const upper = sorted[half] as number;
  return sorted.length % 2 === 1 ? upper : ((sorted[half - 1] as number) + upper) / 2;
}

export function summarize(values: readonly number[]): Summary {
  const medians = bootstrapMedians(values);
  return {
    count: values.length,
    median: median(values),
    min: Math.min(...values),
    max: Math.max(...values),
    low: medians[Math.floor(medians.length * 0.025)] ?? NaN,
    high: medians[Math.ceil(medians.length * 0.975) - 1] ?? NaN,
  };
}

/** Medians of resampled sets, sorted. Always the same for the same values. */
function bootstrapMedians(values: readonly number[]): number[] {
  const random = xorshift32(0x9e3779b9);
  const medians: number[] = [];
  for (let i = 0; i < RESAMPLES; i++) {
    const sample = values.map(() => values[Math.floor(random() * values.length)] as number);
    medians.push(median(sample));
  }
  return medians.sort((a, b) => a - b);
}

function xorshift32(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state = (state ^ (state << 5)) >>> 0;
    return state / 2 ** 32;
  };
}
