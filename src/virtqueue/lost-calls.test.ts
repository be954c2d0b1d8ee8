/**
 * A device publishes and asks whether it shall call while its driver asks for calls and looks once
 * more: one of them must see the other, or both sleep. The same for kicks. What it takes is a
 * store that is visible before the load behind it, which only two processors can get wrong: each
 * round brings both threads to that point at the same moment.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { yieldThread } from '../sys/thread.ts';
import { addChains, disableCalls, DriverBatch, enableCalls, needsKick } from './driver/index.ts';
import { publish, QueuePair, reapUsed, UsedBatch } from './driver/index.ts';
import { queuePairBytes } from './driver/queue-pair.ts';

const ROUNDS = 60_000;
// Words that both see: whose turn it is, what the device saw.
const DRIVER_AT = 0;
const DEVICE_AT = 1;
const WOULD_CALL = 2;
const FOUND_MORE = 3;
const DELAY = 8;

const DEVICE = `
const { workerData } = await import('node:worker_threads');
const { ChainBatch } = await import(workerData.base + 'chain-batch.ts');
const { DeviceQueue } = await import(workerData.base + 'device-queue.ts');
const { disableKicks, enableKicks, needsCall, putUsed, takeChains } = await import(
  workerData.base + 'device.hot.ts'
);
const { yieldThread } = await import(workerData.base + '../sys/thread.ts');
const { config, map, memory, ringBase, words, rounds } = workerData;
const q = new DeviceQueue({ ...config, base: ringBase }, map, memory);
const chains = new ChainBatch();
const meet = (point) => {
  Atomics.store(words, 1, point);
  for (let n = 0; Atomics.load(words, 0) < point; n++) if (n > 5000) yieldThread();
};
for (let round = 1, point = 1; round <= rounds; round++) {
  disableKicks(q);
  meet(point++); // the driver is about to publish
  for (let n = round % 31; n > 0; n--) words[4]++;
  Atomics.store(words, 3, enableKicks(q) ? 1 : 0);
  meet(point++);
  if (takeChains(q, chains, 1) !== 1) throw new Error('nothing was published');
  meet(point++); // and now it wants calls
  putUsed(q, chains, 0, 1);
  Atomics.store(words, 2, needsCall(q) ? 1 : 0);
  meet(point++);
}
`;

for (const packed of [false, true]) {
  for (const eventIdx of [false, true]) {
    const kind = `${packed ? 'packed' : 'split'}${eventIdx ? ', event idx' : ''}`;
    test(`${kind}: no call and no kick is lost`, { timeout: 60_000 }, async () => {
      const { lostKicks, lostCalls } = await meetOften(packed, eventIdx);
      assert.deepEqual({ lostKicks, lostCalls }, { lostKicks: 0, lostCalls: 0 });
    });
  }
}

async function meetOften(
  packed: boolean,
  eventIdx: boolean,
): Promise<{ lostKicks: number; lostCalls: number }> {
  const options = { size: 8, packed, eventIdx, dataBytes: 4096 };
  const memory = new SharedArrayBuffer(4096 + queuePairBytes(options));
  const pair = new QueuePair({ ...options, memory: { buffer: memory, offset: 4096 } });
  const words = new Int32Array(new SharedArrayBuffer(64));
  const { config, map } = pair;
  const base = new URL('./', import.meta.url).href;
  const ringBase = packed ? 0x8000_8000 : 0;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(DEVICE)}`), {
    workerData: { base, config, map, memory, ringBase, words, rounds: ROUNDS },
  });
  let failed: Error | null = null;
  worker.once('error', (error: Error) => (failed = error));
  const ended = new Promise((resolve) => worker.once('exit', resolve));
  await new Promise((resolve) => worker.once('online', resolve));
  const meet = (point: number): void => {
    Atomics.store(words, DRIVER_AT, point);
    for (let n = 0; Atomics.load(words, DEVICE_AT) < point; n++) if (n > 5000) yieldThread();
  };
  const batch = new DriverBatch();
  const used = new UsedBatch();
  let [lostKicks, lostCalls, point] = [0, 0, 1];
  for (let round = 1; round <= ROUNDS; round++) {
    batch.clear();
    batch.addChain([{ gpa: pair.dataGpa, len: 64 }], []);
    addChains(pair.driver, batch, 0, 1);
    meet(point++);
    publish(pair.driver);
    const kicks = needsKick(pair.driver);
    meet(point++);
    if (!kicks && words[FOUND_MORE] === 0) lostKicks++;
    disableCalls(pair.driver);
    meet(point++);
    for (let n = round % 61; n > 0; n--) words[DELAY]!++; // the device publishes meanwhile
    const more = enableCalls(pair.driver);
    meet(point++);
    if (!more && words[WOULD_CALL] === 0) lostCalls++;
    assert.equal(reapUsed(pair.driver, used, 8), 1);
  }
  await ended;
  assert.equal(failed, null);
  return { lostKicks, lostCalls };
}
