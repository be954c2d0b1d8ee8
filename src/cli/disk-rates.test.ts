import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DiskStatus } from '../daemon/disks/disk-types.ts';
import { latencyText, quantile, ratesBetween, ratesTable } from './disk-rates.ts';

const disk = (reads: number, counts: number[]): DiskStatus =>
  ({
    name: 'd',
    state: 'up',
    inFlight: 1,
    errors: 0,
    counters: { reads, readBytes: reads * 4096 },
    latency: { read: { counts, sumMicroseconds: 100 } },
  }) as unknown as DiskStatus;

test('rates and quantiles are of what happened between two looks', async () => {
  const before = { atMs: 0, disks: [disk(100, [0, 100, 0, 0])] };
  const now = { atMs: 2000, disks: [disk(300, [0, 100, 198, 2])] };
  const rates = ratesBetween(before, now);
  const [rate] = rates.disks;
  assert.deepEqual([rate!.readsPerSecond, rate!.readBytesPerSecond], [100, 409600]);
  assert.deepEqual([rate!.p50Microseconds, rate!.p99Microseconds], [4, 4]);
  assert.match(await ratesTable(rates), /d +up +100 +0 +0\.4 +0\.0 +4 us +4 us +1 +0/);
  const anew = ratesBetween(now, { atMs: 3000, disks: [disk(50, [0, 50, 0, 0])] });
  assert.equal(anew.disks[0]!.readsPerSecond, 50, 'a disk that started over counts from zero');
});

test('a quantile is the upper bound of its bucket', () => {
  assert.equal(quantile([0, 0, 0], 0.5), null);
  assert.equal(quantile([1, 1, 0], 0.5), 1);
  assert.equal(quantile([0, 1, 1], 0.99), 2, 'the last has no bound');
  assert.equal(latencyText({ counts: [0, 0, 0, 4, 0], sumMicroseconds: 20 }), TEXT);
});
const TEXT = 'mean 5 us, p50 below 8 us, p99 below 8 us, 4 requests';
