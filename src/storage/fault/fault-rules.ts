/** Rules of a FaultLayer as plain data from outside, and which of them meets a request. */
import { constants } from 'node:os';
import { ConfigError } from '../../base/errors.ts';
import type { FaultRule } from '../stack/stack-spec.ts';
import type { SeededRandom } from './random.ts';

export type FaultOp = Exclude<FaultRule['op'], 'any'>;

/** Rules of one layer: each is looked at for each request. */
export const MAX_FAULT_RULES = 64;
/** A delay is a test's; longer than this is a request that does not come back. */
export const MAX_DELAY_MS = 600_000;

const OPS: readonly string[] = ['read', 'write', 'flush', 'discard', 'zero', 'any'];
const ACTIONS: readonly string[] = ['error', 'delay', 'torn', 'crash'];
const NUMBERS = [
  ['at', 0, Number.MAX_SAFE_INTEGER],
  ['sizeBytes', 1, Number.MAX_SAFE_INTEGER],
  ['probability', 0, 1],
  ['times', 1, Number.MAX_SAFE_INTEGER],
] as const;

/** One rule, and how often it may still be met. */
type ArmedRule = { readonly rule: FaultRule; left: number };

export class FaultRules {
  readonly #random: SeededRandom;
  #rules: readonly ArmedRule[] = [];

  constructor(random: SeededRandom) {
    this.#random = random;
  }

  set(rules: readonly FaultRule[]): void {
    this.#rules = rules.map((rule) => ({ rule, left: rule.times ?? Infinity }));
  }

  /**
   * The rules that a request meets, in their order; after the first that fails it none is asked.
   * A flush has no place: it meets rules whatever range they name.
   */
  meet(op: FaultOp, at: number, sizeBytes: number): FaultRule[] {
    const met: FaultRule[] = [];
    for (const armed of this.#rules) {
      const { rule } = armed;
      if (armed.left === 0 || (rule.op !== 'any' && rule.op !== op)) continue;
      if (op !== 'flush' && !overlaps(rule, at, sizeBytes)) continue;
      if (this.#random.next() >= (rule.probability ?? 1)) continue;
      armed.left--;
      met.push(rule);
      if (rule.action !== 'delay') break;
    }
    return met;
  }
}

/** @throws ConfigError naming the rule and its field. */
export function parseFaultRules(rules: unknown, path: string): FaultRule[] {
  if (!Array.isArray(rules) || rules.length > MAX_FAULT_RULES) {
    throw new ConfigError(path, `expected a list of at most ${MAX_FAULT_RULES} rules`);
  }
  return rules.map((rule: unknown, i) => parseRule(rule, `${path}[${i}]`));
}

function parseRule(rule: unknown, path: string): FaultRule {
  if (typeof rule !== 'object' || rule === null) throw new ConfigError(path, 'is no rule');
  const fields = rule as Record<string, unknown>;
  choose(fields, 'op', OPS, path);
  choose(fields, 'action', ACTIONS, path);
  for (const [name, min, max] of NUMBERS) {
    if (fields[name] !== undefined) checkNumber(fields, name, min, max, path);
  }
  if (fields['action'] === 'delay') checkNumber(fields, 'ms', 0, MAX_DELAY_MS, path);
  if (fields['action'] === 'error') errnoOfRule(fields['errno'], `${path}.errno`);
  return rule as FaultRule;
}

/** Positive. @throws ConfigError. */
export function errnoOfRule(name: unknown, path: string): number {
  const errno = (constants.errno as Record<string, number>)[String(name)];
  if (errno !== undefined) return errno;
  throw new ConfigError(path, `'${String(name)}' is no errno; expected is such as EIO, ENOSPC`);
}

function choose(
  fields: Record<string, unknown>,
  name: string,
  values: readonly string[],
  path: string,
): void {
  const value = fields[name];
  if (typeof value === 'string' && values.includes(value)) return;
  throw new ConfigError(`${path}.${name}`, `is ${String(value)}, expected ${values.join(', ')}`);
}

function checkNumber(
  fields: Record<string, unknown>,
  name: string,
  min: number,
  max: number,
  path: string,
): void {
  const value = fields[name];
  if (typeof value === 'number' && value >= min && value <= max) return;
  throw new ConfigError(`${path}.${name}`, `is ${String(value)}, expected ${min} to ${max}`);
}

function overlaps(rule: FaultRule, at: number, sizeBytes: number): boolean {
  const from = rule.at ?? 0;
  const to = rule.sizeBytes === undefined ? Infinity : from + rule.sizeBytes;
  return at < to && from < at + sizeBytes;
}
