/**
 * `npm test`: everything that must hold, in one run of node's test runner.
 *
 *   npm test                    all tests; those whose peer is missing say so
 *   npm test -- switch vlan     only files whose path contains one of the words
 *   VRING_REQUIRE_PEERS=1       a missing peer fails instead
 *
 * Unit tests run side by side. End-to-end tests start virtual machines and busy pollers, which
 * starve each other on two cores, so they run one after another, before the others.
 */
import { spawnSync } from 'node:child_process';
import { globSync } from 'node:fs';
import { availableParallelism } from 'node:os';

const words = process.argv.slice(2);
const wanted = (file: string): boolean =>
  words.length === 0 || words.some((word) => file.includes(word));
const unit = globSync('{src,test,scripts}/**/*.test.ts')
  .filter((file) => !file.startsWith('test/e2e/'))
  .filter(wanted)
  .toSorted();
const e2e = globSync('test/e2e/*.test.ts').filter(wanted).toSorted();

function pass(title: string, files: string[], concurrency: number): boolean {
  if (files.length === 0) return true;
  process.stdout.write(`\n# ${title}: ${files.length} files\n`);
  const run = spawnSync(
    process.execPath,
    ['--test', `--test-concurrency=${concurrency}`, '--test-reporter=spec', ...files],
    { stdio: 'inherit' },
  );
  return run.status === 0;
}

if (unit.length + e2e.length === 0) {
  process.stderr.write(`no test file matches ${words.join(' ')}\n`);
  process.exit(2);
}
const passed = [
  pass('end to end, with real peers', e2e, 1),
  pass('unit, property and fuzz tests', unit, availableParallelism()),
];
process.exit(passed.every(Boolean) ? 0 : 1);
