import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import { createEventfd, signalEventfd } from '../sys/eventfd.ts';
import { openFdCount } from '../sys/fd.ts';
import { DataPlaneWorker } from './data-plane-worker.ts';
import type { PlaneEvent, VringAttach } from './data-plane.ts';

const PLANE = new URL('./test-plane.ts', import.meta.url);

function start(onEvent: (event: PlaneEvent) => void = () => {}): DataPlaneWorker {
  return new DataPlaneWorker({
    name: 'test-plane',
    planeModule: PLANE,
    planeOptions: { answer: 42 },
    spinMs: 0.05,
    onEvent,
    onCrash: (error) => assert.fail(error),
  });
}

function vring(index: number, kickFd: number): VringAttach {
  return { device: 0, index, kickFd } as VringAttach;
}

test('requests are answered in order, by a sleeping and by a busy worker', async () => {
  const worker = start();
  assert.deepEqual(await worker.request('options', null), { answer: 42 });
  await worker.request('busy', null);
  const answers = await Promise.all([
    worker.detachVring(0, 1),
    worker.request('options', null),
    worker.detachVring(0, 2),
  ]);
  assert.deepEqual(answers, [0, { answer: 42 }, 0]);
  await sleep(5);
  const { polls, work } = await worker.counters();
  assert.ok(polls > 0 && work > 0, 'it was busy');
  await worker.close();
});

test('however many workers there are, the process listens to its exit once', async () => {
  const before = process.listenerCount('exit');
  const workers = [start(), start(), start()];
  assert.equal(process.listenerCount('exit'), before + 1);
  await workers.shift()!.close();
  assert.equal(process.listenerCount('exit'), before + 1, 'for the others');
  await Promise.all(workers.map((worker) => worker.close()));
  assert.equal(process.listenerCount('exit'), before);
});

test('a kick wakes the worker; a detached descriptor does not', async () => {
  const worker = start();
  const kick = createEventfd('kick');
  await worker.attachVring(vring(5, kick.number));
  const before = await worker.counters();
  signalEventfd(kick.number);
  await sleep(20);
  assert.equal((await worker.request<number[]>('kicks', null))[5], 1);
  assert.equal(await worker.detachVring(0, 5), 105);
  signalEventfd(kick.number);
  await sleep(20);
  assert.equal((await worker.request<number[]>('kicks', null))[5], 1);
  const after = await worker.counters();
  assert.ok(after.wakeups > before.wakeups);
  await worker.close();
  kick.close();
});

test('a ring is let go of when its requests are done, and others meanwhile', async () => {
  const worker = start();
  const kick = createEventfd('kick');
  await worker.attachVring(vring(5, kick.number));
  await worker.request('outstanding', 2);
  let base = -1;
  const detached = worker.detachVring(0, 5).then((answer) => (base = answer));
  assert.equal(await worker.detachVring(0, 6), 0, 'another is not held up');
  await worker.request('outstanding', 1);
  await worker.counters();
  assert.equal(base, -1, 'the last request is still under way');
  await worker.request('outstanding', 0);
  assert.equal(await detached, 105);
  await worker.close();
  kick.close();
});

test('an idle worker costs nothing', async () => {
  const worker = start();
  await worker.counters();
  const before = await worker.counters();
  await sleep(300);
  const after = await worker.counters();
  assert.ok(after.polls - before.polls <= 2, `${after.polls - before.polls} polls while idle`);
  await worker.close();
});

test('events and errors of the plane arrive', async () => {
  const events: PlaneEvent[] = [];
  const worker = start((event) => events.push(event));
  await assert.rejects(worker.request('throw', 'such thing'), {
    code: 'ERR_VRING_WORKER',
    message: 'no such thing',
  });
  await worker.request('event', null);
  assert.deepEqual(events, [{ kind: 'fault', device: 1, index: 2, code: -3 }]);
  await worker.close();
});

test('close is idempotent, and nothing stays open', async () => {
  const warm = start();
  await warm.counters();
  await warm.close();
  const before = openFdCount();
  const worker = start();
  await worker.counters();
  await Promise.all([worker.close(), worker.close()]);
  await assert.rejects(worker.counters(), { code: 'ERR_VRING_CLOSED' });
  assert.equal(openFdCount(), before);
});

test('a worker that ends by itself is reported, and its requests fail', async () => {
  const crashed = Promise.withResolvers<Error>();
  const worker = new DataPlaneWorker({
    name: 'test-plane',
    planeModule: new URL('./no-such-plane.ts', import.meta.url),
    planeOptions: null,
    spinMs: 0,
    onEvent: () => {},
    onCrash: crashed.resolve,
  });
  await assert.rejects(worker.counters(), { code: 'ERR_VRING_WORKER' });
  assert.match((await crashed.promise).message, /no-such-plane/);
  await worker.close();
});

test('a process that exits does not wait for a sleeping worker', () => {
  const script = `
    const { DataPlaneWorker } = await import('${new URL('./data-plane-worker.ts', import.meta.url)}');
    const worker = new DataPlaneWorker({ name: 't', planeModule: new URL('${PLANE}'), planeOptions: 0,
      spinMs: 0, onEvent() {}, onCrash() {} });
    await worker.counters();
    process.exit(7);`;
  const run = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    timeout: 10_000,
  });
  assert.equal(run.status, 7, run.stderr.toString());
});
