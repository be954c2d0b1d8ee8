/** Makes the columns that the data plane translates addresses with. */
import { assert } from '../base/assert.ts';
import type { AddressMap } from './address-map.ts';

/** One range of an address space and where it is in the arena. */
export type MappedRange = { start: number; sizeBytes: number; offset: number };

/**
 * Sorts the ranges and joins those that are neighbours in both spaces. They must not overlap,
 * which `MemoryTable.add` has checked.
 */
export function buildAddressMap(ranges: readonly MappedRange[]): AddressMap {
  const sorted = [...ranges].sort((a, b) => a.start - b.start);
  const joined: MappedRange[] = [];
  for (const range of sorted) {
    const last = joined.at(-1);
    const lastEnd = last === undefined ? 0 : last.start + last.sizeBytes;
    assert(range.start >= lastEnd, 'ranges of an address map overlap');
    assert(range.start + range.sizeBytes <= Number.MAX_SAFE_INTEGER + 1);
    if (
      last?.offset === range.offset - (range.start - (last?.start ?? 0)) &&
      range.start === lastEnd
    ) {
      last.sizeBytes += range.sizeBytes;
    } else {
      joined.push({ ...range });
    }
  }
  return {
    count: joined.length,
    start: Float64Array.from(joined, (range) => range.start),
    end: Float64Array.from(joined, (range) => range.start + range.sizeBytes),
    delta: Float64Array.from(joined, (range) => range.offset - range.start),
  };
}

/** The map of a guest without memory: nothing translates. */
export const EMPTY_ADDRESS_MAP: AddressMap = buildAddressMap([]);
