import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { VringError } from '../../base/errors.ts';
import { ChainBatch } from '../chain-batch.ts';
import { putUsed, takeChains } from '../device.hot.ts';
import { faultName } from '../faults.ts';
import { DriverBatch, UsedBatch } from './driver-batch.ts';
import { DriverQueue } from './driver-queue.ts';
import { addChains, hasUsed, needsKick, publish, reapUsed } from './driver.hot.ts';
import { QueuePair, type QueuePairOptions } from './queue-pair.ts';

/** A driver with `count` chains out: 32 readable and 64 writable bytes each, in one list. */
function withChains(options: QueuePairOptions, count: number): { pair: QueuePair; view: DataView } {
  const pair = new QueuePair(options);
  const batch = new DriverBatch();
  for (let i = 0; i < count; i++) {
    const gpa = pair.dataGpa + 128 * i;
    batch.addChain([{ gpa, len: 32 }], [{ gpa: gpa + 32, len: 64 }]);
  }
  assert.equal(addChains(pair.driver, batch, 0, count), count);
  publish(pair.driver);
  return { pair, view: new DataView(pair.buffer) };
}

function reapsFault(pair: QueuePair, name: string): void {
  const into = new UsedBatch();
  const code = reapUsed(pair.driver, into, 64);
  assert.equal(code < 0 ? faultName(code) : `${code} chains`, name);
  assert.equal(reapUsed(pair.driver, into, 64), code, 'the fault is sticky');
}

describe('a split driver faults on a device', () => {
  const split =
    (
      inOrder: boolean,
      write: (
        used: (i: number, id: number, len: number) => void,
        idx: (value: number) => void,
      ) => void,
      name: string,
    ) =>
    () => {
      const { pair, view } = withChains({ size: 8, inOrder }, 3);
      const at = pair.config.usedOffset;
      write(
        (i, id, len) => {
          view.setUint32(at + 4 + 8 * i, id, true);
          view.setUint32(at + 8 + 8 * i, len, true);
        },
        (value) => view.setUint16(at + 2, value, true),
      );
      reapsFault(pair, name);
    };

  test(
    'whose index is further than what is out',
    split(false, (_, idx) => idx(4), 'USED_IDX'),
  );
  test(
    'whose index moves back',
    split(false, (_, idx) => idx(0xffff), 'USED_IDX'),
  );
  for (const inOrder of [false, true]) {
    const kind = inOrder ? ' with IN_ORDER' : '';
    test(
      `that returns what is no id${kind}`,
      split(
        inOrder,
        (used, idx) => {
          used(0, 8, 0);
          idx(1);
        },
        'USED_ID',
      ),
    );
    test(
      `that returns id 2^32-1${kind}`,
      split(
        inOrder,
        (used, idx) => {
          used(0, 0xffff_ffff, 0);
          idx(1);
        },
        'USED_ID',
      ),
    );
    test(
      `that returns what is not out${kind}`,
      split(
        inOrder,
        (used, idx) => {
          used(0, 7, 0);
          idx(1);
        },
        'USED_ID',
      ),
    );
    test(
      `that wrote too much${kind}`,
      split(
        inOrder,
        (used, idx) => {
          used(0, 0, 65);
          idx(1);
        },
        'USED_LENGTH',
      ),
    );
    test(
      `that wrote 2^31 bytes${kind}`,
      split(
        inOrder,
        (used, idx) => {
          used(0, 0, 0x8000_0000);
          idx(1);
        },
        'USED_LENGTH',
      ),
    );
  }
  test(
    'that covers more than it published, IN_ORDER',
    split(
      true,
      (used, idx) => {
        used(0, 4, 0); // the third chain
        idx(1);
      },
      'USED_ORDER',
    ),
  );

  test('that returns a chain twice, after handing over the first', () => {
    const { pair, view } = withChains({ size: 8 }, 3);
    const at = pair.config.usedOffset;
    view.setUint32(at + 8, 5, true);
    view.setUint16(at + 2, 2, true);
    const into = new UsedBatch();
    assert.equal(reapUsed(pair.driver, into, 64), 1);
    assert.equal(into.len[0], 5);
    reapsFault(pair, 'USED_ID');
  });
});

describe('a packed driver faults on a device', () => {
  const packed = (inOrder: boolean, id: number, len: number, name: string) => () => {
    const { pair, view } = withChains({ size: 8, packed: true, inOrder }, 3);
    view.setUint32(pair.config.descOffset + 8, len, true);
    view.setUint16(pair.config.descOffset + 12, id, true);
    view.setUint16(pair.config.descOffset + 14, 0x8080, true);
    reapsFault(pair, name);
  };
  for (const inOrder of [false, true]) {
    const kind = inOrder ? ' with IN_ORDER' : '';
    test(`that returns what is no id${kind}`, packed(inOrder, 8, 0, 'USED_ID'));
    test(`that returns what is not out${kind}`, packed(inOrder, 7, 0, 'USED_ID'));
    test(`that wrote too much${kind}`, packed(inOrder, 0, 65, 'USED_LENGTH'));
    test(`that wrote 2^31 bytes${kind}`, packed(inOrder, 0, 0x8000_0000, 'USED_LENGTH'));
  }
});

for (const packed of [false, true]) {
  for (const inOrder of [false, true]) {
    const kind = `${packed ? 'packed' : 'split'}${inOrder ? ' IN_ORDER' : ''}`;

    test(`what does not fit is not added, ${kind}`, () => {
      const { pair } = withChains({ size: 8, packed, inOrder }, 3);
      const batch = new DriverBatch();
      const buffer = { gpa: pair.dataGpa, len: 1 };
      batch.addChain([buffer], []);
      batch.addChain([buffer, buffer], []);
      assert.equal(addChains(pair.driver, batch, 0, 2), 1);
      assert.equal(addChains(pair.driver, batch, 1, 1), 0);
      assert.equal(pair.driver.free, 1);
    });

    test(`nothing is seen before publish, and reset forgets all, ${kind}`, () => {
      const { pair } = withChains({ size: 8, packed, inOrder }, 0);
      const batch = new DriverBatch();
      const chains = new ChainBatch();
      batch.addChain([{ gpa: pair.dataGpa, len: 9 }], []);
      batch.addChain([{ gpa: pair.dataGpa, len: 8 }], []);
      assert.equal(addChains(pair.driver, batch, 0, 2), 2);
      assert.equal(needsKick(pair.driver), false);
      assert.equal(takeChains(pair.device, chains, 64), 0);
      publish(pair.driver);
      assert.equal(needsKick(pair.driver), true);
      assert.equal(takeChains(pair.device, chains, 64), 2);
      putUsed(pair.device, chains, 0, 2);
      assert.equal(hasUsed(pair.driver), true);
      pair.driver.reset();
      assert.equal(hasUsed(pair.driver), false);
      assert.equal(pair.driver.outstanding, 0);
      assert.equal(pair.driver.free, 8);
    });

    test(`an IN_ORDER batch is reaped in pieces, ${kind}`, () => {
      const pair = new QueuePair({ size: 8, packed, inOrder });
      const batch = new DriverBatch();
      for (let i = 0; i < 6; i++) batch.addChain([{ gpa: pair.dataGpa, len: 9 }], []);
      addChains(pair.driver, batch, 0, 6);
      publish(pair.driver);
      const chains = new ChainBatch();
      assert.equal(takeChains(pair.device, chains, 64), 6);
      putUsed(pair.device, chains, 0, 6);
      const into = new UsedBatch();
      const ids: number[] = [];
      for (const [max, left] of [
        [4, true],
        [1, true],
        [9, false],
      ] as const) {
        assert.ok(reapUsed(pair.driver, into, max) > 0);
        ids.push(...into.id.subarray(0, into.count));
        assert.equal(hasUsed(pair.driver), left);
      }
      assert.deepEqual(ids, [...batch.id.subarray(0, 6)]);
    });
  }
}

test('with IN_ORDER a split driver uses descriptors in ring order (2.7.5)', () => {
  const pair = new QueuePair({ size: 8, inOrder: true });
  const batch = new DriverBatch();
  const buffer = { gpa: pair.dataGpa, len: 1 };
  for (let i = 0; i < 2; i++) batch.addChain([buffer, buffer, buffer], []);
  const into = new UsedBatch();
  const chains = new ChainBatch();
  for (const heads of [
    [0, 3],
    [6, 1],
    [4, 7],
  ]) {
    assert.equal(addChains(pair.driver, batch, 0, 2), 2);
    assert.deepEqual([...batch.id.subarray(0, 2)], heads);
    publish(pair.driver);
    takeChains(pair.device, chains, 64);
    putUsed(pair.device, chains, 0, 2);
    assert.equal(reapUsed(pair.driver, into, 64), 2);
  }
  const view = new DataView(pair.buffer);
  const next = (i: number) => view.getUint16(pair.config.descOffset + 16 * i + 14, true);
  assert.equal(next(7), 0, '0 behind the last descriptor');
});

for (const inOrder of [false, true]) {
  test(`a packed driver ignores the length of what was only read${inOrder ? ', IN_ORDER' : ''}`, () => {
    const pair = new QueuePair({ size: 8, packed: true, inOrder });
    const batch = new DriverBatch();
    batch.addChain([{ gpa: pair.dataGpa, len: 1500 }], []);
    addChains(pair.driver, batch, 0, 1);
    publish(pair.driver);
    // DPDK's device sets the flags and leaves the length that the driver wrote.
    new DataView(pair.buffer).setUint16(pair.config.descOffset + 14, 0x8080, true);
    const into = new UsedBatch();
    assert.equal(reapUsed(pair.driver, into, 8), 1);
    assert.equal(into.len[0], 0);
  });
}

test('a driver refuses memory that is no ring', () => {
  const { config } = new QueuePair({ size: 8 });
  assert.throws(
    () => new DriverQueue({ ...config, size: 3 }, new ArrayBuffer(1 << 20)),
    (error) => error instanceof VringError && error.code === 'ERR_VRING_RING_SIZE',
  );
  assert.throws(
    () =>
      new DriverQueue(
        { ...config, tables: { offset: 1 << 20, gpa: 0, entries: 1 } },
        new ArrayBuffer(1 << 20),
      ),
    (error) => error instanceof VringError && error.code === 'ERR_VRING_ASSERTION',
  );
});

test('a batch refuses chains without buffers and more than it has room for', () => {
  const batch = new DriverBatch(1, 2);
  const buffer = { gpa: 0, len: 1 };
  assert.throws(() => batch.addChain([], []), /at least one buffer/);
  assert.throws(() => batch.addChain([buffer, buffer], [buffer]), /batch is full/);
  assert.equal(batch.addChain([buffer], [buffer]), 0);
  assert.throws(() => batch.addChain([buffer], []), /batch is full/);
  batch.clear();
  assert.equal(batch.addChain([buffer], []), 0);
});
