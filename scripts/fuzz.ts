/**
 * `npm run fuzz`: the fuzzers, for as long as asked.
 *
 *   npm run fuzz                          every fuzzer for 60 seconds
 *   npm run fuzz -- --seconds 3600 queue  one of them for an hour
 *   npm run fuzz -- --seed 42 session     again with the seed that was printed
 *
 * Each `src/<folder>/<name>.fuzz.ts` exports `fuzz({ seconds, seed })`, which throws when an
 * invariant is broken. `npm test` runs each for half a minute with a fresh seed.
 */
import { globSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';

type Fuzzer = (options: { seconds: number; seed: number }) => Promise<unknown>;

const ROOT = join(import.meta.dirname, '..');
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '60' },
    seed: { type: 'string' },
  },
});
const seconds = Number(values.seconds);
const seed = values.seed === undefined ? (Math.random() * 2 ** 31) | 0 : Number(values.seed);
const names = new Map(
  globSync('src/**/*.fuzz.ts', { cwd: ROOT }).map((file) => [basename(file, '.fuzz.ts'), file]),
);
const wanted = positionals.length > 0 ? positionals : [...names.keys()];
for (const name of wanted) {
  if (!names.has(name)) {
    process.stderr.write(`no fuzzer named ${name}; there are: ${[...names.keys()].join(', ')}\n`);
    process.exit(2);
  }
}
if (!(seconds > 0) || !Number.isInteger(seed)) {
  process.stderr.write('--seconds takes a positive number, --seed a whole number\n');
  process.exit(2);
}
for (const name of wanted) {
  process.stdout.write(`${name}: seed ${seed}, ${seconds} s\n`);
  const { fuzz } = (await import(join(ROOT, names.get(name) as string))) as { fuzz: Fuzzer };
  process.stdout.write(`${name}: ${JSON.stringify(await fuzz({ seconds, seed }))}\n`);
}
