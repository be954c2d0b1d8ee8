import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { test } from 'node:test';
import { createEventfd, drainEventfd, signalEventfd, signalForeignEventfd } from './eventfd.ts';
import { setNonblocking } from './fd.ts';

test('signals add up, draining takes them', () => {
  using event = createEventfd('test');
  assert.equal(drainEventfd(event.number), 0);
  signalEventfd(event.number);
  signalEventfd(event.number);
  assert.equal(drainEventfd(event.number), 2);
  assert.equal(drainEventfd(event.number), 0);
});

test('a full counter that blocks its writers does not block us', () => {
  using event = createEventfd('test');
  const full = 2n ** 64n - 2n;
  writeSync(event.number, new Uint8Array(BigUint64Array.of(full).buffer));
  setNonblocking(event.number, false);
  signalEventfd(event.number); // hung before poll(2) was asked
  setNonblocking(event.number, true);
  assert.equal(drainEventfd(event.number), Number(full));
});

test('a signal to a closed fd is nothing', () => {
  const event = createEventfd('test');
  const { number } = event;
  event.close();
  signalEventfd(number);
});

test('an eventfd of a stranger is signalled without a watch of the thread', () => {
  using event = createEventfd('theirs');
  assert.equal(signalForeignEventfd(event.number), true);
  setNonblocking(event.number, false);
  assert.equal(signalForeignEventfd(event.number), true);
  assert.equal(drainEventfd(event.number), 2);
});
