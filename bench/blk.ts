/**
 * `npm run bench:blk`: our block device against qemu-storage-daemon's vhost-user-blk export, with
 * the software guest as the same client for both, in interleaved runs.
 *
 *   npm run bench:blk                                  every scenario, 3 rounds of 2 s
 *   npm run bench:blk -- --pairs 9 --only 'null read depth 32'
 *
 * The client polls on core 1, the back-end has core 0. Back-ends take turns (the order is reversed
 * every round), and only ratios of runs of the same round are compared: see bench/main.ts. `null`
 * is null-co there, which does not touch the data, and memory here, which copies it.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { readOptions, wholeNumber } from '../scripts/options.ts';
import { messageOf } from '../src/base/errors.ts';
import { connectBlkGuest, runBlkWorkload, type BlkReport } from '../src/guest/index.ts';
import { requireProgram } from '../src/vmm/programs.ts';
import { BlkServer, createDiskFile } from '../test/peers/blk-server.ts';
import { Scratch } from '../test/peers/scratch.ts';
import { StorageDaemon } from '../test/peers/storage-daemon.ts';
import { snapshot, waitingShare } from './disturbance.ts';
import { machineFacts } from './machine.ts';
import { BACKEND_CORE, CLIENT_CORE } from './scenario.ts';
import { median, summarize } from './statistics.ts';

const USAGE = `npm run bench:blk -- [options]
  --pairs N      rounds per scenario (3)
  --seconds N    of each measured run (2)
  --only TEXT    scenarios whose name contains all words: 'file write depth 32'
  --json FILE    every run and ratio (build/bench-blk.json)`;

const { values: options } = readOptions(USAGE, {
  options: {
    pairs: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '2' },
    only: { type: 'string', default: '' },
    json: { type: 'string', default: 'build/bench-blk.json' },
  },
});

const DISK_BYTES = 256 * 2 ** 20;
const WARM_UP_SECONDS = 0.5;
/** Waiting for a core above this share makes a run useless. */
const MAX_WAITING_SHARE = 0.08;

type Scenario = {
  readonly image: 'null' | 'file';
  readonly op: 'read' | 'write';
  readonly depth: number;
  readonly queues: number;
};

type Run = {
  readonly backend: string;
  readonly iops: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly waitingShare: number;
  /** Why it does not count, or null. */
  readonly problem: string | null;
};

type Backend = { readonly pid: number; close(): Promise<void> };
type BackendKind = {
  readonly name: string;
  start(scenario: Scenario, socket: string, file: string): Promise<Backend>;
};

const VRING: BackendKind = {
  name: 'vring',
  async start({ image, queues }, socket, file) {
    const bytes = image === 'file' ? ['--file', file] : ['--memory', String(DISK_BYTES)];
    const server = await BlkServer.start('--socket', socket, '--queues', String(queues), ...bytes);
    execFileSync('taskset', ['-a', '-c', '-p', String(BACKEND_CORE), String(server.pid)], {
      stdio: 'ignore',
    });
    return server;
  },
};

const QEMU: BackendKind = {
  name: 'qemu',
  start({ image, queues }, socket, file) {
    const place = { file: image === 'file' ? file : null, sizeBytes: DISK_BYTES };
    return StorageDaemon.start({ socket, ...place, queues, core: BACKEND_CORE });
  },
};

function allScenarios(): Scenario[] {
  const scenarios: Scenario[] = [];
  for (const image of ['null', 'file'] as const) {
    for (const op of ['read', 'write'] as const) {
      for (const depth of [1, 32, 128]) {
        for (const queues of [1, 2]) scenarios.push({ image, op, depth, queues });
      }
    }
  }
  return scenarios;
}

function nameOf({ image, op, depth, queues }: Scenario): string {
  return `${image} ${op} depth ${depth} queues ${queues}`;
}

async function main(): Promise<void> {
  requireProgram('qemu-storage-daemon');
  if (availableParallelism() < 2) throw new Error('two cores are needed');
  const pairs = wholeNumber(USAGE, '--pairs', options.pairs, 1);
  const seconds = wholeNumber(USAGE, '--seconds', options.seconds, 1);
  execFileSync('taskset', ['-a', '-c', '-p', String(CLIENT_CORE), String(process.pid)], {
    stdio: 'ignore',
  });
  const machine = machineFacts();
  for (const [key, value] of Object.entries(machine)) console.log(`${key.padEnd(12)} ${value}`);
  const words = options.only.split(' ').filter(Boolean);
  const measured: { scenario: Scenario; rounds: Run[][] }[] = [];
  for (const scenario of allScenarios()) {
    if (!words.every((word) => ` ${nameOf(scenario)} `.includes(` ${word} `))) continue;
    const rounds: Run[][] = [];
    for (let round = 0; round < pairs; round++) {
      const order = round % 2 === 0 ? [VRING, QEMU] : [QEMU, VRING];
      const runs: Run[] = [];
      for (const kind of order) runs.push(await attempt(kind, scenario, seconds));
      rounds.push(runs);
    }
    measured.push({ scenario, rounds });
    console.log(`\n${lines(scenario, rounds)}`);
  }
  mkdirSync(dirname(options.json), { recursive: true });
  const at = new Date().toISOString();
  writeFileSync(options.json, `${JSON.stringify({ at, machine, measured }, null, 1)}\n`);
  console.log(`\nAbove 1 we are faster. Written to ${options.json}`);
}

/** A run that fails or was disturbed is said aloud; it never ends the bench. */
async function attempt(kind: BackendKind, scenario: Scenario, seconds: number): Promise<Run> {
  try {
    return await measure(kind, scenario, seconds);
  } catch (error) {
    const problem = messageOf(error);
    console.error(`${kind.name}, ${nameOf(scenario)}: ${problem}`);
    return { backend: kind.name, iops: 0, p50Us: 0, p99Us: 0, waitingShare: 0, problem };
  }
}

async function measure(kind: BackendKind, scenario: Scenario, seconds: number): Promise<Run> {
  await using scratch = new Scratch();
  const { depth, queues, op } = scenario;
  // On tmpfs: the cost of the path, not of this machine's disk.
  const folder = mkdtempSync('/dev/shm/vring-');
  scratch.own({ close: () => rmSync(folder, { recursive: true, force: true }) });
  const file = createDiskFile(join(folder, 'disk.img'), DISK_BYTES);
  const socket = scratch.path('s');
  const backend = scratch.own(await kind.start(scenario, socket, file));
  const requestBytes = 4096;
  const guest = scratch.own(
    await connectBlkGuest({ socket, queues, ringSize: 256, requestBytes, notify: 'poll' }),
  );
  const work = { guest, depth, poll: true, readPercent: op === 'read' ? 100 : 0 };
  await runBlkWorkload({ ...work, seconds: WARM_UP_SECONDS });
  const before = snapshot([process.pid, backend.pid]);
  const report: BlkReport = await runBlkWorkload({ ...work, seconds });
  const waiting = waitingShare(before, snapshot([process.pid, backend.pid]));
  if (report.errors > 0) throw new Error(`${report.errors} requests were answered with an error`);
  const { latency } = report.ops[op]!;
  const share = (waiting * 100).toFixed(0);
  return {
    backend: kind.name,
    iops: report.iops,
    p50Us: latency!.p50Us,
    p99Us: latency!.p99Us,
    waitingShare: waiting,
    problem:
      waiting <= MAX_WAITING_SHARE ? null : `disturbed: a thread waited ${share} % of the time`,
  };
}

function lines(scenario: Scenario, rounds: readonly (readonly Run[])[]): string {
  const text = [nameOf(scenario)];
  const sound = rounds.filter((runs) => runs.every(({ problem }) => problem === null));
  for (const { name } of [VRING, QEMU]) {
    const runs = sound.flat().filter(({ backend }) => backend === name);
    const middle = (of: (run: Run) => number): string =>
      runs.length === 0 ? '-' : median(runs.map(of)).toFixed(0);
    text.push(
      `  ${name.padEnd(6)} ${middle(({ iops }) => iops).padStart(8)} IOPS   ` +
        `p50 ${middle(({ p50Us }) => p50Us)} us, p99 ${middle(({ p99Us }) => p99Us)} us`,
    );
  }
  if (sound.length === 0) return [...text, '  no undisturbed round'].join('\n');
  const of = (runs: readonly Run[], name: string): number =>
    runs.find(({ backend }) => backend === name)!.iops;
  const ratio = summarize(sound.map((runs) => of(runs, 'vring') / of(runs, 'qemu')));
  const [low, middle, high] = [ratio.min, ratio.median, ratio.max].map((n) => n.toFixed(2));
  const disturbed = rounds.length - sound.length;
  const note = disturbed === 0 ? '' : `; ${disturbed} rounds were disturbed`;
  text.push(`  ratio  ${middle} (${low} .. ${high}) of ${ratio.count} rounds${note}`);
  return text.join('\n');
}

await main();
