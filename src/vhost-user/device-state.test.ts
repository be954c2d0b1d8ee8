import assert from 'node:assert/strict';
import { readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { type Fd, setNonblocking, socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { DEVICE_STATE_TIMEOUT_MS, MAX_DEVICE_STATE_BYTES } from './limits.ts';
import { state } from './testing/conversation.ts';
import { type SessionFixture, withFixture } from './testing/session-fixture.ts';

const SAVE = 0;
const LOAD = 1;
const NO_FD = 0x100n;
const SET = wire.VHOST_USER_SET_DEVICE_STATE_FD;

const transfer = (direction: number, phase = 0): Uint8Array =>
  wire.DeviceStateTransfer.encode({ direction, phase });

/** Begins a transfer over a socket pair; returns our end. */
async function begin(f: SessionFixture, direction: number): Promise<Fd> {
  const [ours, theirs] = socketPair();
  setNonblocking(theirs.number, false); // as a front-end may have made it
  const reply = await f.peer.ask(SET, transfer(direction), [theirs.number]);
  theirs.close();
  assert.equal(wire.U64Payload.decode(reply).value, NO_FD);
  return ours;
}

const check = async (f: SessionFixture): Promise<bigint> =>
  wire.U64Payload.decode(await f.peer.ask(wire.VHOST_USER_CHECK_DEVICE_STATE)).value;

async function readAll(fd: Fd): Promise<Buffer> {
  const parts: Buffer[] = [];
  const part = Buffer.alloc(4096);
  for (;;) {
    let got: number;
    try {
      got = readSync(fd.number, part);
    } catch {
      await nextTurn();
      continue;
    }
    if (got === 0) return Buffer.concat(parts);
    parts.push(Buffer.from(part.subarray(0, got)));
  }
}

/** Writes all, as the other side reads. */
async function writeAll(fd: Fd, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    try {
      at += writeSync(fd.number, bytes, at, Math.min(65536, bytes.length - at));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      await nextTurn();
    }
  }
}

test('saved here, loaded there', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const out = await begin(f, SAVE);
    const bytes = await readAll(out);
    out.close();
    assert.equal(await check(f), 0n);
    assert.deepEqual(new Uint8Array(bytes), f.target.deviceState);
    const news = Uint8Array.from({ length: 300_000 }, (_, i) => i >> 3);
    const into = await begin(f, LOAD);
    await writeAll(into, news);
    into.close();
    assert.equal(await check(f), 0n);
    assert.deepEqual(new Uint8Array(f.target.deviceState), news);
  }));

test('a device that cannot save, or does not take what it is given', () =>
  withFixture(async (f) => {
    await f.negotiate();
    f.target.saveState = () => Promise.reject(new Error('not now'));
    const [ours, theirs] = socketPair();
    const reply = await f.peer.ask(SET, transfer(SAVE), [theirs.number]);
    assert.equal(wire.U64Payload.decode(reply).value, NO_FD | 1n);
    assert.match(f.session.state.lastRefusal!.message, /did not save its state: not now/);
    f.target.saveState = async () => new Uint8Array(MAX_DEVICE_STATE_BYTES + 1);
    const large = await f.peer.ask(SET, transfer(SAVE), [theirs.number]);
    assert.equal(wire.U64Payload.decode(large).value, NO_FD | 1n);
    ours.close();
    theirs.close();
    const into = await begin(f, LOAD);
    into.close(); // no byte
    assert.equal(await check(f), 1n);
    assert.match(f.session.state.lastRefusal!.message, /there is nothing in it/);
    assert.equal(f.session.state.refusals, 3);
  }));

test('more than the limit is not taken', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const into = await begin(f, LOAD);
    const much = new Uint8Array(MAX_DEVICE_STATE_BYTES + (4 << 20));
    await assert.rejects(writeAll(into, much), { code: /EPIPE|ECONNRESET/ });
    into.close();
    assert.equal(await check(f), 1n);
    assert.match(f.session.state.lastRefusal!.message, /more are not taken/);
  }));

test('a reader that goes away, and one that never reads', (t) =>
  withFixture(async (f) => {
    await f.negotiate();
    f.target.deviceState = new Uint8Array(4 << 20);
    const gone = await begin(f, SAVE);
    gone.close();
    assert.equal(await check(f), 1n);
    const slow = await begin(f, SAVE);
    t.mock.timers.enable({ apis: ['setTimeout'] });
    await f.peer.send(wire.VHOST_USER_CHECK_DEVICE_STATE);
    for (let i = 0; i < 20; i++) await nextTurn();
    t.mock.timers.tick(DEVICE_STATE_TIMEOUT_MS);
    assert.equal(wire.U64Payload.decode((await f.peer.reply())!.payload).value, 1n);
    assert.match(f.session.state.lastRefusal!.message, /did not end in/);
    slow.close();
  }));

test('a second transfer gives the first one up; the end of the session both', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const first = await begin(f, LOAD);
    const second = await begin(f, SAVE);
    assert.equal(await readAll(first).then((b) => b.length), 0);
    first.close();
    f.peer.close();
    await f.session.closed;
    second.close();
  }));

test('in the wrong state, or with something else than a pipe', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const event = [f.fds.events[0]!.number];
    const reply = await f.peer.ask(SET, transfer(SAVE), event);
    assert.equal(wire.U64Payload.decode(reply).value, NO_FD | 1n);
    assert.equal(f.session.state.lastRefusal!.code, 'ERR_VRING_MESSAGE_FDS');
    await f.shareMemory();
    await f.startRing(0);
    await f.peer.ask(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    (await begin(f, LOAD)).close();
    assert.equal(await check(f), 1n);
    await f.peer.send(wire.VHOST_USER_CHECK_DEVICE_STATE); // once more: nothing was begun
    const reason = (await f.session.closed) as Error & { code: string };
    assert.equal(reason.code, 'ERR_VRING_MESSAGE_STATE');
    assert.match(reason.message, /state-transfer-begun/);
  }));

test('while a ring runs there is no transfer', () =>
  withFixture(async (f) => {
    await f.negotiate();
    await f.shareMemory();
    await f.startRing(0);
    const [ours, theirs] = socketPair();
    await f.peer.send(SET, transfer(SAVE), [theirs.number]);
    theirs.close();
    const reason = (await f.session.closed) as Error;
    ours.close();
    assert.match(reason.message, /all-vrings-stopped/);
  }));
