/**
 * What is wrong with a configuration, in words: path, value, what is expected, what to do. The
 * schemas carry "what is expected" as the message of each check; this file makes the sentence.
 */
import type * as z from 'zod';
import { ConfigError } from '../base/errors.ts';

export type ConfigProblem = {
  /** `ports[1].mtu`, in the vocabulary of where it was written. */
  readonly path: string;
  readonly problem: string;
  /** `switch.yaml:7:10`, or null where there is no file. */
  readonly position: string | null;
};

/** All problems of one configuration; the message tells the first. */
export class ConfigProblems extends ConfigError {
  readonly problems: readonly ConfigProblem[];

  constructor(problems: readonly ConfigProblem[]) {
    const [first] = problems as [ConfigProblem];
    const where = first.position === null ? '' : ` (${first.position})`;
    super(first.path, first.problem + where);
    this.problems = problems;
  }
}

/** One line per problem, as `vring switch` prints them. */
export function problemLines(error: ConfigError): string[] {
  if (!(error instanceof ConfigProblems)) return [error.message];
  return error.problems.map(
    (p) => `${p.position === null ? '' : `${p.position}: `}${p.path}: ${p.problem}`,
  );
}

/** A problem before it is placed: keys from the root of the document. */
export type RawProblem = {
  readonly keys: readonly PropertyKey[];
  readonly problem: string;
  /** The problem is the last key itself, not its value. */
  readonly atKey?: boolean;
};

/** `['ports', 1, 'mtu']` to `ports[1].mtu`. */
export function pathText(keys: readonly PropertyKey[]): string {
  let text = '';
  for (const key of keys) {
    text += typeof key === 'number' ? `[${key}]` : `${text === '' ? '' : '.'}${String(key)}`;
  }
  return text === '' ? '(top level)' : text;
}

export function placed(raw: RawProblem, position: string | null): ConfigProblem {
  return { path: pathText(raw.keys), problem: raw.problem, position };
}

/** A value as the user wrote it, short enough for one line. */
export function valueText(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length <= 60 ? text : `${text.slice(0, 57)}...`;
}

/** Names that other tools use for our keys. */
const ALIASES: Readonly<Record<string, string>> = {
  type: 'kind',
  socket: 'path',
  'socket-path': 'path',
  queues: 'queuePairs',
  queue_pairs: 'queuePairs',
  ifname: 'interface',
  dev: 'interface',
  tag: 'vlan',
  owner: 'socketOwner',
  mrg: 'mrgRxbuf',
  trunk: 'vlan',
  aging: 'ageingSeconds',
  ageing: 'ageingSeconds',
  spin: 'spinMicroseconds',
  tso: 'offload',
  csum: 'offload',
  uso: 'offload',
  size: 'sizeBytes',
  path: 'socket',
  layer: 'layers',
  stack: 'layers',
  readonly: 'readOnly',
  bandwidth: 'bytesPerSecond',
};

/** The closest of `known`, or null when nothing is close. */
export function closest(word: string, known: readonly string[]): string | null {
  const alias = ALIASES[word];
  if (alias !== undefined && known.includes(alias)) return alias;
  const lower = word.toLowerCase();
  let best: string | null = null;
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1;
  for (const candidate of known) {
    const distance = editDistance(lower, candidate.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return bestDistance < word.length ? best : null;
}

/** Insertions, deletions, replacements and swaps of neighbours. Inputs are cut to 40 letters. */
function editDistance(first: string, second: string): number {
  const a = first.slice(0, 40);
  const b = second.slice(0, 40);
  const rows = Array.from({ length: a.length + 1 }, (_, i) => [i, ...Array(b.length).fill(0)]);
  for (let j = 0; j <= b.length; j++) rows[0]![j] = j;
  for (let i = 1; i <= a.length; i++) {
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      let d = Math.min(rows[i - 1]![j] + 1, rows[i]![j - 1] + 1, rows[i - 1]![j - 1] + cost);
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (swapped) d = Math.min(d, rows[i - 2]![j - 2] + 1);
      rows[i]![j] = d;
    }
  }
  return rows[a.length]![b.length];
}

/** `; did you mean "x"?`, or what there is. */
export function suggestion(word: string, known: readonly string[], kind: string): string {
  const best = closest(word, known);
  return best === null ? `; ${kind} are ${known.join(', ')}` : `; did you mean "${best}"?`;
}

/** Turns what zod found into problems. A union tells the branch that the user meant. */
export function describeIssues(issues: readonly z.core.$ZodIssue[]): RawProblem[] {
  return issues.flatMap((issue) => describeIssue(issue, []));
}

function describeIssue(issue: z.core.$ZodIssue, parent: readonly PropertyKey[]): RawProblem[] {
  const keys = [...parent, ...issue.path];
  if (issue.code === 'unrecognized_keys') {
    const known = JSON.parse(issue.message) as string[];
    return issue.keys.map((key) => ({
      keys: [...keys, key],
      problem: `unknown key${suggestion(key, known, 'known keys')}`,
      atKey: true,
    }));
  }
  if (issue.code === 'invalid_union') {
    const meant = meantBranch(issue);
    if (meant) return meant.flatMap((inner) => describeIssue(inner, keys));
  }
  const value = offendingValue(issue);
  if (value === undefined) return [{ keys, problem: `missing; expected ${issue.message}` }];
  return [{ keys, problem: `${valueText(value)} is not ${issue.message}${near(issue, value)}` }];
}

/** The branch whose top level fits the value: the one that complains about something inside. */
function meantBranch(issue: z.core.$ZodIssueInvalidUnion): z.core.$ZodIssue[] | null {
  const isScalar = typeof issue.input !== 'object';
  for (const branch of issue.errors) {
    const first = branch[0];
    if (!first) continue;
    if (first.path.length > 0 || first.code === 'unrecognized_keys') return branch;
    if (isScalar && first.code !== 'invalid_type' && first.code !== 'invalid_value') return branch;
  }
  return null;
}

/** A missing discriminator is reported with the whole object as input; the key is what counts. */
function offendingValue(issue: z.core.$ZodIssue): unknown {
  if (issue.code !== 'invalid_union' || !('discriminator' in issue)) return issue.input;
  const key = issue.discriminator as string;
  if (issue.path.at(-1) !== key || typeof issue.input !== 'object') return issue.input;
  return (issue.input as Record<string, unknown> | null)?.[key];
}

function near(issue: z.core.$ZodIssue, value: unknown): string {
  if (typeof value !== 'string') return '';
  let known: readonly unknown[] = [];
  if (issue.code === 'invalid_value') known = issue.values;
  if (issue.code === 'invalid_union' && 'options' in issue) known = issue.options as unknown[];
  const best = closest(
    value,
    known.filter((k) => typeof k === 'string'),
  );
  return best === null ? '' : `; did you mean "${best}"?`;
}
