/** What `vring conform` does: runs the checks, writes the reports, says the status. */
import { writeFileSync } from 'node:fs';
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
import { pc, print, printJson, UsageError } from './output.ts';

export type ConformOptions = {
  readonly socket: string;
  readonly device: string;
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
  const { socket, only = [], level, respawn } = options;
  checkOnly(only, BACK_END_CHECKS);
  if (options.list) return list(BACK_END_CHECKS);
  const report = await runBackEnd({
    socket,
    profile: PROFILES[options.device] as DeviceProfile,
    level,
    only,
    ...(respawn === undefined ? {} : { respawn }),
    patience: {
      quietMs: options.quietMs,
      answerMs: options.answerMs,
      connectMs: options.connectMs,
    },
    onResult: progress(options),
    reproduce: (check) => reproduceBackEnd(options, check),
  });
  return finish(report, options);
}

export async function conformFrontEnd(options: FrontEndOptions): Promise<number> {
  const { socket, device, only = [], connect, seconds, spawn } = options;
  const rules = FRONT_END_RULES.map((rule) => ({ ...rule, level: 'full' as const }));
  checkOnly(only, rules);
  if (options.list) return list(rules);
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

function reproduceBackEnd(options: BackEndOptions, check: Check): string {
  const respawn = options.respawn === undefined ? '' : ` --respawn ${quoted(options.respawn)}`;
  const level = check.level === 'destructive' ? ' --level destructive' : '';
  return (
    `vring conform back-end --socket ${quoted(options.socket)} --device ${options.device}` +
    `${level} --only ${check.id}${respawn}`
  );
}

function quoted(text: string): string {
  return /^[\w./:=,@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function checkOnly(only: readonly string[], checks: readonly { readonly id: string }[]): void {
  for (const id of only) {
    if (checks.some((each) => each.id === id || each.id.startsWith(`${id}-`))) continue;
    throw new UsageError(`--only: no check is called ${id}; --list shows them`);
  }
}

function list(checks: readonly Omit<Check, 'run' | 'needs'>[]): number {
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
