/**
 * `writeDirect` at the edges: what it delivers is what `writeFrames` makes of the same ring and
 * frames without it, down to the used ring and the dirty log, and what it leaves is exactly what
 * is said here. Drivers, many and long, are in direct-frames.test.ts.
 */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import type { FrameBatch } from '../../switch/index.ts';
import { CopyPlan } from '../../sys/arena.ts';
import { COUNTER_TAKEN, type DeviceQueue } from '../../virtqueue/device-queue.ts';
import { putUsed } from '../../virtqueue/device.hot.ts';
import {
  BIG,
  EIGHTH,
  HandRing,
  INDIRECT,
  LOW,
  NEXT,
  NINTH,
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
import { writeDirect } from './direct-write.hot.ts';
import { WriteResult, writeFrames } from './write-frames.hot.ts';

/** A frame: what is in its header slot, then its segments. */
type Frame = {
  readonly own: number;
  readonly segments?: readonly number[];
  readonly offload?: number;
  readonly gso?: number;
  /** With a tag that the switch pushed: it starts so many bytes earlier. */
  readonly pushed?: number;
};
type Options = Omit<RingOptions, 'packed'> & {
  readonly frames?: readonly Frame[];
  /** Which frames, in which order; all, if not said. */
  readonly list?: readonly number[];
  readonly flagMask?: number;
  readonly planned?: number;
  readonly planCapacity?: number;
  readonly row?: number;
  readonly plain?: boolean;
};
type Fill = (ring: HandRing) => void;
type Case = readonly [what: string, fill: Fill, delivered: number, options?: Options];

const AT = BIG.gpa + 0x8000;
const PAGE = 4096;
/** Where the sender has what is behind the headers. */
const SOURCE = BIG.gpa + 0x30000;
const SHORT: Frame = { own: 60 };
const shorts = (count: number): Frame[] => Array.from({ length: count }, () => SHORT);

const opened: { close: () => void }[] = [];
afterEach(() => {
  for (const made of opened.splice(0)) made.close();
});

function openRing(options: RingOptions): HandRing {
  const ring = new HandRing(options);
  opened.push(ring);
  return ring;
}

function post(ring: HandRing, len: number, gpa = AT, flags = WRITE): void {
  ring.list([gpa, len, flags]);
}

function many(count: number, one: (ring: HandRing, i: number) => void): Fill {
  return (ring) => {
    for (let i = 0; i < count; i++) one(ring, i);
  };
}

/** Buffers that hold any frame here, each on pages of its own. */
function roomFor(count: number): Fill {
  return many(count, (ring, i) => post(ring, 2048, AT + 2 * PAGE * (i % 16)));
}

/** Behind a good one. */
function behindOne(fill: Fill): Fill {
  return (ring) => {
    post(ring, 100, AT + 0x20000);
    fill(ring);
  };
}

function framesOf(ring: HandRing, frames: readonly Frame[]): FrameBatch {
  const { batch, close } = spoiledBatch();
  opened.push({ close });
  let segment = 3; // not where a frame without any would look for it
  for (const [i, { own, segments = [], offload = 0, gso = 0, pushed = 0 }] of frames.entries()) {
    batch.headerAt[i] = 96 * i + 16 - pushed;
    batch.headerLen[i] = own;
    batch.frameLen[i] = segments.reduce((sum, len) => sum + len, own);
    batch.segFirst[i] = segments.length === 0 ? -1 : segment;
    batch.segCount[i] = segments.length;
    batch.offload[i] = offload;
    batch.gsoType[i] = gso;
    batch.gsoHeaderLen[i] = 14 + i;
    batch.csumStart[i] = 34 + i;
    batch.csumOffset[i] = 16 + i;
    for (let k = 0; k < own; k++) batch.headers[batch.headerAt[i]! + k] = 31 * i + k;
    for (const len of segments) {
      batch.segOffset[segment] = ring.offsetOf(SOURCE + 64 * segment);
      batch.segLen[segment++] = len;
    }
  }
  batch.count = frames.length;
  return batch;
}

/** Delivers what it can the direct way, and the same the general way, from the same beginning. */
function delivered(ring: HandRing, q: DeviceQueue, count: number, options: Options): void {
  const { frames = [SHORT, SHORT, SHORT], flagMask = 3, row = 0, planned = 0 } = options;
  const list = Int32Array.from(options.list ?? frames.keys());
  const batch = framesOf(ring, frames);
  batch.plain = options.plain === true ? 1 : 0;
  const plan = new SeenPlan(batch, options.planCapacity);
  const chains = spoiledChains();
  const reference = ring.queue();
  for (const key of ['nextAvail', 'availWrap', 'nextUsed', 'usedWrap'] as const) {
    reference[key] = q[key];
  }
  q.missed = 1;
  const wasAllowed = q.lastAllowed;
  q.counters[COUNTER_TAKEN] = 7;
  for (; plan.count < planned; plan.count++) {
    plan.source[plan.count] = plan.target[plan.count] = ring.offsetOf(AT - 64);
    plan.length[plan.count] = 5;
  }
  const slots = batch.headers.slice();
  ring.keep();
  const n = writeDirect(q, chains, row, plan, batch, list, list.length, flagMask);
  assert.equal(n, count);
  const copies = [...list.subarray(0, n)].map((frame) => 1 + batch.segCount[frame]!);
  assert.equal(plan.count, planned + copies.reduce((sum, more) => sum + more, 0));
  assert.equal(q.missed, 0);
  assert.equal(q.counters[COUNTER_TAKEN], 7 + n);
  assert.equal(q.lastRange < Math.min(q.mapCount, q.iotlb === 1 ? q.mapCount : 8), true);
  assert.equal(q.lastAllowed, q.mapPermission[q.lastRange]);
  assert.equal(q.lastAllowed & 2, wasAllowed & 2, 'what is not taken is no range to begin with');
  if (n > 0) {
    assert.equal(chains.count, row + n);
    assert.deepEqual([chains.segments, chains.uniform, chains.unfilled], [0, 2, 2]);
    if (ring.packed) assert.deepEqual([...chains.slots.subarray(row, row + n)], Array(n).fill(1));
    assert.equal(chains.head[row + n], row + n < chains.capacity ? -1 : undefined);
  }
  const direct = published(ring, q, () => {
    plan.run();
    putUsed(q, chains, row, n);
  });
  const left = batch.headers.slice();
  for (const [i, { pushed = 0 }] of frames.entries()) {
    if (list.subarray(0, n).includes(i)) continue;
    const [from, to] = [96 * i, 96 * i + 16 - pushed];
    assert.deepEqual(left.subarray(from, to), slots.subarray(from, to), `frame ${i} is untouched`);
  }
  ring.restore();
  const result = new WriteResult();
  const general = published(ring, reference, () => {
    const copies = new CopyPlan(4096);
    const rows = spoiledChains();
    const all = [rows, copies, batch, list, n, 12, false, flagMask, false, result] as const;
    if (n > 0) assert.equal(writeFrames(reference, ...all), 0);
  });
  assert.equal(result.delivered, n);
  assert.deepEqual(direct.positions, general.positions);
  assert.equal(Buffer.compare(direct.memory, general.memory), 0, 'what is in memory');
  assert.equal(Buffer.compare(direct.dirty, general.dirty), 0, 'pages that are marked');
}

type Published = {
  readonly positions: readonly number[];
  readonly memory: Uint8Array;
  readonly dirty: Uint8Array;
};

/** What device and guest have after it. */
function published(ring: HandRing, q: DeviceQueue, publish: () => void): Published {
  publish();
  const positions = [q.nextAvail, q.availWrap, q.nextUsed, q.usedWrap];
  return { positions, memory: ring.bytes(), dirty: ring.dirtyPages() };
}

const SEGMENTS: readonly Frame[] = [
  { own: 64, segments: [900] },
  { own: 14 },
  { own: 64, segments: [1] },
  { own: 68, segments: [700], pushed: 4 },
  { own: 64 },
];
const SEVERAL: readonly Frame[] = [
  { own: 64, segments: [10, 200, 30] },
  SHORT,
  { own: 64, segments: [300, 5] },
  { own: 20, segments: [7] },
  { own: 64, segments: [1, 2, 3, 4, 5] },
];

const CASES: readonly Case[] = [
  ['no buffer', () => {}, 0],
  ['one buffer', (ring) => post(ring, 72), 1],
  ['as many as frames', roomFor(3), 3],
  ['more than frames', roomFor(9), 3],
  ['no frame', roomFor(2), 0, { list: [] }],
  ['some, in another order', roomFor(5), 3, { frames: SEGMENTS, list: [4, 0, 3] }],
  ['with one segment', roomFor(5), 5, { frames: SEGMENTS }],
  ['with one segment, plain', roomFor(5), 5, { frames: SEGMENTS, plain: true }],
  ['with several segments', roomFor(5), 5, { frames: SEVERAL }],
  ['more than a batch', roomFor(100), 64, { list: Array.from({ length: 70 }, (_, i) => i % 3) }],
  ['over 64, by what is listed', roomFor(2), 2, { list: [1, 2] }],
  ['rows behind others', roomFor(3), 3, { row: 5, frames: SEVERAL.slice(0, 3) }],
  ['behind what is planned', roomFor(5), 5, { planned: 3, frames: SEVERAL }],
  [
    'large segments',
    roomFor(4),
    1,
    {
      frames: [
        { own: 64, segments: [1972] },
        { own: 64, segments: [1973] },
      ],
    },
  ],
  ...[72, 73, 71, 12, 1, 0, -1, -(2 ** 31), 2 ** 31 - 1].map((len): Case => [
    `a buffer of ${len}`,
    behindOne((ring) => (post(ring, len), post(ring, 100))),
    len === 72 || len === 73 ? 3 : 1,
  ]),
  ...[0, NEXT, INDIRECT, WRITE | NEXT, WRITE | INDIRECT, 7].map((flags): Case => [
    `flags ${flags}`,
    behindOne((ring) => (post(ring, 96, AT, flags), post(ring, 100))),
    1,
  ]),
  ['flags that say nothing', behindOne((ring) => post(ring, 96, AT, WRITE | 0x7f78)), 2],
  ...[LOW, BIG, WRITE_ONLY, RANGES[4]!, EIGHTH].flatMap((range): Case[] => {
    const start = range.gpa + (range === BIG ? 0x4000 : 0);
    const end = range.gpa + range.sizeBytes;
    const name = `at 0x${range.gpa.toString(16)}`;
    const at =
      (gpa: number): Fill =>
      (ring) =>
        post(ring, 100, gpa);
    const both =
      (gpa: number): Fill =>
      (ring) => (at(start + 128)(ring), at(gpa)(ring));
    return [
      [`${name}: from the edge`, at(start), 1],
      [`${name}: to the edge`, at(end - 100), 1],
      [`${name}: before it`, at(range.gpa - 1), 0],
      [`${name}: behind it`, at(end - 99), 0],
      [`${name}: far behind it`, at(end - 80), 0],
      [`${name}: and from the edge`, both(start), 2],
      [`${name}: and to the edge`, both(end - 100), 2],
      [`${name}: and before it`, both(range.gpa - 1), 1],
      [`${name}: and behind it`, both(end - 99), 1],
      [`${name}: and far before it`, both(range.gpa - 5000), 1],
    ];
  }),
  ['into every range but one to be read', intoEvery, 7, { frames: shorts(9) }],
  ['one that may not be written', behindOne((ring) => post(ring, 100, READ_ONLY.gpa)), 1],
  [
    'few ranges, the last',
    behindOne((ring) => post(ring, 100, RANGES[4]!.gpa)),
    2,
    { ranges: RANGES.slice(0, 5) },
  ],
  [
    'few ranges, and one that there was before',
    behindOne((ring) => post(ring, 100, RANGES[5]!.gpa)),
    1,
    { ranges: RANGES.slice(0, 5) },
  ],
  ['the ninth range', behindOne((ring) => post(ring, 100, NINTH.gpa)), 1],
  ['segmentation', roomFor(3), 1, { frames: [SHORT, { own: 60, gso: 1 }, SHORT] }],
  ...[[3], [1], [2], [0]].flatMap(([flagMask = 0]): Case[] => {
    const frames = [0, 1, 2, 3, 1, 0].map((offload): Frame => ({ own: 60, offload }));
    return [
      [`offloads, of which it knows ${flagMask}`, roomFor(6), 6, { frames, flagMask }],
      [`offloads and none, ${flagMask}`, roomFor(4), 4, { frames, flagMask, list: [1, 2, 0, 5] }],
      [`offloads, no room, ${flagMask}`, roomFor(2), 2, { frames, flagMask, list: [2, 0, 1, 3] }],
    ];
  }),
  ...([3, 4, 6, 7, 8] as const).map((planCapacity): Case => {
    const frames: Frame[] = [SHORT, { own: 64, segments: [1, 2] }, { own: 64, segments: [3, 4] }];
    const fit = { 3: 1, 4: 2, 6: 2, 7: 3, 8: 3 }[planCapacity];
    return [`${planCapacity} ranges`, roomFor(3), fit, { frames, planCapacity }];
  }),
  ['no page', roomFor(3), 3, { logged: true }],
  ...[
    [0, 100],
    [PAGE - 72, 100],
    [PAGE - 71, 100],
    [PAGE - 1, 72],
    [PAGE - 73, 2000],
    [0, 3 * PAGE],
  ].map(([at = 0, len = 0]): Case => [
    `pages, from ${at} in one, ${len} bytes`,
    (ring) => (post(ring, len, AT + at), post(ring, len, WRITE_ONLY.gpa + at)),
    2,
    { logged: true },
  ]),
  [
    'several pages',
    roomFor(4),
    4,
    { logged: true, frames: [{ own: 64, segments: [1, 1900] }, ...SEVERAL.slice(2)] },
  ],
];

const SPLIT_CASES: readonly Case[] = [
  ['positions over 65535', roomFor(3), 3, { base: 0xfffe }],
  ['as many as it holds', (ring) => (post(ring, 100), ring.claim(4)), 3, { size: 4 }],
  ['a full ring', roomFor(4), 4, { size: 4, frames: shorts(4) }],
  ['more than it holds', (ring) => (post(ring, 100), ring.claim(5)), 0, { size: 4 }],
  ...[8, 9, 0x7fff, 0xffff].map((head): Case => [
    `head ${head}`,
    behindOne((ring) => ring.offer(head)),
    1,
    { size: 8 },
  ]),
  ['the last head', (ring) => (ring.put(7, AT, 100, WRITE), ring.offer(7)), 1, { size: 8 }],
];

const AVAILABLE = 1 << 23; // in a descriptor's last word
const IS_USED = 1 << 31;
const STATE = AVAILABLE | IS_USED;
const PACKED_CASES: readonly Case[] = [
  ['a large ring', roomFor(1), 1, { size: 300 }],
  ...([1, 0] as const).flatMap((wrap): Case[] => [
    ['over its end', roomFor(5), 5, { size: 5, base: 3, wrap, frames: SEVERAL }],
    ['to its end', roomFor(2), 2, { size: 5, base: 3, wrap }],
    ...[0, STATE, wrap === 1 ? IS_USED : AVAILABLE].flatMap((state): Case[] =>
      [0, 1].map((k) => [
        `descriptor ${k} in state ${state}, wrap ${wrap}`,
        (r) => (roomFor(3)(r), (r.desc[4 * k + 3] = (r.desc[4 * k + 3]! & ~STATE) | state)),
        k,
        { wrap },
      ]),
    ),
  ]),
  ...[7, 8, 0xffff].map((id): Case => [
    `buffer id ${id}`,
    behindOne((r) => (post(r, 100), (r.desc[7] = (r.desc[7]! & ~0xffff) | id))),
    1,
    { size: 7 },
  ]),
];

/** One into each range that may be written and is looked through. */
function intoEvery(ring: HandRing): void {
  for (const { gpa, permission } of RANGES.slice(0, 8)) {
    if ((permission & 2) !== 0) post(ring, 100, gpa + 0x800);
  }
}

for (const packed of [false, true]) {
  const format = packed ? 'packed' : 'split';
  test(`${format}: what writeDirect delivers`, () => {
    for (const [what, fill, count, options = {}] of [
      ...CASES,
      ...(packed ? PACKED_CASES : SPLIT_CASES),
    ]) {
      const ring = openRing({ ...options, packed });
      ring.fill();
      fill(ring);
      try {
        delivered(ring, ring.queue(), count, options);
      } catch (error) {
        throw new Error(`${format}: ${what}`, { cause: error });
      }
    }
  });
  test(`${format}: it goes on where it ended, in the range of before`, () => {
    const ring = openRing({ packed });
    post(ring, 100, LOW.gpa);
    post(ring, 100, WRITE_ONLY.gpa);
    const q = ring.queue();
    delivered(ring, q, 2, {});
    assert.equal(q.mapPermission[q.lastRange], WRITE_ONLY.permission);
  });
  test(`${format}: nothing is written in a range that may not be`, () => {
    const ranges: Range[] = [{ ...LOW, permission: 1 }, ...RANGES.slice(1)];
    const ring = openRing({ packed, ranges });
    post(ring, 100, LOW.gpa);
    delivered(ring, ring.queue(), 0, {});
  });
  test(`${format}: with an IOTLB, only the range that a page was found in before`, () => {
    for (const [hint, count, ranges = RANGES] of [
      [8, 2],
      [7, 1],
      [0, 1],
      [9, 1],
      [12, 1],
      [8, 1, RANGES.slice(0, 8)], // it is there no more
    ] as const) {
      const ring = openRing({ packed, iotlb: true, ranges });
      behindOne((r) => post(r, 100, NINTH.gpa + 8))(ring);
      const q = ring.queue();
      q.rangeHint.fill(1);
      q.rangeHint[(NINTH.gpa / PAGE) & 1023] = hint;
      delivered(ring, q, count, {});
    }
  });
}
