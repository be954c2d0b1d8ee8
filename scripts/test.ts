/**
 * `npm test`: everything that must hold, in one run of node's test runner.
 *
 *   npm test                    all tests; those whose peer is missing say so
 *   npm test -- switch vlan     only files whose path contains one of the words
 *   VRING_REQUIRE_PEERS=1       a missing peer fails instead
 *
 * Unit tests run side by side. End-to-end tests start virtual machines and busy pollers, which
 * starve each other on two cores, so they run one after another, before the others; those between
 * programs of ours (SIDE_BY_SIDE) run two at a time. All find their modules in the compile cache:
 * otherwise each file's process strips the types of hundreds, a third of its start. With
 * VRING_REQUIRE_PEERS=1 a file that fails is run once more by itself, and what it takes to pass is
 * said at the end: a shared machine can stall a guest for seconds, a mistake of ours fails twice.
 * Not so where each run draws other numbers: what fuzzers and models find counts at once.
 */
import { spawnSync } from 'node:child_process';
import { globSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { workerEnvironment } from '../src/runtime/compile-cache.ts';

const words = process.argv.slice(2);
const wanted = (file: string): boolean =>
  words.length === 0 || words.some((word) => file.includes(word));
const unit = globSync('{src,test,scripts}/**/*.test.ts')
  .filter((file) => !file.startsWith('test/e2e/'))
  .filter(wanted)
  .toSorted();
const e2e = globSync('test/e2e/*.test.ts').filter(wanted).toSorted();

/**
 * End-to-end tests whose programs are mostly ours and mostly start, wait for each other and end:
 * one process at a time works. No guest of QEMU, no poller and nothing that measures is in them:
 * not software-guests, where the average length of a stream's frames fell beside a neighbour.
 */
const SIDE_BY_SIDE = [
  'bad-images',
  'disk',
  'disks',
  'exports',
  'guest-blk',
  'guest-scsi',
  'http-disk',
  'luks2',
  'nbd',
  'nbd-chain',
  'nbd-tls',
  'reconnect-software',
  'scsi-adapters',
  'serve-blk',
  'software-iommu',
  'software-lifecycle',
  'software-migration',
  'zoned',
].map((name) => `test/e2e/${name}.test.ts`);

const scratch = mkdtempSync(join(tmpdir(), 'vring-test-'));

/** Runs the files; returns those that failed. */
function run(title: string, files: string[], concurrency: number): string[] {
  if (files.length === 0) return [];
  process.stdout.write(`\n# ${title}: ${files.length} files\n`);
  const list = join(scratch, 'failed');
  const { status } = spawnSync(
    process.execPath,
    [
      '--test',
      `--import=${join(import.meta.dirname, 'end-of-tests.ts')}`,
      `--test-concurrency=${concurrency}`,
      '--test-reporter=spec',
      '--test-reporter-destination=stdout',
      `--test-reporter=${join(import.meta.dirname, 'failed-files.ts')}`,
      `--test-reporter-destination=${list}`,
      ...files,
    ],
    { stdio: 'inherit', env: workerEnvironment(true) },
  );
  if (status === 0) return [];
  const failed = readFileSync(list, 'utf8').split('\n').filter(Boolean);
  return failed.length > 0 ? failed : files; // it did not get as far as a report
}

const beside = e2e.filter((file) => SIDE_BY_SIDE.includes(file));
const alone = e2e.filter((file) => !SIDE_BY_SIDE.includes(file));
if (unit.length + e2e.length === 0) {
  process.stderr.write(`no test file matches ${words.join(' ')}\n`);
  process.exit(2);
}
const failedFirst = [
  ...run('end to end, with real peers', alone, 1),
  ...run('end to end, two at a time', beside, Math.min(2, availableParallelism())),
  ...run('unit, property and fuzz tests', unit, availableParallelism()),
];
const isRandom = (file: string): boolean => /fuzz|model/.test(file);
const again =
  process.env['VRING_REQUIRE_PEERS'] === '1' ? failedFirst.filter((file) => !isRandom(file)) : [];
const failed = [
  ...failedFirst.filter((file) => !again.includes(file)),
  ...run('once more: failed the first time', again, 1),
];
rmSync(scratch, { recursive: true });
for (const file of again) {
  const verdict = failed.includes(file) ? 'failed twice' : 'passed the second time only';
  process.stdout.write(`# ${file}: ${verdict}\n`);
}
process.exit(failed.length === 0 ? 0 : 1);
