/**
 * How long one frame takes through two ports and back while nothing else happens, and what the
 * back-end uses of a core meanwhile: our switch beside Open vSwitch with DPDK.
 *
 *   npm run bench:latency                                idle: frames some milliseconds apart
 *   npm run bench:latency -- --load 10000                beside 10 000 frames a second
 *   npm run bench:latency -- --ovs-sleep-us 0,500        more settings of Open vSwitch
 *   npm run bench:latency -- --port-options 'OPTIONS'    our ports with options, as a side more
 *
 * The guests are the same for all sides: two software guests in one process on a core of its own
 * (round-trip-client.ts). Idle, their way from the call to the answer is a wake-up each, and a part
 * of every figure here, alike for both sides: the difference between two back-ends is true, their
 * ratio is closer to 1 than without it. The back-end has the other core.
 *
 * Open vSwitch 3.1 polls. `pmd-maxsleep` lets its thread sleep between rounds, and it does not look
 * at what comes meanwhile: the figure is a choice between latency and an idle core. The setting is
 * part of the side's name; `ovs-0us` is the one that never sleeps and takes a whole core.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { readOptions, wholeNumber, wrongUsage } from '../scripts/options.ts';
import { ovsSleeping, VRING, vringWith, type BackendKind } from './backends.ts';
import { machineFacts } from './machine.ts';
import { table } from './report.ts';
import {
  attemptRoundTrips,
  compareRoundTrips,
  OVS_SLEEP_US,
  type RoundTripOptions,
  type RoundTripRun,
} from './round-trip-run.ts';
import { intervalText, median } from './statistics.ts';

const USAGE = `npm run bench:latency -- [options]
  --pairs N            rounds (3)
  --trips N            frames of a round, one after the other (300)
  --load N             background frames a second through the same two ports (0)
  --ring FORMAT        split or packed (split)
  --ovs-sleep-us A,B   pmd-maxsleep of Open vSwitch, a side each (${OVS_SLEEP_US})
  --port-options TEXT  one more side: our switch whose ports have these options
  --json FILE          every run (build/round-trip.json)`;

const { values: options } = readOptions(USAGE, {
  allowPositionals: true,
  options: {
    pairs: { type: 'string', default: '3' },
    trips: { type: 'string', default: '300' },
    load: { type: 'string', default: '0' },
    ring: { type: 'string', default: 'split' },
    'ovs-sleep-us': { type: 'string', default: String(OVS_SLEEP_US) },
    'port-options': { type: 'string' },
    json: { type: 'string', default: 'build/round-trip.json' },
  },
});

const PAIRS = wholeNumber(USAGE, '--pairs', options.pairs, 1);
const { ring } = options;
if (ring !== 'split' && ring !== 'packed') wrongUsage(USAGE, `--ring: "${ring}" is no format`);
const OPTIONS: RoundTripOptions = {
  trips: wholeNumber(USAGE, '--trips', options.trips, 10),
  load: wholeNumber(USAGE, '--load', options.load, 0),
  ring: ring as RoundTripOptions['ring'],
};

function sides(): BackendKind[] {
  const kinds = [VRING];
  const more = options['port-options'];
  if (more !== undefined) kinds.push(vringWith(`vring,${more}`, more));
  for (const text of options['ovs-sleep-us'].split(',').filter(Boolean)) {
    const kind = ovsSleeping(wholeNumber(USAGE, '--ovs-sleep-us', text, 0));
    if (kind.isInstalled()) kinds.push(kind);
    else console.error('Open vSwitch is missing: apt-get install openvswitch-switch-dpdk');
  }
  return kinds;
}

async function main(): Promise<void> {
  const machine = machineFacts();
  for (const [key, value] of Object.entries(machine)) console.log(`${key.padEnd(12)} ${value}`);
  const kinds = sides();
  const rounds: RoundTripRun[][] = [];
  for (let round = 0; round < PAIRS; round++) {
    const runs: RoundTripRun[] = [];
    for (const kind of round % 2 === 0 ? kinds : kinds.toReversed()) {
      runs.push(await attemptRoundTrips(kind, OPTIONS));
    }
    rounds.push(runs);
  }
  console.log(
    `\nround trip of 64 bytes, ${ring} rings, load: ${loadText()}; medians of the rounds`,
  );
  console.log(table(sideRows(kinds, rounds)));
  console.log(`\ntheirs over ours: above 1 we are faster\n${table(ratioRows(kinds, rounds))}`);
  mkdirSync(dirname(options.json), { recursive: true });
  const result = { at: new Date().toISOString(), machine, options: OPTIONS, rounds };
  writeFileSync(options.json, `${JSON.stringify(result, null, 1)}\n`);
  console.log(`\nwritten to ${options.json}`);
}

function loadText(): string {
  return OPTIONS.load === 0 ? 'none' : `${OPTIONS.load} frames a second`;
}

function sideRows(kinds: readonly BackendKind[], rounds: readonly RoundTripRun[][]): string[][] {
  const idle = OPTIONS.load === 0;
  const head = ['side', 'p50 us', 'p90 us', 'p99 us', idle ? 'CPU, idle' : 'CPU'];
  const rows = kinds.map(({ name }) => {
    const runs = rounds.flat().filter((run) => run.backend === name && run.problem === null);
    const of = (pick: (run: RoundTripRun) => number): number => median(runs.map(pick));
    const times = [of((r) => r.p50Us), of((r) => r.p90Us), of((r) => r.p99Us)];
    const cells = [name, ...times.map((us) => us.toFixed(0)), percent(of((r) => r.cpuShare))];
    const load = [
      of((r) => r.framesPerSecond).toFixed(0),
      percent(of((r) => r.cpuShareOf10k ?? NaN)),
    ];
    return [...cells, ...(idle ? [] : load), String(runs.length)];
  });
  return [[...head, ...(idle ? [] : ['frames/s', 'CPU per 10 000/s']), 'runs'], ...rows];
}

function percent(share: number): string {
  return `${(share * 100).toFixed(2)} %`;
}

function ratioRows(kinds: readonly BackendKind[], rounds: readonly RoundTripRun[][]): string[][] {
  const rows = [['of', 'against', 'median', 'min .. max', '95 % of median', 'rounds']];
  for (const { name } of kinds.filter((kind) => kind.name !== VRING.name)) {
    for (const figure of ['p50Us', 'p90Us', 'p99Us', 'cpuShareOf10k'] as const) {
      const ratio = compareRoundTrips(rounds, VRING.name, name, figure);
      if (ratio === null) continue;
      const spread = `${ratio.min.toFixed(2)} .. ${ratio.max.toFixed(2)}`;
      const ends = [spread, intervalText(ratio), String(ratio.count)];
      rows.push([figure, name, ratio.median.toFixed(2), ...ends]);
    }
  }
  return rows;
}

await main();
