/** A session that goes on in another process, here: with other fds of the same files. */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { reservedRanges } from '../memory/index.ts';
import { connectUnix, drainEventfd, type Fd, openFdCount, socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { BackendListener } from './backend-listener.ts';
import { BackendSession } from './backend-session.ts';
import { PreparedMemory } from './session-restore.ts';
import type { SessionSnapshot } from './session-snapshot.ts';
import { ORDINARY_PROTOCOL_FEATURES, state, UVA_BASE } from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { encodeMessage, RawPeer, u64 } from './testing/raw-peer.ts';
import { PLAIN_FEATURES, type SessionFixture, withFixture } from './testing/session-fixture.ts';

const dup = (fds: readonly Fd[]): Fd[] => fds.map((fd) => fd.dup());

/** As it arrives in the other process. */
function sent({ state, fds }: SessionSnapshot): SessionSnapshot {
  return { state: JSON.parse(JSON.stringify(state)), fds: dup(fds) };
}

async function running(f: SessionFixture): Promise<void> {
  await f.negotiate();
  await f.shareMemory(2);
  await f.startRing(0);
  await f.acked(wire.VHOST_USER_SET_VRING_CALL, u64(0), [f.fds.events[1]!.number]);
  await f.acked(wire.VHOST_USER_SET_VRING_ENABLE, state(0, 1));
  await f.acked(wire.VHOST_USER_SET_STATUS, u64(15));
}

test('suspend, restore, surrender: the front-end notices nothing', () =>
  withFixture(async (f) => {
    await running(f);
    f.target.progress = 5;
    const log = wire.LogDescription.encode({ sizeBytes: 4096n, fdOffset: 0n });
    await f.peer.ask(wire.VHOST_USER_SET_LOG_BASE, log, [f.fds.memory[2]!.number]);
    const prepared = f.session.prepare();
    const memory = PreparedMemory.map({ memory: prepared.memory, fds: dup(prepared.fds) });
    const snapshot = sent(await f.session.suspend());
    assert.equal(f.target.running.size, 0);

    const target = new FakeTarget();
    const session = await BackendSession.restore(snapshot, target, { prepared: memory });
    assert.equal(target.running.size, 0, 'not before it is resumed');
    await f.session.surrender();
    await session.resume();
    const ring = target.running.get(0)!;
    assert.equal(ring.base, 5);
    assert.equal(ring.enabled, true);
    assert.notEqual(ring.kick, null);
    assert.notEqual(ring.call, null);
    assert.equal(target.status, 15);
    assert.deepEqual(session.state.memory, { regions: 2, bytes: 0x200000 });
    assert.equal(session.state.log!.bytes, 4096);
    const status = await f.peer.ask(wire.VHOST_USER_GET_STATUS);
    assert.equal(wire.U64Payload.decode(status).value, 15n);
    const base = await f.peer.ask(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    assert.equal(wire.VringState.decode(base).num, 5);
    await session.close();
  }));

test('a suspended session resumes as if nothing had been', () =>
  withFixture(async (f) => {
    await running(f);
    f.target.progress = 3;
    const { messages } = f.session.state;
    await f.session.suspend();
    await f.peer.send(wire.VHOST_USER_GET_STATUS);
    for (let i = 0; i < 10; i++) await nextTurn();
    assert.equal(f.session.state.messages, messages, 'nothing is read');
    await f.session.resume();
    assert.equal(wire.U64Payload.decode((await f.peer.reply())!.payload).value, 15n);
    assert.equal(f.target.running.get(0)!.base, 3);
  }));

test('a message that was read in part goes on in the other process, with its fds', () =>
  withFixture(async (f) => {
    await running(f);
    const event = f.fds.events[2]!.number;
    const bytes = encodeMessage(wire.VHOST_USER_SET_VRING_ERR, u64(0), 9);
    await f.peer.sendRaw(bytes.subarray(0, 15), [event]);
    for (let i = 0; i < 10; i++) await nextTurn();
    const snapshot = sent(await f.session.suspend());
    assert.equal(Buffer.from(snapshot.state.input.bytes, 'base64').length, 15);
    assert.equal(snapshot.state.input.fds.length, 1);
    const target = new FakeTarget();
    const session = await BackendSession.restore(snapshot, target);
    await f.session.surrender();
    await session.resume();
    await f.peer.sendRaw(bytes.subarray(15));
    assert.equal(wire.U64Payload.decode((await f.peer.reply())!.payload).value, 0n);
    assert.equal(session.state.vrings[0]!.hasErrFd, true);
    await session.close();
  }));

test('the backend channel goes on; answers to the predecessor are swallowed', () =>
  withFixture(async (f) => {
    const [ours, theirs] = socketPair();
    const channel = new RawPeer(theirs, 'requests');
    await running(f);
    await f.acked(wire.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [ours.number]);
    ours.close();
    const asked = f.target.requests!.configChanged();
    const refused = assert.rejects(asked, { code: 'ERR_VRING_SUSPENDED' });
    const request = (await channel.reply())!.request;
    const snapshot = sent(await f.session.suspend());
    await refused;
    const target = new FakeTarget();
    const session = await BackendSession.restore(snapshot, target);
    await f.session.surrender();
    await session.resume();
    await channel.send(request, u64(0), [], 5);
    const again = target.requests!.configChanged();
    assert.equal((await channel.reply())!.request, request);
    await channel.send(request, u64(0), [], 5);
    await again;
    await session.close();
    channel.close();
  }));

test('translations, inflight region and in-band eventfds go along', () =>
  withFixture(async (f) => {
    const inband = 1n << BigInt(wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    await f.negotiate(PLAIN_FEATURES | (1n << 33n), ORDINARY_PROTOCOL_FEATURES | inband);
    await f.shareMemory();
    const iova = 0x7000_0000n;
    const iotlb = wire.IotlbMessage.encode({
      iova,
      sizeBytes: 0x10000n,
      userAddr: UVA_BASE,
      permissions: 3,
      type: 2,
      padding: new Uint8Array(6),
    });
    await f.acked(wire.VHOST_USER_IOTLB_MSG, iotlb);
    const wanted = { mapBytes: 0n, fdOffset: 0n, queueCount: 4, queueSize: 256, padding: 0 };
    await f.peer.send(wire.VHOST_USER_GET_INFLIGHT_FD, wire.InflightDescription.encode(wanted));
    const region = (await f.peer.receive())!;
    await f.acked(wire.VHOST_USER_SET_INFLIGHT_FD, region.payload, [region.fds[0]!.number]);
    region.fds[0]!.close();
    await f.startRing(0, { descUva: iova, availUva: iova + 0x2000n, usedUva: iova + 0x4000n });
    await f.acked(wire.VHOST_USER_SET_VRING_KICK, u64(0x100));
    await f.acked(wire.VHOST_USER_SET_VRING_CALL, u64(0x100));
    const snapshot = sent(await f.session.suspend());
    const target = new FakeTarget();
    const session = await BackendSession.restore(snapshot, target);
    await f.session.surrender();
    await session.resume();
    const ring = target.running.get(0)!;
    assert.equal(ring.iotlb, true);
    assert.equal(ring.descOffset, target.table!.regions[0]!.offset);
    assert.ok(ring.inflight);
    assert.equal(await f.answer(wire.VHOST_USER_VRING_KICK, state(0, 0)), 0n);
    assert.equal(drainEventfd(ring.kick!.number), 1);
    assert.notEqual(ring.call, null);
    await session.close();
  }));

test('a target that cannot stop its rings ends the session that is suspended', () =>
  withFixture(async (f) => {
    await running(f);
    const failure = new Error('the worker is gone');
    f.target.stopVring = () => Promise.reject(failure);
    await assert.rejects(f.session.suspend(), failure);
    assert.equal(await f.session.closed, failure);
  }));

test('a device that cannot keep what was promised is refused, and the predecessor resumes', () =>
  withFixture(async (f) => {
    await running(f);
    const snapshot = sent(await f.session.suspend());
    const target = new FakeTarget();
    (target as { features: bigint }).features = 1n << 28n;
    await assert.rejects(BackendSession.restore(snapshot, target), {
      code: 'ERR_VRING_SNAPSHOT',
      message: /0x100000000 were acked and are not offered/,
    });
    assert.equal(target.reasons.length, 1);
    await f.session.resume();
    assert.ok(f.target.running.has(0));
    await f.acked(wire.VHOST_USER_SET_STATUS, u64(7));
  }));

test('endpoints: the listener goes with its session, and serves the next one', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'vring-hand-over-'));
  const path = join(folder, 'socket');
  const before = openFdCount();
  const ranges = reservedRanges();
  const first = new FakeTarget();
  const old = new BackendListener({ path, target: first });
  const peer = new RawPeer(connectUnix(path));
  await peer.ask(wire.VHOST_USER_GET_FEATURES);
  await peer.send(wire.VHOST_USER_SET_FEATURES, u64(1n << 32n));
  await peer.ask(wire.VHOST_USER_GET_FEATURES);

  const { listener, session } = await old.suspend();
  const waiting = new RawPeer(connectUnix(path)); // in the backlog of both
  const second = new FakeTarget();
  const heir = new BackendListener({
    path,
    target: second,
    listener: listener!.dup(),
    adopt: { session: sent(session!) },
  });
  await heir.adopted;
  assert.equal(heir.state, 'connected');
  await old.surrender();
  await heir.resume();
  assert.equal((await peer.ask(wire.VHOST_USER_GET_FEATURES)).length, 8);
  assert.deepEqual(second.calls.slice(0, 5), [
    'setFeatures 0x100000000',
    ...[0, 1, 2, 3].map((i) => `enable ${i}`),
  ]);
  peer.close();
  assert.equal((await waiting.ask(wire.VHOST_USER_GET_FEATURES)).length, 8);
  assert.equal(heir.sessions, 2);
  waiting.close();
  await heir.close();
  assert.equal(existsSync(path), false);
  rmSync(folder, { recursive: true });
  assert.equal(openFdCount(), before);
  assert.equal(reservedRanges(), ranges);
});
