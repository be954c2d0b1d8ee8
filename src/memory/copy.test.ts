import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { copySmall } from './index.ts';

test('copies exactly the bytes it was told', () => {
  const small = fc.integer({ min: 0, max: 40 });
  fc.assert(
    fc.property(
      small,
      small,
      fc.integer({ min: 0, max: 300 }),
      fc.nat(),
      (to, from, length, seed) => {
        const source = new Uint8Array(from + length); // nothing behind: over-reading throws
        for (let i = 0; i < source.length; i++) source[i] = (i * 31 + seed) & 0xff;
        const target = new Uint8Array(to + length).fill(0xee);
        copySmall(new DataView(target.buffer), to, new DataView(source.buffer), from, length);
        assert.deepEqual(target.subarray(to), source.subarray(from));
        assert.equal(
          target.subarray(0, to).every((byte) => byte === 0xee),
          true,
        );
      },
    ),
    { numRuns: 2000 },
  );
});

test('nothing is written behind the end', () => {
  for (let length = 0; length <= 70; length++) {
    const source = new DataView(new ArrayBuffer(128));
    for (let i = 0; i < 128; i++) source.setUint8(i, 1);
    const target = new Uint8Array(128);
    copySmall(new DataView(target.buffer), 7, source, 3, length);
    assert.equal(target.indexOf(1), length === 0 ? -1 : 7);
    assert.equal(target.lastIndexOf(1), length === 0 ? -1 : 7 + length - 1);
  }
});
