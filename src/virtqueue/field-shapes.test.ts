/**
 * One hidden class for all queues: a field that once held a boxed double gives the objects made
 * from then on another one, and every hot function throws its code away (measured: 5-10 ns per
 * chain until it is polymorphic code).
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { ChainBatch } from './chain-batch.ts';
import { ringBase } from './device-queue.ts';
import { putUsed, takeChains, untakeChains } from './device.hot.ts';
import { DriverBatch, UsedBatch } from './driver/driver-batch.ts';
import { addChains, publish, reapUsed } from './driver/driver.hot.ts';
import { QueuePair } from './driver/queue-pair.ts';

setFlagsFromString('--allow-natives-syntax');
const sameShape = new Function('a', 'b', 'return %HaveSameMap(a, b)') as (
  a: object,
  b: object,
) => boolean;

/** `value`, as a number that V8 keeps boxed. */
function boxed(value: number): number {
  const cells = new Float64Array([value, 0.5]);
  return { cells, number: cells[0] }.number;
}

test('queues and batches keep one shape, over formats, restarts and work', () => {
  const shapes = new Map<string, object>();
  const check = (name: string, object: object) => {
    const first = shapes.get(name) ?? object;
    shapes.set(name, first);
    assert.ok(sameShape(first, object), name);
  };
  for (let i = 0; i < 24; i++) {
    const packed = (i >> 2) % 2 === 1;
    const pair = new QueuePair({ size: boxed(16), packed, inOrder: i % 3 === 0, indirect: true });
    const chains = new ChainBatch(boxed(8), boxed(32));
    const out = new DriverBatch(boxed(8), boxed(32));
    const back = new UsedBatch(boxed(8));
    for (let n = 0; n < 8; n++) out.addChain([{ gpa: pair.dataGpa, len: 1 + n }], []);
    for (let round = 0; round < 8; round++) {
      addChains(pair.driver, out, 0, 8);
      publish(pair.driver);
      takeChains(pair.device, chains, 8);
      untakeChains(pair.device, chains, 5);
      putUsed(pair.device, chains, 0, 5);
      takeChains(pair.device, chains, 8);
      putUsed(pair.device, chains, 0, 3);
      assert.equal(reapUsed(pair.driver, back, 8), 8);
      pair.restart(boxed(ringBase(pair.device)));
      check('DeviceQueue', pair.device);
      check('DriverQueue', pair.driver);
      check('ChainBatch', chains);
      check('DriverBatch', out);
      check('UsedBatch', back);
    }
  }
});
