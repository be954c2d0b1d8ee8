/**
 * `readDirect` and `readParts` at the edges: what they take is what `takeChains` and `readFrames`
 * make of the same ring, and what they leave to them is exactly what is said here. Drivers, many
 * and long, are in direct-frames.test.ts.
 */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { arena } from '../../sys/arena.ts';
import { COUNTER_TAKEN, type DeviceQueue } from '../../virtqueue/device-queue.ts';
import { takeChains } from '../../virtqueue/device.hot.ts';
import { readDirect } from './direct-read.hot.ts';
import { readParts } from './direct-parts.hot.ts';
import {
  BIG,
  EIGHTH,
  HandRing,
  INDIRECT,
  LOW,
  NEXT,
  NINTH,
  type Part,
  RANGES,
  READ_ONLY,
  type Range,
  type RingOptions,
  SeenPlan,
  WRITE,
  WRITE_ONLY,
  spoiledBatch,
  spoiledChains,
} from './direct-fixture.ts';
import { readFrames } from './read-frames.hot.ts';

type Way = typeof readDirect;
type Options = Omit<RingOptions, 'packed'> & { readonly segCapacity?: number };
/** Chains that are taken, and whether the way says that something else follows. */
type Taken = readonly [count: number, more: 'other' | 'end'];

/** Behind the tables. */
const AT = BIG.gpa + 0x8000;
const END = BIG.gpa + BIG.sizeBytes;
const MAX = 65_565; // the longest frame and its header
const PARTS = 24;

const opened: { close: () => void }[] = [];
afterEach(() => {
  for (const made of opened.splice(0)) made.close();
});

function openRing(options: RingOptions): HandRing {
  const ring = new HandRing(options);
  opened.push(ring);
  return ring;
}

/** The queue after what was taken, which is exactly what the general way takes. */
function taken(ring: HandRing, way: Way, [count, more]: Taken, options: Options = {}): DeviceQueue {
  const q = ring.queue();
  takeOnce(ring, q, way, [count, more], options);
  return q;
}

function takeOnce(
  ring: HandRing,
  q: DeviceQueue,
  way: Way,
  [count, more]: Taken,
  { segCapacity }: Options = {},
): void {
  const [one, two] = [spoiledBatch(segCapacity), spoiledBatch(segCapacity)];
  opened.push(one, two);
  const [chains, general] = [spoiledChains(), spoiledChains()];
  const [plan, generalPlan] = [new SeenPlan(one.batch), new SeenPlan(two.batch)];
  const reference = ring.queue();
  reference.nextAvail = q.nextAvail;
  reference.availWrap = q.availWrap;
  q.missed = 1;
  const wasAllowed = q.lastAllowed;
  q.counters[COUNTER_TAKEN] = 7;
  const found = way(q, chains, plan, one.batch);
  assert.equal(found, more === 'end' ? count : ~count);
  assert.equal(q.missed, 0);
  assert.equal(q.lastRange < Math.min(q.mapCount, q.iotlb === 1 ? q.mapCount : 8), true);
  assert.equal(q.lastAllowed, q.mapPermission[q.lastRange]);
  assert.equal(q.lastAllowed & 1, wasAllowed & 1, 'what is not taken is no range to begin with');
  if (found === 0 || found === -1) {
    assert.equal(q.nextAvail, reference.nextAvail);
    assert.equal(q.availWrap, reference.availWrap);
    return;
  }
  assert.equal(takeChains(reference, general, count), count);
  assert.equal(readFrames(general, generalPlan, two.batch, 12, 63) >= 0, true);
  assert.deepEqual(plan.look(), generalPlan.seen);
  assert.deepEqual(
    { count: chains.count, segments: chains.segments, uniform: chains.uniform },
    { count, segments: 0, uniform: 1 },
  );
  assert.equal(chains.unfilled, 2);
  assert.deepEqual(chains.head.subarray(0, count), general.head.subarray(0, count));
  assert.deepEqual(chains.written.subarray(0, count), general.written.subarray(0, count));
  if (ring.packed) {
    // Rows of one descriptor each are left unfilled by the general way.
    const slots = general.unfilled === 0 ? general.slots : new Int32Array(count).fill(1);
    assert.deepEqual([...chains.slots.subarray(0, count)], [...slots.subarray(0, count)]);
  }
  assert.equal(q.nextAvail, reference.nextAvail);
  assert.equal(q.availWrap, reference.availWrap);
  assert.equal(q.counters[COUNTER_TAKEN], 7 + count);
}

const AVAILABLE = 1 << 23; // packed, in a descriptor's last word
const IS_USED = 1 << 31;
const STATE = AVAILABLE | IS_USED;

type Fill = (ring: HandRing) => void;

/** Behind a good chain. */
function behindOne(fill: Fill): Fill {
  return (ring) => {
    ring.list([AT + 512, 60]);
    fill(ring);
  };
}

function many(count: number, one: (i: number) => void): void {
  for (let i = 0; i < count; i++) one(i);
}

/** One from each range that may be read and is looked through. */
function fromEvery(ring: HandRing): void {
  for (const { gpa, permission } of RANGES.slice(0, 8)) {
    if ((permission & 1) !== 0) ring.list([gpa + 64, 100]);
  }
}

type Case = readonly [what: string, fill: Fill, taken: Taken, options?: Options];

/** Chains of one descriptor, which both ways take. */
const SINGLES: readonly Case[] = [
  ['nothing', () => {}, [0, 'end']],
  [
    'lengths from no frame at all to more than the copy',
    (ring) => [12, 13, 75, 76, 77, 2000, 12].forEach((len, i) => ring.list([AT + 4096 * i, len])),
    [7, 'end'],
  ],
  ['the longest, first', (ring) => [MAX, 40].forEach((len) => ring.list([AT, len])), [2, 'end']],
  ['the longest', (ring) => [40, MAX].forEach((len) => ring.list([AT, len])), [2, 'end']],
  ...[MAX + 1, 11, 0, -1, -13, 2 ** 31 - 1, -(2 ** 31), -(2 ** 31) + 12].map((len): Case => [
    `a length of ${len}`,
    behindOne((ring) => ring.list([AT, len])),
    [1, 'other'],
  ]),
  ...[WRITE, INDIRECT, WRITE | INDIRECT].map((flags): Case => [
    `flags ${flags}, and no tables`,
    behindOne((ring) => ring.list([AT, 96, flags])),
    [1, 'other'],
    { indirect: false },
  ]),
  ['flags that say nothing', (ring) => ring.list([AT, 100, 0x7f78]), [1, 'end']],
  ['more than a batch', (ring) => many(100, (i) => ring.list([AT + 16 * i, 60 + i])), [64, 'end']],
  ['a full ring', (ring) => many(8, () => ring.list([AT, 60])), [8, 'end'], { size: 8 }],
  ...([0xf000_0000, AT, RANGES[4]!.gpa, EIGHTH.gpa] as const).flatMap((gpa): Case[] => {
    const name = `at 0x${gpa.toString(16)}`;
    const range = RANGES.find((r) => gpa >= r.gpa && gpa < r.gpa + r.sizeBytes)!;
    const { gpa: start, sizeBytes } = range;
    const end = start + sizeBytes;
    const first = (ring: HandRing) => ring.list([start + 128, 100]);
    const one = (part: Part) => (ring: HandRing) => ring.list(part);
    return [
      [`${name}: from the edge`, one([start, 100]), [1, 'end']],
      [`${name}: to the edge`, one([end - 100, 100]), [1, 'end']],
      [`${name}: before it`, one([start - 1, 100]), [0, 'other']],
      [`${name}: behind it`, one([end - 99, 100]), [0, 'other']],
      [`${name}: and to the edge`, (r) => (first(r), r.list([end - 100, 100])), [2, 'end']],
      [`${name}: and from the edge`, (r) => (first(r), r.list([start, 100])), [2, 'end']],
      [`${name}: and before it`, (r) => (first(r), r.list([start - 1, 100])), [1, 'other']],
      [`${name}: and behind it`, (r) => (first(r), r.list([end - 99, 100])), [1, 'other']],
      [`${name}: and far before it`, (r) => (first(r), r.list([start - 5000, 100])), [1, 'other']],
    ];
  }),
  ['from every range but one to be written', fromEvery, [7, 'end']],
  ['one that may not be read', behindOne((r) => r.list([WRITE_ONLY.gpa, 100])), [1, 'other']],
  [
    'few ranges, the last',
    behindOne((r) => r.list([RANGES[4]!.gpa, 60])),
    [2, 'end'],
    { ranges: RANGES.slice(0, 5) },
  ],
  [
    'few ranges, and one that there was before',
    behindOne((r) => r.list([RANGES[5]!.gpa, 60])),
    [1, 'other'],
    { ranges: RANGES.slice(0, 5) },
  ],
  ['the ninth range', behindOne((r) => r.list([NINTH.gpa, 100])), [1, 'other']],
  ['the eighth range, last', behindOne((r) => r.list([EIGHTH.gpa, 100])), [2, 'end']],
];

/** What a ring holds otherwise, each with `fill`s that know its format. */
const SPLIT_SINGLES: readonly Case[] = [
  ['positions over 65535', (r) => many(5, () => r.list([AT, 70])), [5, 'end'], { base: 0xfffd }],
  ['a position of 65535', (r) => r.list([AT, 70]), [1, 'end'], { base: 0xffff }],
  ['as many as it holds', (r) => (r.list([AT, 70]), r.claim(8)), [8, 'end'], { size: 8 }],
  ['more than it holds', (r) => (r.list([AT, 70]), r.claim(9)), [0, 'other'], { size: 8 }],
  ...[8, 9, 0x7fff, 0xffff].map((head): Case => [
    `head ${head}`,
    behindOne((r) => r.offer(head)),
    [1, 'other'],
    { size: 8 },
  ]),
  ['the last head', (r) => (r.put(7, AT, 70, 0), r.offer(7)), [1, 'end'], { size: 8 }],
];
const PACKED_SINGLES: readonly Case[] = [
  ['a large ring', (r) => r.list([AT, 70]), [1, 'end'], { size: 300 }],
  ...([1, 0] as const).flatMap((wrap): Case[] => [
    [
      'over its end',
      (r) => many(7, () => r.list([AT, 70])),
      [7, 'end'],
      { size: 7, base: 5, wrap },
    ],
    ['to its end', (r) => many(2, () => r.list([AT, 70])), [2, 'end'], { size: 7, base: 5, wrap }],
    [
      'more than a batch',
      (r) => many(100, () => r.list([AT, 70])),
      [64, 'end'],
      { base: 90, wrap },
    ],
    ...[0, AVAILABLE | IS_USED, wrap === 1 ? IS_USED : AVAILABLE].map((state): Case => [
      `state ${state}, wrap ${wrap}`,
      (r) => (many(2, () => r.list([AT, 70])), (r.desc[7] = (r.desc[7]! & ~STATE) | state)),
      [1, 'end'],
      { wrap },
    ]),
    ...[0, AVAILABLE | IS_USED, wrap === 1 ? IS_USED : AVAILABLE].map((state): Case => [
      `state ${state} first, wrap ${wrap}`,
      (r) => (r.list([AT, 70]), (r.desc[3] = (r.desc[3]! & ~STATE) | state)),
      [0, 'end'],
      { wrap },
    ]),
  ]),
  ...[7, 8, 0xffff].map((id): Case => [
    `buffer id ${id}`,
    behindOne((r) => (r.list([AT, 70]), (r.desc[7] = (r.desc[7]! & ~0xffff) | id))),
    [1, 'other'],
    { size: 7 },
  ]),
];

/** A part that is a segment by itself, where the first has what is copied of a frame. */
const LONG: Part = [AT + 4096, 100];

function parts(count: number): Part[] {
  return Array.from({ length: count }, (_, i): Part => [AT + 4096 + 128 * i, 100]);
}

/** Chains of several descriptors, in a list; then in a table. */
const LISTS: readonly Case[] = [
  ['header and frame', (r) => r.list([AT, 12], [AT + 64, 70]), [1, 'end']],
  ['in the header', (r) => r.list([AT, 5], [AT + 64, 7]), [1, 'end']],
  ['shorter than the header', behindOne((r) => r.list([AT, 5], [AT + 64, 6])), [1, 'other']],
  ['up to the copy', (r) => r.list([AT, 12], [AT + 64, 64]), [1, 'end']],
  ['over the copy', (r) => r.list([AT, 12], [AT + 64, 65]), [1, 'end']],
  ['behind the copy', (r) => r.list([AT, 76], [AT + 128, 1], [AT + 512, 1]), [1, 'end']],
  ['copied from three', (r) => r.list([AT, 12], [AT + 64, 33], [AT + 512, 40]), [1, 'end']],
  ['one segment each', (r) => many(3, () => r.list([AT, 12], [AT + 64, 164])), [3, 'end']],
  ['one with two segments', (r) => (r.list([AT, 164], LONG), r.list([AT, 200])), [2, 'end']],
  ['three segments', (r) => (r.list([AT, 200]), r.list([AT, 164], LONG, LONG)), [2, 'end']],
  ['as many as may be', (r) => (r.list(...parts(PARTS)), r.list(LONG)), [2, 'end']],
  ['more than may be', behindOne((r) => r.list(...parts(PARTS + 1))), [1, 'other']],
  ['a part of nothing', behindOne((r) => r.list([AT, 100], [AT, 0], [AT, 100])), [1, 'other']],
  ['a part of nothing, last', behindOne((r) => r.list([AT, 100], [AT, 0])), [1, 'other']],
  ['the longest', (r) => r.list([AT, 12], [AT, 40_000], [AT, MAX - 40_012]), [1, 'end']],
  ['longer', behindOne((r) => r.list([AT, 12], [AT, 40_000], [AT, MAX - 40_011])), [1, 'other']],
  ['much longer', behindOne((r) => r.list([AT, MAX], [AT, MAX], [AT, MAX])), [1, 'other']],
  ['a part that is too long', behindOne((r) => r.list([AT, 12], [AT, MAX + 1])), [1, 'other']],
  ['a negative part', behindOne((r) => r.list([AT, 100], [AT, -20])), [1, 'other']],
  ['from several ranges', (r) => r.list([LOW.gpa, 50], LONG, [EIGHTH.gpa, 9], LONG), [1, 'end']],
  ['a part to the edge', (r) => r.list(LONG, [END - 100, 100], LONG), [1, 'end']],
  ['a part behind it', behindOne((r) => r.list(LONG, [END - 99, 100], LONG)), [1, 'other']],
  ['a part not to be read', behindOne((r) => r.list(LONG, [WRITE_ONLY.gpa, 9])), [1, 'other']],
  ['a part in the ninth range', behindOne((r) => r.list(LONG, [NINTH.gpa, 9])), [1, 'other']],
  ['the same again behind it', behindOne((r) => r.list(LONG, [NINTH.gpa, 9], LONG)), [1, 'other']],
  ...[0, 1, 2].map((k): Case => [
    `part ${k} is to be written`,
    behindOne((r) => r.list(...parts(3).map((p, i): Part => [p[0], p[1], i === k ? WRITE : 0]))),
    [1, 'other'],
  ]),
];

const IN_LISTS: readonly Case[] = [
  ...[1, 2].map((k): Case => [
    `part ${k} is a table`,
    behindOne((r) => r.list(...parts(3).map((p, i): Part => [p[0], 96, i === k ? 4 : 0]))),
    [1, 'other'],
  ]),
  [
    'no more than a small ring',
    (r) => r.list([AT, 9], [AT, 9], [AT, 9], LONG),
    [1, 'end'],
    { size: 4 },
  ],
];

const SPLIT_LISTS: readonly Case[] = [
  ...[8, 9, 0x7fff, 0x8000, 0xffff].map((next): Case => [
    `next ${next}`,
    behindOne((r) => (r.list(LONG, LONG), (r.desc[7] = NEXT | (next << 16)))),
    [1, 'other'],
    { size: 8 },
  ]),
  ['backwards', (r) => (r.list(LONG, LONG), r.put(2, AT, 33, NEXT), r.offer(2)), [2, 'end']],
  [
    'to the last',
    (r) => (r.put(7, AT, 40, 0), r.put(0, AT, 99, NEXT | (7 << 16)), r.offer(0)),
    [1, 'end'],
    { size: 8 },
  ],
  [
    'a circle',
    behindOne((r) => (r.list(LONG, LONG), (r.desc[11] = NEXT | (1 << 16)))),
    [1, 'other'],
  ],
  [
    'a circle of few',
    behindOne((r) => (r.list(LONG, LONG), (r.desc[11] = NEXT | (1 << 16)))),
    [1, 'other'],
    { size: 4 },
  ],
  [
    'a circle of little',
    behindOne((r) => (r.put(1, AT, 1, NEXT | (1 << 16)), r.offer(1))),
    [1, 'other'],
    { size: 4 },
  ],
];
const PACKED_LISTS: readonly Case[] = [
  ...([1, 0] as const).flatMap((wrap): Case[] => [
    [
      'over its end',
      (r) => (r.list(...parts(4)), r.list(LONG)),
      [2, 'end'],
      { size: 7, base: 5, wrap },
    ],
    [
      'to its end',
      (r) => (r.list(LONG, LONG), r.list(LONG)),
      [2, 'end'],
      { size: 7, base: 5, wrap },
    ],
    [
      'up to the second round',
      (r) => (r.list(LONG), r.list(LONG, LONG)),
      [2, 'end'],
      { size: 7, base: 4, wrap },
    ],
  ]),
  ...[7, 8, 0xffff].map((id): Case => [
    `buffer id ${id}`,
    behindOne((r) => (r.list(LONG, LONG), (r.desc[11] = (r.desc[11]! & ~0xffff) | id))),
    [1, 'other'],
    { size: 7 },
  ]),
  ['as many as a small ring has', (r) => r.list(...parts(5)), [1, 'end'], { size: 5 }],
  [
    'a circle',
    (r) => (r.list(...parts(5)), (r.desc[19]! |= NEXT << 16)),
    [0, 'other'],
    { size: 5 },
  ],
];

/** A table among chains of one. */
const TABLES: readonly Case[] = [
  ['one entry', (r) => r.table([[AT, 100]]), [1, 'end']],
  [
    'header and frame',
    (r) =>
      r.table([
        [AT, 12],
        [AT + 64, 700],
      ]),
    [1, 'end'],
  ],
  ['several', (r) => many(5, (i) => r.table(parts(i + 1))), [5, 'end']],
  [
    'among others',
    behindOne((r) => (r.table(parts(3)), r.list(LONG, LONG), r.list(LONG))),
    [4, 'end'],
  ],
  ['as many entries as may be', (r) => (r.table(parts(PARTS)), r.list(LONG)), [2, 'end']],
  ['more than may be', behindOne((r) => r.table(parts(PARTS + 1))), [1, 'other']],
  ['many more', behindOne((r) => r.table(parts(200))), [1, 'other']],
  ...[0, 8, 15, 17, 24, 31, -16, -(2 ** 31) + 32].map((len): Case => [
    `${len} bytes`,
    behindOne((r) => r.table(parts(2), { len })),
    [1, 'other'],
  ]),
  ['a list behind it', behindOne((r) => r.table(parts(2), { flags: NEXT })), [1, 'other']],
  ['a table to be written', (r) => r.table(parts(2), { flags: WRITE }), [1, 'end']],
  [
    'where none was agreed on',
    behindOne((r) => r.table(parts(2))),
    [1, 'other'],
    { indirect: false },
  ],
  ...[0, 1, 2].map((k): Case => [
    `entry ${k} is to be written`,
    behindOne((r) => r.table(parts(3).map((p, i): Part => [p[0], p[1], i === k ? WRITE : 0]))),
    [1, 'other'],
  ]),
  ['an entry of nothing', behindOne((r) => r.table([LONG, [AT, 0]])), [1, 'other']],
  ['an entry that is too long', behindOne((r) => r.table([LONG, [AT, MAX + 1]])), [1, 'other']],
  ['an entry behind the edge', behindOne((r) => r.table([LONG, [END - 99, 100]])), [1, 'other']],
  ['an entry in the ninth range', behindOne((r) => r.table([LONG, [NINTH.gpa, 9]])), [1, 'other']],
  ['entries in several ranges', (r) => r.table([[LOW.gpa, 50], LONG, [EIGHTH.gpa, 9]]), [1, 'end']],
  ['entries that say nothing by their flags', (r) => r.table([[AT, 80, 0x7f78]]), [1, 'end']],
  ...[LOW, BIG, RANGES[4]!, EIGHTH].flatMap((range): Case[] => {
    const start = range.gpa + (range === BIG ? 0x100 : 0);
    const end = range.gpa + range.sizeBytes;
    const name = `at 0x${start.toString(16)}`;
    const at = (gpa: number) => (r: HandRing) => void r.table(parts(2), { gpa });
    return [
      [`${name}: from its edge`, at(start), [1, 'end']],
      [`${name}: to its edge`, at(end - 32), [1, 'end']],
      [`${name}: both`, (r) => (at(start)(r), at(end - 32)(r), at(LOW.gpa + 64)(r)), [3, 'end']],
    ];
  }),
  ...[LOW, RANGES[4]!, EIGHTH].flatMap((range): Case[] => {
    const end = range.gpa + range.sizeBytes;
    const name = `at 0x${range.gpa.toString(16)}`;
    const inside = (r: HandRing) => r.table(parts(2), { gpa: range.gpa + 64 });
    // All its words are there, behind the edge, too.
    const at = (gpa: number) => (r: HandRing) => void r.table(parts(2), { gpa, inside: range.gpa });
    return [
      [`${name}: before it`, at(range.gpa - 16), [0, 'other']],
      [`${name}: behind it`, at(end - 16), [0, 'other']],
      [`${name}: and before it`, (r) => (inside(r), at(range.gpa - 16)(r)), [1, 'other']],
      [`${name}: and behind it`, (r) => (inside(r), at(end - 16)(r)), [1, 'other']],
    ];
  }),
  [
    'a table not to be read',
    behindOne((r) => r.table(parts(2), { gpa: WRITE_ONLY.gpa })),
    [1, 'other'],
  ],
  [
    'a table in the ninth range',
    behindOne((r) => r.table(parts(2), { gpa: NINTH.gpa })),
    [1, 'other'],
  ],
];

const SPLIT_TABLES: readonly Case[] = [
  ['a shorter one', behindOne((r) => r.table(parts(2), { len: 16 })), [1, 'other']],
  ...[NEXT, INDIRECT].map((flags): Case => [
    `the last entry has flags ${flags}`,
    behindOne((r) => r.table([LONG, [AT, 50, flags]])),
    [1, 'other'],
  ]),
  ...[0, NEXT | (2 << 16), NEXT | (0 << 16), 1 << 16, NEXT | INDIRECT | (1 << 16)].map(
    (last): Case => [
      `the first of three entries ends with 0x${last.toString(16)}`,
      behindOne((r) => void arena().view.setInt32(r.table(parts(3)) + 12, last, true)),
      [1, 'other'],
    ],
  ),
];
const PACKED_TABLES: readonly Case[] = [
  ['flags of a list', (r) => r.table(parts(4).map((p): Part => [p[0], p[1], 5])), [1, 'end']],
  [
    'what is no flag',
    (r) => void arena().view.setInt32(r.table(parts(2)) + 12, 0x1234, true),
    [1, 'end'],
  ],
  ['over the end', (r) => many(4, () => r.table(parts(3))), [4, 'end'], { size: 6, base: 4 }],
];

/** Segments are few: a batch ends where the longest chain might not fit. */
const FEW: Options = { segCapacity: 48 };
const FEW_SEGMENTS: readonly Case[] = [
  ['two of the longest', (r) => many(3, () => r.list(...parts(24))), [2, 'end'], FEW],
  ['one more', (r) => [24, 1, 2].forEach((n) => r.list(...parts(n))), [2, 'end'], FEW],
  ['one less', (r) => [23, 1, 24, 1].forEach((n) => r.list(...parts(n))), [3, 'end'], FEW],
];

for (const packed of [false, true]) {
  const format = packed ? 'packed' : 'split';
  const check = (cases: readonly Case[], way: Way): void => {
    for (const [what, fill, found, options] of cases) {
      const ring = openRing({ ...options, packed });
      fill(ring);
      try {
        taken(ring, way, found, options);
      } catch (error) {
        throw new Error(`${way.name}: ${what}`, { cause: error });
      }
    }
  };
  const singles = [...SINGLES, ...(packed ? PACKED_SINGLES : SPLIT_SINGLES)];
  test(`${format}: chains of one descriptor`, () => check(singles, readDirect));
  test(`${format}: chains of one descriptor, by parts`, () => check(singles, readParts));
  const lists = [...LISTS, ...IN_LISTS, ...(packed ? PACKED_LISTS : SPLIT_LISTS)];
  test(`${format}: lists`, () => check(lists, readParts));
  test(`${format}: lists, in tables`, () => check(LISTS.map(inTable), readParts));
  const tables = [...TABLES, ...(packed ? PACKED_TABLES : SPLIT_TABLES)];
  test(`${format}: tables`, () => check(tables, readParts));
  test(`${format}: few segments`, () => check(FEW_SEGMENTS, readParts));
  test(`${format}: a list is nothing for chains of one`, () => {
    for (const list of [[LONG, LONG], [[AT, 100, NEXT]]] as const) {
      const ring = openRing({ packed });
      behindOne((r) => r.list(...list))(ring);
      taken(ring, readDirect, [1, 'other']);
    }
  });
  for (const way of [readDirect, readParts]) {
    test(`${format}, ${way.name}: goes on where it ended, in the range of before`, () => {
      const ring = openRing({ packed });
      ring.list([LOW.gpa, 100]);
      ring.list([READ_ONLY.gpa, 100]);
      const q = taken(ring, way, [2, 'end']);
      assert.equal(q.mapPermission[q.lastRange], READ_ONLY.permission);
      ring.list([READ_ONLY.gpa + 200, 300]);
      ring.list([EIGHTH.gpa, 200]);
      takeOnce(ring, q, way, [2, 'end']);
      ring.list([LOW.gpa, 200]);
      ring.list([NINTH.gpa, 200]);
      takeOnce(ring, q, way, [1, 'other']);
      assert.equal(takeChains(q, spoiledChains(), 64), 1, 'the general way has it');
    });
    test(`${format}, ${way.name}: nothing is read in a range that may not be`, () => {
      const ranges: Range[] = [{ ...LOW, permission: 2 }, ...RANGES.slice(1)];
      const ring = openRing({ packed, ranges });
      ring.list([LOW.gpa, 100]);
      taken(ring, way, [0, 'other']);
    });
  }
  test(`${format}: with an IOTLB, only the range that a page was found in before`, () => {
    const page = (NINTH.gpa / 4096) & 1023;
    for (const [hint, found, ranges] of [
      [8, [2, 'end'], RANGES],
      [7, [1, 'other'], RANGES],
      [0, [1, 'other'], RANGES],
      [9, [1, 'other'], RANGES],
      [12, [1, 'other'], RANGES],
      [8, [1, 'other'], RANGES.slice(0, 8)], // it is there no more
    ] as readonly (readonly [number, Taken, readonly Range[]])[]) {
      const ring = openRing({ packed, iotlb: true, ranges });
      behindOne((r) => r.list([NINTH.gpa + 8, 100]))(ring);
      const q = ring.queue();
      q.rangeHint.fill(1);
      q.rangeHint[page] = hint;
      takeOnce(ring, q, readDirect, found);
    }
    const ring = openRing({ packed, iotlb: true });
    ring.list(LONG);
    taken(ring, readParts, [0, 'other']);
  });
}

function inTable([what, fill, found, options]: Case): Case {
  const into = (ring: HandRing): HandRing => {
    const list = (...all: readonly Part[]): number => ring.table(all);
    return Object.assign(Object.create(ring) as HandRing, { list });
  };
  return [`${what}, in tables`, (ring) => fill(into(ring)), found, options ?? {}];
}
