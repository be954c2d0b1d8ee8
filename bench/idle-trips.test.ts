import { deepEqual, equal, match } from 'node:assert/strict';
import { test } from 'node:test';
import { idleResult } from './idle-trips.ts';
import { OVS_SLEEP_US, type RoundTripRun } from './round-trip-run.ts';

function run(backend: string, p50Us: number, cpuShare: number, problem?: string): RoundTripRun {
  const figures = { p50Us, p90Us: 2 * p50Us, p99Us: 3 * p50Us, cpuShare, framesPerSecond: 0 };
  return { backend, ...figures, cpuShareOf10k: null, problem: problem ?? null };
}

const OVS = `ovs-${OVS_SLEEP_US}us`;

test('the mark has the ratio of the medians of the same rounds', () => {
  const { text, measured } = idleResult([
    [run('vring', 100, 0), run(OVS, 300, 0.1)],
    [run(OVS, 500, 0.1), run('vring', 100, 0)],
    [run('vring', 1, 1, 'disturbed'), run(OVS, 900, 0.1)],
  ]);
  equal(measured.length, 1);
  deepEqual([measured[0]!.ratio.median, measured[0]!.unmet], [4, undefined]);
  match(text, /vring +p50 p90 p99 100 200 300 us +idle 0\.00 % of a core/);
});

test('a process that is not idle misses the mark, however fast', () => {
  const { measured } = idleResult([[run('vring', 100, 0.03), run(OVS, 300, 0.1)]]);
  equal(measured[0]!.unmet, '3.0 % of a core when idle');
});

test('no rival, no mark', () => {
  deepEqual(idleResult([[run('vring', 100, 0)]]).measured, []);
});
