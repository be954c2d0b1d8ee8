import { deepEqual, equal, match } from 'node:assert/strict';
import { test } from 'node:test';
import { parsePmdStats } from './backends.ts';
import type { Placement } from './placement.ts';
import { compare, ratioTable, runTable } from './report.ts';
import { allScenarios, scenarioName, type Run } from './scenario.ts';

const run = (
  backend: string,
  pps: number,
  ns: number,
  problem: string | null = null,
  placement: Placement = 'far',
): Run => ({
  backend,
  pps,
  ppsPerPort: [pps],
  backendNsPerFrame: ns,
  clientNsPerFrame: 50,
  waitingShare: 0,
  coreToCoreNs: [450, 450],
  placement,
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
  deepEqual([comparison?.busyShare, comparison?.clientShare], [0.7, 0.35]);
  match(ratioTable([comparison!]), /loop split 64 B +vring\/dpdk +2\.50 +2\.00 \.\. 3\.00/);
  match(runTable({ scenario, rounds }), /dpdk .*\(1 do not count\)/);
});

test('runs are compared where the cores were in the same place, and told by it', () => {
  const rounds = [
    [run('vring', 8e6, 100), run('dpdk', 4e6, 200)],
    [run('vring', 16e6, 50, null, 'near'), run('dpdk', 4e6, 200)],
    [run('vring', 12e6, 50, null, 'near'), run('dpdk', 12e6, 50, null, 'near')],
  ];
  const [comparison] = compare({ scenario, rounds }, 'vring');
  equal(comparison?.ratio.count, 2);
  match(ratioTable([comparison!]), /near 1\.00 \(1\), far 2\.00 \(1\)/);
  match(
    runTable({ scenario, rounds }),
    /near +14\.00 Mpps .*2 runs .*\n +far +8\.00 Mpps .*1 runs/,
  );
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
