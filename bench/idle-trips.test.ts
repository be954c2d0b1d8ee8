import { deepEqual, equal, match } from 'node:assert/strict';
import { test } from 'node:test';
import { idleResult, OVS_SLEEP_US } from './idle-trips.ts';
import { tripRun as run } from './round-trip-fixture.ts';

const OVS = `ovs-${OVS_SLEEP_US}us`;

test('the mark has the ratio of the medians of the same rounds', () => {
  const disturbed = { cpuShare: 1, problem: 'disturbed: by a neighbour' };
  const { text, measured } = idleResult([
    [run('vring', 100), run(OVS, 300, { cpuShare: 0.1 })],
    [run(OVS, 500, { cpuShare: 0.1 }), run('vring', 100)],
    [run('vring', 1, disturbed), run(OVS, 900, { cpuShare: 0.1 })],
  ]);
  equal(measured.length, 1);
  deepEqual([measured[0]!.ratio.median, measured[0]!.unmet], [4, undefined]);
  match(text, /5 of 6 runs count, cores far; not: 1 disturbed/);
  match(text, /vring +p50 p90 p99 100 200 400 us +idle 0\.00 % of a core/);
});

test('a process that is not idle misses the mark, however fast', () => {
  const busy = { cpuShare: 0.03, atRest: 'node 45.0 ms, 900 sleeps' };
  const { text, measured } = idleResult([[run('vring', 100, busy), run(OVS, 300)]]);
  equal(measured[0]!.unmet, '3.0 % of a core when idle');
  match(text, /at rest: node 45\.0 ms, 900 sleeps/);
});

test('no rival, no mark', () => {
  deepEqual(idleResult([[run('vring', 100)]]).measured, []);
});
