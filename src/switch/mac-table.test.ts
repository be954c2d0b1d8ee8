import { deepStrictEqual, equal, ok, strictEqual, throws } from 'node:assert';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import * as fc from 'fast-check';
import { LEARN_ADDED, LEARN_LIMIT, LEARN_MOVED, LEARN_OVERFLOW } from './mac-table.hot.ts';
import { LEARN_REFRESHED } from './mac-table.hot.ts';
import { MacTable, macWords } from './mac-table.ts';

const mac = (n: number): string =>
  `02:00:${n
    .toString(16)
    .padStart(8, '0')
    .replace(/(..)(?=.)/g, '$1:')}`;

test('learns per VLAN, moves, lists and removes', () => {
  const table = MacTable.create({ capacity: 8 });
  strictEqual(table.lookup(mac(1), 10), -1);
  strictEqual(table.learn(mac(1), 10, 3, 100), LEARN_ADDED);
  strictEqual(table.learn(mac(1), 10, 3, 100), LEARN_REFRESHED);
  strictEqual(table.lookup(mac(1), 10), 3);
  strictEqual(table.lookup(mac(1), 11), -1);
  strictEqual(table.learn(mac(1), 10, 4, 100), LEARN_MOVED);
  strictEqual(table.learned[3], 0);
  strictEqual(table.learned[4], 1);
  const other = MacTable.attach(table.memory);
  deepStrictEqual(other.list(), [{ mac: mac(1), vlan: 10, port: 4, ageSeconds: 0 }]);
  ok(table.remove(mac(1), 10));
  ok(!table.remove(mac(1), 10));
  strictEqual(other.size, 0);
});

test('respects the limit of a port, also for moves, and the capacity', () => {
  const table = MacTable.create({ capacity: 4 });
  strictEqual(table.learn(mac(1), 1, 0, 1), LEARN_ADDED);
  strictEqual(table.learn(mac(2), 1, 0, 1), LEARN_LIMIT);
  strictEqual(table.learn(mac(2), 1, 1, 9), LEARN_ADDED);
  strictEqual(table.learn(mac(2), 1, 0, 1), LEARN_LIMIT);
  strictEqual(table.lookup(mac(2), 1), 1);
  table.learn(mac(3), 1, 1, 9);
  table.learn(mac(4), 1, 1, 9);
  strictEqual(table.learn(mac(5), 1, 1, 9), LEARN_OVERFLOW);
});

test('ages: invisible at once, swept in bounded steps, refreshed by traffic', () => {
  const table = MacTable.create({ ageingSeconds: 300 });
  table.tick(1000);
  for (let n = 0; n < 1000; n++) table.learn(mac(n), 1, n & 3, 1000);
  table.tick(1200);
  table.learn(mac(7), 1, 3, 1000);
  table.tick(1301);
  strictEqual(table.lookup(mac(8), 1), -1);
  strictEqual(table.lookup(mac(7), 1), 3);
  strictEqual(table.list().length, 1);
  ok(table.size > 1, 'one tick does not scan it all');
  for (let n = 0; n < 32; n++) table.tick(1302 + n);
  strictEqual(table.size, 1);
  strictEqual(MacTable.create({ ageingSeconds: 0 }).head[6], 0x7fffffff);
});

test('a flood of addresses fills it to the capacity and no further, lookups stay right', () => {
  const table = MacTable.create({ capacity: 1000 });
  let learned = 0;
  for (let n = 0; n < 100_000; n++) {
    if (table.learn(mac(n * 7919), 1, 1, 1e9) === LEARN_ADDED) learned++;
  }
  strictEqual(learned, table.size);
  ok(learned > 950 && learned <= 1000, `${learned} of 1000`);
  strictEqual(table.list().length, learned);
  for (const entry of table.list()) strictEqual(table.lookup(entry.mac, entry.vlan), 1);
  strictEqual(table.flush(2), 0);
  strictEqual(table.flush(), learned);
  ok(table.cells.every((word) => word === 0));
});

test('holds 100 000 addresses, and sweeps them in steps that no frame waits for', () => {
  const table = MacTable.create({ capacity: 131072, ageingSeconds: 10 });
  const words = new Int32Array(4 * 100_000);
  for (let n = 0; n < 100_000; n++) words.set(macWords(mac(n), 1, n & 127, 0), 4 * n);
  const entered = table.enter(words, () => 1000);
  ok(entered > 99_900, `${entered} of 100000`);
  strictEqual(table.snapshot().length, 4 * entered);
  strictEqual(table.snapshot(5).length, 4 * table.learned[5]!);
  strictEqual(table.snapshot(5).buffer.byteLength, 16 * table.learned[5]!);
  const ofFive = table.learned[5]!;
  strictEqual(table.flush(5), ofFive);
  strictEqual(table.size, entered - ofFive);
  strictEqual(table.flush(5), 0);
  for (let second = 1; second <= 43; second++) {
    const before = table.size;
    table.tick(second);
    while (table.due > 0) {
      ok(before - table.size <= 8 * 1024, 'a second sweeps a part');
      const step = table.size;
      table.sweep();
      ok(step - table.size <= 1024, 'and each time little of it');
    }
  }
  strictEqual(table.size, 0);
});

test('refuses sizes that make no sense', () => {
  throws(() => MacTable.create({ capacity: 0 }), { code: 'ERR_VRING_CONFIG' });
  throws(() => MacTable.create({ capacity: 131073 }), { code: 'ERR_VRING_CONFIG' });
  throws(() => MacTable.create({ ageingSeconds: -1 }), { code: 'ERR_VRING_CONFIG' });
});

test('behaves as a Map under any sequence of commands', () => {
  const address = fc.integer({ min: 0, max: 40 });
  const command = fc.oneof(
    fc.record({ op: fc.constant('learn'), n: address, port: fc.integer({ min: 0, max: 3 }) }),
    fc.record({ op: fc.constant('remove'), n: address, port: fc.constant(0) }),
    fc.record({ op: fc.constant('flush'), n: address, port: fc.integer({ min: 0, max: 3 }) }),
    fc.record({ op: fc.constant('later'), n: address, port: fc.constant(0) }),
  );
  fc.assert(
    fc.property(fc.array(command, { maxLength: 200 }), (commands) => {
      const table = MacTable.create({ capacity: 64, ageingSeconds: 100 });
      const model = new Map<string, { port: number; seen: number }>();
      let now = 0;
      for (const { op, n, port } of commands) {
        if (op === 'learn') {
          table.learn(mac(n), 1, port, 1000);
          model.set(mac(n), { port, seen: now });
        } else if (op === 'remove') {
          table.remove(mac(n), 1);
          model.delete(mac(n));
        } else if (op === 'flush') {
          table.flush(port);
          for (const [key, entry] of model) if (entry.port === port) model.delete(key);
        } else {
          now += n;
          table.tick(now);
        }
        for (let probe = 0; probe <= 40; probe += 5) {
          const entry = model.get(mac(probe));
          const alive = entry !== undefined && now - entry.seen <= 100;
          strictEqual(table.lookup(mac(probe), 1), alive ? entry.port : -1);
        }
      }
      const counts = [...table.learned].reduce((sum, count) => sum + count, 0);
      strictEqual(counts, table.size);
    }),
    { numRuns: 200 },
  );
});

const LEARNER = `
const { workerData } = await import('node:worker_threads');
const { MacTable } = await import(workerData.module);
const { lookupMac, learnMac } = await import(workerData.hot);
const table = MacTable.attach(workerData.memory);
const { cells, head, learned } = table;
const { me, start, rounds } = workerData;
Atomics.add(start, 0, 1);
while (Atomics.load(start, 0) < 2) Atomics.pause();
let wrong = 0;
for (let round = 0; round < rounds; round++) {
  const lo = (round * 7919 + me) % 64;
  // VLAN 10 + n is only of ports n and n + 2: an address of another VLAN is never behind them.
  const n = (round + me) % 2;
  const hi = (10 + n) << 16;
  learnMac(cells, head, learned, lo, hi, n + 2 * me, 1000);
  const port = lookupMac(cells, head, lo, hi);
  if (port >= 0 && port % 2 !== n) wrong++;
  if (round % 13 === 0) table.flush(n + 2 * me);
}
Atomics.add(start, 1, wrong);
`;

test(
  'two threads that learn, move and flush leave a sound table',
  { timeout: 30_000 },
  async () => {
    const table = MacTable.create({ capacity: 40, shared: true });
    table.tick(1);
    const start = new Int32Array(new SharedArrayBuffer(8));
    const module = new URL('./mac-table.ts', import.meta.url).href;
    const hot = new URL('./mac-table.hot.ts', import.meta.url).href;
    const done = [0, 1].map((me) => {
      const workerData = { me, start, module, hot, memory: table.memory, rounds: 300_000 };
      const url = new URL(`data:text/javascript,${encodeURIComponent(LEARNER)}`);
      const worker = new Worker(url, { workerData });
      return new Promise((resolve, reject) => {
        worker.once('error', reject);
        worker.once('exit', resolve);
      });
    });
    await Promise.all(done);
    equal(start[1], 0, 'an address was found behind a port of another VLAN');
    const entries = table.list();
    equal(entries.length, table.size);
    const keys = new Set(entries.map(({ mac, vlan }) => `${mac} ${vlan}`));
    equal(keys.size, entries.length, 'no address twice');
    ok(entries.length <= 40);
    for (let port = 0; port < 4; port++) {
      const own = entries.filter((entry) => entry.port === port).length;
      equal(table.learned[port], own, `port ${port} has as many as are counted`);
    }
  },
);
