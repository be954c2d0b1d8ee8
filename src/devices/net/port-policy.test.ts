import { deepEqual, equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import {
  LATENCY_SPIN_MS,
  PORT_POLICIES,
  PortPace,
  type PortPolicy,
  RESTS_SKIPPED,
  SourcePace,
} from './port-policy.ts';

const WORKER_SPIN_MS = 0.05;

function source(policy: PortPolicy): { port: PortPace; pace: SourcePace } {
  const port = new PortPace(policy);
  return { port, pace: new SourcePace(port, WORKER_SPIN_MS) };
}

/** Frames at that distance, each after a sleep. */
function frames(pace: SourcePace, count: number, gapMs: number): void {
  for (let i = 0; i < count; i++) {
    pace.asleep();
    pace.woken(gapMs);
  }
}

test('a source whose gaps are not known yet spins as long as the worker says, or not at all', () => {
  const spins = PORT_POLICIES.map((policy) => source(policy).pace.spinMs);
  deepEqual(spins, [WORKER_SPIN_MS, WORKER_SPIN_MS, WORKER_SPIN_MS, 0]);
});

let chains = 0;

/** Sleeps with so many frames each, after a gap before the first of them. */
function wakeups(pace: SourcePace, count: number, gapMs: number, framesEach: number): void {
  for (let i = 0; i < count; i++) {
    pace.woken(gapMs);
    pace.rests((chains += framesEach));
    pace.asleep();
  }
}

for (const policy of ['balanced', 'throughput'] as const) {
  test(`${policy}: the worker's spin, but not while frames are farther apart`, () => {
    const { pace } = source(policy);
    wakeups(pace, 10, 0.9 * WORKER_SPIN_MS, 1);
    equal(pace.spinMs, WORKER_SPIN_MS);
    wakeups(pace, 20, 2 * WORKER_SPIN_MS, 1);
    equal(pace.spinMs, 0);
    wakeups(pace, 20, 0.9 * WORKER_SPIN_MS, 1);
    equal(pace.spinMs, WORKER_SPIN_MS);
  });
}

test('balanced: long gaps with bursts after them are spun for', () => {
  const { pace } = source('balanced');
  for (const gapMs of [2 * WORKER_SPIN_MS, 1000]) {
    wakeups(pace, 20, gapMs, 16);
    equal(pace.spinMs, WORKER_SPIN_MS);
  }
  wakeups(pace, 20, 2 * WORKER_SPIN_MS, 1);
  equal(pace.spinMs, 0);
  wakeups(pace, 2, 2 * WORKER_SPIN_MS, 64);
  equal(pace.spinMs, WORKER_SPIN_MS);
});

test('balanced: frames that spins see count, and a silence is soon forgotten', () => {
  const { pace } = source('balanced');
  for (let i = 0; i < 20; i++) {
    pace.woken(2 * WORKER_SPIN_MS);
    for (let spin = 0; spin < 3; spin++) pace.rewarded(0.4 * WORKER_SPIN_MS);
    equal(pace.rests((chains += 3)), false);
    equal(pace.rests((chains += 1)), false); // one more came before the kick was asked for
    pace.asleep();
    equal(pace.spinMs, WORKER_SPIN_MS, 'four frames in 3.2 spins');
  }
  wakeups(pace, 1, 60_000, 1);
  wakeups(pace, 8, 0.5 * WORKER_SPIN_MS, 1);
  equal(pace.spinMs, WORKER_SPIN_MS);
});

test('balanced: a source whose frames nobody counts spins as long as the worker says', () => {
  const { pace } = source('balanced');
  frames(pace, 50, 1000);
  equal(pace.spinMs, WORKER_SPIN_MS);
});

test('latency: one pause in a stream of frames changes little', () => {
  const { pace } = source('latency');
  frames(pace, 50, 0.1);
  frames(pace, 1, 1000);
  frames(pace, 10, 0.1);
  ok(pace.spinMs < LATENCY_SPIN_MS, `${pace.spinMs}`);
});

test('latency: the spin follows the gaps, within its bounds, and ends paying for long ones', () => {
  const { pace } = source('latency');
  frames(pace, 50, 0.1);
  ok(Math.abs(pace.spinMs - 0.4) < 0.01, `${pace.spinMs}`);
  frames(pace, 50, 0.9);
  equal(pace.spinMs, LATENCY_SPIN_MS);
  frames(pace, 50, 10);
  equal(pace.spinMs, WORKER_SPIN_MS);
  frames(pace, 50, 0.001);
  equal(pace.spinMs, WORKER_SPIN_MS);
});

test('power: nothing makes it spin', () => {
  const { pace } = source('power');
  frames(pace, 50, 0.001);
  equal(pace.spinMs, 0);
});

test('spins and sleeps are counted for the port', () => {
  const { port, pace } = source('balanced');
  pace.spinning = true;
  pace.rewarded(0.01);
  pace.spinning = true;
  pace.asleep();
  pace.woken(1);
  pace.asleep();
  deepEqual(port.counters, { spinsRewarded: 1, spinsUnrewarded: 1, sleeps: 2, rests: 0 });
});

test('another policy begins without what the old one knew', () => {
  const { port, pace } = source('latency');
  frames(pace, 50, 0.1);
  ok(pace.spinMs > WORKER_SPIN_MS);
  port.policy = 'power';
  pace.policyChanged();
  equal(pace.spinMs, 0);
  port.policy = 'latency';
  pace.policyChanged();
  equal(pace.spinMs, WORKER_SPIN_MS);
});

test('a source that saves power rests while that serves more than a kick would', () => {
  const { port, pace } = source('power');
  let chains = 1;
  ok(pace.rests(chains));
  for (let i = 0; i < 10; i++) ok(pace.rests((chains += 2)), 'two came during the rest');
  equal(port.counters.rests, 11);
  equal(pace.rests((chains += 1)), false, 'one came');
  for (let i = 1; i < RESTS_SKIPPED; i++) equal(pace.rests((chains += 9)), false);
  ok(pace.rests((chains += 1)), 'tried again');
  equal(pace.rests(chains), false, 'nothing came: to sleep');
});

test('other policies never rest', () => {
  for (const policy of ['latency', 'balanced', 'throughput'] as const) {
    const { port, pace } = source(policy);
    for (let chains = 10; chains < 100; chains += 10) equal(pace.rests(chains), false);
    equal(port.counters.rests, 0);
  }
});
