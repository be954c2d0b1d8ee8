import assert from 'node:assert/strict';
import { test } from 'node:test';
import { queuesOf } from './receive-queues.ts';

test('with enough receive queues no two workers write one, and all are written', () => {
  for (let workers = 1; workers <= 16; workers++) {
    for (let pairs = 1; pairs <= 8; pairs++) {
      const usable = Array.from({ length: pairs }, (_, pair) => pair);
      const each = Array.from({ length: workers }, (_, worker) =>
        queuesOf(usable, worker, workers),
      );
      assert.ok(each.every((queues) => queues.length >= 1));
      assert.deepEqual([...new Set(each.flat())].sort(), usable.slice(0, Math.max(pairs, 1)));
      if (pairs >= workers) assert.equal(each.flat().length, pairs);
      else assert.equal(each.flat().length, workers, 'one each, shared');
    }
  }
  assert.deepEqual(queuesOf([], 1, 2), []);
});
