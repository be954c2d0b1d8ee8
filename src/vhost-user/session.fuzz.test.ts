import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzz } from './session.fuzz.ts';

test('the fuzzer finds nothing in a second, and reaches what it is meant to reach', async () => {
  const { iterations, reasons, refusals } = await fuzz({ seconds: 1, seed: 20 });
  assert.ok(iterations > 100, `${iterations} iterations`);
  assert.ok(Object.keys(reasons).length > 5, JSON.stringify(reasons));
  assert.ok(Object.keys(refusals).length > 5, JSON.stringify(refusals));
});
