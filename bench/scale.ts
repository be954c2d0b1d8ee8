/**
 * What a frame costs against the number of ports, addresses, flows and queues:
 *
 *   npm run bench:scale                        all of it, a process for each question
 *   npm run bench:scale -- idle --rounds 40    one question
 *   npm run bench:scale -- --process           a real process with 250 ports (scale-process.ts)
 *   npm run bench:scale -- --model             more workers than there are cores (scale-model.ts)
 *
 * Variants live in one process, take turns of some milliseconds, and only turns of the same round
 * are compared. Each has a floor beside it (scale-floor.ts): the same bytes and table lines moved
 * and touched without any of our work, which meets the same cache misses. docs/scale.md.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { readOptions, wholeNumber, wrongUsage } from '../scripts/options.ts';
import { assert } from '../src/base/assert.ts';
import { fifthPercentile } from './cases.ts';
import { printMachine, writeResults } from './results.ts';
import { model } from './scale-model.ts';
import { measureProcess } from './scale-process.ts';
import { type Load, PEEK_MS, World } from './scale-world.ts';
import { median } from './statistics.ts';

const TURN_MS = 4;
const WARM_TURNS = 40;

const QUESTIONS: Readonly<Record<string, Readonly<Record<string, Load>>>> = {
  idle: {
    '2 ports': { busy: 2, pattern: 'pair' },
    '14 more idle': { busy: 2, idle: 14, pattern: 'pair' },
    '62 more idle': { busy: 2, idle: 62, pattern: 'pair' },
    '126 more idle': { busy: 2, idle: 126, pattern: 'pair' },
    '254 more idle': { busy: 2, idle: 254, pattern: 'pair' },
  },
  pairs: {
    '2 ports': { busy: 2, pattern: 'pair' },
    '8 in pairs': { busy: 8, pattern: 'pair' },
    '32 in pairs': { busy: 32, pattern: 'pair' },
    '128 in pairs': { busy: 128, pattern: 'pair' },
  },
  all: {
    '2 ports': { busy: 2, pattern: 'all' },
    '8 to all': { busy: 8, pattern: 'all' },
    '32 to all': { busy: 32, pattern: 'all' },
    '128 to all': { busy: 128, pattern: 'all' },
  },
  addresses: {
    '2': { busy: 2, pattern: 'pair', addresses: 2 },
    '128': { busy: 2, pattern: 'pair', addresses: 128, macCapacity: 131072 },
    '1 000': { busy: 2, pattern: 'pair', addresses: 1000, macCapacity: 131072 },
    '10 000': { busy: 2, pattern: 'pair', addresses: 10_000, macCapacity: 131072 },
    '100 000': { busy: 2, pattern: 'pair', addresses: 100_000, macCapacity: 131072 },
    '1 of 100 000': { busy: 2, pattern: 'pair', addresses: 100_000, used: 1, macCapacity: 131072 },
  },
  flows: {
    '1': { busy: 2, pairs: 4, sendPairs: 1, pattern: 'pair', flows: 1 },
    '1 000': { busy: 2, pairs: 4, sendPairs: 1, pattern: 'pair', flows: 1000 },
    '100 000': { busy: 2, pairs: 4, sendPairs: 1, pattern: 'pair', flows: 100_000 },
    '1 000 000': { busy: 2, pairs: 4, sendPairs: 1, pattern: 'pair', flows: 1_000_000 },
  },
  'flows-to-all': {
    '1': { busy: 8, pairs: 4, sendPairs: 1, pattern: 'all', flows: 1 },
    '1 000': { busy: 8, pairs: 4, sendPairs: 1, pattern: 'all', flows: 1000 },
    '100 000': { busy: 8, pairs: 4, sendPairs: 1, pattern: 'all', flows: 100_000 },
    '1 000 000': { busy: 8, pairs: 4, sendPairs: 1, pattern: 'all', flows: 1_000_000 },
  },
  queues: {
    '1 pair': { busy: 2, pattern: 'pair', flows: 1_000_000 },
    '2 pairs': { busy: 2, pairs: 2, pattern: 'pair', flows: 1_000_000 },
    '4 pairs': { busy: 2, pairs: 4, pattern: 'pair', flows: 1_000_000 },
    '8 pairs': { busy: 2, pairs: 8, pattern: 'pair', flows: 1_000_000 },
  },
};

const USAGE = `npm run bench:scale -- [QUESTION] [options]
  QUESTION     ${Object.keys(QUESTIONS).join(', ')}
  --rounds N   rounds, in which each variant has a turn of ${TURN_MS} ms (100)
  --process    a switch of its own process with 2 and with 250 ports
  --model      workers beyond the cores of this machine, simulated
  --json FILE  all results (build/bench-scale.json)
  --part       one question of several: the machine's facts were printed`;

type Result = Readonly<Record<string, string | number>>;

function ask(question: string, variants: Readonly<Record<string, Load>>, rounds: number): Result[] {
  const worlds = Object.entries(variants).map(([name, load]) => new World(name, load));
  for (let n = 0; n < WARM_TURNS; n++) {
    for (const world of worlds) world.turn(TURN_MS, n % 4 === 3);
  }
  for (const world of worlds)
    world.samples.length = world.bareSamples.length = world.peekSamples.length = 0;
  const turns = worlds.map((): number[] => []);
  const bare = worlds.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    for (let k = 0; k < worlds.length; k++) {
      const i = (k + round) % worlds.length;
      turns[i]!.push(worlds[i]!.turn(TURN_MS));
      bare[i]!.push(worlds[i]!.turn(TURN_MS / 2, true));
    }
  }
  const head = ['p5', 'median', 'to first', 'floor p5', 'over floor', 'grown', 'peek'];
  console.log(`${question.padEnd(16)} ${head.map((text) => text.padStart(10)).join(' ')}`);
  let first = NaN;
  const results: Result[] = [];
  for (const [i, world] of worlds.entries()) {
    assert(world.lost() === 0, () => `${world.name}: ${world.lost()} frames were lost`);
    const least = fifthPercentile(world.samples);
    const floor = fifthPercentile(world.bareSamples);
    const ratio = median(turns[i]!.map((ns, round) => ns / turns[0]![round]!));
    if (i === 0) first = least - floor;
    // A worker peeks once in so many frames.
    const peek = (median(world.peekSamples) * least) / (PEEK_MS * 1e6);
    const over = least - floor;
    const cells = [least, median(turns[i]!), ratio, floor, over, over - first, peek];
    const digits = [1, 1, 2, 1, 1, 1, 2];
    const text = cells.map((value, k) => value.toFixed(digits[k]).padStart(10));
    console.log(`${world.name.padEnd(16)} ${text.join(' ')}`);
    const named = Object.fromEntries(head.map((key, k) => [key, cells[k]!]));
    results.push({ question, variant: world.name, ...named });
    world.close();
  }
  return results;
}

const { values, positionals } = readOptions(USAGE, {
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '100' },
    process: { type: 'boolean', default: false },
    model: { type: 'boolean', default: false },
    json: { type: 'string', default: 'build/bench-scale.json' },
    part: { type: 'boolean', default: false },
  },
});
const [question] = positionals;
const rounds = wholeNumber(USAGE, '--rounds', values.rounds, 1);
const machine = values.part ? {} : printMachine();
const results = await measure();
writeResults(values.json, machine, { results });

async function measure(): Promise<unknown> {
  if (values.model) return model();
  if (values.process) return measureProcess(Math.min(rounds, 8), 1);
  if (question === undefined) return Object.keys(QUESTIONS).flatMap(apart);
  const variants = QUESTIONS[question];
  if (variants === undefined) return wrongUsage(USAGE, `"${question}" is no question`);
  return ask(question, variants, rounds);
}

/** In a process of its own: what one question leaves behind is not the next one's. */
function apart(name: string): Result[] {
  const file = `${values.json}.${name}`;
  const args = [import.meta.filename, name, '--rounds', values.rounds, '--part', '--json', file];
  execFileSync(process.execPath, args, { stdio: 'inherit' });
  const { results } = JSON.parse(readFileSync(file, 'utf8')) as { results: Result[] };
  rmSync(file);
  return results;
}
