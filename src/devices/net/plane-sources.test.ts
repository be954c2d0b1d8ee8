import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import type { NetVring } from './net-vring.ts';
import { PlaneSources, type Source } from './plane-sources.ts';
import { PortFixture } from './port-fixture.ts';
import { PortPace, SourcePace } from './port-policy.ts';

const TRANSMITQ = 1;
const fixture = new PortFixture();
after(() => fixture.close());
const ring = fixture.rings[TRANSMITQ]!;

function add(sources: PlaneSources, kind: Source['kind'], vring: NetVring | null): Source {
  const pace = new SourcePace(new PortPace(), 0);
  return sources.add({ port: 0, kind, vring, spins: true, pace, loadSlot: 0 });
}

test('a sleeping queue that has something is found without its kick, wherever it is', () => {
  const sources = new PlaneSources();
  const others = Array.from({ length: 200 }, () => add(sources, 'receiveq', null));
  const source = add(sources, 'transmitq', ring.vring);
  for (let n = 0; n < 26; n++) assert.ok(sources.peek(1));
  assert.deepEqual(sources.awake, [], 'it is empty');
  ring.add([[fixture.buffer(0), 100]], []);
  for (let n = 0; n < 13; n++) sources.peek(2); // 16 of 201 at a time
  assert.deepEqual(sources.awake, [source]);
  assert.equal(source.lastWorkMs, 2);
  sources.toSleep(source);
  ring.vring.queue.missed = 1;
  for (let n = 0; n < 13; n++) sources.peek(3);
  assert.deepEqual(sources.awake, [], 'it waits for a translation');
  ring.vring.queue.missed = 0;
  sources.remove(source);
  for (const other of others) sources.remove(other);
  assert.ok(sources.peek(4));
  assert.deepEqual(sources.awake, []);
});

test('the first kick of a receive queue is urgent', () => {
  const sources = new PlaneSources();
  const { vring } = fixture.rings[0]!;
  add(sources, 'receiveq', vring);
  vring.started = false;
  assert.equal(sources.peek(1), false);
  vring.started = true;
  assert.equal(sources.peek(1), true);
});

test('while an uplink sleeps its descriptor is urgent', () => {
  const sources = new PlaneSources();
  const uplink = add(sources, 'uplink', null);
  assert.equal(sources.peek(1), false);
  sources.wake(uplink, 1);
  assert.equal(sources.peek(1), true);
  sources.toSleep(uplink);
  assert.equal(sources.peek(1), false);
  sources.remove(uplink);
  assert.equal(sources.peek(1), true);
});
