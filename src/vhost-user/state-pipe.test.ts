import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { openFdCount, socketPair } from '../sys/index.ts';
import { Gathered, readToEnd } from './state-pipe.ts';

test('what comes byte by byte costs no more than what comes at once', () => {
  const gathered = new Gathered();
  const stores = new Set<ArrayBufferLike>();
  for (let n = 0; n < 300_000; n++) {
    const room = gathered.room();
    assert(room.length > 0);
    stores.add(room.buffer);
    room[0] = n;
    gathered.took(1);
  }
  assert.equal(gathered.length, 300_000);
  assert(gathered.bytes.every((byte, n) => byte === (n & 0xff)));
  assert.equal(stores.size, 4); // 64, 128, 256, 512 KiB
});

test('reads to the end, or to the limit', async () => {
  const before = openFdCount();
  for (const limit of [10, 9]) {
    const [ours, theirs] = socketPair();
    const read = readToEnd(ours, limit, 1000);
    read.catch(() => undefined);
    for (let n = 0; n < 10; n++) {
      writeSync(theirs.number, Uint8Array.of(n));
      await nextTurn();
    }
    theirs.close();
    if (limit === 10) assert.deepEqual([...(await read)], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    else await assert.rejects(read, { code: 'ERR_VRING_DEVICE_STATE' });
    ours.close();
  }
  assert.equal(openFdCount(), before);
});
