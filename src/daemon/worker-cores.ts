/** Cores that workers are bound to: one of its own for each, or none for all. */
import { ConfigError } from '../base/errors.ts';
import { onlineCores } from '../sys/index.ts';
import type { SwitchConfig } from './switch-types.ts';

/** `at`: which core of the list is wrong; null: the list. */
export type CoreProblem = { readonly at: number | null; readonly problem: string };

export function coreProblems(
  cores: readonly number[],
  workers: number,
  online: ReadonlySet<number> = onlineCores(),
): CoreProblem[] {
  const problems: CoreProblem[] = [];
  if (cores.length !== workers) {
    const [named, wanted] = [counted(cores.length, 'core'), counted(workers, 'worker')];
    const problem = `names ${named}, and the switch has ${wanted}; name one core for each worker`;
    problems.push({ at: null, problem });
  }
  for (const [at, core] of cores.entries()) {
    if (!online.has(core)) {
      const all = rangesOf([...online]);
      problems.push({ at, problem: `core ${core} is not there; this host has ${all}` });
    } else if (cores.indexOf(core) < at) {
      const problem = `core ${core} is named twice; two workers would take turns on it`;
      problems.push({ at, problem });
    }
  }
  return problems;
}

/** @throws ConfigError; for a configuration that came from elsewhere, such as a predecessor. */
export function checkCores({ workerCores, workers = 1 }: SwitchConfig): void {
  const [first] = coreProblems(workerCores ?? [], workerCores ? workers : 0);
  if (first !== undefined) throw new ConfigError('workerCores', first.problem);
}

function counted(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`;
}

/** `0-3, 6`. */
function rangesOf(numbers: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const number of numbers.toSorted((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last !== undefined && number === last[1] + 1) last[1] = number;
    else ranges.push([number, number]);
  }
  return ranges.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(', ');
}
