import { ok } from 'node:assert/strict';
import { test } from 'node:test';
import { simulate } from './scale-model.ts';

const COSTS = { frameNs: 40, batchNs: 640, lockNs: 30, passNs: 90 };
/** Full batches: 50 ns a frame, 20 frames a microsecond. */
const ONE_WORKER = 20;
const EVEN = Array.from({ length: 32 }, () => 1 / 32);
const near = (value: number, expected: number): boolean => Math.abs(value / expected - 1) < 0.1;

test('workers with queues of their own do not meet', () => {
  for (const workers of [1, 2, 4, 8]) {
    ok(near(simulate(COSTS, workers, EVEN, 'own'), workers * ONE_WORKER));
  }
});

test('one queue is one worker; shared, it is no more than both its halves', () => {
  const both = ONE_WORKER * 2;
  for (const workers of [2, 4, 8]) {
    ok(near(simulate(COSTS, workers, [1], 'own'), ONE_WORKER));
    const shared = simulate(COSTS, workers, [1], 'shared');
    ok(shared > ONE_WORKER && shared <= both, `${shared}`);
  }
});

test('a slower lock costs throughput where it is shared, and only there', () => {
  const slow = { ...COSTS, lockNs: 3000, passNs: 3000 };
  ok(simulate(slow, 4, EVEN, 'shared') < simulate(COSTS, 4, EVEN, 'shared') / 1.5);
  ok(simulate(slow, 4, EVEN, 'own') === simulate(COSTS, 4, EVEN, 'own'));
});
