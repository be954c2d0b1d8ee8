/**
 * `npm run bench`: our switch against DPDK's vhost library and Open vSwitch with DPDK, loaded by
 * the same client, in interleaved runs.
 *
 *   npm run bench                                 every scenario, 3 rounds of 2 s
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
import { readOptions } from '../scripts/options.ts';
import { messageOf } from '../src/base/errors.ts';
import { requireProgram } from '../src/vmm/programs.ts';
import { BACKENDS, VRING_PROFILED, type BackendKind } from './backends.ts';
import { machineFacts } from './machine.ts';
import { measure } from './measure.ts';
import { compare, ratioTable, runTable, type Rounds } from './report.ts';
import { allScenarios, scenarioName, type Run, type Scenario } from './scenario.ts';

const USAGE = `npm run bench -- [options]
  --pairs N          rounds per scenario (3)
  --seconds N        of each measured run (2)
  --only TEXT        scenarios whose name contains all words: 'pair split 64'
  --backends A,B     of vring, dpdk, ovs (all that are installed)
  --profile          one more run of ours per scenario, under V8's profiler
  --json FILE        every run and ratio (build/bench.json)`;

const { values: options } = readOptions(USAGE, {
  options: {
    pairs: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '2' },
    only: { type: 'string', default: '' },
    backends: { type: 'string', default: '' },
    json: { type: 'string', default: 'build/bench.json' },
    profile: { type: 'boolean', default: false },
  },
});

const LEGEND = `Above 1 we are faster. "own loops": the rival's nanoseconds per frame in
its own loop over ours; it decides where the client is the bottleneck.`;

async function main(): Promise<void> {
  requireProgram('dpdk-testpmd');
  if (availableParallelism() < 2) throw new Error('two cores are needed');
  const machine = machineFacts();
  for (const [key, value] of Object.entries(machine)) console.log(`${key.padEnd(12)} ${value}`);
  const measured: Rounds[] = [];
  for (const scenario of chosenScenarios()) {
    const rounds = await measureRounds(scenario, chosenBackends(scenario));
    measured.push({ scenario, rounds });
    console.log(`\n${runTable({ scenario, rounds })}`);
    if (options.profile) {
      const run = await attempt(VRING_PROFILED, scenario);
      console.log(`where our worker's time goes:\n${run.profile ?? 'nothing was measured'}`);
    }
  }
  const comparisons = measured.flatMap((rounds) => compare(rounds, 'vring'));
  if (comparisons.length > 0) console.log(`\n${ratioTable(comparisons)}\n${LEGEND}`);
  mkdirSync(dirname(options.json), { recursive: true });
  const at = new Date().toISOString();
  writeFileSync(
    options.json,
    `${JSON.stringify({ at, machine, measured, comparisons }, null, 1)}\n`,
  );
  console.log(`\nwritten to ${options.json}`);
}

function chosenScenarios(): Scenario[] {
  const words = options.only.split(' ').filter(Boolean);
  return allScenarios().filter((scenario) => {
    const name = ` ${scenarioName(scenario)} `;
    return words.every((word) => name.includes(` ${word} `));
  });
}

function chosenBackends(scenario: Scenario): BackendKind[] {
  const names = options.backends.split(',').filter(Boolean);
  return BACKENDS.filter((kind) => {
    if (!kind.topologies.includes(scenario.topology)) return false;
    return (names.length === 0 || names.includes(kind.name)) && kind.isInstalled();
  });
}

async function measureRounds(scenario: Scenario, kinds: readonly BackendKind[]): Promise<Run[][]> {
  const rounds: Run[][] = [];
  for (let round = 0; round < Number(options.pairs); round++) {
    const order = round % 2 === 0 ? kinds : kinds.toReversed();
    const runs: Run[] = [];
    for (const kind of order) {
      const first = await attempt(kind, scenario);
      runs.push(first.problem === null ? first : await attempt(kind, scenario));
    }
    rounds.push(runs);
  }
  return rounds;
}

/** A run that fails is said aloud, and tried once more by the caller; it never ends the bench. */
async function attempt(kind: BackendKind, scenario: Scenario): Promise<Run> {
  const run = await measure(kind, scenario, Number(options.seconds)).catch((error): Run => ({
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
