import { deepEqual, equal, match } from 'node:assert/strict';
import { test } from 'node:test';
import { parsePmdStats } from './backends.ts';
import { compare, ratioTable, runTable } from './report.ts';
import { allScenarios, scenarioName, type Run } from './scenario.ts';

const run = (backend: string, pps: number, ns: number, problem: string | null = null): Run => ({
  backend,
  pps,
  ppsPerPort: [pps],
  backendNsPerFrame: ns,
  clientNsPerFrame: 50,
  waitingShare: 0,
  profile: null,
  problem,
});

const scenario = { topology: 'loop', ring: 'split', frameBytes: 64 } as const;

test('ratios are of runs of the same round, and only of runs that count', () => {
  const rounds = [
    [run('vring', 8e6, 100), run('dpdk', 4e6, 200)],
    [run('dpdk', 2e6, 400), run('vring', 6e6, 100)],
    [run('vring', 9e6, 1), run('dpdk', 0, 1, 'disturbed')],
  ];
  const [comparison, ...others] = compare({ scenario, rounds }, 'vring');
  equal(others.length, 0);
  equal(comparison?.ratio.count, 2);
  equal(comparison?.ratio.median, 2.5);
  equal(comparison?.loopRatio?.median, 3);
  match(ratioTable([comparison!]), /loop split 64 B +vring\/dpdk +2\.50 +2\.00 \.\. 3\.00/);
  match(runTable({ scenario, rounds }), /dpdk .*\(1 failed\)/);
});

test('every scenario has a name of its own', () => {
  const names = allScenarios().map(scenarioName);
  equal(new Set(names).size, names.length);
  deepEqual(names[0], 'loop split 64 B');
});

test("Open vSwitch's busy time per packet", () => {
  const text = `Measurement duration: 1.023 s
  - Used TSC cycles:    2651193689  ( 99.7 % of total cycles)
  Rx packets:              1430496  (1398 Kpps, 1084 cycles/pkt)`;
  equal(Math.round(parsePmdStats(text)!), 417);
  equal(parsePmdStats('nothing'), null);
});
