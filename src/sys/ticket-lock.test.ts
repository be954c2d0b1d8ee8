import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { heedLockAlarm, raiseLockAlarm } from './lock-wait.ts';
import { LOCK_WORDS, locksHeld, lockTicket, unlockTicket } from './ticket-lock.hot.ts';

const TURNS = 5000;

/** Each thread adds to a plain cell in two steps. */
const BODY = `
const { workerData } = await import('node:worker_threads');
const { lockTicket, unlockTicket } = await import(workerData.module);
const words = new Int32Array(workerData.memory);
Atomics.add(words, 4, 1);
while (Atomics.load(words, 4) < workerData.threads) Atomics.pause();
for (let turn = 0; turn < workerData.turns; turn++) {
  lockTicket(words, 0);
  if (words[2] !== 0) words[6]++; // somebody is in here
  words[2] = 1;
  const sum = words[3];
  for (let k = 0; k < 5; k++) Atomics.pause();
  words[3] = sum + 1;
  words[2] = 0;
  unlockTicket(words, 0);
}
`;

test('one thread at a time', { timeout: 30_000 }, async () => {
  const threads = 3;
  const memory = new SharedArrayBuffer(64);
  const words = new Int32Array(memory);
  const module = new URL('./ticket-lock.hot.ts', import.meta.url).href;
  const done = Array.from({ length: threads }, () => {
    const workerData = { memory, threads, module, turns: TURNS };
    const url = new URL(`data:text/javascript,${encodeURIComponent(BODY)}`);
    const worker = new Worker(url, { workerData });
    return new Promise((resolve, reject) => {
      worker.once('error', reject);
      worker.once('exit', resolve);
    });
  });
  await Promise.all(done);
  assert.equal(words[3], threads * TURNS, 'no addition was lost');
  assert.equal(words[6], 0, 'nobody met another one inside');
  assert.equal(words[0], words[1], 'as many were served as came');
});

test('who came first goes first', () => {
  const words = new Int32Array(new SharedArrayBuffer(LOCK_WORDS * 4));
  words.fill(0x7fff_ffff); // tickets run over without anybody noticing
  lockTicket(words, 0);
  assert.equal(words[0], -0x8000_0000);
  assert.equal(words[1], 0x7fff_ffff, 'we are served');
  unlockTicket(words, 0);
  lockTicket(words, 0);
  assert.deepEqual([...words], [-0x7fff_ffff, -0x8000_0000]);
  unlockTicket(words, 0);
});

test('who waits for a thread that ended gives up', () => {
  const words = new Int32Array(new SharedArrayBuffer(LOCK_WORDS * 4));
  const alarm = new Int32Array(new SharedArrayBuffer(4));
  heedLockAlarm(alarm);
  raiseLockAlarm(alarm);
  lockTicket(words, 0); // free: nobody is asked
  assert.equal(locksHeld(), 1);
  assert.throws(() => lockTicket(words, 0), /^VringError: another thread ended, and may have held/);
  assert.equal(locksHeld(), 1, 'the one that it waited for is not its own');
  unlockTicket(words, 0);
  assert.equal(locksHeld(), 0);
  heedLockAlarm(new Int32Array(1));
});
