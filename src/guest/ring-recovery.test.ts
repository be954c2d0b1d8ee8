/** Devices that die at any moment: what the driver makes of the ring suits their successor. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { ChainBatch, putUsed, takeChains, untakeChains } from '../virtqueue/index.ts';
import {
  addChains,
  DriverBatch,
  DriverQueue,
  publish,
  QueuePair,
  reapUsed,
  UsedBatch,
} from '../virtqueue/driver/index.ts';
import { adoptDriverState } from './driver-state.ts';
import { recoverBase } from './ring-recovery.ts';

/** Lehmer's generator: a test that fails, fails again. */
function randoms(seed: number): (below: number) => number {
  let state = seed;
  return (below) => (state = (state * 48271) % 0x7fff_ffff) % below;
}

class Driver {
  readonly pair: QueuePair;
  readonly batch = new DriverBatch();
  readonly used = new UsedBatch();
  /** By id, what is out. */
  readonly out = new Map<number, number>();
  next = 0;
  readonly done: number[] = [];

  constructor(pair: QueuePair) {
    this.pair = pair;
  }

  add(count: number, random: (below: number) => number): void {
    const first = this.next;
    this.batch.clear();
    for (let i = 0; i < count; i++) {
      const segments = Array.from({ length: 1 + random(3) }, () => ({
        gpa: this.pair.dataGpa,
        len: 1 + ((first + i) % 60_000),
      }));
      this.batch.addChain(segments, []);
    }
    const added = addChains(this.pair.driver, this.batch, 0, count);
    for (let i = 0; i < added; i++) this.out.set(this.batch.id[i]!, this.next++);
    publish(this.pair.driver);
  }

  reap(): void {
    const count = reapUsed(this.pair.driver, this.used, 64);
    assert.ok(count >= 0, `fault ${count}`);
    for (let i = 0; i < count; i++) {
      const id = this.used.id[i]!;
      const number = this.out.get(id);
      assert.notEqual(number, undefined, 'what comes back was out');
      this.out.delete(id);
      this.done.push(number!);
    }
  }
}

for (const packed of [false, true]) {
  for (const inOrder of [false, true]) {
    for (const indirect of [false, true]) {
      const kind = `${packed ? 'packed' : 'split'}${inOrder ? ' IN_ORDER' : ''}${indirect ? ' indirect' : ''}`;
      test(`a device that uses in order and dies 300 times, ${kind}`, () => {
        const random = randoms(packed ? 7 : 11);
        const pair = new QueuePair({ size: 16, packed, inOrder, indirect });
        const driver = new Driver(pair);
        for (let round = 0; round < 300; round++) {
          for (let step = random(4); step >= 0; step--) {
            driver.add(1 + random(8), random);
            const chains = new ChainBatch();
            const taken = takeChains(pair.device, chains, random(10));
            const used = random(taken + 1);
            if (used > 0) putUsed(pair.device, chains, 0, used);
            if (step === 0) break; // dies with what it has taken and not used
            if (used < taken) untakeChains(pair.device, chains, used);
            if (random(2) === 0) driver.reap();
          }
          const base = recoverBase(pair.driver, false);
          assert.notEqual(base, null);
          pair.restart(base!);
        }
        for (;;) {
          const chains = new ChainBatch();
          const taken = takeChains(pair.device, chains, 64);
          if (taken === 0) break;
          putUsed(pair.device, chains, 0, taken);
          driver.reap();
        }
        driver.reap();
        assert.equal(driver.out.size, 0, 'nothing is lost');
        assert.deepEqual(
          driver.done,
          Array.from({ length: driver.next }, (_, i) => i),
          'and nothing comes back twice, or out of order',
        );
      });
    }
  }
}

test('a split device that uses in any order leaves holes; the avail ring is mended', () => {
  const random = randoms(5);
  const pair = new QueuePair({ size: 16 });
  const driver = new Driver(pair);
  for (let round = 0; round < 300; round++) {
    driver.add(8, random);
    const chains = new ChainBatch();
    const taken = takeChains(pair.device, chains, 64);
    for (let i = taken - 1; i > 0; i -= 2) putUsed(pair.device, chains, i, 1);
    if (random(2) === 0) driver.reap();
    pair.restart(recoverBase(pair.driver, false)!);
    driver.reap();
  }
  const chains = new ChainBatch();
  const taken = takeChains(pair.device, chains, 64);
  putUsed(pair.device, chains, 0, taken);
  driver.reap();
  assert.equal(driver.out.size, 0);
  assert.deepEqual(
    driver.done.toSorted((a, b) => a - b),
    Array.from({ length: driver.next }, (_, i) => i),
  );
});

describe('a packed device that died while it published a batch', () => {
  const torn = (): Driver => {
    const driver = new Driver(new QueuePair({ size: 8, packed: true }));
    driver.add(3, () => 0);
    // The second slot is used, the first one, which is written last, is not.
    const at = driver.pair.config.descOffset + 16 + 14;
    const view = new DataView(driver.pair.buffer);
    view.setUint16(at, view.getUint16(at, true) | 0x8080, true);
    return driver;
  };

  test('leaves a ring that has to start anew', () => {
    assert.equal(recoverBase(torn().pair.driver, false), null);
  });

  test('leaves the mending to an inflight region, where there is one', () => {
    assert.equal(recoverBase(torn().pair.driver, true), 0x8000_8000);
  });
});

test('a ring that a device broke has to start anew', () => {
  const split = new Driver(new QueuePair({ size: 8 }));
  split.add(2, () => 0);
  new DataView(split.pair.buffer).setUint16(split.pair.config.usedOffset + 2, 5, true);
  assert.equal(recoverBase(split.pair.driver, false), null);
  const packed = new Driver(new QueuePair({ size: 8, packed: true }));
  packed.add(2, () => 0);
  const view = new DataView(packed.pair.buffer);
  view.setUint16(packed.pair.config.descOffset + 12, 99, true);
  assert.equal(recoverBase(packed.pair.driver, false), null);
});

test('a driver that moves takes every field of its state along', () => {
  const from = new QueuePair({ size: 8, packed: true, inOrder: true });
  const to = new QueuePair({ size: 8, packed: true, inOrder: true });
  const state = from.driver as unknown as Record<string, unknown>;
  const fixed = ['size', 'packed', 'eventIdx', 'inOrder', 'tableEntries', 'weakOrder'];
  let value = 1;
  const names = Object.keys(state).filter((name) => !fixed.includes(name));
  const numbers = names.filter((name) => typeof state[name] === 'number');
  for (const name of numbers) state[name] = ++value;
  for (const name of ['stack', 'order', 'out', 'link']) (state[name] as Int32Array).fill(++value);
  adoptDriverState(to.driver, from.driver);
  const moved = to.driver as unknown as Record<string, unknown>;
  for (const name of [...numbers, 'stack', 'order', 'out', 'link']) {
    assert.deepEqual(moved[name], state[name], name);
  }
  // What is not copied is memory of the ring, or says where that is.
  const memory = ['tableBase', 'fence', 'desc', 'avail', 'used', 'usedCells'];
  const cells = ['driverEvent', 'deviceEvent', 'arena', 'stack', 'order', 'out', 'link'];
  assert.deepEqual(
    names.filter((name) => !numbers.includes(name)).toSorted(),
    [...memory, ...cells].toSorted(),
  );
  assert.ok(to.driver instanceof DriverQueue);
});
