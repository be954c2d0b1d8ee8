/**
 * The mark of an idle process: how long one frame takes through two ports and back when nothing
 * else happens, ours against Open vSwitch whose thread may sleep, and that we use no processor
 * meanwhile. What a run is: bench/round-trip-stand.ts; more settings: `npm run bench:latency`.
 */
import { describeSpread } from './distribution.ts';
import type { ExtraResult } from './extras.ts';
import { ROUND_TRIP } from './marks.ts';
import { ovsSleeping, VRING } from './backends.ts';
import { compareRoundTrips, countingRuns, countText } from './round-trip-report.ts';
import { IDLE, measureRoundTrips, type RoundTripRun } from './round-trip-stand.ts';
import { median } from './statistics.ts';

/**
 * Open vSwitch sleeps up to this per round. It does not notice frames while it sleeps, so half of
 * it is added to each direction on average; at 0 it never sleeps and has its core for itself.
 */
export const OVS_SLEEP_US = 500;

const KINDS = [VRING, ovsSleeping(OVS_SLEEP_US)] as const;
const [OURS, THEIRS] = KINDS.map(({ name }) => name) as [string, string];
const WINDOW_MS = 700;
/** A window of each of the two; rounds are added for those that do not count. */
const PAIR_MS = 7000;
/** A process whose threads all sleep may wake for a timer of seconds, a few milliseconds each. */
const MAX_IDLE_SHARE = 0.001;

export async function measureIdleTrips(pairs: number): Promise<ExtraResult> {
  const kinds = KINDS.filter((kind) => kind.isInstalled());
  const rounds = await measureRoundTrips(kinds, [IDLE], {
    count: pairs,
    ms: WINDOW_MS,
    ring: 'split',
    endMs: 2 * pairs * PAIR_MS,
  });
  return idleResult(rounds);
}

/** Pure: what the rounds say of the mark. */
export function idleResult(rounds: readonly (readonly RoundTripRun[])[]): ExtraResult {
  const names = [...new Set(rounds.flat().map((run) => run.backend))];
  const lines = names.map((name) => sideText(name, goodRuns(rounds, name)));
  const ratio = compareRoundTrips(rounds, IDLE.name, [OURS, THEIRS]);
  const idle = median(goodRuns(rounds, OURS).map((run) => run.cpuShare));
  const unmet =
    idle > MAX_IDLE_SHARE ? { unmet: `${(idle * 100).toFixed(1)} % of a core when idle` } : {};
  return {
    text: [
      `${ROUND_TRIP}; pmd-maxsleep of Open vSwitch: ${OVS_SLEEP_US} us`,
      `  ${countText(rounds, IDLE.name)}`,
      ...lines,
    ].join('\n'),
    measured:
      ratio === null
        ? []
        : [
            {
              work: ROUND_TRIP,
              rival: 'ovs',
              ratio,
              loopRatio: null,
              busyShare: null,
              clientShare: null,
              ...unmet,
            },
          ],
    detail: rounds,
  };
}

function goodRuns(rounds: readonly (readonly RoundTripRun[])[], name: string): RoundTripRun[] {
  return countingRuns(rounds)
    .flat()
    .filter((run) => run.backend === name);
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
  const restless = runs.flatMap(({ atRest }) =>
    atRest === '' ? [] : [`\n    at rest: ${atRest}`],
  );
  return `${cells.join('   ')}${name === OURS ? restless.join('') : ''}`;
}
