/** The result of one run, as every output format shows it. Its JSON form is documented. */
import { protocolFeatureNames } from '../wire/vhost-user.ts';
import { featureNames } from '../wire/virtio.ts';
import type { Check, CheckResult, Level, Offer, Severity, Verdict } from './check.ts';

export type ReportedCheck = {
  readonly id: string;
  readonly title: string;
  readonly rule: string;
  readonly section: string;
  readonly severity: Severity;
  readonly level: Level;
  readonly verdict: Verdict;
  /** Why, unless it plainly passed. */
  readonly detail: string;
  /** The peer died or stopped serving because of this check. */
  readonly critical: boolean;
  readonly milliseconds: number;
  /** What was sent and received, one line each. Empty for checks that did not run. */
  readonly transcript: readonly string[];
  /** The command that runs this check alone. */
  readonly reproduce: string;
};

export type Report = {
  /** 1; grows when a field changes its meaning. */
  readonly format: 1;
  readonly side: 'back-end' | 'front-end';
  readonly socket: string;
  readonly device: string;
  readonly level: Level;
  readonly startedAt: string;
  readonly milliseconds: number;
  /** What the peer offered (a front-end: what it acked). */
  readonly features: { readonly virtio: string[]; readonly protocol: string[] };
  readonly counts: Readonly<Record<Verdict, number>>;
  readonly checks: readonly ReportedCheck[];
};

export type ReportSource = {
  readonly side: Report['side'];
  readonly socket: string;
  readonly level: Level;
  readonly startedAt: Date;
  readonly milliseconds: number;
  readonly offer: Offer;
  readonly results: readonly CheckResult[];
  readonly reproduce: (check: Check) => string;
};

export function makeReport(source: ReportSource): Report {
  const { offer, results } = source;
  const counts = { pass: 0, fail: 0, 'not applicable': 0, error: 0 };
  for (const { verdict } of results) counts[verdict]++;
  return {
    format: 1,
    side: source.side,
    socket: source.socket,
    device: offer.profile.name,
    level: source.level,
    startedAt: source.startedAt.toISOString(),
    milliseconds: Math.round(source.milliseconds),
    features: {
      virtio: featureNames(offer.features, offer.profile.deviceId),
      protocol: protocolFeatureNames(offer.protocolFeatures),
    },
    counts,
    checks: results.map((result) => reported(result, source.reproduce)),
  };
}

function reported(result: CheckResult, reproduce: ReportSource['reproduce']): ReportedCheck {
  const { id, title, rule, section, severity, level } = result.check;
  const { verdict, detail, critical, milliseconds, transcript } = result;
  return {
    id,
    title,
    rule,
    section,
    severity,
    level,
    verdict,
    detail,
    critical,
    milliseconds: Math.round(milliseconds),
    transcript: transcript.lines(),
    reproduce: reproduce(result.check),
  };
}

const SEVERITIES: readonly Severity[] = ['must', 'should', 'may'];

/** Worst first: failures by severity, then what could not be judged, then the rest. */
export function sortedChecks(report: Report): ReportedCheck[] {
  const rank = (each: ReportedCheck): number => {
    const verdicts: readonly Verdict[] = ['fail', 'error', 'pass', 'not applicable'];
    const critical = each.critical ? 0 : 1;
    return verdicts.indexOf(each.verdict) * 100 + critical * 10 + SEVERITIES.indexOf(each.severity);
  };
  return [...report.checks].sort((a, b) => rank(a) - rank(b));
}

/** Failures of at least this severity. */
export function failures(report: Report, least: Severity = 'may'): ReportedCheck[] {
  const limit = SEVERITIES.indexOf(least);
  return report.checks.filter(
    (each) => each.verdict === 'fail' && SEVERITIES.indexOf(each.severity) <= limit,
  );
}
