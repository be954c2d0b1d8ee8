import { deepEqual, equal } from 'node:assert/strict';
import { test } from 'node:test';
import { FLOOR, judge, MARKS, markRows, type Measured } from './marks.ts';
import { allScenarios, scenarioName } from './scenario.ts';
import { summarize } from './statistics.ts';

const mark = { work: 'loop split 64 B', rival: 'dpdk', least: 1.5 };
const measured = (rate: number, loops: number, busyShare: number): Measured => ({
  work: mark.work,
  rival: mark.rival,
  ratio: summarize([rate]),
  loopRatio: summarize([loops]),
  busyShare,
  clientShare: 0.8,
});

/** The row of the work and the rival of `one`. */
function rowOf(one: Measured): string[] {
  const rows = markRows([one], (work) => work === one.work);
  return rows.find((row) => row[1] === one.rival)!;
}

test('the rate decides while our loop is busy, and both loops where it waits for the client', () => {
  equal(judge(mark, [measured(1.6, 1.2, 0.97)]).answer, 'met');
  const held = judge(mark, [measured(1.6, 1.2, 0.6)]);
  deepEqual([held.answer, held.decides, held.summary?.median], ['missed', 'own loops', 1.2]);
  equal(judge(mark, [{ ...measured(1.5, 0, 0.1), loopRatio: null }]).answer, 'met');
  equal(judge(mark, [{ ...measured(1.6, 1.2, 1), clientShare: 0.97 }]).decides, 'own loops');
});

test('what was not measured is said to be so', () => {
  equal(judge(mark, []).answer, 'not measured');
  equal(judge(mark, [{ ...measured(2, 2, 1), rival: 'ovs' }]).answer, 'not measured');
  const rows = markRows([]);
  equal(rows.length, MARKS.length + 1);
  equal(new Set(rows.map((row) => row.length)).size, 1);
  const asked = markRows([], (work) => work === 'round trip idle');
  deepEqual([asked.length, asked[1]?.at(-1)], [2, 'not measured']);
});

test('marks of scenarios name a scenario', () => {
  const names = new Set(allScenarios().map(scenarioName));
  for (const { work } of MARKS) {
    if (/^(loop|pair) /.test(work)) equal(names.has(work), true, work);
  }
});

test('a row says by how much a mark is missed, and why which figure decides', () => {
  const row = (ratios: readonly number[], more: Partial<Measured> = {}): string[] => {
    const one = { ...measured(1, 1, 0.97), ratio: summarize(ratios), ...more };
    return rowOf(one);
  };
  deepEqual(row([1.2, 1.2, 1.3, 1.2, 1.1, 1.2]).slice(3), [
    '1.20', '1.10 .. 1.30', '1.10 .. 1.30', '6', '1.20', '1.00',
    'rate: 97 % busy, client 80 %', 'missed by 20 %',
  ]); // prettier-ignore
  const placements = [
    { placement: 'near', ratio: summarize([1, 2]) },
    { placement: 'far', ratio: summarize([3]) },
  ] as const;
  equal(row([1, 2, 3], { placements })[6], '2 near, 1 far');
  equal(row([1.4, 1.6]).at(-1), 'met, within the noise');
  equal(row([1.4, 1.6, 1.4]).at(-1), 'missed by 7 %, within the noise');
  equal(row([1.6], { unmet: '3 % of a core when idle' }).at(-1), 'missed: 3 % of a core when idle');
});

test('of a C loop there is no rate: the own loop decides, busy or not', () => {
  const floor = { work: mark.work, rival: FLOOR, least: 0.5 };
  const one = { ...measured(0.4, 0.4, 1), rival: FLOOR };
  equal(judge(floor, [one]).decides, 'own loops');
  const row = rowOf(one);
  deepEqual([row[7], row.at(-1)], ['-', 'missed by 20 %']);
});
