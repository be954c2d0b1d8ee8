import assert from 'node:assert/strict';
import { test } from 'node:test';
import { addUsage, processTasks, TaskMeter } from './tasks.ts';

test('a thread that works uses processor time, one that sleeps is woken', async () => {
  const { own, vhost } = processTasks(process.pid);
  assert.ok(own.includes(process.pid));
  assert.deepEqual(vhost, []);
  const busy = new TaskMeter([process.pid]);
  const end = performance.now() + 200;
  let rounds = 0;
  while (performance.now() < end) rounds++;
  const worked = busy.stop();
  assert.ok(rounds > 1000);
  assert.ok(worked.cpuSeconds > 0.02 && worked.cpuSeconds < 0.4, `${worked.cpuSeconds} s`);
  const sleepy = new TaskMeter([process.pid]);
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 3));
  const slept = sleepy.stop();
  assert.ok(slept.wakeups >= 15, `${slept.wakeups} wake-ups`);
  assert.ok(slept.systemCalls === null || slept.systemCalls >= 20, `${slept.systemCalls} calls`);
});

test('a thread that is gone counts nothing; no thread at all makes no calls', () => {
  const nobody = new TaskMeter([]).stop();
  assert.deepEqual(nobody, { cpuSeconds: 0, wakeups: 0, systemCalls: 0 });
  const gone = new TaskMeter([2 ** 22 + 1]).stop();
  assert.equal(gone.cpuSeconds, 0);
  assert.equal(addUsage(nobody, gone).systemCalls, null, 'what one cannot tell, the sum cannot');
});
