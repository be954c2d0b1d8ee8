/** The conformance runner: any back-end or front-end, rule by rule. */
export { BACK_END_CHECKS } from './back-end-checks.ts';
export { type BackEndRun, runBackEnd } from './back-end-runner.ts';
export {
  type Check,
  CheckFailed,
  type CheckResult,
  type Level,
  LEVELS,
  type Needs,
  NotApplicable,
  type Offer,
  type Severity,
  type Verdict,
} from './check.ts';
export { CheckContext, DEFAULT_PATIENCE, type Patience } from './context.ts';
export { FRONT_END_RULES, type FrontEndRule } from './front-end-rules.ts';
export { type FrontEndRun, runFrontEnd } from './front-end-runner.ts';
export { type DeviceProfile, PROFILES } from './profiles.ts';
export { failures, type Report, type ReportedCheck, sortedChecks } from './report.ts';
export { type Paint, PLAIN, textReport } from './report-text.ts';
export { htmlReport } from './report-html.ts';
export { junitReport } from './report-junit.ts';
