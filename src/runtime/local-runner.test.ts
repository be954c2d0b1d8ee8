/** A plane in the calling thread: woken by descriptors, by kicks, by requests; and by nothing. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, test } from 'node:test';
import { createEventfd, openFdCount, signalEventfd } from '../sys/index.ts';
import type { PlaneEvent, VringAttach } from './data-plane.ts';
import { LocalRunner, type LocalRunnerOptions } from './local-runner.ts';
import { createPlane } from './test-plane.ts';

let runner: LocalRunner;
afterEach(() => runner.close()); // one that is open keeps the process alive

function start(options: Partial<LocalRunnerOptions> = {}): void {
  runner = new LocalRunner({
    createPlane,
    planeOptions: { answer: 42 },
    onEvent: () => undefined,
    onCrash: (error) => assert.fail(error),
    ...options,
  });
}

function vring(index: number, kickFd: number): VringAttach {
  return { device: 0, index, kickFd } as VringAttach;
}

async function kicksOf(index: number): Promise<number> {
  return (await runner.request<number[]>('kicks', null))[index] ?? 0;
}

/** The event loop comes to it, also on a machine that has much to do. */
async function untilKicked(index: number, times: number): Promise<void> {
  const end = performance.now() + 5000;
  while ((await kicksOf(index)) < times && performance.now() < end) await sleep(1);
  await sleep(5); // and not more often
  assert.equal(await kicksOf(index), times);
}

test('requests are answered; what the plane refuses rejects, and nothing is over', async () => {
  start();
  assert.deepEqual(await runner.request('options', null), { answer: 42 });
  await assert.rejects(runner.request('throw', 'way'), /no way/);
  assert.equal(await runner.detachVring(0, 1), 0);
  await runner.close();
  await runner.close();
  await assert.rejects(runner.request('options', null), { code: 'ERR_VRING_CLOSED' });
});

test('a signal is heard in the event loop, once each; a detached descriptor is not', async () => {
  start();
  using kick = createEventfd('kick');
  await runner.attachVring(vring(5, kick.number));
  signalEventfd(kick.number);
  assert.equal(await kicksOf(5), 0, 'not before');
  await untilKicked(5, 1); // although nobody takes the counter
  signalEventfd(kick.number);
  await untilKicked(5, 2);
  assert.equal(await runner.detachVring(0, 5), 105);
  signalEventfd(kick.number);
  await sleep(10);
  assert.equal(await kicksOf(5), 2);
  await runner.close();
});

test('the work of a kick is done when it returns, without a system call', async () => {
  start();
  using kick = createEventfd('kick');
  await runner.attachVring(vring(3, kick.number));
  runner.kicked(kick.number);
  const { kicks, work, turns } = runner.counters;
  assert.deepEqual({ kicks, work, turns }, { kicks: 1, work: 1, turns: 1 });
  assert.equal(await kicksOf(3), 1);
  await runner.detachVring(0, 3);
  runner.kicked(kick.number);
  assert.equal(runner.counters.kicks, 1, 'nobody has the ring');
  await runner.close();
});

test('work without end is cut into turns, and others come in between', async () => {
  start();
  await runner.request('busy', null);
  using kick = createEventfd('kick');
  await runner.attachVring(vring(0, kick.number));
  runner.kicked(kick.number);
  const { polls } = runner.counters;
  assert.ok(polls > 1 && polls <= 64, `${polls} rounds`);
  const before = performance.now();
  await sleep(5);
  assert.ok(performance.now() - before < 500, 'a timer had its turn');
  assert.ok(runner.counters.polls > polls, 'and the plane had more');
  await runner.close();
  const last = runner.counters.polls;
  await sleep(5);
  assert.equal(runner.counters.polls, last);
});

test('a ring is let go of when its requests are done', async () => {
  start();
  using kick = createEventfd('kick');
  await runner.attachVring(vring(5, kick.number));
  await runner.request('outstanding', 2);
  let base = -1;
  const detached = runner.detachVring(0, 5).then((answer) => (base = answer));
  await sleep(5);
  assert.equal(base, -1, 'requests are under way');
  await runner.request('outstanding', 0);
  assert.equal(await detached, 105);
  await runner.attachVring(vring(5, kick.number));
  await runner.request('outstanding', 1);
  const never = runner.detachVring(0, 5);
  await Promise.all([assert.rejects(never, { code: 'ERR_VRING_CLOSED' }), runner.close()]);
});

test('an idle plane makes no turns', async () => {
  start();
  using kick = createEventfd('kick');
  await runner.attachVring(vring(0, kick.number));
  await sleep(10);
  const { turns } = runner.counters;
  await sleep(100);
  assert.equal(runner.counters.turns, turns);
  await runner.close();
});

test('events come after the call that they are of', async () => {
  const events: PlaneEvent[] = [];
  start({ onEvent: (event) => void events.push(event) });
  const asked = runner.request('event', null);
  assert.deepEqual(events, []);
  await asked;
  assert.deepEqual(events, [{ kind: 'fault', device: 1, index: 2, code: -3 }]);
  await runner.close();
});

test('a plane that throws is over, and is said to be', async () => {
  const crashes: Error[] = [];
  const before = openFdCount();
  start({
    createPlane: (context) => {
      const plane = createPlane(context);
      plane.ready = () => {
        throw new Error('lost my head');
      };
      return plane;
    },
    onCrash: (error) => void crashes.push(error),
  });
  {
    using kick = createEventfd('kick');
    await runner.attachVring(vring(0, kick.number));
    runner.kicked(kick.number);
    runner.kicked(kick.number);
  }
  assert.equal(crashes.length, 1);
  assert.match(crashes[0]!.message, /lost my head/);
  await assert.rejects(runner.request('options', null), { code: 'ERR_VRING_WORKER' });
  await runner.close();
  assert.equal(openFdCount(), before);
});
