/**
 * What a frame costs by the features and shapes of chains that drivers use, beside a ring of the
 * same format without any: which loop serves which is in docs/paths.md.
 *
 *   npm run bench:paths -- --only 'packed 64'
 */
import { readOptions, wholeNumber } from '../scripts/options.ts';
import * as net from '../src/wire/virtio-net.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../src/wire/virtio.ts';
import { HEADER, type PairOptions, PortPair, takeTurns } from './port-pair.ts';
import { printMachine, writeResults } from './results.ts';
import { median } from './statistics.ts';

const USAGE = `npm run bench:paths -- [options]
  --rounds N    rounds, in which each path has a turn of 4 ms (100)
  --only TEXT   of: split 64, split 1500, packed 64, packed 1500
  --json FILE   all turns (build/bench-paths.json)`;

const { values } = readOptions(USAGE, {
  options: {
    rounds: { type: 'string', default: '100' },
    only: { type: 'string', default: '' },
    json: { type: 'string', default: 'build/bench-paths.json' },
  },
});

const LINUX = [
  net.VIRTIO_NET_F_CSUM,
  net.VIRTIO_NET_F_GUEST_CSUM,
  net.VIRTIO_NET_F_HOST_TSO4,
  net.VIRTIO_NET_F_HOST_TSO6,
  net.VIRTIO_NET_F_GUEST_TSO4,
  net.VIRTIO_NET_F_GUEST_TSO6,
  net.VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
];
type Result = { readonly what: string; readonly name: string; readonly turns: readonly number[] };
/** Ethernet, IPv4 and TCP with timestamps: what Linux has in front of the pages of a packet. */
const TCP_BYTES = 66;
const PLAIN: PairOptions = { name: 'plain' };

function pathsOf(frameBytes: number): PairOptions[] {
  const tables = { features: [VIRTIO_RING_F_INDIRECT_DESC], tables: true };
  const merged = { features: [net.VIRTIO_NET_F_MRG_RXBUF], bufferBytes: 1024 };
  const inPages = frameBytes > 2 * TCP_BYTES;
  const apart = { cut: HEADER + TCP_BYTES, tables: true };
  return [
    PLAIN,
    { name: 'EVENT_IDX', features: [VIRTIO_RING_F_EVENT_IDX] },
    { name: 'MRG_RXBUF', features: [net.VIRTIO_NET_F_MRG_RXBUF] },
    ...(frameBytes > 1024 ? [{ name: 'MRG_RXBUF, two buffers', ...merged }] : []),
    { name: 'IN_ORDER', features: [VIRTIO_F_IN_ORDER] },
    { name: 'INDIRECT_DESC, unused', features: [VIRTIO_RING_F_INDIRECT_DESC] },
    { name: 'four regions', regions: 4 },
    { name: 'header apart', cut: HEADER },
    { name: 'header apart, IN_ORDER', cut: HEADER, features: [VIRTIO_F_IN_ORDER] },
    { name: 'table of one', ...tables },
    { name: 'table, header apart', ...tables, cut: HEADER },
    ...(inPages ? [{ name: 'table, TCP header apart', ...tables, ...apart }] : []),
    { name: 'Linux, UDP', features: LINUX },
    { name: 'Linux, TCP', features: LINUX, needsCsum: true, ...(inPages && apart) },
  ];
}

function compare(packed: boolean, frameBytes: number): Result[] {
  const what = `${packed ? 'packed' : 'split'} ${frameBytes}`;
  if (!what.includes(values.only)) return [];
  const format = packed ? [VIRTIO_F_RING_PACKED] : [];
  const pairs = pathsOf(frameBytes).map(
    (path) =>
      new PortPair({ ...path, features: [...format, ...(path.features ?? [])] }, frameBytes),
  );
  const turns = takeTurns(pairs, wholeNumber(USAGE, '--rounds', values.rounds, 1));
  for (const [i, { name }] of pairs.entries()) {
    const ratio = median(turns[i]!.map((ns, round) => ns / turns[0]![round]!));
    const cells = [median(turns[i]!).toFixed(1).padStart(7), ratio.toFixed(2)];
    console.log(`${what.padEnd(12)} ${name.padEnd(26)} ${cells.join(' ns  x ')}`);
  }
  return pairs.map(({ name }, i) => ({ what, name, turns: turns[i]! }));
}

const machine = printMachine();
const results = [false, true].flatMap((packed) =>
  [64, 1500].flatMap((frameBytes) => compare(packed, frameBytes)),
);
writeResults(values.json, machine, { results });
