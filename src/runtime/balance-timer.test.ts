import { deepEqual, equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BalanceTimer } from './balance-timer.ts';
import { DataPlaneWorker } from './data-plane-worker.ts';

const PERIOD_MS = 10;

test('it looks while there is something to see, and begins again with the first work', async () => {
  const looks: number[] = [];
  let left = 2;
  const timer = new BalanceTimer(PERIOD_MS, (periods) => {
    looks.push(periods);
    return left-- > 0;
  });
  equal(timer.quiet[0], 1, 'it asks for the first work');
  await sleep(5 * PERIOD_MS);
  deepEqual(looks, [], 'nothing moves');
  timer.begin();
  timer.begin();
  timer.quiet[0] = 0; // who told it
  for (let tries = 0; looks.length < 3 && tries < 400; tries++) await sleep(5);
  equal(timer.quiet[0], 1, 'a period brought nothing');
  await sleep(20 * PERIOD_MS);
  equal(looks.length, 3);
  ok(looks[0]! >= 5, 'periods at rest are counted');
  timer.begin();
  for (let tries = 0; looks.length < 4 && tries < 400; tries++) await sleep(5);
  ok(looks[3]! >= 15, `${looks[3]} periods`);
  timer.begin();
  timer.close();
  timer.begin();
  equal(timer.quiet[0], 0, 'nobody is to call any more');
  await sleep(5 * PERIOD_MS);
  equal(looks.length, 4);
});

test('a worker says once that it has work again, sleeping or not', async () => {
  const quiet = new Int32Array(new SharedArrayBuffer(4));
  let said = 0;
  const worker = new DataPlaneWorker({
    name: 'test-plane',
    planeModule: new URL('./test-plane.ts', import.meta.url),
    planeOptions: null,
    spinMs: 0,
    quiet,
    onBusy: () => said++,
    onEvent: () => undefined,
    onCrash: (error) => {
      throw error;
    },
  });
  const isSaid = (times: number): boolean => said >= times;
  const until = async (times: number): Promise<void> => {
    for (let tries = 0; !isSaid(times) && tries < 400; tries++) await sleep(5);
    equal(said, times);
    equal(quiet[0], 0);
  };
  await worker.counters();
  await worker.request('once', undefined);
  while ((await worker.counters()).work === 0) await sleep(5);
  await sleep(30); // and it sleeps
  quiet[0] = 1;
  await worker.counters(); // it wakes and has no work
  await sleep(30);
  equal(said, 0, 'what was done before it was asked is not said');
  await worker.request('once', undefined); // one round, and it sleeps again
  await until(1);
  await worker.request('once', undefined);
  await sleep(30);
  equal(said, 1, 'nobody asked');
  await worker.request('busy', undefined);
  Atomics.store(quiet, 0, 1);
  await until(2);
  await worker.close();
});
