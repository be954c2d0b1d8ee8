/** What `vring conform` does: runs the checks, writes the reports, says the status. */
import { closeSync, openSync, writeFileSync } from 'node:fs';
import {
  BACK_END_CHECKS,
  type Check,
  failures,
  FRONT_END_RULES,
  htmlReport,
  junitReport,
  type Level,
  PROFILES,
  type DeviceProfile,
  type Report,
  runBackEnd,
  runFrontEnd,
  type Severity,
  textReport,
} from '../conformance/index.ts';
import { VringError } from '../base/errors.ts';
import { fileProblem } from './explain.ts';
import { complain, pc, print, printJson, UsageError } from './output.ts';

export type ConformOptions = {
  /** Both are asked for by `target`, unless checks are only listed. */
  readonly socket?: string;
  readonly device?: string;
  readonly only?: readonly string[];
  readonly list: boolean;
  readonly json?: string | true;
  readonly junit?: string;
  readonly html?: string;
  readonly failOn: Severity;
  readonly verbose: boolean;
};

export type BackEndOptions = ConformOptions & {
  readonly level: Level;
  readonly respawn?: string;
  readonly quietMs: number;
  readonly answerMs: number;
  readonly connectMs: number;
};

export type FrontEndOptions = ConformOptions & {
  readonly connect: boolean;
  readonly seconds: number;
  readonly spawn?: string;
};

export async function conformBackEnd(options: BackEndOptions): Promise<number> {
  const { only = [], level, respawn } = options;
  checkOnly(only, BACK_END_CHECKS);
  if (options.list) return list(BACK_END_CHECKS, only, options);
  const { socket, device } = target(options);
  checkReports(options);
  const report = await runBackEnd({
    socket,
    profile: PROFILES[device] as DeviceProfile,
    level,
    only,
    ...(respawn === undefined ? {} : { respawn }),
    patience: {
      quietMs: options.quietMs,
      answerMs: options.answerMs,
      connectMs: options.connectMs,
    },
    onResult: progress(options),
    reproduce: (check) => reproduceBackEnd(options, { socket, device }, check),
  });
  return finish(report, options);
}

export async function conformFrontEnd(options: FrontEndOptions): Promise<number> {
  const { only = [], connect, seconds, spawn } = options;
  const rules = FRONT_END_RULES.map((rule) => ({ ...rule, level: 'full' as const }));
  checkOnly(only, rules);
  if (options.list) return list(rules, only, options);
  const { socket, device } = target(options);
  checkReports(options);
  if (spawn === undefined && options.json !== true) {
    const where = connect ? `a front-end that listens at ${socket}` : `a front-end at ${socket}`;
    complain(`waiting for ${where}; --spawn COMMAND would start one`);
  }
  const report = await runFrontEnd({
    socket,
    device,
    connect,
    seconds,
    only,
    ...(spawn === undefined ? {} : { spawn }),
    reproduce: ({ id }) => {
      const how = `${connect ? ' --connect' : ''} --seconds ${seconds}`;
      const start = spawn === undefined ? '' : ` --spawn ${quoted(spawn)}`;
      const where = `--socket ${quoted(socket)} --device ${device}`;
      return `vring conform front-end ${where}${how} --only ${id}${start}`;
    },
  });
  return finish(report, options);
}

type Target = { readonly socket: string; readonly device: string };

function target({ socket, device }: ConformOptions): Target {
  if (socket === undefined) throw new UsageError('--socket: give the path of the peer');
  if (device === undefined) {
    throw new UsageError('--device: say what it is, one of net, blk, fs, generic');
  }
  return { socket, device };
}

/** A report that cannot be written is said before the run, not after it. */
function checkReports({ json, junit, html }: ConformOptions): void {
  for (const [option, path] of Object.entries({ json, junit, html })) {
    if (typeof path !== 'string') continue;
    try {
      closeSync(openSync(path, 'a'));
    } catch (cause) {
      const text = `--${option}: cannot write ${path}: ${fileProblem(cause)}`;
      throw new VringError('ERR_VRING_REPORT_FILE', text, { cause });
    }
  }
}

function reproduceBackEnd(options: BackEndOptions, to: Target, check: Check): string {
  const respawn = options.respawn === undefined ? '' : ` --respawn ${quoted(options.respawn)}`;
  const level = check.level === 'destructive' ? ' --level destructive' : '';
  return (
    `vring conform back-end --socket ${quoted(to.socket)} --device ${to.device}` +
    `${level} --only ${check.id}${respawn}`
  );
}

function quoted(text: string): string {
  return /^[\w./:=,@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function checkOnly(only: readonly string[], checks: readonly { readonly id: string }[]): void {
  for (const id of only) {
    if (checks.some((each) => isSelected(each, [id]))) continue;
    throw new UsageError(`--only: no check is called ${id}; --list shows them`);
  }
}

function isSelected(check: { readonly id: string }, only: readonly string[]): boolean {
  return only.some((id) => check.id === id || check.id.startsWith(`${id}-`));
}

type ListedCheck = Pick<Check, 'id' | 'severity' | 'level' | 'title'>;

function list(
  all: readonly ListedCheck[],
  only: readonly string[],
  options: ConformOptions,
): number {
  const checks = all.filter((each) => only.length === 0 || isSelected(each, only));
  if (options.json !== undefined) {
    printJson(checks.map(({ id, severity, level, title }) => ({ id, severity, level, title })));
    return 0;
  }
  for (const { id, severity, level, title } of checks) {
    print(`${id.padEnd(36)} ${severity.padEnd(7)} ${level.padEnd(12)} ${title}`);
  }
  return 0;
}

/** A dot for each check on a terminal: a run takes half a minute. */
function progress(options: ConformOptions): (result: { verdict: string }) => void {
  if (process.stderr.isTTY !== true || options.json === true) return () => {};
  const marks: Readonly<Record<string, string>> = { pass: '.', fail: 'F', error: 'E' };
  return ({ verdict }) => process.stderr.write(marks[verdict] ?? '-');
}

function finish(report: Report, options: ConformOptions): number {
  if (process.stderr.isTTY === true && options.json !== true) process.stderr.write('\n');
  if (options.json === true) printJson(report);
  else print(textReport(report, pc, options.verbose));
  if (typeof options.json === 'string') {
    writeFileSync(options.json, `${JSON.stringify(report, null, 2)}\n`);
  }
  if (options.junit !== undefined) {
    writeFileSync(options.junit, junitReport(report, options.failOn));
  }
  if (options.html !== undefined) writeFileSync(options.html, htmlReport(report));
  const bad = failures(report, options.failOn).length + report.counts.error;
  return bad > 0 ? 1 : 0;
}
