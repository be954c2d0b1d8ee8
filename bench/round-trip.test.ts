import { equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { runShare, type Snapshot } from './disturbance.ts';
import { compareRoundTrips, type RoundTripRun } from './round-trip-run.ts';

function run(backend: string, p50Us: number, problem: string | null = null): RoundTripRun {
  const figures = { p50Us, p90Us: 2 * p50Us, p99Us: 4 * p50Us, cpuShare: 0, framesPerSecond: 0 };
  return { backend, ...figures, cpuShareOf10k: null, problem };
}

test('a ratio is theirs over ours, of rounds in which both count', () => {
  const rounds = [
    [run('vring', 100), run('ovs', 300)],
    [run('ovs', 500), run('vring', 100)],
    [run('vring', 100), run('ovs', 9000, 'disturbed')],
    [run('vring', NaN, 'failed'), run('ovs', 9000)],
  ];
  const ratio = compareRoundTrips(rounds, 'vring', 'ovs');
  equal(ratio?.count, 2);
  equal(ratio.median, 4);
});

test('no round in which both count, no ratio', () => {
  equal(compareRoundTrips([[run('vring', 100)], [run('ovs', 100)]], 'vring', 'ovs'), null);
  const both = [[run('vring', 100), run('ovs', 100)]];
  equal(compareRoundTrips(both, 'vring', 'ovs', 'cpuShareOf10k'), null);
});

test('the share of a core is of all threads, new ones too', () => {
  const at = (atMs: number, threads: Readonly<Record<string, number>>): Snapshot => ({
    atMs,
    threads: new Map(Object.entries(threads).map(([id, runNs]) => [id, { runNs, waitNs: 0 }])),
  });
  const share = runShare(at(1000, { '1/1': 5e6, '1/2': 0 }), at(1100, { '1/1': 15e6, '1/3': 5e6 }));
  ok(Math.abs(share - 0.15) < 1e-9);
});
