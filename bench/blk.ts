/**
 * `npm run bench:blk`: our block device against qemu-storage-daemon's vhost-user-blk export, with
 * the software guest as the same client for both, in interleaved runs; and both against the bare
 * cost of io_uring on the same kind of file (bench/uring-cost.c), where there is a file.
 *
 *   npm run bench:blk                                  every scenario, 5 rounds of 0.5 s
 *   npm run bench:blk -- --pairs 9 --only 'null read depth 32'
 *
 * The client polls on core 1, the back-ends have core 0, of which the one whose turn it is not uses
 * nothing. Every disk was written once before. Only ratios of runs of the same round are compared.
 *
 *   null     nothing is moved: null engine, null-co
 *   memory   4 KiB are copied: our memory; there a file on tmpfs, which qemu copies by a system
 *            call, as it has no driver of memory that copies
 *   file     a regular file in the page cache, as both open one when nothing else is said
 *   direct   the same with O_DIRECT and io_uring on both sides
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { readOptions, wholeNumber } from '../scripts/options.ts';
import { messageOf } from '../src/base/errors.ts';
import { type BlkGuest, connectBlkGuest, runBlkWorkload } from '../src/guest/index.ts';
import { requireProgram } from '../src/vmm/programs.ts';
import { Scratch } from '../test/peers/scratch.ts';
import { coreTimes, foreignShare } from './core-times.ts';
import {
  DISK_BYTES,
  type DiskScenario,
  QEMU,
  type SideKind,
  uringCost,
  VRING,
} from './disk-sides.ts';
import { printMachine, writeResults } from './results.ts';
import { CLIENT_CORE } from './scenario.ts';
import { median, summarize } from './statistics.ts';

const USAGE = `npm run bench:blk -- [options]
  --pairs N      rounds per scenario that must be undisturbed (5); twice as many are tried
  --millis N     of each measured run (500)
  --only TEXT    scenarios whose name contains all words: 'file write depth 32'
  --folder PATH  where files are made (/var/tmp)
  --json FILE    every run and ratio (build/bench-blk.json)`;

const { values: options } = readOptions(USAGE, {
  options: {
    pairs: { type: 'string', default: '5' },
    millis: { type: 'string', default: '500' },
    only: { type: 'string', default: '' },
    folder: { type: 'string', default: '/var/tmp' },
    json: { type: 'string', default: 'build/bench-blk.json' },
  },
});

/** A run of which others had more than this share of a core is useless. */
const MAX_FOREIGN_SHARE = 0.1;
const REQUEST_BYTES = 4096;

type Run = {
  readonly side: string;
  readonly iops: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly foreignShare: number;
};

type Round = { readonly runs: readonly Run[]; readonly raw: number | null };

function allScenarios(): DiskScenario[] {
  const scenarios: DiskScenario[] = [];
  for (const below of ['null', 'memory', 'file', 'direct'] as const) {
    for (const op of ['read', 'write'] as const) {
      for (const depth of [1, 32, 128]) {
        for (const queues of [1, 2]) scenarios.push({ below, op, depth, queues });
      }
    }
  }
  return scenarios;
}

function nameOf({ below, op, depth, queues }: DiskScenario): string {
  return `${below} ${op} depth ${depth} queues ${queues}`;
}

async function main(): Promise<void> {
  requireProgram('qemu-storage-daemon');
  if (availableParallelism() < 2) throw new Error('two cores are needed');
  const pairs = wholeNumber(USAGE, '--pairs', options.pairs, 1);
  const seconds = wholeNumber(USAGE, '--millis', options.millis, 1) / 1000;
  execFileSync('taskset', ['-a', '-c', '-p', String(CLIENT_CORE), String(process.pid)], {
    stdio: 'ignore',
  });
  const machine = printMachine();
  const words = options.only.split(' ').filter(Boolean);
  const measured: { scenario: DiskScenario; rounds: Round[] }[] = [];
  for (const scenario of allScenarios()) {
    if (!words.every((word) => ` ${nameOf(scenario)} `.includes(` ${word} `))) continue;
    try {
      const rounds = await measure(scenario, pairs, seconds);
      measured.push({ scenario, rounds });
      console.log(`\n${lines(scenario, rounds)}`);
    } catch (error) {
      console.error(`\n${nameOf(scenario)}: ${messageOf(error)}`); // said aloud, and on it goes
    }
  }
  console.log('\nAbove 1 we are faster.');
  writeResults(options.json, machine, { measured });
}

/** All rounds of a scenario, with both back-ends there all the time. */
async function measure(scenario: DiskScenario, pairs: number, seconds: number): Promise<Round[]> {
  await using scratch = new Scratch();
  const parent = scenario.below === 'memory' ? '/dev/shm' : options.folder;
  const folder = mkdtempSync(join(parent, 'vring-blk-'));
  scratch.own({ close: () => rmSync(folder, { recursive: true, force: true }) });
  const content = Buffer.alloc(DISK_BYTES, 'written once before');
  const files = ['vring', 'qemu', 'raw'].map((name) => join(folder, name));
  for (const file of files) writeFileSync(file, content, { flush: true });
  const sides: { kind: SideKind; guest: BlkGuest; pid: number }[] = [];
  const { queues } = scenario;
  for (const [i, kind] of [VRING, QEMU].entries()) {
    const socket = scratch.path(kind.name);
    const { pid } = scratch.own(await kind.start(scenario, socket, files[i]!));
    const wishes = { socket, queues, ringSize: 256, requestBytes: REQUEST_BYTES };
    const guest = scratch.own(await connectBlkGuest({ ...wishes, notify: 'poll' }));
    sides.push({ kind, guest, pid });
    await runBlkWorkload({ guest, fill: true, poll: true, seconds: 0.3, readPercent: 50 });
    await load(guest, scenario, 0.5);
  }
  const pids = [process.pid, ...sides.map(({ pid }) => pid)];
  const rounds: Round[] = [];
  for (let tried = 0, sound = 0; sound < pairs && tried < 2 * pairs; tried++) {
    const runs: Run[] = [];
    for (const { kind, guest } of tried % 2 === 0 ? sides : sides.toReversed()) {
      const before = coreTimes(pids);
      const result = await load(guest, scenario, seconds);
      const share = foreignShare(before, coreTimes(pids));
      runs.push({ side: kind.name, ...result, foreignShare: share });
    }
    const hasFile = scenario.below === 'file' || scenario.below === 'direct';
    const raw = hasFile ? uringCost(scenario, files[2]!, seconds) : null;
    rounds.push({ runs, raw });
    if (isSound({ runs, raw })) sound++;
  }
  return rounds;
}

async function load(
  guest: BlkGuest,
  { op, depth }: DiskScenario,
  seconds: number,
): Promise<Omit<Run, 'side' | 'foreignShare'>> {
  const work = { guest, depth, poll: true, readPercent: op === 'read' ? 100 : 0 };
  const report = await runBlkWorkload({ ...work, seconds });
  if (report.errors > 0) throw new Error(`${report.errors} requests were answered with an error`);
  const { p50Us, p99Us } = report.ops[op]!.latency!;
  return { iops: report.iops, p50Us, p99Us };
}

function isSound({ runs }: Round): boolean {
  return runs.every((run) => run.foreignShare <= MAX_FOREIGN_SHARE);
}

function lines(scenario: DiskScenario, rounds: readonly Round[]): string {
  const text = [nameOf(scenario)];
  const undisturbed = rounds.filter(isSound);
  const sound = undisturbed.length > 0 ? undisturbed : rounds;
  const runOf = ({ runs }: Round, name: string): Run => runs.find(({ side }) => side === name)!;
  for (const name of ['vring', 'qemu']) {
    const middle = (of: (run: Run) => number): string =>
      median(sound.map((round) => of(runOf(round, name)))).toFixed(0);
    text.push(
      `  ${name.padEnd(6)} ${middle(({ iops }) => iops).padStart(8)} IOPS   ` +
        `p50 ${middle(({ p50Us }) => p50Us)} us, p99 ${middle(({ p99Us }) => p99Us)} us`,
    );
  }
  const ratioTo = (what: string, other: (round: Round) => number): void => {
    const ratios = sound.map((round) => runOf(round, 'vring').iops / other(round));
    const { min, median: middle, max, count } = summarize(ratios);
    const [low, half, high] = [min, middle, max].map((n) => n.toFixed(2));
    text.push(`  to ${what.padEnd(8)} ${half} (${low} .. ${high}) of ${count} rounds`);
  };
  ratioTo('qemu', (round) => runOf(round, 'qemu').iops);
  if (sound[0]!.raw !== null) {
    const raw = median(sound.map((round) => round.raw!));
    text.push(`  raw    ${raw.toFixed(0).padStart(8)} IOPS`);
    ratioTo('raw', (round) => round.raw!);
  }
  const disturbed = rounds.length - undisturbed.length;
  if (undisturbed.length === 0) text.push('  every round was disturbed: only the order is told');
  else if (disturbed > 0) text.push(`  ${disturbed} more rounds were disturbed`);
  return text.join('\n');
}

await main();
