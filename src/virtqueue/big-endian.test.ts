/**
 * A legacy driver of a big-endian guest: what our little-endian driver writes is swapped before the
 * device sees it, and what the device writes is swapped back, word by word.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inflightQueueBytes } from '../wire/inflight.ts';
import { ChainBatch } from './chain-batch.ts';
import { DeviceQueue, ringBase } from './device-queue.ts';
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
  needsKick,
  publish,
  reapUsed,
} from './driver/driver.hot.ts';
import { QueuePair, queuePairBytes } from './driver/queue-pair.ts';
import * as faults from './faults.ts';

const SIZE = 16;

/** Two memories: the driver's, little-endian, and the device's, of which the rings are swapped. */
class World {
  readonly little: QueuePair;
  readonly #big: ArrayBuffer;
  device: DeviceQueue;
  readonly #extras: { inflight: { offset: number; sizeBytes: number } };

  constructor(eventIdx: boolean) {
    const options = { size: SIZE, eventIdx, indirect: true, dataBytes: 65536 };
    const bytes = 4096 + Math.ceil(queuePairBytes(options) / 64) * 64;
    const region = inflightQueueBytes(SIZE, false);
    this.little = new QueuePair({
      ...options,
      memory: { buffer: new ArrayBuffer(bytes), offset: 4096 },
    });
    this.#big = new ArrayBuffer(bytes + region);
    this.#extras = { inflight: { offset: bytes, sizeBytes: region } };
    this.device = this.attach(0);
  }

  attach(base: number): DeviceQueue {
    const config = { ...this.little.config, base, bigEndian: true };
    this.device = new DeviceQueue(config, this.little.map, this.#big, this.#extras);
    return this.device;
  }

  /** Copies everything that the driver owns, the words of its structures turned round. */
  toDevice(): void {
    const { config, buffer } = this.little;
    const { tables } = config;
    this.#swap(buffer, this.#big, config.descOffset, SIZE);
    this.#swap(buffer, this.#big, tables!.offset, SIZE * tables!.entries);
    this.#swap16(buffer, this.#big, config.availOffset, 3 + SIZE);
  }

  toDriver(): void {
    const { config, buffer } = this.little;
    const [from, to] = [new DataView(this.#big), new DataView(buffer)];
    const at = config.usedOffset;
    for (let i = 0; i < 2 * SIZE; i++) {
      to.setUint32(at + 4 + 4 * i, from.getUint32(at + 4 + 4 * i, false), true);
    }
    this.#swap16(this.#big, buffer, at, 2);
    this.#swap16(this.#big, buffer, at + 4 + 8 * SIZE, 1);
  }

  #swap16(from: ArrayBufferLike, to: ArrayBufferLike, at: number, words: number): void {
    const [source, target] = [new DataView(from), new DataView(to)];
    for (let i = 0; i < words; i++) {
      target.setUint16(at + 2 * i, source.getUint16(at + 2 * i, true), false);
    }
  }

  /** Descriptors: u64, u32, u16, u16. */
  #swap(from: ArrayBufferLike, to: ArrayBufferLike, at: number, count: number): void {
    const [source, target] = [new DataView(from), new DataView(to)];
    for (let d = at; d < at + 16 * count; d += 16) {
      target.setBigUint64(d, source.getBigUint64(d, true), false);
      target.setUint32(d + 8, source.getUint32(d + 8, true), false);
      target.setUint16(d + 12, source.getUint16(d + 12, true), false);
      target.setUint16(d + 14, source.getUint16(d + 14, true), false);
    }
  }
}

for (const eventIdx of [false, true]) {
  test(`chains of all shapes go there and back, event idx ${eventIdx}`, () => {
    const world = new World(eventIdx);
    const { driver, dataGpa, map } = world.little;
    const chains = new ChainBatch(64, 1024, true);
    const back = new UsedBatch();
    for (let round = 0; round < 40; round++) {
      const out = new DriverBatch();
      const buffer = (n: number) => ({ gpa: dataGpa + 512 * n, len: 100 + n });
      out.addChain([buffer(0)], []);
      out.addChain([], [buffer(1)]);
      out.addChain([buffer(2), buffer(3)], [buffer(4)]);
      out.addChain([buffer(5)], [buffer(6), buffer(7)], true);
      assert.equal(addChains(driver, out, 0, 4), 4);
      publish(driver);
      world.toDevice();
      assert.equal(hasAvailable(world.device), true);
      if (round % 5 === 4) {
        assert.equal(takeChains(world.device, chains, 8), 4);
        untakeChains(world.device, chains, 1);
        untakeChains(world.device, chains, 0);
      }
      assert.equal(takeChains(world.device, chains, 8), 4);
      assert.deepEqual([...chains.readBytes.subarray(0, 4)], [100, 0, 205, 105]);
      assert.deepEqual([...chains.writeBytes.subarray(0, 4)], [0, 101, 104, 213]);
      assert.equal(chains.segOffset[0], dataGpa + map.delta[0]!);
      for (let i = 0; i < 4; i++) chains.written[i] = chains.writeBytes[i]!;
      putUsed(world.device, chains, 0, 4);
      world.toDriver();
      assert.equal(reapUsed(driver, back, 8), 4);
      assert.deepEqual([...back.len.subarray(0, 4)], [0, 101, 104, 213]);
    }
    assert.equal(ringBase(world.device), 160);
  });

  test(`both sides say whether they want to be told, event idx ${eventIdx}`, () => {
    const world = new World(eventIdx);
    const { driver, dataGpa } = world.little;
    const chains = new ChainBatch();
    const add = (): boolean => {
      const out = new DriverBatch();
      out.addChain([{ gpa: dataGpa, len: 8 }], []);
      addChains(driver, out, 0, 1);
      publish(driver);
      const kick = needsKick(driver);
      world.toDevice();
      return kick;
    };
    const use = (): boolean => {
      takeChains(world.device, chains, 8);
      putUsed(world.device, chains, 0, chains.count);
      const call = needsCall(world.device);
      world.toDriver();
      reapUsed(driver, new UsedBatch(), 8);
      return call;
    };
    enableKicks(world.device);
    world.toDriver();
    assert.equal(add(), true);
    use();
    disableKicks(world.device);
    world.toDriver();
    assert.equal(add(), false);
    enableCalls(driver);
    world.toDevice();
    assert.equal(use(), true);
    disableCalls(driver);
    world.toDevice();
    add();
    assert.equal(use(), false);
  });
}

test('what was in flight is done again', () => {
  const world = new World(false);
  const { driver, dataGpa } = world.little;
  const chains = new ChainBatch();
  const out = new DriverBatch();
  for (let n = 0; n < 5; n++) out.addChain([{ gpa: dataGpa, len: 8 + n }], []);
  addChains(driver, out, 0, 5);
  publish(driver);
  world.toDevice();
  assert.equal(takeChains(world.device, chains, 3), 3);
  putUsed(world.device, chains, 1, 1);
  const successor = world.attach(1);
  assert.equal(successor.resubmissions, 2);
  assert.equal(takeChains(successor, chains, 8), 2);
  assert.deepEqual([...chains.readBytes.subarray(0, 2)], [8, 10]);
  putUsed(successor, chains, 0, 2);
  assert.equal(takeChains(successor, chains, 8), 2);
  putUsed(successor, chains, 0, 2);
  world.toDriver();
  assert.equal(reapUsed(driver, new UsedBatch(), 8), 5);
});

test('a ring that is wrong is a fault here, too', () => {
  const world = new World(false);
  const { config, buffer, driver, dataGpa } = world.little;
  const view = new DataView(buffer);
  const chains = new ChainBatch();
  const expect = (code: number, change: () => void): void => {
    const out = new DriverBatch();
    out.addChain([{ gpa: dataGpa, len: 8 }], []);
    addChains(driver, out, 0, 1);
    publish(driver);
    change();
    world.toDevice();
    const fresh = world.attach(0);
    fresh.nextAvail = (view.getUint16(config.availOffset + 2, true) - 1) & 0xffff;
    assert.equal(faults.faultName(takeChains(fresh, chains, 1)), faults.faultName(code));
  };
  const idx = () => view.getUint16(config.availOffset + 2, true);
  const slot = () => config.availOffset + 4 + 2 * ((idx() - 1) % SIZE);
  const head = () => config.descOffset + 16 * view.getUint16(slot(), true);
  expect(faults.FAULT_HEAD, () => view.setUint16(slot(), SIZE, true));
  expect(faults.FAULT_DESC_ADDRESS, () => view.setBigUint64(head(), 8n, true));
  expect(faults.FAULT_DESC_LENGTH, () => view.setUint32(head() + 8, 0x8000_0000, true));
  expect(faults.FAULT_DESC_NEXT, () => {
    view.setUint16(head() + 12, 1, true);
    view.setUint16(head() + 14, SIZE, true);
  });
});
