import { equal, match } from 'node:assert/strict';
import { test } from 'node:test';
import { border, describeSpread, strip } from './distribution.ts';

test('a strip has a bar where values are', () => {
  const bars = strip([1, 1, 1, 1, 2, 2, 9]);
  equal(bars.length, 16);
  equal(bars[0], '█');
  equal(bars.at(-1), '▂');
  equal(bars.slice(4, 12).trim(), '');
  equal(strip([1, 2]), '');
  equal(strip([3, 3, 3]), '');
});

test('two kinds are told from one that is wide, and from a straggler', () => {
  equal(border([10, 10.5, 11, 20, 20.5, 21]), 15.5);
  equal(border([10, 11, 12, 13, 14, 15, 16]), null);
  equal(border([10, 10.1, 10.2, 10.1, 20]), null);
  equal(border([10, 10, 10.2, 10.2]), null);
});

test('a spread in words', () => {
  match(describeSpread([7, 7.1, 12, 12.4], 1), /^7\.0 \.\. 12\.4 \[.{16}\] two kinds, apart at 9\.6 \(2 below, 2 above\)$/); // prettier-ignore
  equal(describeSpread([], 1), '');
  equal(describeSpread([5], 0), '5 .. 5');
});
