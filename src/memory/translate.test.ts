import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { buildAddressMap, EMPTY_ADDRESS_MAP, type MappedRange, translate } from './index.ts';

/** Ranges as a front-end might give them: gaps, neighbours, any order, up to 2^53. */
const tables = fc
  .array(
    fc.record({
      gap: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 64 }), fc.constant(2 ** 40)),
      sizeBytes: fc.oneof(fc.integer({ min: 1, max: 64 }), fc.constant(2 ** 33)),
      apart: fc.boolean(),
    }),
    { maxLength: 24 },
  )
  .chain((parts) => {
    const ranges: MappedRange[] = [];
    let start = 0;
    let offset = 4096;
    for (const { gap, sizeBytes, apart } of parts) {
      start += gap;
      if (apart || gap > 0) offset += 2 ** 21;
      ranges.push({ start, sizeBytes, offset });
      start += sizeBytes;
      offset += sizeBytes;
    }
    return fc.shuffledSubarray(ranges, { minLength: ranges.length });
  });

/** The definition, in bytes: every byte is mapped, and they follow each other in the arena. */
function naive(ranges: readonly MappedRange[], address: number, lenBytes: number): number {
  const find = (at: number) =>
    ranges.find((range) => at >= range.start && at < range.start + range.sizeBytes);
  const first = find(address);
  if (first === undefined) return -1;
  const offset = first.offset + (address - first.start);
  for (let at = address; at < address + lenBytes;) {
    const range = find(at);
    if (range === undefined) return -1;
    if (range.offset + (at - range.start) !== offset + (at - address)) return -1;
    at = range.start + range.sizeBytes;
  }
  return offset;
}

test('translate agrees with a search byte by byte', () => {
  const lengths = fc.oneof(fc.integer({ min: 0, max: 200 }), fc.constant(2 ** 32 - 1));
  fc.assert(
    fc.property(
      tables,
      fc.nat(),
      fc.integer({ min: -3, max: 3 }),
      lengths,
      (ranges, pick, by, length) => {
        const map = buildAddressMap(ranges);
        const edges = ranges.flatMap((range) => [range.start, range.start + range.sizeBytes]);
        const address = Math.max(0, (edges[pick % (edges.length || 1)] ?? 0) + by);
        assert.equal(translate(map, address, length), naive(ranges, address, length));
      },
    ),
    { numRuns: 3000 },
  );
});

test('addresses of 64 bits, rounded or not, are outside', () => {
  const map = buildAddressMap([{ start: 2 ** 53 - 8192, sizeBytes: 8192, offset: 4096 }]);
  assert.equal(translate(map, 2 ** 53 - 8192, 8192), 4096);
  assert.equal(translate(map, 2 ** 53 - 1, 1), 4096 + 8191);
  assert.equal(translate(map, 2 ** 53 - 1, 2), -1);
  for (const address of [2 ** 53, 2 ** 63, 2 ** 64 - 1, 2 ** 64]) {
    assert.equal(translate(map, address, 1), -1);
    assert.equal(translate(map, address, 2 ** 32 - 1), -1);
  }
  assert.equal(translate(EMPTY_ADDRESS_MAP, 0, 0), -1);
});

test('neighbours in both spaces become one range', () => {
  const map = buildAddressMap([
    { start: 300, sizeBytes: 50, offset: 9000 },
    { start: 100, sizeBytes: 100, offset: 5100 },
    { start: 200, sizeBytes: 100, offset: 5200 },
  ]);
  assert.equal(map.count, 2);
  assert.equal(translate(map, 150, 150), 5150);
  assert.equal(translate(map, 150, 151), -1);
  assert.throws(
    () =>
      buildAddressMap([
        { start: 0, sizeBytes: 10, offset: 0 },
        { start: 9, sizeBytes: 10, offset: 100 },
      ]),
    { code: 'ERR_VRING_ASSERTION' },
  );
});
