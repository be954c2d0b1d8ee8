import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { giveUp, requireRoot } from '../../test/peers/require-peer.ts';
import { createEventfd, drainEventfd, signalEventfd } from './eventfd.ts';
import { PerfCounter, tracepointId } from './perf.ts';

test('the system calls of a thread are counted', (t) => {
  const id = tracepointId('raw_syscalls/sys_enter');
  if (!requireRoot(t)) return;
  if (id === null) {
    giveUp(t, 'tracefs is not mounted: mount -t tracefs none /sys/kernel/tracing');
    return;
  }
  using fd = createEventfd('test');
  const counter = PerfCounter.tracepoint(id, process.pid);
  const before = counter.read();
  for (let i = 0; i < 100; i++) signalEventfd(fd.number);
  assert.equal(drainEventfd(fd.number), 100);
  const counted = counter.read() - before;
  // poll and write each, one read of the eventfd, one read of the counter; others are V8's.
  assert.ok(counted >= 202 && counted < 400, `${counted} calls`);
  counter.close();
});

test('a tracepoint that is not there is null, a thread that is not there an error', () => {
  assert.equal(tracepointId('raw_syscalls/no_such'), null);
  if (!existsSync('/proc/self/ns') || process.getuid?.() !== 0) return;
  const gone = Number(readFileSync('/proc/sys/kernel/pid_max', 'utf8')) - 1;
  assert.throws(() => PerfCounter.tracepoint(1, gone), { code: 'ERR_VRING_SYS' });
});
