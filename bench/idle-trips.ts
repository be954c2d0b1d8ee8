/**
 * The mark of an idle process: how long one frame takes through two ports and back when nothing
 * else happens, ours against Open vSwitch whose thread may sleep, and that we use no processor
 * meanwhile. What a run is: bench/round-trip-run.ts; more settings: `npm run bench:latency`.
 */
import { describeSpread } from './distribution.ts';
import type { ExtraResult } from './extras.ts';
import { ROUND_TRIP } from './marks.ts';
import {
  attemptRoundTrips,
  compareRoundTrips,
  OVS_SLEEP_US,
  ROUND_TRIP_KINDS,
  type RoundTripRun,
} from './round-trip-run.ts';
import { median } from './statistics.ts';

const [OURS, THEIRS] = ['vring', `ovs-${OVS_SLEEP_US}us`] as const;
/** More is not 0 % in a figure of whole per cents. */
const MAX_IDLE_SHARE = 0.005;

export async function measureIdleTrips(pairs: number): Promise<ExtraResult> {
  const kinds = ROUND_TRIP_KINDS.filter((kind) => kind.isInstalled());
  const rounds: RoundTripRun[][] = [];
  for (let round = 0; round < pairs; round++) {
    const runs: RoundTripRun[] = [];
    for (const kind of round % 2 === 0 ? kinds : kinds.toReversed()) {
      runs.push(await attemptRoundTrips(kind));
    }
    rounds.push(runs);
  }
  return idleResult(rounds);
}

/** Pure: what the rounds say of the mark. */
export function idleResult(rounds: readonly (readonly RoundTripRun[])[]): ExtraResult {
  const names = [...new Set(rounds.flat().map((run) => run.backend))];
  const lines = names.map((name) => sideText(name, goodRuns(rounds, name)));
  const ratio = compareRoundTrips(rounds, OURS, THEIRS);
  const idle = median(goodRuns(rounds, OURS).map((run) => run.cpuShare));
  const unmet =
    idle > MAX_IDLE_SHARE ? { unmet: `${(idle * 100).toFixed(1)} % of a core when idle` } : {};
  return {
    text: [`${ROUND_TRIP}; pmd-maxsleep of Open vSwitch: ${OVS_SLEEP_US} us`, ...lines].join('\n'),
    measured:
      ratio === null
        ? []
        : [{ work: ROUND_TRIP, rival: 'ovs', ratio, loopRatio: null, busyShare: null, ...unmet }],
    detail: rounds,
  };
}

function goodRuns(rounds: readonly (readonly RoundTripRun[])[], name: string): RoundTripRun[] {
  return rounds.flat().filter((run) => run.backend === name && run.problem === null);
}

function sideText(name: string, runs: readonly RoundTripRun[]): string {
  if (runs.length === 0) return `  ${name.padEnd(10)} no run counts`;
  const of = (pick: (run: RoundTripRun) => number): number => median(runs.map(pick));
  const times = [of((r) => r.p50Us), of((r) => r.p90Us), of((r) => r.p99Us)];
  const cells = [
    `  ${name.padEnd(10)} p50 p90 p99 ${times.map((us) => us.toFixed(0)).join(' ')} us`,
    `idle ${(of((r) => r.cpuShare) * 100).toFixed(2)} % of a core`,
    `p50 of the runs ${describeSpread(runs.map((run) => run.p50Us), 0)}`, // prettier-ignore
  ];
  return cells.join('   ');
}
