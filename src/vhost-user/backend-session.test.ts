import assert from 'node:assert/strict';
import { channel } from 'node:diagnostics_channel';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { openFdCount, socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { BackendSession } from './backend-session.ts';
import type { MessageEvent } from './diagnostics.ts';
import { postcopyAvailable } from './postcopy-control.ts';
import {
  conversation,
  ConversationFds,
  ORDINARY_PROTOCOL_FEATURES,
  memTable,
  region,
  ringAddr,
  singleRegion,
  state,
} from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { RawPeer, u64 } from './testing/raw-peer.ts';

const NEED_REPLY = 9;

type Setup = { peer: RawPeer; session: BackendSession; target: FakeTarget; fds: ConversationFds };

/** Runs `body` against a session and demands that every fd is closed afterwards. */
async function withSession(body: (setup: Setup) => Promise<void>): Promise<void> {
  const before = openFdCount();
  const fds = new ConversationFds(12);
  const [ours, theirs] = socketPair();
  const target = new FakeTarget();
  const session = new BackendSession(ours, target);
  const peer = new RawPeer(theirs);
  try {
    await body({ peer, session, target, fds });
  } finally {
    peer.close();
    await session.closed;
    fds[Symbol.dispose]();
  }
  assert.equal(openFdCount(), before, 'every fd is closed again');
  assert.equal(target.reasons.length, 1, 'sessionClosed is called once');
}

/** Sends with need_reply and demands an ack of zero. */
async function acked(peer: RawPeer, request: number, payload?: Uint8Array, fds: number[] = []) {
  const reply = await peer.ask(request, payload, fds, NEED_REPLY);
  assert.equal(wire.U64Payload.decode(reply).value, 0n, `request ${request} is acked`);
}

async function negotiate({ peer }: Setup, features = 1n << 30n): Promise<void> {
  await acked(peer, wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64(ORDINARY_PROTOCOL_FEATURES));
  await acked(peer, wire.VHOST_USER_SET_FEATURES, u64(features));
}

async function shareMemory({ peer, fds }: Setup, count = 1): Promise<void> {
  const regions = Array.from({ length: count }, (_, i) => region(i));
  const numbers = fds.memory.slice(0, count).map((fd) => fd.number);
  await acked(peer, wire.VHOST_USER_SET_MEM_TABLE, memTable(regions), numbers);
}

async function startRing({ peer, fds }: Setup, index: number, base = 0): Promise<void> {
  await acked(peer, wire.VHOST_USER_SET_VRING_NUM, state(index, 256));
  await acked(peer, wire.VHOST_USER_SET_VRING_BASE, state(index, base));
  await acked(peer, wire.VHOST_USER_SET_VRING_ADDR, wire.VringAddr.encode(ringAddr(index)));
  await acked(peer, wire.VHOST_USER_SET_VRING_KICK, u64(index), [fds.events[0]!.number]);
}

test('a whole conversation, and an orderly end', () =>
  withSession(async ({ peer, session, target, fds }) => {
    for (const step of conversation(fds, ORDINARY_PROTOCOL_FEATURES)) {
      assert.ok(await peer.sendRaw(step.bytes, step.fds));
      const reply = await peer.reply();
      assert.ok(reply, 'every message of it is answered');
    }
    assert.deepEqual(target.calls, [
      `setProtocolFeatures 0x${ORDINARY_PROTOCOL_FEATURES.toString(16)}`,
      'setFeatures 0x100000000',
      'setMemTable 2',
      'startVring 0',
      'setVringCall 0 fd',
      'enable 0',
      'startVring 1',
      'setVringCall 1 fd',
      'enable 1',
      'setVringErr 0 none',
      'disable 0',
      'stopVring 0',
      'disable 1',
      'stopVring 1',
    ]);
    assert.equal(session.state.refusals, 0);
    peer.close();
    assert.equal(await session.closed, null);
  }));

test('offers bit 30 and what is implemented, and nothing else', () =>
  withSession(async ({ peer, target }) => {
    const features = wire.U64Payload.decode(await peer.ask(wire.VHOST_USER_GET_FEATURES)).value;
    assert.equal(features, target.features | (1n << 30n) | (1n << 26n));
    const reply = await peer.ask(wire.VHOST_USER_GET_PROTOCOL_FEATURES);
    const offered = wire.U64Payload.decode(reply).value;
    const without = postcopyAvailable() ? ['XEN_MMAP'] : ['XEN_MMAP', 'PAGEFAULT'];
    assert.deepEqual(
      wire.protocolFeatureNames(offered),
      wire.PROTOCOL_FEATURE_NAMES.filter((name) => !without.includes(name)),
    );
  }));

test('without bit 30 SET_FEATURES enables every ring, and never disables one', () =>
  withSession(async (setup) => {
    const { peer, target } = setup;
    await negotiate(setup, 0n);
    assert.deepEqual([...target.enabled], [0, 1, 2, 3]);
    await acked(peer, wire.VHOST_USER_SET_FEATURES, u64(1n << 30n));
    assert.equal(target.enabled.size, 4);
  }));

test('SET_VRING_ENABLE before SET_FEATURES is legal and kept', () =>
  withSession(async ({ peer, session, target }) => {
    await peer.send(wire.VHOST_USER_SET_VRING_ENABLE, state(3, 1));
    await peer.send(wire.VHOST_USER_SET_FEATURES, u64(1n << 30n));
    await peer.ask(wire.VHOST_USER_GET_FEATURES);
    assert.deepEqual([...target.enabled], [3]);
    assert.equal(session.state.vrings[3]!.enabled, true);
  }));

test('RESET_OWNER disables every ring and keeps the rest', () =>
  withSession(async (setup) => {
    const { peer, target } = setup;
    await negotiate(setup, 0n);
    await shareMemory(setup);
    await startRing(setup, 0);
    await acked(peer, wire.VHOST_USER_RESET_OWNER);
    assert.equal(target.enabled.size, 0);
    assert.ok(target.running.has(0));
  }));

test('a ring starts when it is complete, enabled or not, with translated addresses', () =>
  withSession(async (setup) => {
    const { session, target } = setup;
    await negotiate(setup);
    await startRing(setup, 1, 7);
    assert.deepEqual(session.state.vrings[1]!.missing, ['memory']);
    assert.equal(target.running.size, 0);
    await shareMemory(setup);
    const ring = target.running.get(1)!;
    assert.equal(ring.base, 7);
    assert.equal(ring.enabled, false);
    assert.equal(ring.descOffset, target.table!.regions[0]!.offset + 0x10000);
    assert.equal(ring.availOffset - ring.descOffset, 0x2000);
    assert.equal(ring.usedOffset - ring.descOffset, 0x4000);
    assert.equal(ring.map.count, 1);
    assert.notEqual(ring.kick, null);
    assert.equal(ring.call, null);
  }));

test('a kick message with the no-fd bit starts a polled ring', () =>
  withSession(async (setup) => {
    const { peer, target } = setup;
    await negotiate(setup);
    await shareMemory(setup);
    await acked(peer, wire.VHOST_USER_SET_VRING_NUM, state(0, 256));
    await acked(peer, wire.VHOST_USER_SET_VRING_ADDR, wire.VringAddr.encode(ringAddr(0)));
    await acked(peer, wire.VHOST_USER_SET_VRING_KICK, u64(0x100));
    assert.equal(target.running.get(0)!.kick, null);
  }));

test('GET_VRING_BASE waits for the target, and the next start needs a new kick', () =>
  withSession(async (setup) => {
    const { peer, session, target, fds } = setup;
    await negotiate(setup);
    await shareMemory(setup);
    await startRing(setup, 0, 5);
    let open = (): void => {};
    target.stopGate = new Promise((resolve) => (open = resolve));
    target.progress = 3;
    let replied = false;
    const reply = peer.ask(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    void reply.then(() => (replied = true));
    for (let i = 0; i < 20; i++) await nextTurn();
    assert.equal(replied, false);
    open();
    assert.deepEqual(wire.VringState.decode(await reply), { index: 0, num: 8 });
    assert.equal(target.running.size, 0);
    assert.deepEqual(session.state.vrings[0]!.missing, ['kick']);
    // A second time it is not running: the same answer.
    const again = await peer.ask(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    assert.equal(wire.VringState.decode(again).num, 8);
    await acked(peer, wire.VHOST_USER_SET_VRING_KICK, u64(0), [fds.events[1]!.number]);
    assert.equal(target.running.get(0)!.base, 8);
  }));

test('kick, call and err are replaced while the ring runs', () =>
  withSession(async (setup) => {
    const { peer, target, fds } = setup;
    await negotiate(setup);
    await shareMemory(setup);
    await startRing(setup, 0);
    target.calls.length = 0;
    const event = fds.events[2]!.number;
    await acked(peer, wire.VHOST_USER_SET_VRING_CALL, u64(0), [event]);
    await acked(peer, wire.VHOST_USER_SET_VRING_CALL, u64(0), [event]);
    await acked(peer, wire.VHOST_USER_SET_VRING_CALL, u64(0x100));
    await acked(peer, wire.VHOST_USER_SET_VRING_ERR, u64(0), [event]);
    await acked(peer, wire.VHOST_USER_SET_VRING_KICK, u64(0), [event]);
    assert.deepEqual(target.calls, [
      'setVringCall 0 fd',
      'setVringCall 0 fd',
      'setVringCall 0 none',
      'setVringErr 0 fd',
      'stopVring 0',
      'startVring 0',
    ]);
  }));

test('repeating what is known disturbs no ring; news restart it with its base', () =>
  withSession(async (setup) => {
    const { peer, target } = setup;
    await negotiate(setup);
    await shareMemory(setup);
    await startRing(setup, 0);
    target.progress = 9;
    target.calls.length = 0;
    await acked(peer, wire.VHOST_USER_SET_FEATURES, u64(1n << 30n));
    await acked(peer, wire.VHOST_USER_SET_VRING_NUM, state(0, 256));
    await acked(peer, wire.VHOST_USER_SET_VRING_ADDR, wire.VringAddr.encode(ringAddr(0)));
    assert.deepEqual(target.calls, []);
    await acked(
      peer,
      wire.VHOST_USER_SET_VRING_ADDR,
      wire.VringAddr.encode({ ...ringAddr(2), index: 0 }),
    );
    assert.deepEqual(target.calls, ['stopVring 0', 'startVring 0']);
    assert.equal(target.running.get(0)!.base, 9);
    await acked(peer, wire.VHOST_USER_SET_FEATURES, u64((1n << 30n) | (1n << 29n)));
    assert.equal(target.running.get(0)!.features, 1n << 29n);
    assert.equal(target.running.get(0)!.base, 18);
    await acked(peer, wire.VHOST_USER_SET_VRING_BASE, state(0, 0));
    assert.equal(target.calls.length, 5, target.calls.join());
  }));

test('size and base of a running ring are changed by nobody', () =>
  withSession(async (setup) => {
    const { peer, session, target } = setup;
    await negotiate(setup);
    await shareMemory(setup);
    await startRing(setup, 0);
    target.calls.length = 0;
    for (const [request, num] of [
      [wire.VHOST_USER_SET_VRING_NUM, 128],
      [wire.VHOST_USER_SET_VRING_BASE, 1],
    ] as const) {
      const reply = await peer.ask(request, state(0, num), [], NEED_REPLY);
      assert.equal(wire.U64Payload.decode(reply).value, 1n);
      assert.equal(session.state.lastRefusal!.code, 'ERR_VRING_MESSAGE_STATE');
      assert.match(session.state.lastRefusal!.message, /vring-stopped/);
    }
    assert.deepEqual(target.calls, []);
  }));

test('SET_MEM_TABLE stops running rings, swaps and restarts them', () =>
  withSession(async (setup) => {
    const { session, target } = setup;
    await negotiate(setup);
    await shareMemory(setup);
    await startRing(setup, 0);
    await startRing(setup, 1);
    const old = target.table!.regions[0]!;
    target.progress = 2;
    target.calls.length = 0;
    await shareMemory(setup, 2);
    assert.deepEqual(target.calls, [
      'stopVring 0',
      'stopVring 1',
      'setMemTable 2',
      'startVring 0',
      'startVring 1',
    ]);
    assert.equal(old.closed, true);
    assert.equal(target.running.get(0)!.base, 2);
    assert.equal(target.running.get(0)!.descOffset, target.table!.regions[0]!.offset);
    assert.deepEqual(session.state.memory, { regions: 2, bytes: 0x200000 });
  }));

test('memory slots: added and removed one by one; a ring waits for its memory', () =>
  withSession(async (setup) => {
    const { peer, session, target, fds } = setup;
    await negotiate(setup);
    const max = await peer.ask(wire.VHOST_USER_GET_MAX_MEM_SLOTS);
    assert.equal(wire.U64Payload.decode(max).value, 509n);
    for (let i = 0; i < 12; i++) {
      const fd = fds.memory[i]!.number;
      await acked(peer, wire.VHOST_USER_ADD_MEM_REG, singleRegion(region(i)), [fd]);
    }
    await startRing(setup, 0);
    assert.equal(session.state.memory!.regions, 12);
    // The stray fd of old QEMU is tolerated.
    const stray = fds.memory[0]!.number;
    await acked(peer, wire.VHOST_USER_REM_MEM_REG, singleRegion(region(11)), [stray]);
    assert.ok(target.running.has(0));
    await acked(peer, wire.VHOST_USER_REM_MEM_REG, singleRegion(region(0)));
    assert.equal(target.running.has(0), false);
    await acked(peer, wire.VHOST_USER_ADD_MEM_REG, singleRegion(region(0)), [stray]);
    assert.equal(target.running.get(0)!.descOffset, target.table!.regions.at(-1)!.offset);
  }));

test('QEMU before 8.0 adds and removes the same region for each queue pair', () =>
  withSession(async (setup) => {
    const { peer, session, target, fds } = setup;
    await negotiate(setup);
    const fd = fds.memory[0]!.number;
    for (let pair = 0; pair < 2; pair++) {
      await acked(peer, wire.VHOST_USER_ADD_MEM_REG, singleRegion(region(0)), [fd]);
    }
    await startRing(setup, 0);
    assert.equal(session.state.memory!.regions, 1);
    await acked(peer, wire.VHOST_USER_REM_MEM_REG, singleRegion(region(0)));
    assert.ok(target.running.has(0), 'the other pair still has it');
    await acked(peer, wire.VHOST_USER_REM_MEM_REG, singleRegion(region(0)));
    assert.equal(target.running.has(0), false);
    assert.equal(session.state.memory!.regions, 0);
  }));

test('509 slots, and not one more', () =>
  withSession(async (setup) => {
    const { peer, session, fds } = setup;
    await negotiate(setup);
    const fd = fds.memory[0]!.number;
    const small = (i: number) => ({
      ...region(0),
      guestPhysAddr: BigInt(i) * 4096n,
      userAddr: BigInt(i) * 4096n,
      sizeBytes: 4096n,
    });
    for (let i = 0; i < 509; i++) {
      await acked(peer, wire.VHOST_USER_ADD_MEM_REG, singleRegion(small(i)), [fd]);
    }
    const reply = await peer.ask(wire.VHOST_USER_ADD_MEM_REG, singleRegion(small(509)), [fd], 9);
    assert.equal(wire.U64Payload.decode(reply).value, 1n);
    assert.equal(session.state.lastRefusal!.code, 'ERR_VRING_MEMORY_SLOTS');
  }));

test('packed rings: base and alignment of their own', () =>
  withSession(async (setup) => {
    const { peer, session, target } = setup;
    await negotiate(setup, (1n << 30n) | (1n << 34n));
    await shareMemory(setup);
    await startRing(setup, 0, 0x8005_8005);
    assert.equal(target.running.get(0)!.packed, true);
    assert.equal(target.running.get(0)!.base, 0x8005_8005);
    const base = await peer.ask(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    assert.equal(wire.VringState.decode(base).num, 0x8005_8005);
    await acked(peer, wire.VHOST_USER_SET_VRING_NUM, state(0, 100)); // any size will do
    const odd = { ...ringAddr(0), availUva: ringAddr(0).availUva + 2n };
    await acked(peer, wire.VHOST_USER_SET_VRING_ADDR, wire.VringAddr.encode(odd));
    const reply = await peer.ask(wire.VHOST_USER_SET_VRING_KICK, u64(0x100), [], NEED_REPLY);
    assert.equal(wire.U64Payload.decode(reply).value, 1n);
    assert.equal(session.state.lastRefusal!.code, 'ERR_VRING_RING_ALIGNMENT');
    assert.equal(session.state.lastRefusal!.field, 'vrings[0].avail_user_addr');
  }));

test('config, MTU and status reach the device; its refusals end no session', () =>
  withSession(async (setup) => {
    const { peer, session, target } = setup;
    await negotiate(setup);
    const access = (offset: number, data: number[], flags = 0): Uint8Array =>
      Buffer.concat([
        wire.ConfigHeader.encode({ offset, sizeBytes: data.length, flags }),
        Uint8Array.from(data),
      ]);
    const read = await peer.ask(wire.VHOST_USER_GET_CONFIG, access(2, [0, 0, 0]));
    assert.deepEqual([...read.subarray(12)], [2, 3, 4]);
    assert.equal((await peer.ask(wire.VHOST_USER_GET_CONFIG, access(15, [0, 0]))).length, 0);
    await acked(peer, wire.VHOST_USER_SET_CONFIG, access(0, [7]));
    assert.equal(target.config[0], 7);
    await peer.send(wire.VHOST_USER_SET_CONFIG, access(12, [7])); // read-only, and nobody asks
    await acked(peer, wire.VHOST_USER_NET_SET_MTU, u64(9000));
    assert.equal(session.state.mtu, 9000);
    const mtu = await peer.ask(wire.VHOST_USER_NET_SET_MTU, u64(9001), [], NEED_REPLY);
    assert.equal(wire.U64Payload.decode(mtu).value, 1n);
    await acked(peer, wire.VHOST_USER_SET_STATUS, u64(0xf));
    const status = await peer.ask(wire.VHOST_USER_GET_STATUS);
    assert.equal(wire.U64Payload.decode(status).value, 15n);
    assert.equal(session.state.refusals, 2);
    const queues = await peer.ask(wire.VHOST_USER_GET_QUEUE_NUM);
    assert.equal(wire.U64Payload.decode(queues).value, 2n); // pairs
  }));

test('a device that takes smaller rings only', () =>
  withSession(async (setup) => {
    const { peer, session, target } = setup;
    await negotiate(setup);
    Object.defineProperty(target, 'queueSizeMax', { value: 1024 });
    await acked(peer, wire.VHOST_USER_SET_VRING_NUM, state(0, 1024));
    const reply = await peer.ask(wire.VHOST_USER_SET_VRING_NUM, state(0, 2048), [], NEED_REPLY);
    assert.equal(wire.U64Payload.decode(reply).value, 1n);
    assert.equal(session.state.lastRefusal!.code, 'ERR_VRING_RING_SIZE');
    assert.equal(session.state.vrings[0]!.size, 1024);
  }));

test('need_reply means nothing before REPLY_ACK, and to messages with a reply', () =>
  withSession(async (setup) => {
    const { peer } = setup;
    await peer.send(wire.VHOST_USER_SET_OWNER, undefined, [], NEED_REPLY);
    const reply = await peer.ask(wire.VHOST_USER_GET_FEATURES, undefined, [], NEED_REPLY);
    assert.notEqual(wire.U64Payload.decode(reply).value, 0n);
    await negotiate(setup);
    const features = await peer.ask(wire.VHOST_USER_GET_FEATURES, undefined, [], NEED_REPLY);
    assert.notEqual(wire.U64Payload.decode(features).value, 0n);
  }));

test('what the target throws ends the session', () =>
  withSession(async (setup) => {
    const { peer, session, target } = setup;
    await negotiate(setup);
    const failure = new Error('the worker is gone');
    target.setStatus = () => Promise.reject(failure);
    await peer.send(wire.VHOST_USER_SET_STATUS, u64(1), [], NEED_REPLY);
    assert.equal(await session.closed, failure);
    assert.deepEqual(target.reasons, [failure]);
  }));

test('close() ends it with our reason, also while a message is handled', () =>
  withSession(async (setup) => {
    const { peer, session, target } = setup;
    await negotiate(setup);
    await shareMemory(setup);
    await startRing(setup, 0);
    let open = (): void => {};
    target.stopGate = new Promise((resolve) => (open = resolve));
    await peer.send(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    for (let i = 0; i < 20; i++) await nextTurn();
    const reason = new Error('port removed');
    const closed = session.close(reason);
    assert.deepEqual(target.reasons, []);
    open();
    assert.equal(await closed, reason);
    assert.equal(await session.close(), reason);
  }));

test('messages are published only to subscribers', () =>
  withSession(async ({ peer }) => {
    const seen: MessageEvent[] = [];
    const listen = (message: unknown): void => void seen.push(message as MessageEvent);
    const messages = channel('vring:vhost-user:message');
    messages.subscribe(listen);
    await peer.ask(wire.VHOST_USER_GET_FEATURES);
    messages.unsubscribe(listen);
    await peer.ask(wire.VHOST_USER_GET_FEATURES);
    const name = 'VHOST_USER_GET_FEATURES';
    assert.deepEqual(seen, [
      { direction: 'received', name, flags: 1, size: 0, fds: 0 },
      { direction: 'sent', name, flags: 5, size: 8, fds: 0 },
      { direction: 'received', name, flags: 5, size: 8, fds: 0 },
    ]);
  }));

test('a front-end that floods does not keep the event loop', () =>
  withSession(async (setup) => {
    const { peer, session } = setup;
    let turns = 0;
    let done = false;
    const count = (): void => {
      turns++;
      if (!done) setImmediate(count);
    };
    setImmediate(count);
    const flood = Buffer.concat(
      Array.from({ length: 2000 }, () => Buffer.from([3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])),
    );
    await peer.sendRaw(flood);
    await peer.ask(wire.VHOST_USER_GET_FEATURES);
    done = true;
    assert.equal(session.state.messages, 2001);
    assert.ok(turns > 2000 / 64, `${turns} turns`);
  }));
