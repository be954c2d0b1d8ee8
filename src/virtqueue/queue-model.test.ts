/**
 * The device side against the driver side, compared with a model that knows neither: random
 * programs over both formats, all features, small rings and indices about to wrap.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { ChainBatch } from './chain-batch.ts';
import { fillRows } from './chain-segments.hot.ts';
import { ringBase } from './device-queue.ts';
import {
  disableKicks,
  enableKicks,
  hasAvailable,
  needsCall,
  putUsed,
  takeChains,
  untakeChains,
} from './device.hot.ts';
import { DriverBatch, UsedBatch } from './driver/driver-batch.ts';
import {
  addChains,
  disableCalls,
  enableCalls,
  hasUsed,
  needsKick,
  publish,
  reapUsed,
} from './driver/driver.hot.ts';
import { PAIR_BASE_GPA, QueuePair } from './driver/queue-pair.ts';

type Shape = { reads: number; writes: number; indirect: boolean };
type Op =
  | { op: 'add'; shapes: Shape[]; publish: boolean }
  | { op: 'take'; max: number; useOne: boolean }
  | { op: 'use'; batch: number; skip: number; count: number; call: boolean }
  | { op: 'untake'; from: number }
  | { op: 'reap'; max: number }
  | { op: 'restart' }
  | { op: 'kicks'; on: boolean }
  | { op: 'calls'; on: boolean };
type Config = {
  packed: boolean;
  eventIdx: boolean;
  inOrder: boolean;
  weakOrder: boolean;
  size: number;
  start: number;
};

type Segment = { gpa: number; len: number };
type Chain = { id: number; reads: Segment[]; writes: Segment[]; slots: number; written: number };

type Taken = { batch: ChainBatch; chains: (Chain | null)[] };

/** What must be true, kept apart from how the queues do it. */
class Model {
  readonly config: Config;
  readonly pair: QueuePair;
  readonly available: Chain[] = []; // published, not taken
  readonly held: Chain[] = []; //      added, not published
  batches: Taken[] = [];
  lastTaken: Taken | null = null;
  readonly used: Chain[] = []; //      used, not reaped
  /** Every position that was published or used, in the units of notification events. */
  readonly newAvail: number[] = [];
  readonly newUsed: number[] = [];
  availPosition: number;
  usedPosition: number;
  callKnown = false;
  armedKick = false;
  armedCall = false;
  nextData = 0;

  constructor(config: Config) {
    this.config = config;
    this.pair = new QueuePair({ ...config, indirect: true, dataBytes: 1 << 16, tableEntries: 4 });
    const { driver, device } = this.pair;
    const start = config.packed ? 0 : config.start;
    if (!config.packed) {
      driver.nextAvail = start;
      driver.nextUsed = start;
      driver.nextFree = start & (config.size - 1);
      driver.avail[1] = start;
      driver.usedCells[1] = start;
      this.pair.restart(start);
    }
    device.weakOrder = driver.weakOrder = config.weakOrder ? 1 : 0;
    this.availPosition = start;
    this.usedPosition = start;
  }

  run(op: Op): void {
    if (op.op === 'add') this.add(op.shapes, op.publish);
    else if (op.op === 'take') this.take(op.max, op.useOne);
    else if (op.op === 'use') this.use(op.batch, op.skip, op.count, op.call);
    else if (op.op === 'untake') this.untake(op.from);
    else if (op.op === 'reap') this.reap(op.max);
    else if (op.op === 'restart') this.restart();
    else if (op.op === 'kicks') this.kicks(op.on);
    else this.calls(op.on);
  }

  add(shapes: Shape[], shallPublish: boolean): void {
    const { driver, dataGpa, dataBytes } = this.pair;
    const batch = new DriverBatch();
    const chains: Chain[] = [];
    for (const { reads, writes, indirect } of shapes) {
      const segment = (): Segment => {
        const len = 1 + (this.nextData % 31);
        return { gpa: dataGpa + ((this.nextData += 37) % (dataBytes - 64)), len };
      };
      const chain: Chain = {
        id: -1,
        reads: Array.from({ length: reads }, segment),
        writes: Array.from({ length: writes }, segment),
        slots: indirect && reads + writes > 1 && reads + writes <= 4 ? 1 : reads + writes,
        written: 0,
      };
      batch.addChain(chain.reads, chain.writes, indirect);
      chains.push(chain);
    }
    let free = driver.free;
    let fit = 0;
    while (fit < chains.length && chains[fit].slots <= free) free -= chains[fit++].slots;
    assert.equal(addChains(driver, batch, 0, batch.count), fit, 'all that fits is added');
    for (let i = 0; i < fit; i++) {
      chains[i].id = batch.id[i];
      this.held.push(chains[i]);
    }
    if (shallPublish) this.publish();
  }

  publish(): void {
    const { driver, device } = this.pair;
    publish(driver);
    for (const chain of this.held.splice(0)) {
      this.available.push(chain);
      const units = this.config.packed ? chain.slots : 1;
      for (let k = 0; k < units; k++) this.newAvail.push(this.availPosition++);
    }
    assert.equal(hasAvailable(device), this.available.length > 0);
    const asked = this.newAvail.splice(0);
    const wanted = asked.length > 0 && this.wants(asked, 'kick');
    assert.equal(needsKick(driver), wanted, 'kick');
    if (this.armedKick && asked.length > 0) assert.ok(wanted, 'an armed kick is not lost');
    if (wanted) this.armedKick = false;
  }

  /** The specification's words: the event names one position; was it among these? */
  wants(positions: number[], kind: 'kick' | 'call'): boolean {
    const { config, pair } = this;
    const view = new DataView(pair.buffer);
    const { size } = config;
    const { availOffset, usedOffset } = pair.config;
    if (config.packed) {
      const at = kind === 'kick' ? usedOffset : availOffset;
      const flags = view.getUint16(at + 2, true);
      if (flags !== 2) return flags === 0;
      // More than a round since the last question: one wrap bit is ambiguous, yes is safe.
      if (positions.length > size) return true;
      const event = view.getUint16(at, true);
      return positions.some((p) => {
        const wrap = Math.floor(p / size) % 2 === 0 ? 1 : 0;
        return (event & 0x7fff) === p % size && event >> 15 === wrap;
      });
    }
    const at = kind === 'kick' ? usedOffset : availOffset;
    if (!config.eventIdx) return view.getUint16(at, true) === 0;
    const eventAt = kind === 'kick' ? 4 + 8 * size : 4 + 2 * size;
    const event = view.getUint16(at + eventAt, true);
    return positions.some((p) => (p & 0xffff) === event);
  }

  take(max: number, useOne: boolean): void {
    const batch = new ChainBatch(16, 24, max % 2 === 0);
    const count = takeChains(this.pair.device, batch, max);
    if (batch.unfilled !== 0) fillRows(batch, count);
    assert.ok(count >= 0, `fault ${count}`);
    assert.equal(batch.count, count);
    if (max > 0 && this.available.length > 0) assert.ok(count > 0, 'something is taken');
    let segments = 0;
    for (let i = 0; i < count; i++) {
      const chain = this.available.shift();
      assert.ok(chain !== undefined, 'nothing is taken that is not available');
      assert.equal(batch.head[i], chain.id);
      if (this.config.packed) assert.equal(batch.slots[i], chain.slots);
      assert.equal(batch.segFirst[i], segments);
      assert.equal(batch.readSegs[i], chain.reads.length);
      assert.equal(batch.writeSegs[i], chain.writes.length);
      assert.equal(batch.readBytes[i], sum(chain.reads));
      assert.equal(batch.writeBytes[i], sum(chain.writes));
      assert.equal(batch.written[i], 0);
      for (const { gpa, len } of [...chain.reads, ...chain.writes]) {
        assert.equal(batch.segOffset[segments], gpa - PAIR_BASE_GPA + this.pair.offset);
        assert.equal(batch.segLen[segments++], len);
      }
      if (i === 0) this.batches.push((this.lastTaken = { batch, chains: [] }));
      this.lastTaken?.chains.push(chain);
    }
    assert.equal(batch.segments, segments);
    if (useOne && count > 0) this.use(this.batches.length - 1, 0, 1, true);
  }

  use(which: number, skip: number, wantCount: number, call: boolean): void {
    if (this.batches.length === 0) return;
    const inOrder = this.config.inOrder;
    const entry = this.batches[inOrder ? 0 : which % this.batches.length];
    const firstLeft = entry.chains.findIndex((c) => c !== null);
    let first = firstLeft;
    if (!inOrder) {
      const lefts = entry.chains.flatMap((c, i) => (c === null ? [] : [i]));
      first = lefts[skip % lefts.length];
    }
    let count = 0;
    while (count < wantCount && entry.chains[first + count]) {
      const chain = entry.chains[first + count] as Chain;
      chain.written = sum(chain.writes) === 0 ? 0 : (this.nextData * 7) % (sum(chain.writes) + 1);
      entry.batch.written[first + count] = chain.written;
      entry.chains[first + count] = null;
      this.used.push(chain);
      const units = this.config.packed ? chain.slots : 1;
      for (let k = 0; k < units; k++) this.newUsed.push(this.usedPosition++);
      count++;
    }
    putUsed(this.pair.device, entry.batch, first, count);
    this.batches = this.batches.filter((b) => b.chains.some((c) => c !== null));
    if (call) this.askCall();
  }

  askCall(): void {
    const asked = this.newUsed.splice(0);
    const { eventIdx } = this.config;
    const wanted = asked.length > 0 && (this.wants(asked, 'call') || (eventIdx && !this.callKnown));
    assert.equal(needsCall(this.pair.device), wanted, 'call');
    if (asked.length > 0) this.callKnown = true;
    if (this.armedCall && asked.length > 0) assert.ok(wanted, 'an armed call is not lost');
    if (wanted) this.armedCall = false;
  }

  untake(from: number): void {
    const entry = this.lastTaken; // "only for the batch that was taken last"
    if (entry === null) return;
    let first = entry.chains.length;
    while (first > from && entry.chains[first - 1] !== null) first--;
    untakeChains(this.pair.device, entry.batch, first);
    this.available.unshift(...(entry.chains.splice(first) as Chain[]));
    this.batches = this.batches.filter((b) => b.chains.some((c) => c !== null));
  }

  reap(max: number): void {
    const into = new UsedBatch(16);
    const count = reapUsed(this.pair.driver, into, max);
    assert.ok(count >= 0, `fault ${count}`);
    assert.equal(count, Math.min(max, 16, this.used.length));
    for (let i = 0; i < count; i++) {
      const chain = this.used.shift() as Chain;
      assert.equal(into.id[i], chain.id);
      assert.equal(into.len[i], chain.written);
    }
    assert.equal(hasUsed(this.pair.driver), this.used.length > 0);
  }

  restart(): void {
    this.lastTaken = null;
    while (this.batches.length > 0) this.use(0, 0, 100, false);
    const { device } = this.pair;
    this.pair.restart(ringBase(device));
    this.pair.device.weakOrder = device.weakOrder;
    this.newUsed.length = 0; // what was not called for is lost with the device ...
    this.callKnown = false; //  ... which is why the first call after a restart is forced
    if (!this.config.eventIdx) this.armedCall = false;
  }

  kicks(on: boolean): void {
    const { device } = this.pair;
    if (on) {
      assert.equal(enableKicks(device), this.available.length > 0);
      this.armedKick = this.available.length === 0;
    } else {
      disableKicks(device);
      this.armedKick = false;
    }
  }

  calls(on: boolean): void {
    const { driver } = this.pair;
    if (on) {
      assert.equal(enableCalls(driver), this.used.length > 0);
      this.armedCall = this.used.length === 0 && this.newUsed.length === 0;
    } else {
      disableCalls(driver);
      this.armedCall = false;
    }
  }
}

function sum(segments: Segment[]): number {
  return segments.reduce((total, s) => total + s.len, 0);
}

const shape = fc
  .record({ reads: fc.nat(5), writes: fc.nat(5), indirect: fc.boolean() })
  .map((s) => (s.reads + s.writes === 0 ? { ...s, reads: 1 } : s));
const simple = fc.constantFrom(
  { reads: 1, writes: 0, indirect: false },
  { reads: 0, writes: 1, indirect: false },
);
const often: fc.Arbitrary<Op> = fc.oneof(
  fc.record({
    op: fc.constant('add' as const),
    shapes: fc.array(fc.oneof({ weight: 2, arbitrary: simple }, shape), { maxLength: 12 }),
    publish: fc.boolean(),
  }),
  fc.record({ op: fc.constant('take' as const), max: fc.nat(20), useOne: fc.boolean() }),
  fc.record({
    op: fc.constant('use' as const),
    batch: fc.nat(3),
    skip: fc.nat(3),
    count: fc.integer({ min: 1, max: 16 }),
    call: fc.boolean(),
  }),
  fc.record({ op: fc.constant('untake' as const), from: fc.nat(6) }),
  fc.record({ op: fc.constant('reap' as const), max: fc.integer({ min: 1, max: 20 }) }),
  fc.record({ op: fc.constant('kicks' as const), on: fc.boolean() }),
  fc.record({ op: fc.constant('calls' as const), on: fc.boolean() }),
);
const op = fc.oneof(
  { weight: 30, arbitrary: often },
  { weight: 1, arbitrary: fc.constant<Op>({ op: 'restart' }) },
);

for (const packed of [false, true]) {
  for (const inOrder of [false, true]) {
    for (const eventIdx of [false, true]) {
      const names = [packed ? 'packed' : 'split'];
      if (inOrder) names.push('IN_ORDER');
      if (eventIdx) names.push('EVENT_IDX');
      test(names.join(' '), () => {
        const sizes = packed ? [1, 2, 3, 5, 8, 13, 64] : [1, 2, 4, 8, 64];
        const config = fc.record({
          packed: fc.constant(packed),
          inOrder: fc.constant(inOrder),
          eventIdx: fc.constant(eventIdx),
          weakOrder: fc.boolean(),
          size: fc.constantFrom(...sizes),
          start: fc.constantFrom(0, 65533, 65535, 40000),
        });
        const program = fc.array(op, { maxLength: 120, size: 'max' });
        fc.assert(
          fc.property(config, program, (c, ops) => {
            const model = new Model(c);
            for (const o of ops) model.run(o);
            finish(model);
          }),
          { numRuns: 150 },
        );
      });
    }
  }
}

/** Whatever happened: everything that was added comes back. */
function finish(model: Model): void {
  model.publish();
  for (let i = 0; i < 200; i++) {
    model.take(16, false);
    model.use(0, 0, 16, true);
    model.reap(16);
  }
  assert.equal(model.pair.driver.outstanding, 0);
  assert.equal(model.pair.driver.free, model.pair.driver.size);
}

for (const [packed, size] of [
  [false, 8],
  [true, 8],
  [true, 7],
] as const) {
  test(`70000 chains through a ${packed ? 'packed' : 'split'} ring of ${size}`, () => {
    const { driver, device, dataGpa } = new QueuePair({ size, packed });
    const out = new DriverBatch();
    const chains = new ChainBatch();
    const back = new UsedBatch();
    for (let i = 0; i < 3; i++) out.addChain([], [{ gpa: dataGpa, len: 100 }]);
    for (let n = 0; n < 70000; n += 3) {
      assert.equal(addChains(driver, out, 0, 3), 3);
      publish(driver);
      assert.equal(takeChains(device, chains, 64), 3);
      for (let i = 0; i < 3; i++) chains.written[i] = (n + i) % 101;
      putUsed(device, chains, 0, 3);
      assert.equal(reapUsed(driver, back, 64), 3);
      for (let i = 0; i < 3; i++) {
        assert.equal(back.id[i], out.id[i]);
        assert.equal(back.len[i], (n + i) % 101);
      }
    }
  });
}
