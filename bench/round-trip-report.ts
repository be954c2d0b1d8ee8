/** What the runs of bench/round-trip-stand.ts say: which of them count, tables, ratios. Pure. */
import { type Placement, PLACEMENTS } from './placement.ts';
import type { RoundTripRun } from './round-trip-stand.ts';
import { intervalText, summarize, type Summary } from './statistics.ts';

export type Figure = 'p50Us' | 'p90Us' | 'p99Us' | 'cpuShareOf10k';

/**
 * Runs that count: nobody disturbed them, and the virtual cores were where they were in most of the
 * runs beside the same load.
 */
export function countingRuns(rounds: readonly (readonly RoundTripRun[])[]): RoundTripRun[][] {
  const all = rounds.flat();
  const most = new Map(
    [...new Set(all.map(({ load }) => load))].map((load) => [
      load,
      mostPlacement(all.filter((run) => run.load === load)),
    ]),
  );
  return rounds.map((runs) =>
    runs.filter((run) => run.problem === null && run.placement === most.get(run.load)),
  );
}

function mostPlacement(runs: readonly RoundTripRun[]): Placement {
  const count = (placement: Placement): number =>
    runs.filter((run) => run.problem === null && run.placement === placement).length;
  return PLACEMENTS.toSorted((a, b) => count(b) - count(a))[0]!;
}

/** "far: 41 of 48 runs count; 5 disturbed, 1 moved, 1 near". */
export function countText(rounds: readonly (readonly RoundTripRun[])[], load: string): string {
  const all = rounds.flat().filter((run) => run.load === load);
  const good = countingRuns(rounds)
    .flat()
    .filter((run) => run.load === load);
  const reasons = new Map<string, number>();
  for (const run of all) {
    if (good.includes(run)) continue;
    const reason = run.problem?.split(':')[0] ?? `cores ${run.placement}`;
    reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
  }
  const left = [...reasons].map(([reason, count]) => `${count} ${reason}`).join(', ');
  const where = good[0] === undefined ? '' : `, cores ${good[0].placement}`;
  return `${good.length} of ${all.length} runs count${where}${left === '' ? '' : `; not: ${left}`}`;
}

/** A row for each back-end that has runs which count, the head first. */
export function sideRows(
  rounds: readonly (readonly RoundTripRun[])[],
  load: string,
  names: readonly string[],
): string[][] {
  const good = countingRuns(rounds)
    .flat()
    .filter((run) => run.load === load);
  const cpu = load === 'idle' ? 'CPU % at rest' : 'CPU %';
  const figures = ['p50 us', 'interval', 'p99 us', 'frames/s', cpu, 'CPU % of 10k/s'];
  const head = ['side', ...figures, 'sleeps', 'calls', 'kicks', 'runs'];
  const rows = names.flatMap((name) => {
    const runs = good.filter((run) => run.backend === name);
    if (runs.length === 0) return [];
    const of = (pick: (run: RoundTripRun) => number): Summary => summarize(runs.map(pick));
    const p50 = of((run) => run.p50Us);
    const cells = [
      of((run) => run.p99Us).median.toFixed(0),
      of((run) => run.framesPerSecond).median.toFixed(0),
      percent(of((run) => run.cpuShare).median),
      percent(of((run) => run.cpuShareOf10k).median),
      ...[of((r) => r.sleepsOf10k), of((r) => r.callsOf10k), of((r) => r.kicksOf10k)].map(
        ({ median }) => median.toFixed(0),
      ),
    ];
    return [[name, micros(p50.median), intervalText(p50, 0), ...cells, String(runs.length)]];
  });
  return [head, ...rows];
}

function micros(us: number): string {
  return us < 100 ? us.toFixed(1) : us.toFixed(0);
}

function percent(share: number): string {
  return (share * 100).toFixed(share < 0.1 ? 2 : 1);
}

/** Theirs over ours, of rounds in which both count; above 1 ours is less. Null: no round. */
export function compareRoundTrips(
  rounds: readonly (readonly RoundTripRun[])[],
  load: string,
  [ours, theirs]: readonly [string, string],
  figure: Figure = 'p50Us',
): Summary | null {
  const ratios = countingRuns(rounds).flatMap((round) => {
    const of = (name: string): number | null =>
      round.find((run) => run.backend === name && run.load === load)?.[figure] ?? null;
    const [a, b] = [of(ours), of(theirs)];
    return a === null || b === null ? [] : [b / a];
  });
  return ratios.length === 0 ? null : summarize(ratios);
}

export function ratioRows(
  rounds: readonly (readonly RoundTripRun[])[],
  loads: readonly string[],
  ours: readonly string[],
  theirs: readonly string[],
): string[][] {
  const rows = [['load', 'of', 'against', 'p50', 'interval', 'CPU of 10k/s', 'interval', 'rounds']];
  for (const load of loads) {
    for (const rival of theirs) {
      for (const name of ours) {
        const time = compareRoundTrips(rounds, load, [name, rival]);
        const cpu = compareRoundTrips(rounds, load, [name, rival], 'cpuShareOf10k');
        if (time === null || cpu === null) continue;
        const cells = [time, cpu].flatMap((one) => [one.median.toFixed(2), intervalText(one)]);
        rows.push([load, name, rival, ...cells, String(time.count)]);
      }
    }
  }
  return rows;
}
