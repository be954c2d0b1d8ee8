/**
 * `node src/virtqueue/shared-ring.bench.ts`: what taking a ring over and giving it back costs, per
 * batch: alone, and with a second thread that does the same as fast as it can.
 */
import { Worker, isMainThread, workerData } from 'node:worker_threads';
import { DeviceQueue } from './device-queue.ts';
import { QueuePair } from './driver/queue-pair.ts';
import { lockRing, SHARED_RING_WORDS, unlockRing } from './shared-ring.hot.ts';

const TURNS = 2_000_000;

function run(q: DeviceQueue, words: Int32Array, turns: number): number {
  const startedMs = performance.now();
  for (let turn = 0; turn < turns; turn++) {
    lockRing(q, words);
    q.nextAvail = (q.nextAvail + 1) & 0xffff;
    unlockRing(q, words);
  }
  return ((performance.now() - startedMs) * 1e6) / turns;
}

const queue = (): DeviceQueue => new QueuePair({ size: 256 }).device;

if (isMainThread) {
  const words = new Int32Array(new SharedArrayBuffer(SHARED_RING_WORDS * 4));
  run(queue(), words, 100_000);
  const alone = Array.from({ length: 5 }, () => run(queue(), words, TURNS));
  console.log(`alone      ${Math.min(...alone).toFixed(1)} ns per turn`);
  const go = new Int32Array(new SharedArrayBuffer(8));
  const worker = new Worker(new URL(import.meta.url), { workerData: { words, go } });
  while (Atomics.load(go, 0) === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  const shared = run(queue(), words, TURNS);
  console.log(`contended  ${(shared / 2).toFixed(1)} ns per turn of either thread`);
  Atomics.store(go, 1, 1);
  await new Promise((resolve) => worker.once('exit', resolve));
} else {
  const { words, go } = workerData as { words: Int32Array; go: Int32Array };
  const own = queue();
  run(own, words, 100_000);
  Atomics.store(go, 0, 1);
  while (Atomics.load(go, 1) === 0) run(own, words, 1000);
}
