/** Token buckets by a clock of the test; the layer and the engine over them by the real one. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { createEventfd, drainEventfd, Epoll, signalEventfd } from '../../sys/index.ts';
import type { Engine } from '../engine.ts';
import {
  createMemoryImage,
  type DiskImage,
  IO_DISCARD,
  IO_FLUSH,
  IO_READ,
  IO_WRITE,
  IoBatch,
  IoDone,
  openEngine,
  openStack,
  type StackSpec,
} from '../index.ts';
import { MemoryLayer } from '../layer/memory-layer.ts';
import type { MemoryEngineSpec } from '../memory-engine.ts';
import { LimitEngine } from './limit-engine.ts';
import { LimitLayer } from './limit-layer.ts';
import {
  checkRates,
  LimitCells,
  LIMITED_FIRST,
  LIMITED_SECOND,
  RateLimits,
  type Rates,
} from './rate-limits.ts';

const DISK_BYTES = 1 << 20;
const memory = PrivateMemory.allocate(DISK_BYTES);
after(() => memory.close());
const images: DiskImage[] = [];
after(async () => {
  for (const image of images) await image.close();
});

function memoryImage(): DiskImage {
  const image = createMemoryImage(DISK_BYTES);
  images.push(image);
  return image;
}

function limitsOf(rates: Rates): { limits: RateLimits; cells: LimitCells } {
  const cells = new LimitCells();
  cells.rates = rates;
  return { limits: new RateLimits(cells), cells };
}

/** How many requests go within `ms`, asked for every millisecond. */
function count(limits: RateLimits, fromMs: number, ms: number, sizeBytes: number): number {
  let went = 0;
  for (let at = fromMs; at < fromMs + ms; at++) while (limits.admit(sizeBytes, at)) went++;
  return went;
}

test('a burst, then the rate, and after a pause a burst again', () => {
  const { limits } = limitsOf({ iops: 100, burstSeconds: 0.5 });
  assert.equal(count(limits, 1000, 1, 4096), 51, 'half a second of it, and one');
  assert.equal(limits.waitMs, 10);
  assert.equal(count(limits, 1001, 1000, 4096), 100);
  assert.equal(count(limits, 60_000, 1, 4096), 51, 'no more than the bucket holds');
});

test('two that are limited together: who was held up for a second has its share again', () => {
  const cells = new LimitCells();
  cells.rates = { iops: 100, burstSeconds: 0 };
  const busy = new RateLimits(cells, LIMITED_FIRST);
  const late = new RateLimits(cells, LIMITED_SECOND);
  assert.ok(late.admit(512, 1000));
  count(busy, 1000, 1000, 512);
  let [byBusy, byLate] = [0, 0];
  for (let at = 2000; at < 3000; at++) {
    // Whoever asks first at the moment at which one may go has it: they take turns at that.
    const order = at & 1 ? [busy, late] : [late, busy];
    for (const limits of order) {
      if (!limits.admit(512, at)) continue;
      if (limits === busy) byBusy++;
      else byLate++;
    }
  }
  assert.ok(byBusy + byLate <= 101, `${byBusy} and ${byLate}`);
  assert.ok(byLate >= 20, `${byLate} of ${byBusy + byLate}`);
});

test('bytes: a request larger than the burst goes, and those behind it pay', () => {
  const { limits } = limitsOf({ bytesPerSecond: 1000, burstSeconds: 0.1 });
  assert.equal(limits.admit(10_000, 0), true);
  assert.equal(limits.admit(1, 0), false);
  assert.equal(limits.waitMs, 9900);
  assert.equal(limits.admit(1, 9899), false);
  assert.equal(limits.admit(1, 9900), true);
});

test('both limits hold at once, and none is none', () => {
  const { limits } = limitsOf({ iops: 1000, bytesPerSecond: 4096 * 10, burstSeconds: 0 });
  const went = count(limits, 0, 10_000, 4096);
  assert.ok(went >= 100 && went <= 101, `${went} of 4096 bytes in 10 s at 10 a second`);
  assert.ok(Math.abs(count(limits, 20_000, 1000, 0) - 1000) <= 1, 'without bytes');
  const { limits: free } = limitsOf({});
  for (let i = 0; i < 10_000; i++) assert.equal(free.admit(1e9, 0), true);
});

test('other rates hold from then on', () => {
  const { limits, cells } = limitsOf({ iops: 10, burstSeconds: 0 });
  count(limits, 0, 1000, 0);
  cells.rates = { iops: 200, burstSeconds: 0 };
  assert.ok(Math.abs(count(limits, 1000, 1000, 0) - 200) <= 1);
  cells.rates = {};
  for (let i = 0; i < 1000; i++) assert.equal(limits.admit(0, 2000), true);
});

test('what is no rate is refused by name', () => {
  assert.throws(() => checkRates({ iops: -1 }, 'limits'), /limits\.iops: is -1, expected 0 to/);
  assert.throws(() => checkRates({ iops: NaN }, 'limits'), /iops: is NaN/);
  assert.throws(() => checkRates({ burstSeconds: 4000 }, 'limits'), /burstSeconds: is 4000, exp/);
  assert.throws(() => checkRates({ speed: 1 }, 'limits'), /limits\.speed: is no limit/);
  assert.throws(() => checkRates(null, 'limits'), /limits: expected \{ iops/);
});

test('layer: in order, no faster than its rate, flushes unhindered', async () => {
  const below = new MemoryLayer(memoryImage().spec as MemoryEngineSpec);
  const layer = LimitLayer.of(below, { kind: 'limit', iops: 200, burstSeconds: 0 });
  const order: number[] = [];
  const startMs = performance.now();
  const writes = Array.from({ length: 30 }, async (_, i) => {
    await layer.write(i * 512, new Uint8Array(512).fill(i), false);
    order.push(i);
  });
  await layer.flush();
  assert.ok(order.length < 30, 'before those that wait');
  await Promise.all(writes);
  const tookMs = performance.now() - startMs;
  assert.ok(tookMs >= 140, `30 at 200 a second took ${tookMs} ms`);
  assert.deepEqual(
    order,
    [...order].toSorted((a, b) => a - b),
  );
  const { limitDelayed, limitWaitedMs } = layer.counters();
  assert.ok(limitDelayed! >= 28 && limitDelayed! <= 29, `${limitDelayed}`);
  assert.ok(limitWaitedMs! > 1000, `${limitWaitedMs}`);
});

test('layer: limits that are lifted let everybody go at once', async () => {
  const below = new MemoryLayer(memoryImage().spec as MemoryEngineSpec);
  const layer = LimitLayer.of(below, { kind: 'limit', iops: 0.001, burstSeconds: 0 });
  const startMs = performance.now();
  const writes = Array.from({ length: 20 }, () => layer.write(0, new Uint8Array(512), false));
  await layer.control('limits', {});
  await Promise.all(writes);
  assert.ok(performance.now() - startMs < 5000);
  await assert.rejects(layer.control('limits', { iops: 'many' }), /iops: is many/);
  await assert.rejects(layer.control('other', {}), { code: 'ERR_VRING_DISK_CONTROL' });
});

function writes(count: number, sizeBytes = 512): IoBatch {
  const batch = new IoBatch();
  for (let i = 0; i < count; i++) batch.add(IO_WRITE, 0, sizeBytes, [[memory.offset, sizeBytes]]);
  return batch;
}

/** As a data plane does: sleeps until the engine is readable. Returns ids in their order. */
function carryOut(engine: Engine, batch: IoBatch, onRound: () => void = () => {}): number[] {
  using epoll = new Epoll();
  epoll.add(engine.completionFd, 1, { edge: true });
  const done = new IoDone();
  const ids: number[] = [];
  for (let submitted = 0; ids.length < batch.count;) {
    if (submitted < batch.count) submitted += engine.submit(batch, submitted);
    const reaped = engine.reap(done);
    for (let i = 0; i < reaped; i++) {
      assert.equal(done.status[i], 0);
      ids.push(done.id[i]!);
    }
    onRound();
    if (reaped > 0 || ids.length === batch.count) continue;
    assert.equal(epoll.wait(new Int32Array(4), 5000), 1, 'nothing within 5 s');
  }
  epoll.remove(engine.completionFd);
  return ids;
}

test('engine: in order, no faster than its rate, its time counted', async () => {
  const image = await openStack({
    stack: [
      { kind: 'limit', iops: 200, burstSeconds: 0 },
      { kind: 'memory', sizeBytes: DISK_BYTES },
    ],
  });
  images.push(image);
  assert.match(image.description, /^limit over memory:/);
  const engine = openEngine(image.spec);
  const batch = writes(30);
  batch.add(IO_FLUSH, 0, 0);
  const startMs = performance.now();
  let rounds = 0;
  const ids = carryOut(engine, batch, () => rounds++);
  const tookMs = performance.now() - startMs;
  assert.ok(tookMs >= 140 && tookMs < 1500, `30 at 200 a second took ${tookMs} ms`);
  assert.deepEqual(ids, [...batch.id.subarray(0, 31)], 'the flush in its turn');
  assert.ok(rounds < 200, `${rounds} rounds: it slept`);
  const { limitDelayed, limitWaitedMs } = await image.counters();
  assert.equal(limitDelayed, 30, 'all but the first: the flush waited, too');
  assert.ok(limitWaitedMs! > 1000, `${limitWaitedMs}`);
  engine.close();
});

test('engine: limits that are lifted are noticed, though nobody says so', async () => {
  const image = await openStack({
    stack: [
      { kind: 'limit', bytesPerSecond: 1, burstSeconds: 0 },
      { kind: 'memory', sizeBytes: DISK_BYTES },
    ],
  });
  images.push(image);
  const engine = openEngine(image.spec);
  const startMs = performance.now();
  let round = 0;
  const lift = (): void => void (round++ === 2 && image.control('limits', {}));
  assert.equal(carryOut(engine, writes(20), lift).length, 20);
  assert.ok(performance.now() - startMs < 2000);
  await assert.rejects(image.control('limits', { iops: -1 }), { code: 'ERR_VRING_CONFIG' });
  engine.close();
});

test('engine: who waits for the end of a ring gets all at once, and the limit holds later', () => {
  const { cells } = limitsOf({ iops: 10, burstSeconds: 0 });
  const engine = new LimitEngine(openEngine(memoryImage().spec), cells.buffer);
  const batch = writes(11);
  assert.equal(engine.submit(batch, 0), 1);
  engine.settle();
  assert.equal(engine.submit(batch, 1), 10);
  assert.equal(engine.submit(writes(1), 0), 0, 'in debt by then');
  engine.reap(new IoDone());
  engine.close();
});

test('engine: discards cost a request and no bytes', () => {
  const { cells } = limitsOf({ bytesPerSecond: 512, burstSeconds: 0 });
  const engine = new LimitEngine(openEngine(memoryImage().spec), cells.buffer);
  const batch = new IoBatch();
  for (let i = 0; i < 5; i++) batch.add(IO_DISCARD, 0, DISK_BYTES);
  batch.add(IO_READ, 0, 512, [[memory.offset, 512]]);
  batch.add(IO_READ, 0, 512, [[memory.offset, 512]]);
  assert.equal(engine.submit(batch, 0), 6);
  engine.reap(new IoDone());
  engine.close();
});

/** An engine of one place that completes when its eventfd is signalled. */
class OnePlace implements Engine {
  readonly sizeBytes = DISK_BYTES;
  readonly readOnly = false;
  readonly inOrder = false;
  readonly #event = createEventfd('completions');
  readonly #done = new IoDone(1);
  pending = 0;

  get completionFd(): number {
    return this.#event.number;
  }
  submit(batch: IoBatch, first: number): number {
    if (this.pending > 0 || first >= batch.count) return 0;
    this.pending = 1;
    this.#done.id[0] = batch.id[first]!;
    signalEventfd(this.#event.number);
    return 1;
  }
  reap(done: IoDone): number {
    done.count = drainEventfd(this.#event.number) > 0 ? 1 : 0;
    if (done.count > 0) done.id[0] = this.#done.id[0]!;
    this.pending -= done.count;
    return done.count;
  }
  settle(): void {}
  resize(): void {}
  close(): void {
    this.#event.close();
  }
}

test('engine: over one that completes later and is full, each request pays once', () => {
  const { cells } = limitsOf({ iops: 100, burstSeconds: 0.1 });
  const engine = new LimitEngine(new OnePlace(), cells.buffer);
  const startMs = performance.now();
  const ids = carryOut(engine, writes(40));
  const tookMs = performance.now() - startMs;
  assert.deepEqual(ids, [...Array(40).keys()]);
  assert.ok(tookMs >= 270 && tookMs < 1500, `40 at 100 a second, 11 at once: ${tookMs} ms`);
  engine.close();
});

test('a limit below layers: who is waited for goes, and who comes later waits again', async () => {
  const stack: StackSpec = [
    { kind: 'fault' },
    { kind: 'limit', iops: 4, burstSeconds: 0 },
    { kind: 'memory', sizeBytes: DISK_BYTES },
  ];
  const image = await openStack({ stack });
  images.push(image);
  const engine = openEngine(image.spec);
  const startMs = performance.now();
  assert.equal(engine.submit(writes(40), 0), 40);
  engine.hurry!();
  engine.settle();
  assert.equal(engine.reap(new IoDone()), 40);
  assert.ok(performance.now() - startMs < 3000, '40 at 4 a second would take 10 s');

  await image.control('limits', { iops: 20, burstSeconds: 0 }); // the debt becomes 2 s
  const laterMs = performance.now();
  carryOut(engine, writes(5));
  assert.ok(performance.now() - laterMs > 1000, 'they wait for what the hurried ones took');
  engine.close();
});
