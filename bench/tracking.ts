/**
 * What it costs a frame that its ports log dirty pages, or translate by an IOTLB, see port-pair.ts.
 *
 *   npm run bench:dirty-log                a log of buffers and used rings, cleared all the time
 *   npm run bench:iotlb                    one entry for all, and entries of single pages
 *   node bench/tracking.ts all --rounds 400
 */
import { readOptions, wholeNumber, wrongUsage } from '../scripts/options.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../src/wire/virtio-net.ts';
import { VIRTIO_F_RING_PACKED } from '../src/wire/virtio.ts';
import { PortPair, takeTurns } from './port-pair.ts';
import { printMachine, writeResults } from './results.ts';
import { median } from './statistics.ts';

const USAGE = `npm run bench:dirty-log -- [options], npm run bench:iotlb -- [options]
  --rounds N   rounds, in which each variant has a turn (300)
  --json FILE  all turns (build/bench-tracking.json)`;

const { values, positionals } = readOptions(USAGE, {
  options: {
    rounds: { type: 'string', default: '300' },
    json: { type: 'string', default: 'build/bench-tracking.json' },
  },
  allowPositionals: true,
});

type Result = { readonly what: string; readonly name: string; readonly turns: readonly number[] };

type Variant = {
  readonly name: string;
  readonly bench: 'plain' | 'dirty-log' | 'iotlb';
  readonly log?: boolean;
  readonly iommuPageBytes?: number;
};

const VARIANTS: readonly Variant[] = [
  { name: 'plain', bench: 'plain' },
  { name: 'dirty log', bench: 'dirty-log', log: true },
  { name: 'IOTLB, large entry', bench: 'iotlb', iommuPageBytes: 2 ** 30 },
  { name: 'IOTLB, 2 MiB pages', bench: 'iotlb', iommuPageBytes: 2 ** 21 },
  { name: 'IOTLB, 4 KiB pages', bench: 'iotlb', iommuPageBytes: 4096 },
];

function compare(variants: readonly Variant[], packed: boolean, frameBytes: number): Result[] {
  const features = [VIRTIO_NET_F_MRG_RXBUF, ...(packed ? [VIRTIO_F_RING_PACKED] : [])];
  const pairs = variants.map((variant) => new PortPair({ ...variant, features }, frameBytes));
  const turns = takeTurns(pairs, wholeNumber(USAGE, '--rounds', values.rounds, 1));
  const what = `${packed ? 'packed' : 'split'} ${frameBytes}`;
  for (const [i, { name }] of pairs.entries()) {
    const ratio = median(turns[i]!.map((ns, round) => turns[0]![round]! / ns));
    const cells = [median(turns[i]!).toFixed(1).padStart(7), ratio.toFixed(3)];
    console.log(`${what.padEnd(12)} ${name.padEnd(20)} ${cells.join(' ns  rate ')}`);
  }
  return pairs.map(({ name }, i) => ({ what, name, turns: turns[i]! }));
}

const wanted = positionals[0] ?? 'all';
if (!['all', 'dirty-log', 'iotlb'].includes(wanted)) {
  wrongUsage(USAGE, `"${wanted}" is not one of dirty-log, iotlb, all`);
}
const chosen = VARIANTS.filter(
  ({ bench }) => ['plain', wanted].includes(bench) || wanted === 'all',
);
const machine = printMachine();
const results = [false, true].flatMap((packed) =>
  [64, 1500].flatMap((frameBytes) => compare(chosen, packed, frameBytes)),
);
writeResults(values.json, machine, { results });
