/**
 * `npm run bench`: our switch against DPDK's vhost library and Open vSwitch with DPDK, loaded by
 * the same client, in interleaved runs; and the table of marks (bench/marks.ts).
 *
 *   npm run bench                                 everything, 16 rounds: eight minutes
 *   npm run bench -- --quick                      a look: 3 rounds
 *   npm run bench -- --pairs 40 --only 'loop split 64'
 *   npm run bench -- --backends dpdk,ovs          without us: is the harness itself in order?
 *
 * Two cores are enough: the client's forwarding thread has core 1 and the back-end core 0, where
 * the sleeping prompts and control threads are too. Machines of this size are noisy, and their
 * cores are moved, so back-ends take turns of less than a second (bench/stand.ts; the order is
 * reversed every round), and only runs of the same round are compared, and only if the cores were
 * in the same place (bench/placement.ts).
 */
import { availableParallelism } from 'node:os';
import { readOptions, wholeNumber, wrongUsage } from '../scripts/options.ts';
import { aptLine, requireProgram } from '../src/vmm/programs.ts';
import { BACKENDS, OVS, VRING_PROFILED, type BackendKind } from './backends.ts';
import { describeSpread } from './distribution.ts';
import { EXTRAS } from './extras.ts';
import { FLOOR, markRows, type Measured } from './marks.ts';
import { compare, markdownTable, ratioTable, runTable, table, type Rounds } from './report.ts';
import { printMachine, writeResults } from './results.ts';
import { type FloorRun, measureRounds } from './rounds.ts';
import { allScenarios, scenarioName, type Scenario } from './scenario.ts';
import { Stand } from './stand.ts';
import { summarize } from './statistics.ts';

const USAGE = `npm run bench -- [options]
  --pairs N          rounds per scenario in which every run counts (16)
  --ms N             length of each measured run (400)
  --quick            3 rounds
  --only TEXT        what has all these words in its name: 'pair split 64', 'uplink', 'round trip'
  --backends A,B     of vring, dpdk, ovs (all that are installed)
  --profile          one more run of ours per scenario, under V8's profiler
  --markdown         the table of marks for a document
  --json FILE        every run and ratio (build/bench.json)`;

/** Reading the counters takes some of these. */
const MIN_MS = 100;

const { values: options } = readOptions(USAGE, {
  options: {
    pairs: { type: 'string' },
    ms: { type: 'string', default: '400' },
    quick: { type: 'boolean', default: false },
    markdown: { type: 'boolean', default: false },
    only: { type: 'string', default: '' },
    backends: { type: 'string', default: '' },
    json: { type: 'string', default: 'build/bench.json' },
    profile: { type: 'boolean', default: false },
  },
});

const PAIRS = wholeNumber(USAGE, '--pairs', options.pairs ?? (options.quick ? '3' : '16'), 1);
const SECONDS = wholeNumber(USAGE, '--ms', options.ms, MIN_MS) / 1000;
/** Their processes are started for every run: fewer and longer ones. */
const EXTRA_ROUNDS = Math.ceil(PAIRS / 2);
const EXTRA_SECONDS = 1;
const PROFILE_SECONDS = 2;

const LEGEND = `Above 1 we are faster. "own loops": the rival's nanoseconds per frame in its own
loop over ours; it decides where our loop waits for the client, or the client can no more: both
rates say most of the client then. A per cent behind an interval: what it covers, where the pairs
are too few for 95 %.`;

async function main(): Promise<void> {
  if (chosenScenarios().length === 0 && !EXTRAS.some(({ name }) => isChosen(name))) {
    wrongUsage(USAGE, `--only: nothing has all words of "${options.only}" in its name`);
  }
  requireProgram('dpdk-testpmd');
  if (availableParallelism() < 2) throw new Error('two cores are needed');
  const machine = printMachine();
  const hint = `no Open vSwitch with DPDK, no rows against it: ${aptLine('ovs-vswitchd')}`;
  const noOvs = OVS.isInstalled() ? '' : `\n${hint}`;
  if (noOvs !== '') console.log(hint);
  const rounds: Rounds[] = [];
  const measured: Measured[] = [];
  const details: Record<string, unknown> = {};
  for (const scenario of chosenScenarios()) {
    const one = await measureScenario(scenario);
    rounds.push(one.rounds);
    measured.push(...one.measured);
    details[`${FLOOR}, ${scenarioName(scenario)}`] = one.floors;
  }
  for (const extra of EXTRAS) {
    if (!isChosen(extra.name)) continue;
    const { text, measured: more, detail } = await extra.run(EXTRA_ROUNDS, EXTRA_SECONDS);
    console.log(`\n${text}`);
    measured.push(...more);
    details[extra.name] = detail;
  }
  const comparisons = rounds.flatMap((one) => compare(one, 'vring'));
  if (comparisons.length > 0) console.log(`\n${ratioTable(comparisons)}`);
  const rows = markRows(measured, isChosen);
  console.log(`\n${options.markdown ? markdownTable(rows) : table(rows)}\n`);
  console.log(`${LEGEND}${noOvs}`);
  const results = { rounds, comparisons, marks: measured, details };
  writeResults(options.json, machine, results);
}

/** All rounds of a scenario, and what they say of its marks. */
async function measureScenario(scenario: Scenario) {
  const kinds = chosenBackends(scenario);
  const floors: FloorRun[] = [];
  const isLoop = scenario.topology === 'loop';
  const rounds = await measureRounds(scenario, kinds, PAIRS, SECONDS, isLoop ? floors : null);
  const work = scenarioName(scenario);
  console.log(`\n${runTable(rounds)}`);
  sayProblems(rounds);
  if (isLoop) {
    const loop = describeSpread(floors.map((floor) => floor.nsPerFrame), 0); // prettier-ignore
    console.log(`  ${FLOOR} ${loop} ns per frame`);
  }
  if (options.profile) {
    console.log(`where our worker's time goes:\n${await profile(scenario)}`);
  }
  const measured: Measured[] = compare(rounds, 'vring').map((c) => ({ ...c, work }));
  const loops = rounds.rounds.flatMap((runs, i) => {
    const ours = runs.find((run) => run.backend === 'vring' && run.problem === null);
    const floor = floors[i];
    if (ours?.backendNsPerFrame == null || floor?.placement !== ours.placement) return [];
    return [floor.nsPerFrame / ours.backendNsPerFrame];
  });
  if (loops.length > 0) {
    const ratio = summarize(loops);
    measured.push({
      work,
      rival: FLOOR,
      ratio,
      loopRatio: ratio,
      busyShare: null,
      clientShare: null,
    });
  }
  return { rounds, measured, floors };
}

/** Why runs do not count; where all of ours are such, the bench has failed. */
function sayProblems({ rounds }: Rounds): void {
  const runs = rounds.flat();
  const problems = runs.flatMap(({ backend, problem }) =>
    problem === null ? [] : [`${backend}: ${problem}`],
  );
  for (const problem of new Set(problems)) console.log(`  does not count: ${problem}`);
  const ours = runs.filter(({ backend }) => backend === 'vring');
  if (ours.length > 0 && ours.every(({ problem }) => problem !== null)) process.exitCode = 1;
}

function isChosen(name: string): boolean {
  return options.only
    .split(' ')
    .filter(Boolean)
    .every((word) => ` ${name} `.includes(` ${word} `));
}

function chosenScenarios(): Scenario[] {
  return allScenarios().filter((scenario) => isChosen(scenarioName(scenario)));
}

function chosenBackends(scenario: Scenario): BackendKind[] {
  const names = options.backends.split(',').filter(Boolean);
  return BACKENDS.filter((kind) => {
    if (!kind.topologies.includes(scenario.topology)) return false;
    return (names.length === 0 || names.includes(kind.name)) && kind.isInstalled();
  });
}

/** One more stand of ours, under V8's profiler. */
async function profile(scenario: Scenario): Promise<string> {
  await using stand = await Stand.start(VRING_PROFILED, scenario);
  await stand.run(PROFILE_SECONDS);
  return await stand.profile(); // before it is closed
}

await main();
