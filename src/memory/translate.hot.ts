import type { AddressMap } from './address-map.ts';

/** More ranges than this are halved; guests have one to three, where a scan is faster. */
const SCAN_RANGES = 8;

/**
 * Arena offset of `address`, or -1 unless all of [address, address + lenBytes) lies in one range
 * of the map. Any non-negative number is a legal address, also one that was rounded because it
 * came from a 64-bit word above 2^53: no range reaches that far.
 *
 * Small, so that it is inlined: 5-10 ns then, and nothing allocated. A call of its own would box
 * the result (16 bytes).
 */
export function translate(map: AddressMap, address: number, lenBytes: number): number {
  const count = map.count;
  const end = map.end;
  let i = 0;
  if (count > SCAN_RANGES) i = rangeOf(end, count, address);
  else while (i < count && end[i] <= address) i++;
  if (i === count || address < map.start[i]) return -1;
  // A difference is exact, while the sum of address and length may round at 2^53.
  return lenBytes > end[i] - address ? -1 : address + map.delta[i];
}

/** Index of the first range that ends behind `address`; `count` when none does. */
function rangeOf(end: Float64Array, count: number, address: number): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (end[middle] > address) high = middle;
    else low = middle + 1;
  }
  return low;
}
