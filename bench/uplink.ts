/**
 * `npm run bench:uplink`: our uplinks against DPDK's drivers for the same interfaces, AF_XDP in
 * copy mode and AF_PACKET, over a veth pair.
 *
 *   npm run bench:uplink                            3 rounds of 2 s, 64 bytes
 *   npm run bench:uplink -- --bytes 1500 --pairs 9
 *
 * What is measured is in uplink-run.ts.
 * Rounds are interleaved, and only ratios of runs of the same round are compared.
 */
import { availableParallelism } from 'node:os';
import { readOptions } from '../scripts/options.ts';
import { requireProgram } from '../src/vmm/programs.ts';
import { printMachine, writeResults } from './results.ts';
import { intervalText, median } from './statistics.ts';
import { attemptUplink, compareUplinks, UPLINK_KINDS, type UplinkRun } from './uplink-run.ts';

const USAGE = `npm run bench:uplink -- [options]
  --pairs N          rounds (3)
  --seconds N        of each measured run (2)
  --bytes N          of a frame, 60 to 1500 (64)
  --only A,B         of ${'vring-xdp, vring-packet, dpdk-xdp, dpdk-packet'}
  --json FILE        every run and ratio (build/bench-uplink.json)`;

const { values: options } = readOptions(USAGE, {
  options: {
    pairs: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '2' },
    bytes: { type: 'string', default: '64' },
    only: { type: 'string', default: '' },
    json: { type: 'string', default: 'build/bench-uplink.json' },
  },
});

/** What is compared with what. */
const RATIOS = [
  ['vring-xdp', 'dpdk-xdp'],
  ['vring-packet', 'dpdk-packet'],
  ['vring-xdp', 'dpdk-packet'],
] as const;

function describe(backend: string, rounds: readonly UplinkRun[][]): string {
  const all = rounds.flat().filter((run) => run.backend === backend);
  const runs = all.filter((run) => run.problem === null);
  if (runs.length === 0) return `  ${backend.padEnd(13)} no run counts`;
  const mpps = (value: number): string => (value / 1e6).toFixed(2);
  const loops = runs.map((run) => run.backendNsPerFrame).filter((ns) => ns !== null);
  const cells = [
    `  ${backend.padEnd(13)} ${mpps(median(runs.map((run) => run.pps)))} Mpps back`,
    `of ${mpps(median(runs.map((run) => run.offeredPps)))}`,
    `own loop ${loops.length === 0 ? '-' : median(loops).toFixed(0)} ns per frame`,
    `processor ${median(runs.map((run) => run.cpuNsPerFrame)).toFixed(0)} ns`,
    `runs ${runs.map((run) => mpps(run.pps)).join(' ')}`,
  ];
  return (
    cells.join('   ') +
    (runs.length === all.length ? '' : `   (${all.length - runs.length} failed)`)
  );
}

async function main(): Promise<void> {
  requireProgram('dpdk-testpmd');
  if (availableParallelism() < 2) throw new Error('two cores are needed');
  const machine = printMachine();
  const wanted = options.only.split(',').filter(Boolean);
  const kinds = UPLINK_KINDS.filter(({ name }) => wanted.length === 0 || wanted.includes(name));
  const rounds: UplinkRun[][] = [];
  for (let round = 0; round < Number(options.pairs); round++) {
    const runs: UplinkRun[] = [];
    for (const kind of round % 2 === 0 ? kinds : kinds.toReversed()) {
      runs.push(await attemptUplink(kind, Number(options.bytes), Number(options.seconds)));
    }
    rounds.push(runs);
  }
  console.log(`\nveth uplink ${options.bytes} B`);
  for (const { name } of kinds) console.log(describe(name, rounds));
  const comparisons = RATIOS.map(([a, b]) => compareUplinks(rounds, a, b)).filter(
    (c) => c !== null,
  );
  for (const { subject, rival, ratio, loopRatio } of comparisons) {
    const loops = loopRatio === null ? '' : `   own loops ${loopRatio.median.toFixed(2)}`;
    console.log(
      `  ${subject}/${rival}: ${ratio.median.toFixed(2)} (95 %: ${intervalText(ratio)})${loops}`,
    );
  }
  const results = { bytes: Number(options.bytes), rounds, comparisons };
  writeResults(options.json, machine, results);
}

await main();
