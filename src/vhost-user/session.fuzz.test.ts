import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FRONT_END_MESSAGES } from './message-table.ts';
import { fuzz } from './session.fuzz.ts';

test('the fuzzer finds nothing in two seconds, and reaches what it is meant to reach', async () => {
  const { iterations, reasons, refusals, accepted } = await fuzz({ seconds: 2, seed: 20 });
  assert.ok(iterations > 50, `${iterations} iterations`);
  assert.ok(Object.keys(reasons).length > 5, JSON.stringify(reasons));
  assert.ok(Object.keys(refusals).length > 5, JSON.stringify(refusals));
  // Most of what the table has is not only refused: a new message that nobody can make is found.
  const reached = [...FRONT_END_MESSAGES.values()].filter(({ name }) => (accepted[name] ?? 0) > 0);
  assert.ok(reached.length > 35, JSON.stringify(accepted));
});
