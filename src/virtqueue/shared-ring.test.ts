/**
 * Several threads write one receive queue, and a driver that checks what it gets: every number of
 * every thread once, each thread's in its order. And that they have it in turn.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { BATCH } from '../base/limits.ts';
import { yieldThread } from '../sys/thread.ts';
import { DeviceQueue } from './device-queue.ts';
import { needsCall, putUsed, takeChains } from './device.hot.ts';
import { ChainBatch } from './chain-batch.ts';
import { UsedBatch } from './driver/driver-batch.ts';
import { DriverBatch, QueuePair, addChains, publish, reapUsed } from './driver/index.ts';
import { PAIR_BASE_GPA, queuePairBytes } from './driver/queue-pair.ts';
import { lockRing, SHARED_RING_WORDS, unlockRing } from './shared-ring.hot.ts';

const THREADS = 2;
const NUMBERS = 40_000;
const SLOT_BYTES = 64;

const BODY = `
const { workerData } = await import('node:worker_threads');
const { ChainBatch } = await import(workerData.base + 'chain-batch.ts');
const { DeviceQueue } = await import(workerData.base + 'device-queue.ts');
const { putUsed, takeChains, untakeChains } = await import(workerData.base + 'device.hot.ts');
const { fillRows } = await import(workerData.base + 'chain-segments.hot.ts');
const { lockRing, unlockRing } = await import(workerData.base + 'shared-ring.hot.ts');
const { yieldThread } = await import(workerData.base + '../sys/thread.ts');
const { config, map, memory, shared, start, me, threads, numbers } = workerData;
const q = new DeviceQueue({ ...config, base: workerData.ringBase }, map, memory);
const chains = new ChainBatch();
const view = new DataView(memory);
Atomics.add(start, 0, 1);
while (Atomics.load(start, 0) < threads) Atomics.pause();
for (let number = 0; number < numbers; ) {
  lockRing(q, shared);
  const want = 1 + ((number * 7 + me) % 16);
  const taken = takeChains(q, chains, want);
  if (taken < 0) throw new Error('fault ' + taken);
  if (chains.unfilled !== 0) fillRows(chains, taken);
  // The last of a batch goes back now and then: what another thread takes next.
  const used = taken > 1 && number % 5 === 0 ? taken - 1 : taken;
  const left = Math.min(used, numbers - number);
  for (let i = 0; i < left; i++) {
    view.setUint32(chains.segOffset[chains.segFirst[i]], me, true);
    view.setUint32(chains.segOffset[chains.segFirst[i]] + 4, number++, true);
    chains.written[i] = 8;
  }
  if (left < taken) untakeChains(q, chains, left);
  putUsed(q, chains, 0, left);
  unlockRing(q, shared);
  if (taken === 0) yieldThread();
}
`;

for (const packed of [false, true]) {
  const kind = packed ? 'packed' : 'split';
  test(`two threads write one ${kind} ring`, { timeout: 60_000 }, async () => {
    const options = { size: 128, packed, eventIdx: true, dataBytes: 128 * SLOT_BYTES };
    const memory = new SharedArrayBuffer(4096 + queuePairBytes(options));
    const pair = new QueuePair({ ...options, memory: { buffer: memory, offset: 4096 } });
    const shared = new Int32Array(new SharedArrayBuffer(SHARED_RING_WORDS * 4));
    const start = new Int32Array(new SharedArrayBuffer(4));
    const base = new URL('./', import.meta.url).href;
    const ringBase = packed ? 0x8000_8000 : 0;
    let failed: Error | null = null;
    const ended: Promise<unknown>[] = [];
    for (let me = 0; me < THREADS; me++) {
      const { config, map } = pair;
      const numbers = NUMBERS;
      const what = { base, config, map, memory, ringBase, shared, start, me, numbers };
      const url = new URL(`data:text/javascript,${encodeURIComponent(BODY)}`);
      const worker = new Worker(url, { workerData: { ...what, threads: THREADS } });
      worker.once('error', (error: Error) => (failed = error));
      ended.push(new Promise((resolve) => worker.once('exit', resolve)));
    }
    const next = await drive(pair, () => failed !== null);
    assert.equal(failed, null);
    assert.deepEqual(next, [NUMBERS, NUMBERS]);
    await Promise.all(ended);
  });
}

/** Posts buffers, reads what comes back in the ring's order; returns what each thread got to. */
async function drive(pair: QueuePair, isOver: () => boolean): Promise<number[]> {
  const view = new DataView(pair.buffer);
  const batch = new DriverBatch();
  const used = new UsedBatch();
  const gpaOf = new Map<number, number>();
  const free = Array.from({ length: 128 }, (_, i) => pair.dataGpa + i * SLOT_BYTES);
  const next = Array.from({ length: THREADS }, () => 0);
  const rest = (): boolean => next.some((number) => number < NUMBERS);
  for (let round = 0; rest() && !isOver(); round++) {
    batch.clear();
    while (batch.count < free.length && batch.count < BATCH) {
      batch.addChain([], [{ gpa: free[free.length - 1 - batch.count]!, len: SLOT_BYTES }]);
    }
    const added = addChains(pair.driver, batch, 0, batch.count);
    for (let i = 0; i < added; i++) gpaOf.set(batch.id[i]!, batch.segGpa[batch.segFirst[i]!]!);
    for (let i = 0; i < added; i++) free.pop();
    publish(pair.driver);
    const count = reapUsed(pair.driver, used, BATCH);
    assert.ok(count >= 0, `the driver found ${count} in its ring`);
    for (let i = 0; i < count; i++) {
      const gpa = gpaOf.get(used.id[i]!)!;
      const at = gpa - PAIR_BASE_GPA + pair.offset;
      const [from, number] = [view.getUint32(at, true), view.getUint32(at + 4, true)];
      assert.equal(number, next[from], `thread ${from}: lost, doubled or out of order`);
      next[from]!++;
      free.push(gpa);
    }
    if (count === 0 && added === 0) yieldThread();
    if (round % 256 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  return next;
}

test('a fault and an open call go with the lock', () => {
  const pair = new QueuePair({ size: 8, eventIdx: true });
  const other = new DeviceQueue({ ...pair.config, base: 0 }, pair.map, pair.buffer);
  const words = new Int32Array(new SharedArrayBuffer(SHARED_RING_WORDS * 4));
  const batch = new DriverBatch();
  batch.addChain([], [{ gpa: pair.dataGpa, len: 64 }]);
  addChains(pair.driver, batch, 0, 1);
  publish(pair.driver);
  const chains = new ChainBatch();
  lockRing(pair.device, words);
  assert.equal(takeChains(pair.device, chains, 1), 1);
  putUsed(pair.device, chains, 0, 1);
  unlockRing(pair.device, words);
  lockRing(other, words);
  assert.deepEqual([other.nextAvail, other.nextUsed, other.sinceCall], [1, 1, 1]);
  assert.equal(needsCall(other), true, 'for what the first one published');
  other.fault = -3;
  unlockRing(other, words);
  lockRing(pair.device, words);
  assert.equal(needsCall(pair.device), false, 'it was asked');
  assert.equal(takeChains(pair.device, chains, 1), -3);
  unlockRing(pair.device, words);
});

const TURNS = 300;

/** Has the ring until the other thread waits for it, so often. */
const TURNS_BODY = `
const { workerData } = await import('node:worker_threads');
const { DeviceQueue } = await import(workerData.base + 'device-queue.ts');
const { lockRing, unlockRing } = await import(workerData.base + 'shared-ring.hot.ts');
const { yieldThread } = await import(workerData.base + '../sys/thread.ts');
const { config, map, memory, shared, order, turns } = workerData;
const q = new DeviceQueue({ ...config, base: 0 }, map, memory);
for (let turn = 0; turn < turns; turn++) {
  lockRing(q, shared);
  order[order[0]++] = 2;
  while (Atomics.load(shared, 0) - shared[1] < 2) yieldThread();
  unlockRing(q, shared);
}
`;

test('who waits for a ring has the next turn', { timeout: 30_000 }, async (t) => {
  const memory = new SharedArrayBuffer(4096 + queuePairBytes({ size: 8 }));
  const pair = new QueuePair({ size: 8, memory: { buffer: memory, offset: 4096 } });
  const shared = new Int32Array(new SharedArrayBuffer(SHARED_RING_WORDS * 4));
  /** First where it ends: who had the ring, one after the other. */
  const order = new Int32Array(new SharedArrayBuffer(4 * (2 * TURNS + 2)));
  order[0] = 1;
  const base = new URL('./', import.meta.url).href;
  const { config, map, device } = pair;
  const workerData = { base, config, map, memory, shared, order, turns: TURNS };
  lockRing(device, shared);
  const url = new URL(`data:text/javascript,${encodeURIComponent(TURNS_BODY)}`);
  const worker = new Worker(url, { workerData });
  const ended = once(worker, 'exit');
  t.after(() => worker.terminate());
  while (Atomics.load(shared, 0) < 2) await setTimeout(5); // it waits
  const deadlineMs = performance.now() + 20_000;
  for (let turn = 0; turn < TURNS; turn++) {
    order[order[0]++] = 1;
    while (Atomics.load(shared, 0) - shared[1] < 2) {
      yieldThread();
      assert.ok(performance.now() < deadlineMs, 'the other thread comes back');
    }
    unlockRing(device, shared); // and at once again
    lockRing(device, shared);
    assert.equal(order[order[0] - 1], 2, `turn ${turn} was for who waited`);
  }
  unlockRing(device, shared);
  await ended;
  const had = Array.from(order.subarray(1, order[0]));
  assert.deepEqual(
    had,
    Array.from({ length: 2 * TURNS }, (_, at) => 1 + (at % 2)),
  );
});
