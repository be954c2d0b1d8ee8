/** What is out, in which order it was taken, and where a device may have written. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { QueuePair } from '../virtqueue/driver/index.ts';
import { addChains, DriverBatch, publish, UsedBatch } from '../virtqueue/driver/index.ts';
import { ChainBatch, putUsed, takeChains } from '../virtqueue/index.ts';
import { ShadowChains } from './shadow-chains.ts';

/** A ring with `count` chains taken: one byte to read, two buffers to write. */
function taken(count: number) {
  const pair = new QueuePair({ size: 8 });
  const batch = new DriverBatch();
  const at = (offset: number, len: number) => ({ gpa: pair.dataGpa + offset, len });
  for (let i = 0; i < count; i++) {
    batch.addChain([at(0x1000 * i, 1)], [at(0x1000 * i + 16, 100), at(0x1000 * i + 512, 7)], true);
    assert.equal(addChains(pair.driver, batch, i, 1), i < 2 ? 1 : addedOf(pair));
  }
  publish(pair.driver);
  const chains = new ChainBatch();
  const number = takeChains(pair.device, chains, 64);
  return { pair, chains, number };
}

/** Eight descriptors hold two chains of three. */
const addedOf = (pair: QueuePair): number => (pair.driver.free >= 3 ? 1 : 0);

function usedOf(entries: readonly (readonly [id: number, len: number])[]): UsedBatch {
  const used = new UsedBatch();
  for (const [i, [id, len]] of entries.entries()) {
    used.id[i] = id;
    used.len[i] = len;
  }
  used.count = entries.length;
  return used;
}

test('only what was taken last can be expressed by a base', () => {
  const { pair, chains, number } = taken(2);
  assert.equal(number, 2);
  const out = new ShadowChains(8);
  assert.ok(out.isSuffix, 'nothing is out');
  out.add(5, chains, 0);
  out.add(1, chains, 1);
  assert.equal(out.count, 2);
  assert.ok(out.isSuffix, 'all is out');
  const later = out.collect(usedOf([[1, 0]]), 0, pair.device);
  assert.equal(later.count, 1);
  assert.equal(out.isSuffix, false, 'the first is out, the second is not');
  out.collect(usedOf([[5, 0]]), 0, pair.device);
  assert.equal(out.count, 0);
  assert.ok(out.isSuffix);
  out.add(5, chains, 0);
  out.add(1, chains, 1);
  out.collect(usedOf([[5, 0]]), 0, pair.device);
  assert.ok(out.isSuffix, 'the last one is out');
});

test('a chain comes back as what the guest called it, with its writable buffers', () => {
  const { pair, chains } = taken(2);
  const out = new ShadowChains(8);
  out.add(3, chains, 0);
  out.add(4, chains, 1);
  const done = out.collect(
    usedOf([
      [4, 107],
      [3, 5],
    ]),
    0,
    pair.device,
  );
  assert.equal(done.count, 2);
  assert.deepEqual([...done.head.subarray(0, 2)], [chains.head[1], chains.head[0]]);
  assert.deepEqual([...done.written.subarray(0, 2)], [107, 5]);
  assert.deepEqual([...done.writeBytes.subarray(0, 2)], [107, 107]);
  const first = chains.segFirst[1]! + chains.readSegs[1]!;
  assert.equal(done.segOffset[done.segFirst[0]!], chains.segOffset[first]);
  putUsed(pair.device, done, 0, 2);
  assert.equal(pair.device.chainsUsed, 2);
});
