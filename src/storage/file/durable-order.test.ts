import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DurableOrder } from './durable-order.ts';

function released(order: DurableOrder): number[] {
  const slots: number[] = [];
  order.release((slot) => slots.push(slot));
  return slots;
}

test('a flush alone is told at once', () => {
  const order = new DurableOrder(8);
  for (let round = 0; round < 5; round++) {
    order.begin(1);
    assert.deepEqual(released(order), []);
    order.end(1, true);
    assert.deepEqual(released(order), [1]);
    assert.deepEqual(released(order), []);
  }
});

test('of two that overlap, the first answer waits for the second', () => {
  const order = new DurableOrder(8);
  order.begin(1);
  order.begin(2);
  order.end(2, true);
  assert.deepEqual(released(order), []);
  order.end(1, false); // it failed: whoever made the order knows by now
  assert.deepEqual(released(order), [2]);
});

test('nobody waits for who came later', () => {
  const order = new DurableOrder(8);
  order.begin(1);
  order.begin(2);
  order.end(1, true);
  assert.deepEqual(released(order), []);
  order.begin(3);
  order.end(2, true);
  assert.deepEqual(released(order), [1], 'though 3 is under way');
  assert.deepEqual(released(order), [], '2 was answered while 3 was');
  order.begin(4);
  order.end(3, true);
  assert.deepEqual(released(order), [2]);
  order.end(4, true);
  assert.deepEqual(released(order), [3, 4]);
});

test('whatever comes in whatever order: after who was under way, and all in the end', () => {
  const seed = Date.now() >>> 0;
  let state = seed;
  const next = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const order = new DurableOrder(16);
  const free = Array.from({ length: 16 }, (_, i) => i);
  const underWay = new Set<number>();
  /** Who has to be answered before a slot may be told. */
  const after = new Map<number, Set<number>>();
  for (let round = 0; round < 20_000 || underWay.size > 0 || after.size > 0; round++) {
    assert.ok(round < 30_000, `seed ${seed}: ${after.size} were never told`);
    if (round < 20_000 && free.length > 0 && next(2) === 0) {
      const slot = free.splice(next(free.length), 1)[0]!;
      order.begin(slot);
      underWay.add(slot);
    } else if (underWay.size > 0) {
      const slot = [...underWay][next(underWay.size)]!;
      underWay.delete(slot);
      for (const waits of after.values()) waits.delete(slot);
      const isHeld = next(8) !== 0;
      order.end(slot, isHeld);
      if (isHeld) after.set(slot, new Set(underWay));
      else free.push(slot);
    }
    for (const slot of released(order)) {
      assert.equal(after.get(slot)?.size, 0, `seed ${seed}, round ${round}: too early`);
      after.delete(slot);
      free.push(slot);
    }
  }
});
