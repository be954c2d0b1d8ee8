/**
 * `npm run fuzz`: the fuzzers, for as long as asked.
 *
 *   npm run fuzz                             every fuzzer for 60 seconds
 *   npm run fuzz -- --minutes 60 session     one of them for an hour
 *   npm run fuzz -- --seed 42 session        again with the seed that was printed
 *   npm run fuzz -- --seed 42 --only-iteration 1234 session    the one that failed, alone
 *
 * Each `src/<folder>/<name>.fuzz.ts` exports `fuzz({ seconds, seed })`, which throws when an
 * invariant is broken and names seed and iteration. `npm test` runs each for ten seconds with a
 * fresh seed.
 */
import { globSync } from 'node:fs';
import { basename, join } from 'node:path';
import { readOptions, wrongUsage } from './options.ts';

type FuzzerOptions = {
  seconds: number;
  seed: number;
  onlyIteration?: number;
  onProgress?: (iteration: number) => void;
};
type Fuzzer = (options: FuzzerOptions) => Promise<unknown>;

const ROOT = join(import.meta.dirname, '..');
const USAGE = `npm run fuzz -- [options] [FUZZER...]
  --seconds N          how long each runs (60)
  --minutes N          the same in minutes
  --seed N             the seed that was printed, to do the same again
  --only-iteration N   this iteration alone, with --seed`;

const { values, positionals } = readOptions(USAGE, {
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '60' },
    minutes: { type: 'string' },
    seed: { type: 'string' },
    'only-iteration': { type: 'string' },
  },
});
const seconds = values.minutes === undefined ? Number(values.seconds) : Number(values.minutes) * 60;
const only = values['only-iteration'];
const seed = values.seed === undefined ? (Math.random() * 2 ** 31) | 0 : Number(values.seed);
const names = new Map(
  globSync('src/**/*.fuzz.ts', { cwd: ROOT }).map((file) => [basename(file, '.fuzz.ts'), file]),
);
const wanted = positionals.length > 0 ? positionals : [...names.keys()];
for (const name of wanted) {
  if (!names.has(name)) {
    wrongUsage(USAGE, `no fuzzer named ${name}; there are: ${[...names.keys()].join(', ')}`);
  }
}
if (!(seconds > 0) || !Number.isInteger(seed) || !Number.isInteger(Number(only ?? 0))) {
  const text =
    '--seconds and --minutes take a positive number, --seed and --only-iteration a whole';
  wrongUsage(USAGE, `${text} one`);
}
for (const name of wanted) {
  process.stdout.write(`${name}: seed ${seed}, ${seconds} s\n`);
  const { fuzz } = (await import(join(ROOT, names.get(name) as string))) as { fuzz: Fuzzer };
  const start = performance.now();
  const result = await fuzz({
    seconds,
    seed,
    ...(only === undefined ? {} : { onlyIteration: Number(only) }),
    onProgress(iteration) {
      const elapsed = ((performance.now() - start) / 60_000).toFixed(0);
      process.stdout.write(`${name}: ${elapsed} min, iteration ${iteration}\n`);
    },
  });
  process.stdout.write(`${name}: ${JSON.stringify(result)}\n`);
}
