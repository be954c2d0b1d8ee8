import assert from 'node:assert/strict';
import { test } from 'node:test';
import { latencyBucket } from './latency.hot.ts';
import { LATENCY_BUCKETS, LATENCY_OPS, RequestLatency } from './request-latency.ts';

test('a bucket holds what is below its power of two', () => {
  for (let n = 0; n < LATENCY_BUCKETS - 1; n++) {
    const boundMs = 2 ** n / 1000;
    assert.equal(latencyBucket(boundMs * 0.9999), n, `below 2^${n} us`);
    assert.equal(latencyBucket(boundMs * 1.0001), n + 1, `above 2^${n} us`);
  }
  for (const ms of [-1, 0]) assert.equal(latencyBucket(ms), 0);
  for (const ms of [2 ** 31, 2 ** 40, Infinity]) {
    assert.equal(latencyBucket(ms), LATENCY_BUCKETS - 1, `${ms} ms`);
  }
});

test('a status has every op by its name', () => {
  const latency = new RequestLatency();
  for (const i of LATENCY_OPS.keys()) {
    latency.buckets[i * LATENCY_BUCKETS + i + 1] = i + 10;
    latency.sumMs[i] = i;
  }
  const status = latency.status();
  assert.deepEqual(Object.keys(status), LATENCY_OPS);
  for (const [i, op] of LATENCY_OPS.entries()) {
    const { count, sumUs, buckets } = status[op];
    assert.deepEqual(
      [count, sumUs, buckets[i + 1], buckets.length],
      [i + 10, i * 1000, i + 10, 27],
    );
  }
});
