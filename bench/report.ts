/** Turns runs into ratios and tables. Pure. */
import { describeSpread } from './distribution.ts';
import { PLACEMENTS, type Placement } from './placement.ts';
import { scenarioName, type Run, type Scenario } from './scenario.ts';
import { intervalText, median, summarize, type Summary } from './statistics.ts';

/** Runs of one scenario: each round holds one run of every back-end, made close together. */
export type Rounds = { readonly scenario: Scenario; readonly rounds: readonly (readonly Run[])[] };

export type Comparison = {
  readonly scenario: Scenario;
  readonly subject: string;
  readonly rival: string;
  /** Frames per second of the subject over the rival's, of the same round. */
  readonly ratio: Summary;
  /** The same by where the virtual cores were. */
  readonly placements: readonly { readonly placement: Placement; readonly ratio: Summary }[];
  /** Nanoseconds per frame in the rival's own loop over the subject's; null when unknown. */
  readonly loopRatio: Summary | null;
  /** Share of the time that the subject's own loop had frames; null when unknown. */
  readonly busyShare: number | null;
  /** Share of the time that the subject's client had frames; null when unknown. */
  readonly clientShare: number | null;
};

/** Why two runs cannot be compared, or null: both must count, with the cores in the same place. */
export function pairProblem(a: Run, b: Run): string | null {
  if (a.problem !== null || b.problem !== null) return a.problem ?? b.problem;
  return a.placement === b.placement ? null : `the cores were ${a.placement}, then ${b.placement}`;
}

/** Only rounds where both runs count. Empty when the rival never ran. */
export function compare(measured: Rounds, subject: string): Comparison[] {
  const rivals = new Set(measured.rounds.flat().map((run) => run.backend));
  rivals.delete(subject);
  const comparisons: Comparison[] = [];
  for (const rival of rivals) {
    const pairs = measured.rounds
      .map((round) => [runOf(round, subject), runOf(round, rival)] as const)
      .filter((pair): pair is readonly [Run, Run] => {
        return (
          pair[0] !== undefined && pair[1] !== undefined && pairProblem(pair[0], pair[1]) === null
        );
      });
    if (pairs.length === 0) continue;
    const rates = pairs.map(([ours, theirs]) => ours.pps / theirs.pps);
    const ratio = summarize(rates);
    const loops = pairs
      .map(([ours, theirs]) => (theirs.backendNsPerFrame ?? NaN) / (ours.backendNsPerFrame ?? NaN))
      .filter(Number.isFinite);
    const loopRatio = loops.length === 0 ? null : summarize(loops);
    const ours = pairs.map(([run]) => run);
    comparisons.push({
      scenario: measured.scenario,
      subject,
      rival,
      ratio,
      placements: PLACEMENTS.flatMap((placement) => {
        const of = rates.filter((_, i) => pairs[i]![0].placement === placement);
        return of.length === 0 ? [] : [{ placement, ratio: summarize(of) }];
      }),
      loopRatio,
      busyShare: shareOf(ours, (run) => run.backendNsPerFrame),
      clientShare: shareOf(ours, (run) => run.clientNsPerFrame),
    });
  }
  return comparisons;
}

/** Median share of the time that frames took a side which takes `nsOf` for one. */
function shareOf(runs: readonly Run[], nsOf: (run: Run) => number | null): number | null {
  const shares = runs.flatMap((run) => {
    const ns = nsOf(run);
    return ns === null ? [] : [(run.ppsPerPort.reduce((a, b) => a + b, 0) * ns) / 1e9];
  });
  return shares.length === 0 ? null : median(shares);
}

function runOf(round: readonly Run[], backend: string): Run | undefined {
  return round.find((run) => run.backend === backend);
}

/** One line per back-end of a scenario: rates, the loop's time, how many runs failed. */
export function runTable(measured: Rounds): string {
  const lines = [`${scenarioName(measured.scenario)}`];
  const backends = [...new Set(measured.rounds.flat().map((run) => run.backend))];
  for (const backend of backends) {
    const all = measured.rounds.flat().filter((run) => run.backend === backend);
    const runs = all.filter((run) => run.problem === null);
    const failed = all.length - runs.length;
    const rates = runs.map((run) => run.pps / 1e6);
    const middle = rates.length === 0 ? '-' : median(rates).toFixed(2);
    const loop = middleOf(runs.map((run) => run.backendNsPerFrame));
    const client = middleOf(runs.map((run) => run.clientNsPerFrame));
    const cells = [
      `  ${backend.padEnd(6)} ${middle.padStart(6)} Mpps`,
      `back-end ${loop.padStart(5)} ns`,
      `client ${client.padStart(5)} ns per frame`,
      `runs ${describeSpread(rates, 2)}`,
    ];
    lines.push(cells.join('   ') + (failed === 0 ? '' : `   (${failed} do not count)`));
    if (new Set(runs.map((run) => run.placement)).size > 1) lines.push(...placementLines(runs));
  }
  return lines.join('\n');
}

/** What the runs have in common where the virtual cores were in the same place. */
function placementLines(runs: readonly Run[]): string[] {
  return PLACEMENTS.flatMap((placement) => {
    const there = runs.filter((run) => run.placement === placement);
    if (there.length === 0) return [];
    const rate = (median(there.map((run) => run.pps)) / 1e6).toFixed(2);
    const loop = middleOf(there.map((run) => run.backendNsPerFrame));
    const line = median(there.map((run) => run.coreToCoreNs[0])).toFixed(0);
    const cells = [`${rate.padStart(6)} Mpps`, `back-end ${loop.padStart(5)} ns`];
    cells.push(`${there.length} runs with ${line} ns from core to core and back`);
    return [`    ${placement.padEnd(6)}${cells.join('   ')}`];
  });
}

function middleOf(values: readonly (number | null)[]): string {
  const known = values.filter((value) => value !== null);
  return known.length === 0 ? '-' : median(known).toFixed(0);
}

export function ratioTable(comparisons: readonly Comparison[]): string {
  const head = [
    'scenario',
    'ratio',
    'median',
    'min .. max',
    '95 % of median',
    'own loops',
    'cores',
  ];
  const rows = comparisons.map((c) => [
    scenarioName(c.scenario),
    `${c.subject}/${c.rival}`,
    c.ratio.median.toFixed(2),
    `${c.ratio.min.toFixed(2)} .. ${c.ratio.max.toFixed(2)}`,
    `${intervalText(c.ratio)}, ${c.ratio.count} pairs`,
    c.loopRatio === null ? '-' : c.loopRatio.median.toFixed(2),
    c.placements
      .map(({ placement, ratio }) => `${placement} ${ratio.median.toFixed(2)} (${ratio.count})`)
      .join(', '),
  ]);
  return table([head, ...rows]);
}

/** Columns as wide as their widest cell, a line under the head. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  const lines = rows.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i]!))
      .join('  ')
      .trimEnd(),
  );
  lines.splice(1, 0, widths.map((width) => '-'.repeat(width)).join('  '));
  return lines.join('\n');
}

/** The same for a document. */
export function markdownTable(rows: readonly (readonly string[])[]): string {
  const lines = rows.map((row) => `| ${row.join(' | ')} |`);
  lines.splice(1, 0, `|${(rows[0] ?? []).map(() => '---').join('|')}|`);
  return lines.join('\n');
}
