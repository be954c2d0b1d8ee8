/** What `npm run bench` measures beside the scenarios of `scenario.ts`. */
import { type Measured, ROUND_TRIP, UPLINK } from './marks.ts';
import { measureIdleTrips } from './idle-trips.ts';
import { median } from './statistics.ts';
import { attemptUplink, compareUplinks, UPLINK_KINDS, type UplinkRun } from './uplink-run.ts';

export type Extra = {
  readonly name: string;
  run(pairs: number, seconds: number): Promise<ExtraResult>;
};

export type ExtraResult = {
  /** For people: what was measured, each side. */
  readonly text: string;
  readonly measured: readonly Measured[];
  /** For the JSON file. */
  readonly detail: unknown;
};

const UPLINK_FRAME_BYTES = 64;

export const EXTRAS: readonly Extra[] = [
  { name: UPLINK, run: measureUplinks },
  { name: ROUND_TRIP, run: measureIdleTrips },
];

async function measureUplinks(pairs: number, seconds: number): Promise<ExtraResult> {
  const kinds = UPLINK_KINDS.filter(({ name }) => name.endsWith('-xdp'));
  const rounds: UplinkRun[][] = [];
  for (let round = 0; round < pairs; round++) {
    const runs: UplinkRun[] = [];
    for (const kind of round % 2 === 0 ? kinds : kinds.toReversed()) {
      runs.push(await attemptUplink(kind, UPLINK_FRAME_BYTES, seconds));
    }
    rounds.push(runs);
  }
  const lines = kinds.map(({ name }) => {
    const runs = rounds.flat().filter((run) => run.backend === name && run.problem === null);
    if (runs.length === 0) return `  ${name.padEnd(12)} no run counts: ${problemOf(rounds, name)}`;
    const mpps = median(runs.map((run) => run.pps)) / 1e6;
    return `  ${name.padEnd(12)} ${mpps.toFixed(2)} Mpps back   ${runs.length} runs`;
  });
  const compared = compareUplinks(rounds, 'vring-xdp', 'dpdk-xdp');
  const measured: Measured[] =
    compared === null ? [] : [{ ...compared, work: UPLINK, busyShare: null, clientShare: null }];
  return { text: [UPLINK, ...lines].join('\n'), measured, detail: rounds };
}

function problemOf(rounds: readonly (readonly UplinkRun[])[], name: string): string {
  const problems = rounds.flat().flatMap((run) => (run.backend === name ? [run.problem] : []));
  return [...new Set(problems)].join('; ');
}
