/**
 * How long one frame takes through two ports and back, and what the back-end uses of a core for it:
 * the policies of our ports side by side, and Open vSwitch with DPDK where it is installed.
 *
 *   npm run bench:latency                              idle, 10,000 frames a second, all that go
 *   npm run bench:latency -- --quick                   a look: 2 rounds
 *   npm run bench:latency -- --loads idle,1k,20k,100k  other loads
 *   npm run bench:latency -- --port-options 'OPTIONS'  our ports with options, as a side more
 *
 * One frame at a time, a *probe*, goes from one software guest to the other and back. Idle, it is
 * alone, milliseconds apart, and all three processes sleep in between: the wake-ups of the guests,
 * two for each round trip, are part of every figure and the same for every side. Beside a load the
 * guests poll (round-trip-client.ts). "full" is as many frames as go with `--window` under way at
 * most; a probe waits behind them, so its time is the queue's.
 *
 * Open vSwitch 3.1 polls. `pmd-maxsleep` lets its thread sleep between rounds, and it does not look
 * at what comes meanwhile: the figure is a choice between latency and an idle core. The setting is
 * part of the side's name; `ovs-0us` is the one that never sleeps and takes a whole core.
 */
import { readOptions, wholeNumber, wrongUsage } from '../scripts/options.ts';
import { PORT_POLICIES } from '../src/devices/net/index.ts';
import { ovsSleeping, vringOf, vringWith, type BackendKind } from './backends.ts';
import { OVS_SLEEP_US } from './idle-trips.ts';
import { markdownTable, table } from './report.ts';
import { printMachine, writeResults } from './results.ts';
import { countText, ratioRows, sideRows } from './round-trip-report.ts';
import { IDLE, measureRoundTrips, type Load } from './round-trip-stand.ts';

const USAGE = `npm run bench:latency -- [options]
  --rounds N         windows of each side and load that must count (6)
  --quick            2 rounds, two minutes at most
  --minutes N        no round begins after so long (5)
  --ms N             of each measured window (700)
  --only A,B         of latency, balanced, throughput, power (all)
  --loads A,B        idle, full, or frames a second: 500, 20k (idle,10k,full)
  --window N         frames under way at most (128)
  --ring FORMAT      split or packed (split)
  --ovs-sleep-us A,B pmd-maxsleep of Open vSwitch, a side each; '' for none (0,${OVS_SLEEP_US})
  --port-options T   one more side: our switch whose ports have these options
  --root DIR         one more side: the switch of another checkout, its default policy
  --markdown         tables for a document
  --json FILE        every run (build/round-trip.json)`;

const { values: options } = readOptions(USAGE, {
  options: {
    rounds: { type: 'string' },
    minutes: { type: 'string', default: '5' },
    quick: { type: 'boolean', default: false },
    ms: { type: 'string', default: '700' },
    only: { type: 'string', default: PORT_POLICIES.join(',') },
    loads: { type: 'string', default: 'idle,10k,full' },
    window: { type: 'string', default: '128' },
    ring: { type: 'string', default: 'split' },
    'ovs-sleep-us': { type: 'string', default: `0,${OVS_SLEEP_US}` },
    'port-options': { type: 'string' },
    root: { type: 'string' },
    markdown: { type: 'boolean', default: false },
    json: { type: 'string', default: 'build/round-trip.json' },
  },
});

const COUNT = wholeNumber(USAGE, '--rounds', options.rounds ?? (options.quick ? '2' : '6'), 1);
/** Of a quick one: two rounds after the start of all sides. */
const QUICK_MS = 80_000;
const END_MS = options.quick
  ? QUICK_MS
  : wholeNumber(USAGE, '--minutes', options.minutes, 1) * 60_000;
const WINDOW_MS = wholeNumber(USAGE, '--ms', options.ms, 100);
const WINDOW = wholeNumber(USAGE, '--window', options.window, 1);
const { ring } = options;
if (ring !== 'split' && ring !== 'packed') wrongUsage(USAGE, `--ring: "${ring}" is no format`);

const tableText = options.markdown ? markdownTable : table;

const LEGEND = `CPU: of one core, all threads of the back-end; "of 10k/s": per 10,000 frames/s.
Sleeps of its threads, calls to and kicks from the drivers: per 10,000 frames, a probe being two.
A per cent behind an interval: what it covers, where the runs are too few for 95 %.`;

async function main(): Promise<void> {
  const machine = printMachine();
  const loads = options.loads.split(',').map(loadOf);
  const ours = ourSides();
  const theirs = theirSides();
  const times = { count: COUNT, ms: WINDOW_MS, endMs: END_MS };
  const plan = { ...times, ring: ring as 'split' | 'packed' };
  const rounds = await measureRoundTrips([...ours, ...theirs], loads, plan);
  const names = (kinds: readonly BackendKind[]): string[] => kinds.map(({ name }) => name);
  for (const { name } of loads) {
    const load = name === 'full' ? `full, ${WINDOW} frames under way` : name;
    console.log(`\nround trip of 64 bytes, ${ring} rings, ${load}: ${countText(rounds, name)}`);
    console.log(tableText(sideRows(rounds, name, names([...ours, ...theirs]))));
  }
  const ratios = ratioRows(
    rounds,
    loads.map(({ name }) => name),
    names(ours),
    names(theirs),
  );
  if (ratios.length > 1)
    console.log(`\ntheirs over ours: above 1 ours is less\n${tableText(ratios)}`);
  console.log(`\n${LEGEND}`);
  writeResults(options.json, machine, { options, rounds });
}

function loadOf(name: string): Load {
  if (name === 'idle') return IDLE;
  if (name === 'full') return { name, framesPerSecond: null, window: WINDOW };
  const [, digits, thousand] = /^(\d+)(k?)$/.exec(name) ?? [];
  const rate = Number(digits) * (thousand === 'k' ? 1000 : 1);
  if (!(rate > 0)) wrongUsage(USAGE, `--loads: "${name}" is neither idle, full nor a rate`);
  return { name, framesPerSecond: rate, window: WINDOW };
}

function ourSides(): BackendKind[] {
  const policies = options.only.split(',').filter(Boolean);
  const kinds = policies.map((policy) => vringWith(policy, `policy=${policy}`));
  const more = options['port-options'];
  if (more !== undefined) kinds.push(vringWith(`vring,${more}`, more));
  if (options.root !== undefined) kinds.push(vringOf('root', options.root));
  return kinds;
}

function theirSides(): BackendKind[] {
  const kinds = options['ovs-sleep-us']
    .split(',')
    .filter(Boolean)
    .map((text) => ovsSleeping(wholeNumber(USAGE, '--ovs-sleep-us', text, 0)));
  const installed = kinds.filter((kind) => kind.isInstalled());
  if (installed.length < kinds.length) {
    console.error('Open vSwitch is missing: apt-get install openvswitch-switch-dpdk');
  }
  return installed;
}

await main();
