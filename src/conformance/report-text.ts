/** The report for a terminal: failures first, each with what was sent and how to repeat it. */
import type { Report, ReportedCheck } from './report.ts';
import { sortedChecks } from './report.ts';

/** Colours of a terminal; `plain` has none. */
export type Paint = Readonly<Record<'red' | 'green' | 'yellow' | 'dim' | 'bold', Colour>>;
type Colour = (text: string) => string;

const same: Colour = (text) => text;
export const PLAIN: Paint = { red: same, green: same, yellow: same, dim: same, bold: same };

/** Lines of a transcript that are shown with a failure. */
const MAX_LINES = 60;

export function textReport(report: Report, paint: Paint = PLAIN, verbose = false): string {
  const lines: string[] = [];
  const checks = sortedChecks(report);
  const bad = checks.filter(({ verdict }) => verdict === 'fail' || verdict === 'error');
  for (const each of bad) lines.push(...failure(each, paint));
  const groups = new Map<string, ReportedCheck[]>();
  for (const each of checks) {
    const group = each.id.split('-').slice(0, 2).join('-');
    groups.set(group, [...(groups.get(group) ?? []), each]);
  }
  for (const [group, members] of groups) lines.push(...groupLines(group, members, paint, verbose));
  const { counts } = report;
  const protocol = report.features.protocol.join(' ') || 'none';
  lines.push('', paint.dim(`${report.device}; protocol features: ${protocol}`));
  const summary = [
    paint.green(`${counts.pass} pass`),
    (counts.fail > 0 ? paint.red : same)(`${counts.fail} fail`),
    `${counts['not applicable']} not applicable`,
    (counts.error > 0 ? paint.yellow : same)(`${counts.error} error`),
  ];
  const seconds = (report.milliseconds / 1000).toFixed(1);
  lines.push(`${report.side} ${report.socket}: ${summary.join(', ')} in ${seconds} s`);
  return lines.join('\n');
}

function failure(each: ReportedCheck, paint: Paint): string[] {
  const colour = each.verdict === 'fail' ? paint.red : paint.yellow;
  const critical = each.critical ? ', critical' : '';
  const word = `${each.verdict.toUpperCase()} (${each.severity}${critical})`;
  const shown = each.transcript.slice(0, MAX_LINES).map((line) => paint.dim(`      ${line}`));
  const rest = each.transcript.length - MAX_LINES;
  if (rest > 0) shown.push(paint.dim(`      ... and ${rest} lines more in the JSON report`));
  return [
    `${colour(word)} ${paint.bold(each.id)} ${each.title}`,
    `    ${each.detail}`,
    `    rule: ${each.rule} [${each.section}]`,
    ...shown,
    `    again: ${each.reproduce}`,
    '',
  ];
}

function groupLines(
  group: string,
  members: readonly ReportedCheck[],
  paint: Paint,
  verbose: boolean,
): string[] {
  const count = (verdict: string): number =>
    members.filter((each) => each.verdict === verdict).length;
  const words = ['pass', 'fail', 'error', 'not applicable']
    .filter((verdict) => count(verdict) > 0)
    .map((verdict) => `${count(verdict)} ${verdict}`);
  const lines = [`${group.padEnd(12)} ${words.join(', ')}`];
  if (!verbose) return lines;
  for (const each of members) {
    const mark = { pass: '✓', fail: '✗', error: '!', 'not applicable': '-' }[each.verdict];
    const colour = { pass: paint.green, fail: paint.red, error: paint.yellow }[
      each.verdict as 'pass'
    ];
    const why = each.detail === '' ? '' : paint.dim(`  ${each.detail}`);
    lines.push(`  ${(colour ?? paint.dim)(mark)} ${each.id} ${each.title}${why}`);
  }
  return lines;
}
