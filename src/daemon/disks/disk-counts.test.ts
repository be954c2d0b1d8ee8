import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NO_COUNTS, sumOf } from './disk-counts.ts';
import { latencySamples } from './disk-metrics.ts';
import type { DiskStatus } from './disk-types.ts';

test('what came before is added, whatever it knows', () => {
  const before = {
    ...NO_COUNTS,
    errors: 2,
    lastError: { op: 'read', at: 0, errno: 'EIO' },
    counters: { reads: 5, gone: 1 },
    latency: { read: { counts: [1, 2], sumMicroseconds: 10 } },
  };
  const now = {
    ...NO_COUNTS,
    inFlight: 3,
    counters: { reads: 7, writes: 1 },
    latency: { read: { counts: [1, 0, 4], sumMicroseconds: 5 } },
  };
  assert.deepEqual(sumOf(before, now), {
    inFlight: 3,
    errors: 2,
    lastError: before.lastError,
    faults: 0,
    counters: { reads: 12, gone: 1, writes: 1 },
    latency: { read: { counts: [2, 2, 4], sumMicroseconds: 15 } },
  });
});

test('a histogram is cumulative, in seconds, and ends without a bound', () => {
  const latency = { write: { counts: [1, 2, 4], sumMicroseconds: 12 } };
  const samples = [...latencySamples([{ name: 'd', latency } as unknown as DiskStatus])];
  assert.deepEqual(
    samples.map(({ metricName, labels, value }) => [metricName, labels['le'] ?? '', value]),
    [
      ['vring_disk_latency_seconds_bucket', '0.000001', 1],
      ['vring_disk_latency_seconds_bucket', '0.000002', 3],
      ['vring_disk_latency_seconds_bucket', '+Inf', 7],
      ['vring_disk_latency_seconds_sum', '', 0.000012],
      ['vring_disk_latency_seconds_count', '', 7],
    ],
  );
});
