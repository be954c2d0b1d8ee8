/** How measurements are spread, as text: results here are often of two kinds. Pure. */

const BARS = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const BINS = 16;
/** Two clusters are apart when the widest gap between neighbours is this share of the whole. */
const GAP_SHARE = 0.35;
/** And when what lies between is no trifle, as a share of the median. */
const SPREAD_SHARE = 0.1;

/** A strip of bars from the least to the most; empty for fewer than three values. */
export function strip(values: readonly number[]): string {
  const sorted = [...values].sort((a, b) => a - b);
  const least = sorted[0];
  const most = sorted.at(-1);
  if (sorted.length < 3 || least === undefined || most === undefined || most === least) return '';
  const counts = Array.from({ length: BINS }, () => 0);
  for (const value of sorted) {
    const bin = Math.min(BINS - 1, Math.floor(((value - least) / (most - least)) * BINS));
    counts[bin]!++;
  }
  const top = Math.max(...counts);
  return counts.map((n) => (n === 0 ? ' ' : BARS[Math.ceil((n / top) * BARS.length) - 1])).join('');
}

/** The border between two clusters of at least two values each, or null. */
export function border(values: readonly number[]): number | null {
  const sorted = [...values].sort((a, b) => a - b);
  if (sorted.length < 4) return null;
  const least = sorted[0]!;
  const most = sorted.at(-1)!;
  const middle = sorted[sorted.length >> 1]!;
  if (most - least < SPREAD_SHARE * middle) return null;
  let widest = 0;
  let at = -1;
  for (let i = 2; i <= sorted.length - 2; i++) {
    const gap = sorted[i]! - sorted[i - 1]!;
    if (gap > widest) [widest, at] = [gap, i];
  }
  if (at < 0 || widest < GAP_SHARE * (most - least)) return null;
  return (sorted[at]! + sorted[at - 1]!) / 2;
}

/** "7.1 .. 12.4 [▁█  ▃] two kinds, apart at 9.6 (4 below, 5 above)". */
export function describeSpread(values: readonly number[], digits: number): string {
  if (values.length === 0) return '';
  const ends = `${Math.min(...values).toFixed(digits)} .. ${Math.max(...values).toFixed(digits)}`;
  const bars = strip(values);
  const cut = border(values);
  const below = values.filter((value) => cut !== null && value < cut).length;
  const sides = `${below} below, ${values.length - below} above`;
  const kinds = `two kinds, apart at ${cut?.toFixed(digits)} (${sides})`;
  return [ends, bars === '' ? '' : `[${bars}]`, cut === null ? '' : kinds]
    .filter(Boolean)
    .join(' ');
}
