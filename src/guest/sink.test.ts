import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PrivateMemory } from '../memory/index.ts';
import { arena } from '../sys/index.ts';
import { stampFrames } from './generator.hot.ts';
import {
  SINK_CORRUPT,
  SINK_COUNTERS,
  SINK_FOREIGN,
  SINK_LOST,
  SINK_RECORDS,
  SINK_REORDERED,
  SINK_REPEATED,
  SINK_STALE,
  SINK_VERIFIED,
  SINK_WINDOW,
  checkFrames,
} from './sink.hot.ts';
import {
  MAX_FLOWS,
  buildTestFrame,
  smallestTestFrame,
  type TestFrameOptions,
} from './test-frame.ts';

const OPTIONS: TestFrameOptions = {
  sizeBytes: 64,
  sourceMac: Uint8Array.of(2, 0, 0, 0, 0, 1),
  targetMac: Uint8Array.of(2, 0, 0, 0, 0, 2),
  flow: 3,
  run: 7,
  vlan: null,
  gso: 'none',
  gsoSize: 1400,
};

/** A generator of one frame at a time, and a sink, over the same few bytes of memory. */
class Bench implements Disposable {
  readonly #memory = PrivateMemory.allocate(1 << 17);
  readonly #options: TestFrameOptions;
  readonly #next = new Uint32Array(MAX_FLOWS);
  readonly counters = new Float64Array(SINK_COUNTERS);
  readonly #runs = new Int32Array(MAX_FLOWS).fill(-1);
  readonly #due = new Uint32Array(MAX_FLOWS);
  readonly #seen = new Int32Array((MAX_FLOWS * SINK_WINDOW) / 32);

  constructor(options: Partial<TestFrameOptions> = {}) {
    this.#options = { ...OPTIONS, ...options };
  }

  /** Generates the frame whose first record has number `sequence`; the sink judges it. */
  pass(sequence: number, edit: (frame: Uint8Array) => void = () => {}, run = 7): void {
    const frame = buildTestFrame({ ...this.#options, run });
    const { view, bytes } = arena();
    const at = this.#memory.offset;
    bytes.set(frame.bytes, at);
    this.#next[OPTIONS.flow] = sequence;
    const slots = { offset: Float64Array.of(at), flow: Uint16Array.of(OPTIONS.flow) };
    stampFrames(
      view,
      slots.offset,
      slots.flow,
      Int32Array.of(0),
      1,
      1,
      frame.recordAt,
      frame.recordBytes,
      frame.records,
      this.#next,
      1000,
    );
    const lenBytes = frame.bytes.length - 12;
    edit(bytes.subarray(at + 12, at + 12 + lenBytes));
    checkFrames(
      view,
      Float64Array.of(at + 12),
      Int32Array.of(lenBytes),
      1,
      this.#runs,
      this.#due,
      this.#seen,
      this.counters,
      1,
      1500,
    );
  }

  expect(wanted: Partial<Record<string, number>>): void {
    const cells = {
      good: SINK_RECORDS,
      lost: SINK_LOST,
      late: SINK_REORDERED,
      twice: SINK_REPEATED,
      stale: SINK_STALE,
      corrupt: SINK_CORRUPT,
      foreign: SINK_FOREIGN,
    };
    const seen = Object.fromEntries(
      Object.entries(cells).map(([name, cell]) => [name, this.counters[cell]]),
    );
    const none = { good: 0, lost: 0, late: 0, twice: 0, stale: 0, corrupt: 0, foreign: 0 };
    assert.deepEqual(seen, { ...none, ...wanted });
  }

  [Symbol.dispose](): void {
    this.#memory.close();
  }
}

test('in order: nothing but good', () => {
  using bench = new Bench();
  for (let i = 0; i < 5000; i++) bench.pass(i);
  bench.expect({ good: 5000 });
  assert.equal(bench.counters[SINK_VERIFIED], 5000);
});

test('the sequence wraps at 32 bits', () => {
  using bench = new Bench();
  for (let i = -1500; i < 1500; i++) bench.pass(i >>> 0);
  bench.expect({ good: 3000 });
});

test('a sink may start in the middle, and a new run starts again', () => {
  using bench = new Bench();
  bench.pass(1000);
  bench.pass(1001);
  bench.pass(0, undefined, 8);
  bench.pass(1, undefined, 8);
  bench.expect({ good: 4 });
});

test('gaps, late ones, repeated ones, and those that come too late to tell', () => {
  using bench = new Bench();
  for (const i of [0, 1, 2, 5, 3, 3, 6, 4, 6]) bench.pass(i);
  bench.expect({ good: 9, late: 2, twice: 2 });
  for (let i = 7; i < 2000; i++) if (i !== 1500) bench.pass(i);
  bench.expect({ good: 9 + 1992, late: 2, twice: 2, lost: 1 });
  bench.pass(1500);
  bench.pass(10);
  bench.expect({ good: 9 + 1992 + 2, late: 3, twice: 2, stale: 1 });
  bench.pass(5000);
  bench.expect({ good: 9 + 1992 + 3, late: 3, twice: 2, stale: 1, lost: 3000 });
  bench.pass(4999);
  bench.pass(4999);
  bench.expect({ good: 9 + 1992 + 5, late: 4, twice: 3, stale: 1, lost: 2999 });
});

test('a model: random losses, repetitions and displacements are counted exactly', () => {
  using bench = new Bench();
  let seed = 12345;
  const random = (n: number): number =>
    ((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) >>> 8) % n;
  const order: number[] = [];
  for (let i = 0; i < 20_000; i++) {
    if (random(50) === 0) continue;
    order.push(i);
    if (random(60) === 0) order.push(i);
  }
  for (let i = 0; i + 40 < order.length; i += 41) {
    const j = i + random(40);
    [order[i], order[j]] = [order[j], order[i]];
  }
  order.unshift(...order.splice(order.indexOf(Math.min(...order)), 1)); // starts with the lowest
  const first = order[0];
  for (const i of order) bench.pass(i);
  const distinct = new Set(order);
  assert.equal(bench.counters[SINK_RECORDS], order.length);
  assert.equal(bench.counters[SINK_REPEATED], order.length - distinct.size);
  assert.equal(bench.counters[SINK_LOST], Math.max(...order) + 1 - first - distinct.size);
});

test('damage of any byte of a record is found', () => {
  for (let at = 42; at < 200; at++) {
    using bench = new Bench({ sizeBytes: 200 });
    bench.pass(0, (frame) => void (frame[at] ^= 1 << (at & 7)));
    assert.equal(bench.counters[SINK_CORRUPT] + bench.counters[SINK_FOREIGN], 1, `byte ${at}`);
    assert.equal(bench.counters[SINK_RECORDS], 0);
  }
});

test('frames of others are foreign', () => {
  using bench = new Bench();
  bench.pass(0, (frame) => frame.fill(0));
  bench.pass(0, (frame) => frame.set([0x08, 0x06], 12));
  bench.expect({ foreign: 2 });
});

test('segmented frames hold one record a segment; a tag and IPv6 are looked through', () => {
  for (const gso of ['tcp4', 'tcp6', 'udp4', 'udp6'] as const) {
    using bench = new Bench({ gso, sizeBytes: 65000, gsoSize: 1000, vlan: 10 });
    bench.pass(0);
    const { records } = buildTestFrame({
      ...OPTIONS,
      gso,
      sizeBytes: 65000,
      gsoSize: 1000,
      vlan: 10,
    });
    bench.expect({ good: records });
    bench.pass(records);
    bench.expect({ good: 2 * records });
  }
});

test('sizes: the smallest, jumbo, and too small', () => {
  for (const sizeBytes of [smallestTestFrame(false), 1514, 9014, 65549]) {
    using bench = new Bench({ sizeBytes });
    bench.pass(0);
    bench.expect({ good: 1 });
  }
  assert.throws(() => buildTestFrame({ ...OPTIONS, sizeBytes: 61 }), {
    code: 'ERR_VRING_GUEST_FRAME_SIZE',
  });
  assert.throws(() => buildTestFrame({ ...OPTIONS, sizeBytes: 70_000 }), {
    code: 'ERR_VRING_GUEST_FRAME_SIZE',
  });
});
