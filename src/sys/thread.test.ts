import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { getPriority } from 'node:os';
import { test } from 'node:test';
import {
  createEventfd,
  drainEventfd,
  hurryThread,
  pauseWatch,
  pinThread,
  processCpuSeconds,
  setNonblocking,
  setThreadName,
  threadCpuSeconds,
  watchThread,
} from './index.ts';

test('names, cut to what the kernel takes', () => {
  const before = readFileSync('/proc/self/comm', 'utf8').trim();
  setThreadName('vring-été-très-long');
  assert.equal(readFileSync('/proc/self/comm', 'utf8').trim(), 'vring-été-tr');
  setThreadName(before);
});

test('CPU time rises while we compute', () => {
  const thread = threadCpuSeconds();
  const all = processCpuSeconds();
  const end = Date.now() + 30;
  while (Date.now() < end);
  const used = threadCpuSeconds() - thread;
  assert.ok(used > 0.002 && used < 0.2, String(used));
  assert.ok(processCpuSeconds() - all >= used * 0.9);
});

test('a CPU that does not exist', () => {
  assert.throws(() => pinThread(1023), { errnoName: 'EINVAL' });
  assert.throws(() => pinThread(100000), { errnoName: 'EINVAL' });
});

test('a watched thread is not held by a descriptor that blocks', () => {
  using event = createEventfd('nobody signals it');
  setNonblocking(event.number, false);
  watchThread(20);
  try {
    const before = performance.now();
    assert.equal(drainEventfd(event.number), 0, 'interrupted, not signalled');
    assert.ok(performance.now() - before < 2000);
    assert.equal(pauseWatch(), 0);
  } finally {
    watchThread(0);
  }
});

test('a thread in a hurry goes back to its usual priority', (t) => {
  const usual = getPriority(0);
  const calmDown = hurryThread();
  if (process.getuid?.() === 0) assert.equal(getPriority(0), -20);
  else t.diagnostic('not root: nothing changes');
  calmDown();
  assert.equal(getPriority(0), usual);
});
