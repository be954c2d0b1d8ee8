import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzz } from './queue.fuzz.ts';

test('the fuzzer finds nothing in two seconds, and gets somewhere', async () => {
  const { rounds, chains, faults } = await fuzz({ seconds: 2, seed: 20 });
  assert.ok(rounds > 10, `${rounds} rounds`);
  assert.ok(chains > 1000, `${chains} chains`);
  assert.ok(faults > 100, `${faults} faults`);
});
