import { deepEqual, equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { intervalText, median, summarize } from './statistics.ts';

test('the median of odd and even counts', () => {
  equal(median([3, 1, 2]), 2);
  equal(median([4, 1, 2, 3]), 2.5);
  equal(median([]), NaN);
});

test('the interval of the median is the narrowest pair of values that covers 95 %', () => {
  // Ranks and coverages as in tables of the sign test.
  const ends = (count: number): number[] => {
    const values = Array.from({ length: count }, (_, i) => count - i);
    const { low, high, coverage } = summarize(values);
    return [low, high, Number(coverage.toFixed(4))];
  };
  deepEqual(ends(5), [1, 5, 0.9375]);
  deepEqual(ends(6), [1, 6, 0.9688]);
  deepEqual(ends(7), [1, 7, 0.9844]);
  deepEqual(ends(9), [2, 8, 0.9609]);
  deepEqual(ends(20), [6, 15, 0.9586]);
});

test('an interval holds the true median as often as it says, of values of two kinds, too', () => {
  let state = 1;
  const random = (): number => (state = (state * 48_271) % 2_147_483_647) / 2_147_483_647;
  const draw = (): number => (random() < 0.5 ? random() : 2 + random()); // its median: 1 to 2
  const worlds = 20_000;
  for (const count of [3, 5, 7, 12]) {
    let held = 0;
    let said = 0;
    for (let world = 0; world < worlds; world++) {
      const { low, high, coverage } = summarize(Array.from({ length: count }, draw));
      if (low <= 1 + 1e-9 && high >= 1) held++;
      said = coverage;
    }
    ok(Math.abs(held / worlds - said) < 0.01, `${count}: ${held / worlds}, said ${said}`);
  }
});

test('too few values for 95 % are said to be so', () => {
  equal(intervalText(summarize([1, 1.2, 0.9, 1.1, 4])), '0.90 .. 4.00 (93 %)');
  equal(intervalText(summarize([1, 1.2, 0.9, 1.1, 4, 2])), '0.90 .. 4.00');
  equal(intervalText(summarize([2])), 'none, of one value');
  equal(summarize([]).count, 0);
  equal(summarize([]).coverage, 0);
});
