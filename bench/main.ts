/**
 * `npm run bench`: our switch against DPDK's vhost library and Open vSwitch with DPDK, loaded by
 * the same client, in interleaved runs; and the table of marks (bench/marks.ts).
 *
 *   npm run bench                                 everything, 5 rounds: a quarter of an hour
 *   npm run bench -- --quick                      a look: 2 rounds of 1 s
 *   npm run bench -- --pairs 9 --only 'loop split 64'
 *   npm run bench -- --backends dpdk,ovs          without us: is the harness itself in order?
 *
 * Two cores are enough: the client's forwarding thread has core 1 and the back-end core 0, where
 * the sleeping prompts and control threads are too. Machines of this size are noisy and often
 * bimodal, so back-ends take turns (the order is reversed every round) and only ratios of runs of
 * the same round are compared.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname } from 'node:path';
import { readOptions, wholeNumber, wrongUsage } from '../scripts/options.ts';
import { messageOf } from '../src/base/errors.ts';
import { aptLine, requireProgram } from '../src/vmm/programs.ts';
import { BACKENDS, OVS, VRING_PROFILED, type BackendKind } from './backends.ts';
import { describeSpread } from './distribution.ts';
import { EXTRAS } from './extras.ts';
import { machineFacts } from './machine.ts';
import { FLOOR, markRows, type Measured } from './marks.ts';
import { measure } from './measure.ts';
import { compare, markdownTable, ratioTable, runTable, table, type Rounds } from './report.ts';
import { measureFloor, type Floor } from './ring-floor.ts';
import { allScenarios, scenarioName, type Run, type Scenario } from './scenario.ts';
import { summarize } from './statistics.ts';

const USAGE = `npm run bench -- [options]
  --pairs N          rounds per scenario (5)
  --seconds N        of each measured run (2)
  --quick            2 rounds of 1 s
  --only TEXT        what has all these words in its name: 'pair split 64', 'uplink', 'round trip'
  --backends A,B     of vring, dpdk, ovs (all that are installed)
  --profile          one more run of ours per scenario, under V8's profiler
  --markdown         the table of marks for a document
  --json FILE        every run and ratio (build/bench.json)`;

const { values: options } = readOptions(USAGE, {
  options: {
    pairs: { type: 'string' },
    seconds: { type: 'string' },
    quick: { type: 'boolean', default: false },
    markdown: { type: 'boolean', default: false },
    only: { type: 'string', default: '' },
    backends: { type: 'string', default: '' },
    json: { type: 'string', default: 'build/bench.json' },
    profile: { type: 'boolean', default: false },
  },
});

const PAIRS = wholeNumber(USAGE, '--pairs', options.pairs ?? (options.quick ? '2' : '5'), 1);
const SECONDS = wholeNumber(USAGE, '--seconds', options.seconds ?? (options.quick ? '1' : '2'), 1);

const LEGEND = `Above 1 we are faster. "own loops": the rival's nanoseconds per frame in its own
loop over ours; it decides where our loop waits for the client, which is then what both rates say
most of. A per cent behind an interval: what it covers, where the pairs are too few for 95 %.`;

async function main(): Promise<void> {
  if (chosenScenarios().length === 0 && !EXTRAS.some(({ name }) => isChosen(name))) {
    wrongUsage(USAGE, `--only: nothing has all words of "${options.only}" in its name`);
  }
  requireProgram('dpdk-testpmd');
  if (availableParallelism() < 2) throw new Error('two cores are needed');
  const machine = machineFacts();
  for (const [key, value] of Object.entries(machine)) console.log(`${key.padEnd(12)} ${value}`);
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
    const { text, measured: more, detail } = await extra.run(PAIRS, SECONDS);
    console.log(`\n${text}`);
    measured.push(...more);
    details[extra.name] = detail;
  }
  const comparisons = rounds.flatMap((one) => compare(one, 'vring'));
  if (comparisons.length > 0) console.log(`\n${ratioTable(comparisons)}`);
  const rows = markRows(measured, isChosen);
  console.log(`\n${options.markdown ? markdownTable(rows) : table(rows)}\n`);
  console.log(`${LEGEND}${noOvs}`);
  mkdirSync(dirname(options.json), { recursive: true });
  const at = new Date().toISOString();
  const result = { at, machine, rounds, comparisons, marks: measured, details };
  writeFileSync(options.json, `${JSON.stringify(result, null, 1)}\n`);
  console.log(`\nwritten to ${options.json}`);
}

/** All rounds of a scenario, and what they say of its marks. */
async function measureScenario(scenario: Scenario) {
  const kinds = chosenBackends(scenario);
  const floors: Floor[] = [];
  const rounds: Rounds = { scenario, rounds: await measureRounds(scenario, kinds, floors) };
  const work = scenarioName(scenario);
  console.log(`\n${runTable(rounds)}`);
  const cores = floors.map((floor) => floor.coreToCoreNs);
  if (floors.length > 0) {
    const loop = describeSpread(floors.map((floor) => floor.nsPerFrame), 0); // prettier-ignore
    console.log(`  ${FLOOR} ${loop} ns per frame   core to core ${describeSpread(cores, 0)} ns`);
  }
  if (options.profile) {
    const run = await attempt(VRING_PROFILED, scenario);
    console.log(`where our worker's time goes:\n${run.profile ?? 'nothing was measured'}`);
  }
  const measured: Measured[] = compare(rounds, 'vring').map((c) => ({ ...c, work }));
  const loops = rounds.rounds.flatMap((runs, i) => {
    const ours = runs.find((run) => run.backend === 'vring' && run.problem === null);
    const floor = floors[i];
    if (ours?.backendNsPerFrame == null || floor === undefined) return [];
    return [floor.nsPerFrame / ours.backendNsPerFrame];
  });
  if (loops.length > 0) {
    const ratio = summarize(loops);
    measured.push({ work, rival: FLOOR, ratio, loopRatio: ratio, busyShare: null });
  }
  return { rounds, measured, floors };
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

async function measureRounds(
  scenario: Scenario,
  kinds: readonly BackendKind[],
  floors: Floor[],
): Promise<Run[][]> {
  const rounds: Run[][] = [];
  for (let round = 0; round < PAIRS; round++) {
    const order = round % 2 === 0 ? kinds : kinds.toReversed();
    const runs: Run[] = [];
    for (const kind of order) {
      const first = await attempt(kind, scenario);
      runs.push(first.problem === null ? first : await attempt(kind, scenario));
    }
    rounds.push(runs);
    if (scenario.topology === 'loop') floors.push(await measureFloor(scenario, 1));
  }
  return rounds;
}

/** A run that fails is said aloud, and tried once more by the caller; it never ends the bench. */
async function attempt(kind: BackendKind, scenario: Scenario): Promise<Run> {
  const run = await measure(kind, scenario, SECONDS).catch((error): Run => ({
    backend: kind.name,
    pps: 0,
    ppsPerPort: [],
    backendNsPerFrame: null,
    clientNsPerFrame: null,
    waitingShare: 0,
    profile: null,
    problem: messageOf(error),
  }));
  if (run.problem !== null) {
    console.error(`${kind.name}, ${scenarioName(scenario)}: ${run.problem}`);
  }
  return run;
}

await main();
