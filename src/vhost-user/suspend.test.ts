/** What a suspended session must get through: found by session.fuzz.ts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { BackendSession } from './backend-session.ts';
import {
  conversation,
  ConversationFds,
  ORDINARY_PROTOCOL_FEATURES,
  region,
  ringAddr,
  memTable,
  state,
} from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { RawPeer, u64 } from './testing/raw-peer.ts';

const ack = (payload: Uint8Array): bigint => Buffer.from(payload).readBigUInt64LE();

test('a ring that could not start does not end a session that is suspended and resumed', async () => {
  using fds = new ConversationFds(1, 1);
  const [ours, theirs] = socketPair();
  const session = new BackendSession(ours, new FakeTarget());
  const peer = new RawPeer(theirs);
  const tell = async (id: number, payload: Uint8Array, sent: number[] = []): Promise<bigint> =>
    ack(await peer.ask(id, payload, sent, 9));
  const [memory, kick] = [fds.memory[0]!.number, fds.events[0]!.number];
  await tell(wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64(ORDINARY_PROTOCOL_FEATURES));
  await tell(wire.VHOST_USER_SET_FEATURES, u64((1n << 32n) | (1n << 30n)));
  const inflight = { mapBytes: 0x10000n, fdOffset: 0n, queueCount: 1, queueSize: 64, padding: 0 };
  const shape = wire.InflightDescription.encode(inflight);
  assert.equal(await tell(wire.VHOST_USER_SET_INFLIGHT_FD, shape, [memory]), 0n);
  assert.equal(await tell(wire.VHOST_USER_SET_MEM_TABLE, memTable([region(0)]), [memory]), 0n);
  await tell(wire.VHOST_USER_SET_VRING_NUM, state(0, 256));
  await tell(wire.VHOST_USER_SET_VRING_ADDR, wire.VringAddr.encode(ringAddr(0)));
  assert.notEqual(await tell(wire.VHOST_USER_SET_VRING_KICK, u64(0), [kick]), 0n, 'it is refused');
  await session.suspend();
  await session.resume();
  assert.equal((await peer.ask(wire.VHOST_USER_GET_STATUS)).length, 8, 'and goes on');
  peer.close();
  assert.equal(await session.closed, null);
});

test('a session that ends while it is suspended starts nothing when it is resumed', async () => {
  using fds = new ConversationFds();
  const [ours, theirs] = socketPair();
  const target = new FakeTarget();
  const session = new BackendSession(ours, target);
  const peer = new RawPeer(theirs);
  for (const { bytes, fds: sent } of conversation(fds, ORDINARY_PROTOCOL_FEATURES)) {
    if (target.running.size > 0) break;
    await peer.sendRaw(bytes, sent);
    assert.ok(await peer.reply());
  }
  await session.suspend();
  const { promise: letGo, resolve } = Promise.withResolvers<void>();
  const ended = target.sessionClosed.bind(target);
  const { promise: ending, resolve: begun } = Promise.withResolvers<void>();
  target.sessionClosed = async (reason) => {
    await ended(reason);
    begun();
    await letGo;
  };
  const closed = session.close();
  await ending;
  await session.resume();
  assert.equal(target.running.size, 0);
  resolve();
  assert.equal(await closed, null);
  peer.close();
});

test('a whole conversation with a pause behind every message', async () => {
  using fds = new ConversationFds();
  const [ours, theirs] = socketPair();
  const session = new BackendSession(ours, new FakeTarget());
  const peer = new RawPeer(theirs);
  for (const { bytes, fds: sent } of conversation(fds, ORDINARY_PROTOCOL_FEATURES)) {
    await peer.sendRaw(bytes, sent);
    assert.ok(await peer.reply());
    await session.suspend();
    await session.resume();
  }
  assert.equal(session.state.refusals, 0);
  peer.close();
  assert.equal(await session.closed, null);
});
