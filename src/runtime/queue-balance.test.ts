import assert from 'node:assert/strict';
import { test } from 'node:test';
import { balance, type QueueLoad } from './queue-balance.ts';

type Queue = QueueLoad & { readonly name: number };

/** mulberry32: the same numbers in every run. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const totalsOf = (queues: readonly Queue[], others: readonly number[]): number[] => {
  const totals = [...others];
  for (const { member, load } of queues) totals[member]! += load;
  return totals;
};

test('a queue goes from the busiest worker to the idlest', () => {
  const queues = [
    { name: 0, member: 0, load: 100 },
    { name: 1, member: 0, load: 90 },
    { name: 2, member: 1, load: 10 },
  ];
  assert.deepEqual(balance(queues, [0, 0, 0]), { queue: queues[0], to: 2 });
});

test('nothing moves without load, for noise, or when all load is of one queue', () => {
  assert.equal(balance([{ member: 0, load: 0 }], [0, 0]), null);
  assert.equal(balance([], [0, 0]), null);
  assert.equal(balance([{ member: 0, load: 1000 }], [0, 0]), null, 'it would only change places');
  assert.equal(
    balance(
      [
        { member: 0, load: 1000 },
        { member: 1, load: 950 },
      ],
      [0, 0],
    ),
    null,
  );
  assert.equal(balance([{ member: 0, load: 10 }], [1000, 0]), null, 'a drop in the bucket');
  assert.equal(balance([{ member: 0, load: 1 }], [1, 0]), null, 'a guest said who it is');
});

test('an uplink that stays makes room for it', () => {
  const queue = { member: 0, load: 400 };
  assert.deepEqual(balance([queue], [1000, 0]), { queue, to: 1 });
});

test('loads that stay as they are come to rest, and the busiest worker never gets busier', () => {
  for (let seed = 1; seed <= 2000; seed++) {
    const next = random(seed);
    const members = 2 + Math.floor(next() * 7);
    const others = Array.from({ length: members }, () => (next() < 0.3 ? next() * 500 : 0));
    let queues: Queue[] = Array.from({ length: Math.floor(next() * 24) }, (_, name) => {
      const load = next() < 0.3 ? 0 : Math.floor(next() ** 3 * 1000);
      return { name, member: Math.floor(next() * members), load };
    });
    let moves = 0;
    for (;;) {
      const before = totalsOf(queues, others);
      const move = balance(queues, others);
      if (move === null) break;
      queues = queues.map((queue) => {
        return queue.name === move.queue.name ? { ...queue, member: move.to } : queue;
      });
      const after = totalsOf(queues, others);
      const squares = (totals: number[]): number => totals.reduce((sum, x) => sum + x * x, 0);
      assert.ok(Math.max(...after) <= Math.max(...before), `seed ${seed}: the highest load rose`);
      assert.ok(squares(after) < squares(before), `seed ${seed}: no better`);
      moves++;
      assert.ok(moves <= 2 * queues.length, `seed ${seed}: ${moves} moves of ${queues.length}`);
    }
  }
});

test('loads that vary by a twentieth do not make a queue go back and forth', () => {
  for (let seed = 1; seed <= 200; seed++) {
    const next = random(seed);
    const base = Array.from({ length: 8 }, () => 500 + next() * 500);
    const member = base.map((_, name) => name % 2);
    let late = 0;
    for (let second = 0; second < 60; second++) {
      const queues = base.map((load, name) => {
        return { name, member: member[name]!, load: load * (0.95 + next() * 0.1) };
      });
      const move = balance(queues, [0, 0]);
      if (move === null) continue;
      member[move.queue.name] = move.to;
      if (second >= 10) late++;
    }
    assert.ok(late <= 3, `seed ${seed}: ${late} moves after ten seconds`);
  }
});
