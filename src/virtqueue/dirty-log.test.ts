import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ringLayout } from '../wire/virtio.ts';
import { ChainBatch } from './chain-batch.ts';
import { disableKicks, enableKicks, needsCall, putUsed, takeChains } from './device.hot.ts';
import type { QueueLog } from './dirty-log.ts';
import { DriverBatch, UsedBatch } from './driver/driver-batch.ts';
import { addChains, publish, reapUsed } from './driver/driver.hot.ts';
import { PAIR_BASE_GPA, QueuePair, queuePairBytes } from './driver/queue-pair.ts';

const PAGE = 4096;
const DATA = 64 * PAGE;
const SIZE = 64;

type Options = {
  readonly packed: boolean;
  readonly eventIdx: boolean;
  readonly inOrder: boolean;
  readonly lazy: boolean;
  readonly logsUsed: boolean;
  /** Bytes of the log, where it is shorter than it must be. */
  readonly logBytes?: number;
};

/** A ring in memory with a log behind it. */
class Logged {
  readonly pair: QueuePair;
  readonly chains: ChainBatch;
  readonly out = new DriverBatch();
  readonly back = new UsedBatch();
  readonly memory: Uint8Array;
  readonly log: Uint8Array;
  readonly #options: Options;

  constructor(options: Options) {
    this.#options = options;
    const ring = { size: SIZE, packed: options.packed, dataBytes: DATA };
    const bytes = queuePairBytes(ring);
    const full = Math.ceil((PAIR_BASE_GPA + bytes) / PAGE / 8);
    const logAt = PAGE + Math.ceil(bytes / PAGE) * PAGE;
    const buffer = new ArrayBuffer(logAt + full);
    const layout = ringLayout(SIZE, options.packed);
    const log: QueueLog = {
      offset: logAt,
      sizeBytes: options.logBytes ?? full,
      usedGpa: options.logsUsed ? PAIR_BASE_GPA + layout.usedAt : -1,
      gpa: {
        count: 1,
        start: Float64Array.of(PAIR_BASE_GPA),
        end: Float64Array.of(PAIR_BASE_GPA + bytes),
        delta: Float64Array.of(PAGE - PAIR_BASE_GPA),
      },
    };
    this.pair = new QueuePair({
      ...ring,
      eventIdx: options.eventIdx,
      inOrder: options.inOrder,
      indirect: true,
      memory: { buffer, offset: PAGE },
      extras: { log },
    });
    this.chains = new ChainBatch(SIZE, 1024, options.lazy);
    this.memory = new Uint8Array(buffer, 0, logAt);
    this.log = new Uint8Array(buffer, logAt);
  }

  /** Runs one act of the device: pages that it changed, pages that it logged. */
  act(body: () => void): { changed: Set<number>; logged: Set<number> } {
    const before = this.memory.slice();
    this.log.fill(0);
    body();
    const changed = new Set<number>();
    const logged = new Set<number>();
    for (let at = PAGE; at < before.length; at += PAGE) {
      const [was, is] = [before, this.memory].map((bytes) => bytes.subarray(at, at + PAGE));
      if (Buffer.compare(was!, is!) !== 0) changed.add(pageOf(at));
    }
    const first = Math.floor(PAIR_BASE_GPA / PAGE / 8);
    assert.ok(
      this.log.subarray(0, first).every((byte) => byte === 0),
      'no page in front of it',
    );
    for (let page = 8 * first; page < 8 * this.log.length; page++) {
      if (((this.log[page >> 3]! >> (page & 7)) & 1) === 1) logged.add(page);
    }
    return { changed, logged };
  }

  /** Pages of an area of the ring; its writes are only logged where the front-end says so. */
  ringPages(area: 'desc' | 'used'): Set<number> {
    const { config } = this.pair;
    const layout = ringLayout(SIZE, config.packed);
    const at = area === 'desc' ? config.descOffset : config.usedOffset;
    const bytes = area === 'desc' ? layout.descBytes : layout.usedBytes;
    return new Set([pageOf(at), pageOf(at + bytes - 1)]);
  }

  get logsUsed(): boolean {
    return this.#options.logsUsed;
  }
}

/** Guest page of an arena offset. */
function pageOf(at: number): number {
  return Math.floor((at - PAGE + PAIR_BASE_GPA) / PAGE);
}

function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.trunc((state / 2 ** 32) * below);
  };
}

function* allOptions(): Generator<Options> {
  for (let n = 0; n < 32; n++) {
    const [packed, eventIdx, inOrder] = [(n & 1) > 0, (n & 2) > 0, (n & 4) > 0];
    yield { packed, eventIdx, inOrder, lazy: (n & 8) > 0, logsUsed: (n & 16) > 0 };
  }
}

test('what a device changes in guest memory is logged, and little else', () => {
  for (const options of allOptions()) {
    const world = new Logged(options);
    const { pair, chains, out, back } = world;
    const pick = random(1 + (options.packed ? 2 : 0));
    const ring = new Set([...world.ringPages('used'), ...world.ringPages('desc')]);
    for (let round = 0; round < 12; round++) {
      out.clear();
      const oneWay = pick(2) === 0;
      for (let n = 1 + pick(8); n > 0; n--) {
        const some = () => ({ gpa: pair.dataGpa + pick(DATA - 9000), len: 1 + pick(9000) });
        const writes = Array.from({ length: oneWay ? 1 : pick(3) }, some);
        const reads = oneWay ? [] : [some()];
        out.addChain(reads, writes, pick(2) === 0);
      }
      addChains(pair.driver, out, 0, out.count);
      publish(pair.driver);
      if (pick(2) === 0) world.act(() => disableKicks(pair.device));
      const count = takeChains(pair.device, chains, SIZE);
      assert.ok(count > 0);
      const lazy = chains.unfilled !== 0; // then rows say no more than heads
      const bytesOf = (i: number) =>
        lazy ? chains.segLen[i]! * (chains.uniform - 1) : chains.writeBytes[i]!;
      const writableOf = (i: number) => (lazy ? i : chains.segFirst[i]! + chains.readSegs[i]!);
      const may = new Set(ring);
      const { changed, logged } = world.act(() => {
        for (let i = 0; i < count; i++) {
          let left = (chains.written[i] = pick(bytesOf(i) + 1));
          let s = writableOf(i);
          for (; left > 0; s++) {
            const len = Math.min(left, chains.segLen[s]!);
            world.memory.fill(1 + pick(255), chains.segOffset[s]!, chains.segOffset[s]! + len);
            for (let at = 0; at < len; at += 100) may.add(pageOf(chains.segOffset[s]! + at));
            may.add(pageOf(chains.segOffset[s]! + len - 1));
            left -= len;
          }
        }
        putUsed(pair.device, chains, 0, count);
      });
      for (const page of changed) {
        const isRing = ring.has(page);
        assert.ok(logged.has(page) || (isRing && !options.logsUsed), `page ${page}`);
      }
      for (const page of logged) assert.ok(may.has(page), `page ${page} was not written`);
      if (!options.logsUsed) for (const page of ring) assert.ok(!logged.has(page) || may.has(page));
      needsCall(pair.device);
      assert.ok(reapUsed(pair.driver, back, SIZE) >= 0);
      const event = world.act(() => enableKicks(pair.device));
      for (const page of event.changed) {
        assert.ok(event.logged.has(page) === options.logsUsed, 'notification area');
      }
    }
    assert.equal(pair.device.log.outside, 0);
  }
});

test('a page without a bit is counted and nothing is written', () => {
  const world = new Logged({
    packed: false,
    eventIdx: false,
    inOrder: false,
    lazy: false,
    logsUsed: true,
    logBytes: 16,
  });
  const { pair, chains, out } = world;
  out.addChain([], [{ gpa: pair.dataGpa, len: 2 * PAGE }]);
  addChains(pair.driver, out, 0, 1);
  publish(pair.driver);
  takeChains(pair.device, chains, 1);
  chains.written[0] = PAGE + 1;
  const { logged } = world.act(() => putUsed(pair.device, chains, 0, 1));
  assert.equal(logged.size, 0);
  assert.ok(pair.device.log.outside >= 3, 'two pages of the buffer, one of the ring');
});

test('a bit that is set already is left alone, beside others', () => {
  const world = new Logged({
    packed: true,
    eventIdx: false,
    inOrder: false,
    lazy: true,
    logsUsed: false,
  });
  const { pair, chains, out } = world;
  out.addChain([], [{ gpa: pair.dataGpa, len: 10 }]);
  addChains(pair.driver, out, 0, 1);
  publish(pair.driver);
  takeChains(pair.device, chains, 1);
  chains.written[0] = 10;
  const page = Math.floor(pair.dataGpa / PAGE);
  world.log[page >> 3] = 0xff;
  putUsed(pair.device, chains, 0, 1);
  assert.equal(world.log[page >> 3], 0xff);
});

test('a queue that is made marks its ring: who had it before was perhaps killed before it did', () => {
  for (const options of allOptions()) {
    const world = new Logged(options);
    const { logged } = world.act(() => world.pair.restart(options.packed ? 0x8000_8000 : 0));
    const ring = [...world.ringPages('used'), ...(options.packed ? world.ringPages('desc') : [])];
    assert.deepEqual([...logged].sort(), options.logsUsed ? [...new Set(ring)].sort() : []);
  }
});
