/**
 * A request to memory as copies: between its segments and one range of the arena. For
 * `MemoryEngine`, which carries a whole batch out with one native call.
 */

/**
 * Appends a copy per segment, from `count` on, to the columns of a CopyPlan; the disk's side begins
 * at `diskAt`. The caller has seen to room. Returns the new count.
 */
export function planCopies(
  segOffset: Float64Array,
  segLen: Int32Array,
  first: number,
  segments: number,
  diskAt: number,
  toDisk: boolean,
  ranges: Float64Array,
  capacity: number,
  count: number,
): number {
  const diskColumn = toDisk ? capacity : 0;
  const guestColumn = toDisk ? 0 : capacity;
  let at = diskAt;
  for (let s = 0; s < segments; s++) {
    const len = segLen[first + s]!;
    ranges[guestColumn + count + s] = segOffset[first + s]!;
    ranges[diskColumn + count + s] = at;
    ranges[2 * capacity + count + s] = len;
    at += len;
  }
  return count + segments;
}
