/**
 * Copies `lenBytes` bytes between two places, in order, reading and writing exactly those bytes
 * and each of them once. For short ranges, up to some 256 bytes: headers and small frames. Longer
 * ones belong in a `CopyPlan`.
 *
 * Words of 64 bits go by BigUint64, the one use of bigint in hot code: optimised code compiles
 * the pair to one load and one store and allocates nothing. See copy.bench.ts for figures.
 * An overlap is copied right only when the target lies before the source.
 */
export function copySmall(
  target: DataView,
  targetAt: number,
  source: DataView,
  sourceAt: number,
  lenBytes: number,
): void {
  const words = lenBytes & ~7;
  for (let i = 0; i < words; i += 8) {
    target.setBigUint64(targetAt + i, source.getBigUint64(sourceAt + i, true), true);
  }
  let at = words;
  if ((lenBytes & 4) !== 0) {
    target.setUint32(targetAt + at, source.getUint32(sourceAt + at, true), true);
    at += 4;
  }
  if ((lenBytes & 2) !== 0) {
    target.setUint16(targetAt + at, source.getUint16(sourceAt + at, true), true);
    at += 2;
  }
  if ((lenBytes & 1) !== 0) target.setUint8(targetAt + at, source.getUint8(sourceAt + at));
}
