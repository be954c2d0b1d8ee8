import type { AddressMap } from './address-map.ts';

/**
 * Arena offset of `address`, or -1 unless all of [address, address + lenBytes) lies in one range
 * of the map. Any non-negative number is a legal address, also one that was rounded because it
 * came from a 64-bit word above 2^53: no range reaches that far.
 */
export function translate(map: AddressMap, address: number, lenBytes: number): number {
  const end = map.end;
  // The first range that ends behind the address. Guests have one to three: a scan beats halving.
  let low = 0;
  let high = map.count;
  if (high > 8) {
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (end[middle] > address) high = middle;
      else low = middle + 1;
    }
  } else {
    while (low < high && end[low] <= address) low++;
  }
  if (low >= map.count || address < map.start[low]) return -1;
  if (lenBytes > end[low] - address) return -1; // exact, while a sum may round at 2^53
  return address + map.delta[low];
}
