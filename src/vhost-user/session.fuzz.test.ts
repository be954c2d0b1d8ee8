import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FRONT_END_MESSAGES } from './message-table.ts';
import { fuzz } from './session.fuzz.ts';

test('the fuzzer finds nothing in 200 sessions, and reaches what it is meant to reach', async () => {
  const options = { seconds: 60, seed: 20, iterations: 200 };
  const { iterations, reasons, refusals, accepted } = await fuzz(options);
  assert.equal(iterations, 200);
  assert.ok(Object.keys(reasons).length > 5, JSON.stringify(reasons));
  assert.ok(Object.keys(refusals).length > 5, JSON.stringify(refusals));
  // Most of what the table has is not only refused: a new message that nobody can make is found.
  const reached = [...FRONT_END_MESSAGES.values()].filter(({ name }) => (accepted[name] ?? 0) > 0);
  assert.ok(reached.length > 35, JSON.stringify(accepted));
});
