import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { createMemfd, drainEventfd, type Fd, signalEventfd, socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { CALL_TIMEOUT_MS, MAX_CHANNEL_REQUESTS } from './limits.ts';
import {
  memTable,
  ORDINARY_PROTOCOL_FEATURES,
  region,
  ringAddr,
  state,
  UVA_BASE,
} from './testing/conversation.ts';
import { RawPeer, u64 } from './testing/raw-peer.ts';
import { PLAIN_FEATURES, type SessionFixture, withFixture } from './testing/session-fixture.ts';

const REPLY = 5;
const bit = (n: number): bigint => 1n << BigInt(n);
const UUID = Uint8Array.from({ length: 16 }, (_, i) => i);

/** SET_BACKEND_REQ_FD; returns the front-end's end. */
async function open(f: SessionFixture): Promise<RawPeer> {
  const [ours, theirs] = socketPair();
  await f.acked(wire.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [ours.number]);
  ours.close();
  return new RawPeer(theirs, 'requests');
}

async function running(f: SessionFixture, protocol = ORDINARY_PROTOCOL_FEATURES): Promise<void> {
  await f.negotiate(PLAIN_FEATURES, protocol);
  await f.shareMemory();
  await f.startRing(0);
}

/** Receives a request of the back-end and answers it. */
async function serve(
  channel: RawPeer,
  request: number,
  value: bigint | number = 0,
  fds: number[] = [],
): Promise<{ payload: Uint8Array; flags: number; fds: Fd[] }> {
  const message = (await channel.receive())!;
  assert.equal(message.request, request);
  await channel.send(request, u64(value), fds, REPLY);
  return message;
}

test('every request of a back-end, as the front-end sees it', () =>
  withFixture(async (f) => {
    await running(f);
    const channel = await open(f);
    const requests = f.target.requests!;
    using memory = createMemfd('shared', 0x1000);
    const area = { fd: memory.number, offset: 0x1000, sizeBytes: 0x2000 };

    let done: Promise<unknown> = requests.configChanged();
    const config = await serve(channel, wire.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    assert.deepEqual([config.payload.length, config.flags], [0, 9]);
    await done;

    done = requests.setHostNotifier(1, area);
    const notifier = await serve(channel, wire.VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG);
    assert.deepEqual(wire.VringArea.decode(notifier.payload), {
      indexAndFlags: 1n,
      sizeBytes: 0x2000n,
      fdOffset: 0x1000n,
    });
    assert.equal(notifier.fds.length, 1);
    for (const fd of notifier.fds) fd.close();
    await done;
    done = requests.setHostNotifier(1, null);
    const gone = await serve(channel, wire.VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG);
    assert.equal(wire.VringArea.decode(gone.payload).indexAndFlags, 0x101n);
    await done;

    done = requests.addSharedObject(UUID);
    const added = await serve(channel, wire.VHOST_USER_BACKEND_SHARED_OBJECT_ADD);
    assert.deepEqual([...added.payload], [...UUID]);
    await done;
    done = requests.removeSharedObject(UUID);
    await serve(channel, wire.VHOST_USER_BACKEND_SHARED_OBJECT_REMOVE);
    await done;

    const found = requests.lookUpSharedObject(UUID);
    const asked = await serve(channel, wire.VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP, 0, [
      memory.number,
    ]);
    assert.equal(asked.flags, 1, 'it has a reply of its own');
    (await found)!.close();
    const missing = requests.lookUpSharedObject(UUID);
    await serve(channel, wire.VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP, 1);
    assert.equal(await missing, null);

    done = requests.mapShmem(2, 0x4000, area, true);
    const map = await serve(channel, wire.VHOST_USER_BACKEND_SHMEM_MAP);
    const { padding: _padding, ...mapping } = wire.ShmemMap.decode(map.payload);
    assert.deepEqual(mapping, {
      shmId: 2,
      fdOffset: 0x1000n,
      shmOffset: 0x4000n,
      sizeBytes: 0x2000n,
      flags: 1n,
    });
    for (const fd of map.fds) fd.close();
    await done;
    done = requests.unmapShmem(2, 0x4000, 0x2000);
    await serve(channel, wire.VHOST_USER_BACKEND_SHMEM_UNMAP);
    await done;
    assert.deepEqual(f.session.state.channel, { requests: 9, waiting: 0 });
    channel.close();
  }));

test('a refusal is an error of its request, and the channel goes on', () =>
  withFixture(async (f) => {
    await running(f);
    const channel = await open(f);
    const refused = assert.rejects(f.target.requests!.addSharedObject(UUID), {
      code: 'ERR_VRING_REFUSED',
    });
    await serve(channel, wire.VHOST_USER_BACKEND_SHARED_OBJECT_ADD, 1);
    await refused;
    const done = f.target.requests!.configChanged();
    await serve(channel, wire.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    await done;
    channel.close();
  }));

test('without REPLY_ACK nothing is asked to be answered', () =>
  withFixture(async (f) => {
    const ack = bit(wire.VHOST_USER_PROTOCOL_F_REPLY_ACK);
    const protocol = ORDINARY_PROTOCOL_FEATURES & ~ack;
    await f.peer.send(wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64(protocol));
    await f.peer.send(wire.VHOST_USER_SET_FEATURES, u64(1n << 32n));
    const [ours, theirs] = socketPair();
    await f.peer.send(wire.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [ours.number]);
    ours.close();
    await f.peer.ask(wire.VHOST_USER_GET_FEATURES);
    const channel = new RawPeer(theirs, 'requests');
    await f.target.requests!.configChanged(); // suspended: it comes with the first ring
    const fds = f.fds.memory[0]!.number;
    await f.peer.send(wire.VHOST_USER_SET_MEM_TABLE, memTable([region(0)]), [fds]);
    await f.peer.send(wire.VHOST_USER_SET_VRING_NUM, state(0, 256));
    await f.peer.send(wire.VHOST_USER_SET_VRING_ADDR, wire.VringAddr.encode(ringAddr(0)));
    await f.peer.send(wire.VHOST_USER_SET_VRING_KICK, u64(0x100));
    await f.peer.ask(wire.VHOST_USER_GET_FEATURES);
    const message = (await channel.reply())!;
    assert.deepEqual([message.request, message.flags], [2, 1]);
    await f.target.requests!.addSharedObject(UUID);
    channel.close();
  }));

test('what was not negotiated, or has no channel, is refused here', () =>
  withFixture(async (f) => {
    const requests = f.target.requests;
    assert.equal(requests, null, 'not before the session begins');
    const sendFd = bit(wire.VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD);
    const config = bit(wire.VHOST_USER_PROTOCOL_F_CONFIG);
    await running(f, ORDINARY_PROTOCOL_FEATURES & ~sendFd & ~config);
    const asks = f.target.requests!;
    assert.equal(asks.can(wire.VHOST_USER_PROTOCOL_F_SHARED_OBJECT), false);
    await assert.rejects(asks.addSharedObject(UUID), {
      code: 'ERR_VRING_NOT_NEGOTIATED',
      message: /opened no backend channel/,
    });
    const channel = await open(f);
    assert.equal(asks.can(wire.VHOST_USER_PROTOCOL_F_SHARED_OBJECT), true);
    assert.equal(asks.can(wire.VHOST_USER_PROTOCOL_F_CONFIG), false);
    assert.equal(asks.can(wire.VHOST_USER_PROTOCOL_F_MQ), true);
    await assert.rejects(asks.configChanged(), { message: /CONFIG was not negotiated/ });
    const area = { fd: 0, offset: 0, sizeBytes: 4096 };
    await assert.rejects(asks.mapShmem(0, 0, area, false), { message: /BACKEND_SEND_FD was not/ });
    channel.close();
  }));

test('a suspended device says nothing, but CONFIG_CHANGE waits', () =>
  withFixture(async (f) => {
    await running(f);
    const channel = await open(f);
    await f.peer.ask(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    const requests = f.target.requests!;
    await assert.rejects(requests.addSharedObject(UUID), { code: 'ERR_VRING_SUSPENDED' });
    await requests.configChanged();
    await requests.configChanged();
    for (let i = 0; i < 10; i++) await nextTurn();
    assert.equal(f.session.state.channel!.requests, 0);
    await f.acked(wire.VHOST_USER_SET_VRING_KICK, u64(0), [f.fds.events[0]!.number]);
    await serve(channel, wire.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    for (let i = 0; i < 10; i++) await nextTurn();
    assert.deepEqual(f.session.state.channel, { requests: 1, waiting: 0 });
    channel.close();
  }));

test('a front-end that never answers holds neither session nor target', (t) =>
  withFixture(async (f) => {
    await running(f);
    const channel = await open(f);
    t.mock.timers.enable({ apis: ['setTimeout'] });
    const requests = f.target.requests!;
    const all = Array.from({ length: MAX_CHANNEL_REQUESTS }, () =>
      assert.rejects(requests.addSharedObject(UUID), { code: /TIMEOUT/ }),
    );
    await assert.rejects(requests.addSharedObject(UUID), { code: 'ERR_VRING_BACKPRESSURE' });
    await f.acked(wire.VHOST_USER_SET_STATUS, u64(1));
    t.mock.timers.tick(CALL_TIMEOUT_MS);
    await Promise.all(all);
    assert.equal(f.session.state.channel, null);
    assert.equal(await channel.reply().then((m) => m?.request), 6, 'what was sent can be read');
    await f.acked(wire.VHOST_USER_SET_STATUS, u64(3));
    channel.close();
  }));

test('a front-end that does not read loses the channel, and nothing else', () =>
  withFixture(async (f) => {
    await f.negotiate(PLAIN_FEATURES | (1n << 33n));
    await f.shareMemory();
    const channel = await open(f);
    // More than the kernel and we keep; an update makes the next miss news again.
    const known = wire.IotlbMessage.encode({
      iova: 0n,
      sizeBytes: 0x1000n,
      userAddr: UVA_BASE,
      permissions: 3,
      type: 2,
      padding: new Uint8Array(6),
    });
    for (let i = 0; i < 40 && f.session.state.channel !== null; i++) {
      for (let page = 0; page < 2000; page++) f.target.requests!.iotlbMiss(page * 4096, false);
      await f.acked(wire.VHOST_USER_IOTLB_MSG, known);
    }
    assert.equal(f.session.state.channel, null);
    await f.acked(wire.VHOST_USER_SET_STATUS, u64(1));
    channel.close();
  }));

test('a new channel replaces the old one, whose requests are told', () =>
  withFixture(async (f) => {
    await running(f);
    const first = await open(f);
    const lost = assert.rejects(f.target.requests!.addSharedObject(UUID), {
      code: 'ERR_VRING_CLOSED',
    });
    await first.reply();
    const second = await open(f);
    await lost;
    assert.equal(await first.reply(), null);
    const done = f.target.requests!.addSharedObject(UUID);
    await serve(second, wire.VHOST_USER_BACKEND_SHARED_OBJECT_ADD);
    await done;
    first.close();
    second.close();
  }));

for (const [what, code, answer] of [
  [
    'an answer to something else',
    'ERR_VRING_MESSAGE_UNKNOWN',
    (c: RawPeer) => c.send(2, u64(0), [], REPLY),
  ],
  [
    'four bytes of answer',
    'ERR_VRING_MESSAGE_SIZE',
    (c: RawPeer) => c.send(6, new Uint8Array(4), [], REPLY),
  ],
  ['a request', 'ERR_VRING_MESSAGE_FLAGS', (c: RawPeer) => c.send(6, u64(0), [], 1)],
  ['the end', 'ERR_VRING_PEER_CLOSED', async (c: RawPeer) => c.close()],
] as const) {
  test(`${what}: the request fails, and the session goes on`, () =>
    withFixture(async (f) => {
      await running(f);
      const channel = await open(f);
      const failed = assert.rejects(f.target.requests!.addSharedObject(UUID), { code });
      await channel.reply();
      await answer(channel);
      await failed;
      await f.acked(wire.VHOST_USER_SET_STATUS, u64(1));
      channel.close();
    }));
}

test('fds that come with an ack are closed', () =>
  withFixture(async (f) => {
    await running(f);
    const channel = await open(f);
    const failed = assert.rejects(f.target.requests!.addSharedObject(UUID), {
      code: 'ERR_VRING_MESSAGE_FDS',
    });
    await serve(channel, 6, 0, [f.fds.memory[0]!.number]);
    await failed;
    channel.close();
  }));

test('only a socket is a channel', () =>
  withFixture(async (f) => {
    await running(f);
    const event = [f.fds.events[0]!.number];
    const set = wire.VHOST_USER_SET_BACKEND_REQ_FD;
    await f.refused('ERR_VRING_MESSAGE_FDS', set, undefined, event, /expected a stream socket/);
  }));

test('in-band: a kick starts a ring that was never given a kick fd', () =>
  withFixture(async (f) => {
    const inband = bit(wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    await f.negotiate(PLAIN_FEATURES, ORDINARY_PROTOCOL_FEATURES | inband);
    await f.shareMemory();
    await f.acked(wire.VHOST_USER_SET_VRING_NUM, state(0, 256));
    await f.acked(wire.VHOST_USER_SET_VRING_ADDR, wire.VringAddr.encode(ringAddr(0)));
    const channel = await open(f);
    assert.equal(f.target.running.has(0), false);
    await f.acked(wire.VHOST_USER_VRING_KICK, state(0, 0));
    const { kick, call } = f.target.running.get(0)!;
    assert.equal(drainEventfd(kick!.number), 1);
    signalEventfd(call!.number);
    assert.equal((await channel.reply())!.request, wire.VHOST_USER_BACKEND_VRING_CALL);
    channel.close();
  }));

test('in-band: kicks, calls and errors are messages', () =>
  withFixture(async (f) => {
    const inband = bit(wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
    await f.negotiate(PLAIN_FEATURES, ORDINARY_PROTOCOL_FEATURES | inband);
    await f.shareMemory();
    await f.startRing(0);
    const channel = await open(f);
    await f.acked(wire.VHOST_USER_SET_VRING_KICK, u64(0x100));
    await f.acked(wire.VHOST_USER_SET_VRING_CALL, u64(0x100));
    await f.acked(wire.VHOST_USER_SET_VRING_ERR, u64(0x100));
    const { kick } = f.target.running.get(0)!;
    await f.acked(wire.VHOST_USER_VRING_KICK, state(0, 0));
    await f.acked(wire.VHOST_USER_VRING_KICK, state(0, 0));
    assert.equal(drainEventfd(kick!.number), 2);
    await f.acked(wire.VHOST_USER_VRING_KICK, state(1, 0)); // a ring without anything
    await f.refused('ERR_VRING_RING_INDEX', wire.VHOST_USER_VRING_KICK, state(4, 0));
    await f.refused('ERR_VRING_MESSAGE_VALUE', wire.VHOST_USER_VRING_KICK, state(0, 1));
    signalEventfd(f.target.calledWith.get('call 0')!);
    const call = (await channel.reply())!;
    assert.deepEqual([call.request, call.flags], [wire.VHOST_USER_BACKEND_VRING_CALL, 1]);
    assert.deepEqual(wire.VringState.decode(call.payload), { index: 0, num: 0 });
    signalEventfd(f.target.calledWith.get('err 0')!);
    assert.equal((await channel.reply())!.request, wire.VHOST_USER_BACKEND_VRING_ERR);
    await f.acked(wire.VHOST_USER_SET_VRING_CALL, u64(0), [f.fds.events[1]!.number]);
    channel.close();
  }));
