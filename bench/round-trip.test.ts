import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { test } from 'node:test';
import {
  runShare,
  sleepsBetween,
  threadsText,
  waitingShare,
  type Snapshot,
} from './disturbance.ts';
import { compareRoundTrips, countingRuns, countText, sideRows } from './round-trip-report.ts';
import { tripRun as run } from './round-trip-fixture.ts';

test('a ratio is theirs over ours, of rounds in which both count', () => {
  const rounds = [
    [run('vring', 100), run('ovs', 300)],
    [run('ovs', 500), run('vring', 100)],
    [run('vring', 100), run('ovs', 9000, { problem: 'disturbed: by a neighbour' })],
    [run('vring', NaN, { problem: 'lost: all' }), run('ovs', 9000)],
    [run('vring', 100, { placement: 'near' }), run('ovs', 9000, { placement: 'near' })],
    [run('vring', 100, { load: '10k' }), run('ovs', 9000, { load: '10k' })],
  ];
  const ratio = compareRoundTrips(rounds, 'idle', ['vring', 'ovs']);
  equal(ratio?.count, 2);
  equal(ratio.median, 4);
  equal(compareRoundTrips(rounds, '10k', ['vring', 'ovs'], 'cpuShareOf10k')?.median, 1);
});

test('no round in which both count, no ratio', () => {
  const apart = [[run('vring', 100)], [run('ovs', 100)]];
  equal(compareRoundTrips(apart, 'idle', ['vring', 'ovs']), null);
});

test('runs count where the cores were most of the time, for each load', () => {
  const rounds = [
    [run('a', 1), run('a', 2), run('a', 3, { placement: 'near' })],
    [run('a', 4, { placement: null, problem: 'moved: elsewhere' }), run('a', 5)],
    [run('a', 6, { load: 'full', placement: 'near' })],
  ];
  const times = countingRuns(rounds).map((runs) => runs.map(({ p50Us }) => p50Us));
  deepEqual(times, [[1, 2], [5], [6]]);
  equal(countText(rounds, 'idle'), '3 of 5 runs count, cores far; not: 1 cores near, 1 moved');
  equal(countText(rounds, 'full'), '1 of 1 runs count, cores near');
});

test('a row has medians of the runs that count, and says how many', () => {
  const rounds = [[run('a', 10)], [run('a', 30)], [run('a', 90)], [run('b', 50)]];
  const [, a, ...more] = sideRows(rounds, 'idle', ['a', 'c']);
  deepEqual(more, []);
  match(a!.join(' '), /^a 30\.0 10 \.\. 90 \(75 %\) 120 .* 3$/);
});

test('what the back-end used is of all threads, new ones too', () => {
  const at = (atMs: number, threads: Readonly<Record<string, [number, number]>>): Snapshot => ({
    atMs,
    threads: new Map(
      Object.entries(threads).map(([id, [runMs, sleeps]]) => [
        id,
        { name: `t${id}`, runNs: runMs * 1e6, waitNs: runMs * 5e5, sleeps },
      ]),
    ),
  });
  const before = at(1000, { 1: [5, 3], 2: [0, 7] });
  const after = at(1100, { 1: [15, 4], 2: [0, 7], 3: [5, 2] });
  ok(Math.abs(runShare(before, after) - 0.15) < 1e-9);
  equal(sleepsBetween(before, after), 3);
  equal(threadsText(before, after), 't1 10.0 ms, 1 sleeps; t3 5.0 ms, 2 sleeps');
  equal(waitingShare(before, after), 0); // nobody was busy
  ok(Math.abs(waitingShare(before, after, 0.1) - 0.05) < 1e-9);
});
