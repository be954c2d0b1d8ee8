import { equal } from 'node:assert/strict';
import { test } from 'node:test';
import { CALL_HOLD_MS, CallHold, type HeldVring, HOLDS_SKIPPED, RingCalls } from './call-hold.ts';

const SIZE = 64;

type TestRing = HeldVring & { readonly queue: { sinceCall: number; size: number }; calls: number };

/** A ring of a port that holds calls, driven as NetPort and NetPlane do. */
class Fixture {
  readonly hold = new CallHold<TestRing>();
  readonly ring: TestRing;

  constructor() {
    const queue = { sinceCall: 0, size: SIZE };
    this.ring = { touched: false, queue, held: new RingCalls(), calls: 0 };
  }

  call(ring: TestRing): void {
    ring.touched = false;
    ring.queue.sinceCall = 0;
    ring.calls++;
  }

  write(entries = 1): void {
    const { ring } = this;
    ring.touched = true;
    ring.queue.sinceCall += entries;
    if (!this.hold.holds(ring, this)) this.call(ring);
  }
}

test('a call waits for more, and one serves all', () => {
  const fixture = new Fixture();
  for (let round = 0; round < 5; round++) {
    fixture.write();
    fixture.hold.endRound(round * 0.001, false);
  }
  equal(fixture.ring.calls, 0);
  fixture.hold.endRound(CALL_HOLD_MS, false);
  equal(fixture.ring.calls, 1);
  equal(fixture.ring.held.callsHeld, 1);
  equal(fixture.ring.held.callsCoalesced, 4);
  equal(fixture.hold.count, 0);
});

test('the ring goes quiet: the call comes when the bound is over', () => {
  const fixture = new Fixture();
  fixture.write();
  for (let ms = 0; ms < CALL_HOLD_MS; ms += CALL_HOLD_MS / 10) {
    fixture.hold.endRound(100 + ms, false);
    equal(fixture.ring.calls, 0);
  }
  fixture.hold.endRound(100 + CALL_HOLD_MS + 1e-9, false);
  equal(fixture.ring.calls, 1);
});

test('the worker would sleep: the call comes at once, and says nothing against the next', () => {
  const fixture = new Fixture();
  for (let i = 0; i < 3; i++) {
    fixture.write();
    fixture.hold.endRound(i, true);
    equal(fixture.ring.calls, i + 1);
    equal(fixture.hold.count, 0);
  }
  equal(fixture.ring.held.callsHeld, 3);
});

test('a quarter of the ring does not wait', () => {
  const fixture = new Fixture();
  fixture.write(SIZE / 4 - 1);
  equal(fixture.ring.calls, 0);
  fixture.write(1);
  equal(fixture.ring.calls, 1);
  fixture.hold.endRound(0, false);
  equal(fixture.hold.count, 0, 'nothing is called twice');
  equal(fixture.ring.calls, 1);
});

test('after a hold that gathered nothing calls are made at once, for a while', () => {
  const fixture = new Fixture();
  fixture.write();
  fixture.hold.endRound(0, false);
  fixture.hold.endRound(CALL_HOLD_MS, false);
  equal(fixture.ring.calls, 1);
  for (let i = 0; i < HOLDS_SKIPPED; i++) fixture.write();
  equal(fixture.ring.calls, 1 + HOLDS_SKIPPED);
  fixture.write();
  equal(fixture.ring.calls, 1 + HOLDS_SKIPPED, 'tried again');
});

test('what is written to another ring of the port is not gathered', () => {
  const fixture = new Fixture();
  fixture.write();
  fixture.hold.endRound(0, false);
  equal(fixture.hold.holds(fixture.ring, fixture), true, 'as NetPort.flush asks, for the other');
  equal(fixture.ring.held.callsCoalesced, 0);
  fixture.hold.endRound(CALL_HOLD_MS, false);
  fixture.write();
  equal(fixture.ring.calls, 2, 'a hold that gathered nothing is not repeated at once');
});

test('closed, it calls what waits and holds nothing until it is open', () => {
  const fixture = new Fixture();
  fixture.write();
  fixture.hold.close();
  equal(fixture.ring.calls, 1);
  fixture.write();
  equal(fixture.ring.calls, 2);
  fixture.hold.open();
  fixture.write();
  equal(fixture.ring.calls, 2);
  fixture.hold.release();
  equal(fixture.ring.calls, 3);
});

test('a ring that was called for another reason is not called again', () => {
  const fixture = new Fixture();
  fixture.write();
  fixture.call(fixture.ring); // it was detached
  fixture.hold.endRound(0, false);
  equal(fixture.hold.count, 0);
  equal(fixture.ring.calls, 1);
});
