import { equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { median, summarize } from './statistics.ts';

test('the median of odd and even counts', () => {
  equal(median([3, 1, 2]), 2);
  equal(median([4, 1, 2, 3]), 2.5);
});

test('a summary holds its median between its ends', () => {
  const summary = summarize([1, 1.2, 0.9, 1.1, 4]);
  equal(summary.min, 0.9);
  equal(summary.max, 4);
  ok(summary.low <= summary.median && summary.median <= summary.high);
  ok(summary.low >= summary.min && summary.high <= summary.max);
});

test('one value is its own interval', () => {
  const summary = summarize([2]);
  equal(summary.low, 2);
  equal(summary.high, 2);
});
