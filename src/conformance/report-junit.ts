/** The report as JUnit XML: what CI systems show. A suite is a group of checks. */
import { failures, type Report, type ReportedCheck } from './report.ts';
import type { Severity } from './check.ts';

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/** For text and attributes of XML and HTML; control characters are not allowed in XML. */
export function escapeMarkup(text: string): string {
  return text
    .replaceAll(/[&<>"']/g, (character) => ENTITIES[character] as string)
    .replaceAll(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd]/gu, '?');
}

export function junitReport(report: Report, failOn: Severity = 'may'): string {
  const failed = new Set(failures(report, failOn).map(({ id }) => id));
  const groups = new Map<string, ReportedCheck[]>();
  for (const each of report.checks) {
    const group = each.id.split('-').slice(0, 2).join('-');
    groups.set(group, [...(groups.get(group) ?? []), each]);
  }
  const suites = [...groups].map(([name, members]) => suite(report, name, members, failed));
  return `<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n${suites.join('')}</testsuites>\n`;
}

function suite(
  report: Report,
  name: string,
  members: readonly ReportedCheck[],
  failed: ReadonlySet<string>,
): string {
  const count = (verdict: string): number => members.filter((m) => m.verdict === verdict).length;
  const failures = members.filter((m) => failed.has(m.id)).length;
  const seconds = members.reduce((sum, { milliseconds }) => sum + milliseconds, 0) / 1000;
  const attributes =
    `name="${escapeMarkup(`${report.side} ${report.device} ${name}`)}" tests="${members.length}" ` +
    `failures="${failures}" errors="${count('error')}" skipped="${count('not applicable')}" ` +
    `time="${seconds}" timestamp="${report.startedAt}"`;
  const cases = members.map((each) => testCase(each, failed.has(each.id)));
  return `  <testsuite ${attributes}>\n${cases.join('')}  </testsuite>\n`;
}

function testCase(each: ReportedCheck, failed: boolean): string {
  const name = escapeMarkup(`${each.id} ${each.title}`);
  const group = escapeMarkup(each.id.split('-').slice(0, 2).join('-'));
  const seconds = each.milliseconds / 1000;
  const open = `    <testcase classname="${group}" name="${name}" time="${seconds}"`;
  const detail = escapeMarkup(each.detail);
  const body = escapeMarkup(
    [each.rule, `[${each.section}]`, ...each.transcript, `again: ${each.reproduce}`].join('\n'),
  );
  if (each.verdict === 'not applicable') {
    return `${open}>\n      <skipped message="${detail}"/>\n    </testcase>\n`;
  }
  if (each.verdict === 'error') {
    return `${open}>\n      <error message="${detail}">${body}</error>\n    </testcase>\n`;
  }
  if (failed) {
    const attributes = `type="${each.severity}" message="${detail}"`;
    return `${open}>\n      <failure ${attributes}>${body}</failure>\n    </testcase>\n`;
  }
  return `${open}/>\n`;
}
