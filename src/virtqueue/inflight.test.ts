/**
 * A device that dies at every single write to memory that outlives it, and its successor: nothing
 * is lost, nothing is used twice, and what had been taken is done again in that order.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as layout from '../wire/inflight.ts';
import { ChainBatch, clearBatch, keepChain } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import { ringBase } from './device-queue.ts';
import { hasAvailable, putUsed, takeChains, untakeChains } from './device.hot.ts';
import { DriverBatch, UsedBatch } from './driver/driver-batch.ts';
import { addChains, publish, reapUsed } from './driver/driver.hot.ts';
import { QueuePair, queuePairBytes } from './driver/queue-pair.ts';
import { InflightState } from './inflight-state.ts';

class Death extends Error {}

/** Writes that are still made before the device dies. */
let writesLeft = Infinity;
/** The driver's writes are none of the device's. */
let isDriver = false;
function step(): void {
  if (!isDriver && writesLeft-- <= 0) throw new Death();
}

function asDriver(body: () => void): void {
  isDriver = true;
  body();
  isDriver = false;
}

class MortalView extends DataView<ArrayBufferLike> {
  override setUint8(at: number, value: number): void {
    step();
    super.setUint8(at, value);
  }
  override setUint16(at: number, value: number, little?: boolean): void {
    step();
    super.setUint16(at, value, little);
  }
  override setUint32(at: number, value: number, little?: boolean): void {
    step();
    super.setUint32(at, value, little);
  }
  override setInt32(at: number, value: number, little?: boolean): void {
    step();
    super.setInt32(at, value, little);
  }
}

const plainStore = Atomics.store;
type Store = typeof Atomics.store;

/** Runs `body` with every write of a device to its region and every publication counted. */
function mortal<T>(body: () => T): T {
  const plainView = globalThis.DataView;
  globalThis.DataView = MortalView as DataViewConstructor;
  Atomics.store = ((...args: Parameters<Store>) => {
    step();
    return plainStore(...args);
  }) as Store;
  try {
    return body();
  } finally {
    globalThis.DataView = plainView;
    Atomics.store = plainStore;
  }
}

/** The one store that is no call: a region's positions. */
function guardPositions(q: DeviceQueue): void {
  const cells = q.inflight.positions;
  const guarded = new Proxy(cells, {
    set(target, key, value: number) {
      step();
      target[Number(key)] = value;
      return true;
    },
  });
  Object.assign(q.inflight, { positions: guarded });
}

function random(seed: number): (below: number) => number {
  let state = seed * 2654435761 + 1;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.trunc((state / 2 ** 32) * below);
  };
}

type Format = { readonly packed: boolean; readonly indirect: boolean; readonly longest: number };

/** A ring with a region behind it; the driver lives on while devices die. */
class World {
  readonly pair: QueuePair;
  readonly size = 8;
  readonly #add = new DriverBatch();
  readonly #back = new UsedBatch();
  readonly #format: Format;
  /** Number of the request that each id stands for. */
  readonly out = new Map<number, number>();
  next = 1;
  done = new Set<number>();
  regionAt: number;

  constructor(format: Format) {
    this.#format = format;
    const { packed } = format;
    const bytes = queuePairBytes({ size: this.size, packed, dataBytes: 65536 });
    const regionBytes = layout.inflightQueueBytes(this.size, packed);
    const at = 4096 + Math.ceil(bytes / 64) * 64;
    this.regionAt = at;
    this.pair = new QueuePair({
      size: this.size,
      packed,
      indirect: format.indirect,
      dataBytes: 65536,
      memory: { buffer: new ArrayBuffer(at + regionBytes), offset: 4096 },
      extras: { inflight: { offset: at, sizeBytes: regionBytes } },
    });
  }

  /** A new request, if there is room: its number stands in its buffers. */
  add(segments: number): void {
    const { pair } = this;
    const number = this.next;
    this.#add.clear();
    const gpa = pair.dataGpa + (number % 64) * 1024;
    const list = Array.from({ length: segments }, (_, i) => ({ gpa: gpa + 64 * i, len: 32 }));
    this.#add.addChain(list, [], this.#format.indirect && segments > 1);
    if (addChains(pair.driver, this.#add, 0, 1) === 0) return;
    const at = pair.offset + gpa - pair.map.start[0]!;
    new DataView(pair.buffer).setUint32(at, number, true);
    publish(pair.driver);
    this.next++;
    this.out.set(this.#add.id[0]!, number);
  }

  reap(): void {
    const count = reapUsed(this.pair.driver, this.#back, 64);
    assert.ok(count >= 0, `the driver finds a broken ring: ${count}`); // also: used twice
    for (let i = 0; i < count; i++) {
      const number = this.out.get(this.#back.id[i]!);
      assert.ok(
        number !== undefined && !this.done.has(number),
        `request ${number} came back twice`,
      );
      this.done.add(number);
      this.out.delete(this.#back.id[i]!);
    }
  }

  /** What a front-end knows of a device that died. */
  restart(): void {
    const { pair } = this;
    const used = new DataView(pair.buffer).getUint16(pair.config.usedOffset + 2, true);
    pair.restart(pair.config.packed ? 0x8000_8000 : used);
    guardPositions(pair.device);
  }
}

/** A device that finishes out of order; what it remembers dies with it. */
class SlowDevice {
  readonly q: DeviceQueue;
  readonly #view: DataView;
  readonly #taken = new ChainBatch(4);
  readonly #done = new ChainBatch(8);
  readonly held: ChainBatch[] = [];
  /** Numbers of the requests as they were taken. */
  readonly seen: number[] = [];

  constructor(world: World) {
    this.q = world.pair.device;
    this.#view = new DataView(world.pair.buffer);
  }

  take(max: number, giveBack: number): number {
    const taken = takeChains(this.q, this.#taken, max);
    assert.ok(taken >= 0, `the device finds a broken ring: ${taken}`);
    if (taken > giveBack) untakeChains(this.q, this.#taken, taken - giveBack);
    for (let i = 0; i < this.#taken.count; i++) {
      const kept = new ChainBatch(1, 64);
      assert.ok(keepChain(this.#taken, i, kept));
      this.held.push(kept);
      this.seen.push(this.#view.getUint32(kept.segOffset[0]!, true));
    }
    return taken;
  }

  finish(count: number, pick: (below: number) => number): void {
    clearBatch(this.#done);
    for (let i = 0; i < count && this.held.length > 0; i++) {
      const [chain] = this.held.splice(pick(this.held.length), 1);
      keepChain(chain!, 0, this.#done);
    }
    putUsed(this.q, this.#done, 0, this.#done.count);
  }
}

/** A program of `length` steps, the same for every moment of death. */
function run(world: World, device: SlowDevice, pick: (below: number) => number, longest: number) {
  for (let n = 0; n < 14; n++) {
    for (let k = pick(4); k >= 0; k--) asDriver(() => world.add(1 + pick(longest)));
    device.take(1 + pick(4), pick(2));
    if (pick(3) > 0) device.finish(1 + pick(4), pick);
    asDriver(() => world.reap());
  }
}

/** Lets a device that lives do all that is left. */
function finishAll(world: World, device: SlowDevice, pick: (below: number) => number): void {
  for (let n = 0; n < 100 && (hasAvailable(device.q) || device.held.length > 0); n++) {
    device.take(4, 0);
    device.finish(1 + pick(4), pick);
    world.reap();
  }
  world.reap();
  assert.equal(world.out.size, 0, `${[...world.out.values()].join()} never came back`);
  assert.equal(world.done.size, world.next - 1);
}

/** One program with a death after `first` writes, and another `second` writes into the successor. */
function die(format: Format, seed: number, first: number, second: number): boolean {
  const world = new World(format);
  const pick = random(seed);
  let died = false;
  const attempt = (life: number, body: () => void): void => {
    try {
      mortal(() => {
        writesLeft = life;
        body();
      });
    } catch (error) {
      if (!(error instanceof Death)) throw error;
      died = true;
    } finally {
      writesLeft = Infinity;
    }
  };
  attempt(first, () => {
    world.restart();
    run(world, new SlowDevice(world), pick, format.longest);
  });
  if (second >= 0) {
    attempt(second, () => {
      world.restart();
      run(world, new SlowDevice(world), pick, format.longest);
    });
  }
  world.restart();
  const { resubmissions } = world.pair.device;
  const device = new SlowDevice(world);
  finishAll(world, device, random(seed + 1));
  const again = device.seen.slice(0, resubmissions);
  const ordered = [...device.seen].sort((a, b) => a - b);
  assert.deepEqual(device.seen, ordered, `taken again in order: ${again.join()}`);
  return died;
}

const FORMATS: [string, Format][] = [
  ['split', { packed: false, indirect: false, longest: 3 }],
  ['split, tables', { packed: false, indirect: true, longest: 3 }],
  ['packed', { packed: true, indirect: false, longest: 3 }],
  ['packed, single descriptors', { packed: true, indirect: false, longest: 1 }],
  ['packed, tables', { packed: true, indirect: true, longest: 3 }],
];

for (const [name, format] of FORMATS) {
  test(`${name}: a device may die at any write`, () => {
    for (let seed = 1; seed <= 4; seed++) {
      let k = 0;
      while (die(format, seed, k, -1)) k++;
      assert.ok(k > 80, `only ${k} moments to die at`);
    }
  });

  test(`${name}: so may its successor, before it is done`, () => {
    const pick = random(99);
    for (let n = 0; n < 400; n++) die(format, n, pick(250), pick(60));
  });
}

test('a region says what is out, as the specification lays it out', () => {
  for (const packed of [false, true]) {
    const world = new World({ packed, indirect: false, longest: 1 });
    world.restart();
    const device = new SlowDevice(world);
    for (let n = 0; n < 5; n++) world.add(1);
    device.take(3, 0);
    device.finish(1, () => 1);
    const view = new DataView(world.pair.buffer, world.regionAt);
    assert.equal(view.getUint16(8, true), 1, 'version');
    assert.equal(view.getUint16(10, true), 8, 'desc_num');
    const entry = packed ? (n: number) => 32 + 32 * n : (n: number) => 16 + 16 * n;
    const inflight = [0, 1, 2, 3].map((n) => view.getUint8(entry(n)));
    assert.equal(
      inflight.reduce((sum, flag) => sum + flag, 0),
      2,
    );
    const used = view.getUint16(packed ? 18 : 14, true);
    assert.equal(used, 1, packed ? 'old_used_idx' : 'used_idx');
    if (packed) assert.equal(view.getUint16(16, true), 1, 'used_idx');
  }
});

test('with GET_VRING_BASE_INFLIGHT a ring moves on with chains out, and its base says so', () => {
  for (const packed of [false, true]) {
    const world = new World({ packed, indirect: false, longest: 1 });
    world.restart();
    const device = new SlowDevice(world);
    for (let n = 0; n < 6; n++) world.add(1);
    device.take(4, 0);
    device.finish(2, () => 1); // requests 2 and 3
    const base = ringBase(device.q);
    world.pair.restart(base);
    assert.equal(world.pair.device.resubmissions, 2);
    assert.equal(ringBase(world.pair.device), base);
    const successor = new SlowDevice(world);
    finishAll(world, successor, () => 0);
    assert.deepEqual(successor.seen, [1, 4, 5, 6]);
  }
});

test('a region that is not this ring’s is refused', () => {
  for (const packed of [false, true]) {
    const world = new World({ packed, indirect: false, longest: 1 });
    const view = new DataView(world.pair.buffer, world.regionAt);
    const refuse = (pattern: RegExp): void => {
      assert.throws(() => world.restart(), { code: 'ERR_VRING_INFLIGHT', message: pattern });
    };
    view.setUint16(10, 4, true);
    refuse(/of 4 descriptors, the ring has 8/);
    view.setUint16(10, 8, true);
    view.setUint16(8, 2, true);
    refuse(/version is 2/);
    view.setUint16(8, 1, true);
    view.setUint16(packed ? 18 : 14, packed ? 8 : 100, true);
    refuse(packed ? /left at slots 8 and 0/ : /left at used index 100/);
  }
  const small = { offset: 0, sizeBytes: 64 };
  assert.throws(() => new InflightState(new ArrayBuffer(4096), small, 8, false), {
    code: 'ERR_VRING_INFLIGHT',
  });
});

test('random regions make an error or a queue, and never more', () => {
  const pick = random(7);
  for (let n = 0; n < 3000; n++) {
    const packed = n % 2 === 0;
    const world = new World({ packed, indirect: n % 3 === 0, longest: 2 });
    const bytes = new Uint8Array(world.pair.buffer, world.regionAt);
    for (let k = 0; k < 6; k++) bytes[pick(bytes.length)] = pick(12);
    if (pick(3) === 0) for (let k = 16; k < bytes.length; k++) bytes[k] = pick(9);
    view(bytes).setUint16(8, 1, true);
    view(bytes).setUint16(10, 8, true);
    try {
      world.restart();
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'ERR_VRING_INFLIGHT');
      continue;
    }
    const batch = new ChainBatch();
    const taken = takeChains(world.pair.device, batch, 8);
    if (taken > 0) putUsed(world.pair.device, batch, 0, taken);
  }
});

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset);
}

test('in order, a device without a region goes on behind what was used', () => {
  const pair = new QueuePair({ size: 8, inOrder: true });
  const batch = new DriverBatch();
  const chains = new ChainBatch();
  for (let n = 0; n < 6; n++) batch.addChain([{ gpa: pair.dataGpa + 64 * n, len: 8 }], []);
  addChains(pair.driver, batch, 0, 6);
  publish(pair.driver);
  takeChains(pair.device, chains, 5);
  putUsed(pair.device, chains, 0, 2);
  const taken = ringBase(pair.device);
  assert.equal(taken, 5, 'what a front-end may believe');
  pair.restart(taken);
  assert.equal(takeChains(pair.device, chains, 8), 4, 'three are done again');
  assert.equal(chains.segOffset[0], pair.offset + (pair.dataGpa - pair.map.start[0]!) + 128);
});
