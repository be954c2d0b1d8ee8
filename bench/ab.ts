/**
 * `npm run bench:ab -- BASE`: what this tree is worth beside another commit, in interleaved runs.
 *
 *   npm run bench:ab -- HEAD~3                        the loops of net and blk, in one process
 *   npm run bench:ab -- v1.0 --only 'loop split 64'   under DPDK's testpmd, as `npm run bench`
 *
 * The other commit is checked out beside this one, with this tree's dependencies and benches.
 */
import { execFileSync } from 'node:child_process';
import { cpSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { readOptions, wholeNumber, wrongUsage } from '../scripts/options.ts';
import { messageOf } from '../src/base/errors.ts';
import { Scratch } from '../test/peers/scratch.ts';
import { vringOf } from './backends.ts';
import { parseCase } from './cases.ts';
import { coreTimes, foreignShare } from './core-times.ts';
import { pairProblem } from './report.ts';
import { printMachine, writeResults } from './results.ts';
import { allScenarios, type Run, scenarioName } from './scenario.ts';
import { Stand } from './stand.ts';
import { intervalText, summarize, type Summary } from './statistics.ts';

const USAGE = `npm run bench:ab -- BASE [options]
  BASE           the commit that this tree is compared with
  --pairs N      rounds per case (16)
  --ms N         length of each measured run (400)
  --only TEXT    cases whose name contains all words; with it also those under testpmd
  --json FILE    every run and ratio (build/bench-ab.json)`;

const { values: options, positionals } = readOptions(USAGE, {
  allowPositionals: true,
  options: {
    pairs: { type: 'string', default: '16' },
    ms: { type: 'string', default: '400' },
    only: { type: 'string', default: '' },
    json: { type: 'string', default: 'build/bench-ab.json' },
  },
});

const SECONDS = wholeNumber(USAGE, '--ms', options.ms, 100) / 1000;
const ROOT = join(import.meta.dirname, '..');
const LOOPS = ['bench/net-port.ts', 'bench/disk-plane.ts'];

/** A run beside which others had more of a core than this does not count. */
const MAX_FOREIGN_SHARE = 0.2;

type Side = 'base' | 'here';
type Roots = Readonly<Record<Side, string>>;
type Tried = {
  readonly name: string;
  readonly start: (roots: Roots) => Promise<Sides>;
};
/** Both trees, ready to run. */
type Sides = {
  /** One round in this order, ns per frame or request: less is better. */
  round(order: readonly Side[]): Promise<Record<Side, number>>;
  close(): Promise<void>;
};
type Result = { readonly name: string; readonly base: number[]; readonly here: number[] };

async function main(): Promise<void> {
  const [base] = positionals;
  if (base === undefined) wrongUsage(USAGE, 'BASE: which commit?');
  const pairs = wholeNumber(USAGE, '--pairs', options.pairs, 1);
  await using scratch = new Scratch();
  if (!isCommit(base)) wrongUsage(USAGE, `BASE: "${base}" is no commit of this repository`);
  const roots = { here: ROOT, base: checkOut(base, scratch) };
  const machine = printMachine();
  console.log(
    '\nns of base and of this tree, medians; base over here: above 1 this tree is faster',
  );
  const results: (Result & { ratio: Summary })[] = [];
  for (const tried of chosen()) {
    const result: Result = { name: tried.name, base: [], here: [] };
    const sides = await tried.start(roots);
    for (let round = 0; round < pairs; round++) {
      const order: Side[] = round % 2 === 0 ? ['base', 'here'] : ['here', 'base'];
      try {
        const ns = await sides.round(order);
        result.base.push(ns.base);
        result.here.push(ns.here);
      } catch (error) {
        console.error(`${tried.name}: ${messageOf(error)}`); // the round does not count
      }
    }
    await sides.close();
    const ratio = summarize(result.base.map((ns, i) => ns / result.here[i]!));
    console.log(lineOf(result, ratio));
    results.push({ ...result, ratio });
  }
  writeResults(options.json, machine, { base, results });
}

function lineOf({ name, base, here }: Result, ratio: Summary): string {
  if (ratio.count === 0) return `${name.padEnd(32)} no round counts`;
  const middle = (values: readonly number[]): string =>
    summarize(values).median.toFixed(1).padStart(7);
  const summary = `95 %: ${intervalText(ratio)}, ${ratio.count} rounds`;
  const interval = `${ratio.median.toFixed(2)} (${summary})`;
  return `${name.padEnd(32)} ${middle(base)} ${middle(here)}   ${interval}`;
}

function isCommit(name: string): boolean {
  const args = ['-C', ROOT, 'rev-parse', '--verify', '--quiet', '--end-of-options'];
  try {
    execFileSync('git', [...args, `${name}^{commit}`], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** Another tree with the sources of `commit`, and the benches of this one. */
function checkOut(commit: string, scratch: Scratch): string {
  const root = scratch.path('base');
  const git = (...args: string[]): void => {
    execFileSync('git', ['-C', ROOT, ...args], { stdio: ['ignore', 'ignore', 'inherit'] });
  };
  git('worktree', 'add', '--detach', root, commit);
  scratch.own({ close: () => git('worktree', 'remove', '--force', root) });
  symlinkSync(join(ROOT, 'node_modules'), join(root, 'node_modules'));
  cpSync(join(ROOT, 'bench'), join(root, 'bench'), { recursive: true });
  execFileSync(process.execPath, [join(root, 'native/build.cjs')], { stdio: 'inherit' });
  return root;
}

function chosen(): Tried[] {
  const words = options.only.split(' ').filter(Boolean);
  const all = [...loops(), ...(words.length > 0 ? underClient() : [])];
  const matching = all.filter(({ name }) =>
    words.every((word) => ` ${name} `.includes(` ${word} `)),
  );
  if (matching.length > 0) return matching;
  return wrongUsage(USAGE, `--only: no case has all of "${options.only}"`);
}

function loops(): Tried[] {
  return LOOPS.flatMap((file) => {
    const names = node(ROOT, [file, '--list']).trim().split('\n');
    return names.map((name) => ({
      name,
      start: (roots: Roots) => {
        const round = (order: readonly Side[]): Promise<Record<Side, number>> => {
          const ns = { base: NaN, here: NaN };
          for (const side of order) {
            const before = coreTimes([process.pid]);
            const text = node(roots[side], [file, name, String(SECONDS)]);
            const foreign = foreignShare(before, coreTimes([process.pid]));
            if (foreign > MAX_FOREIGN_SHARE) {
              const percent = (foreign * 100).toFixed(0);
              throw new Error(`disturbed: others had ${percent} % of a core`);
            }
            const measured = parseCase(text.trim());
            if (measured === null) throw new Error(`${file} printed no time`);
            ns[side] = measured.ns;
          }
          return Promise.resolve(ns);
        };
        return Promise.resolve({ round, close: () => Promise.resolve() });
      },
    }));
  });
}

function node(root: string, args: readonly string[]): string {
  return execFileSync(process.execPath, args, { cwd: root, encoding: 'utf8' });
}

/** Both trees under a client each, which take turns. */
function underClient(): Tried[] {
  return allScenarios().map((scenario) => ({
    name: scenarioName(scenario),
    start: async (roots: Roots) => {
      const base = await Stand.start(vringOf('base', roots.base), scenario);
      const here = await Stand.start(vringOf('here', roots.here), scenario);
      const stands = { base, here };
      const round = async (order: readonly Side[]): Promise<Record<Side, number>> => {
        const runs: Partial<Record<Side, Run>> = {};
        for (const side of order) runs[side] = await stands[side].run(SECONDS);
        const problem = pairProblem(runs.base!, runs.here!);
        if (problem !== null) throw new Error(problem);
        return { base: 1e9 / runs.base!.pps, here: 1e9 / runs.here!.pps };
      };
      const close = async (): Promise<void> => {
        await here.close();
        await base.close();
      };
      return { round, close };
    },
  }));
}

await main();
