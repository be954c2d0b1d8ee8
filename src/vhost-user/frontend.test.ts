/** The front-end against our own back-end, and against back-ends that misbehave. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { VringError } from '../base/errors.ts';
import type { BackendMemoryRegion } from '../base/vhost-backend.ts';
import { openFdCount, sendWithFds, socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { BackendListener } from './backend-listener.ts';
import { BackendConnector } from './backend-connector.ts';
import { BackendSession } from './backend-session.ts';
import { closeFds, type Message, MessageConnection } from './connection.ts';
import { startVring, stopVring } from './frontend-vring.ts';
import { type FrontendOptions, VhostUserFrontend } from './frontend.ts';
import { requestName } from './message-table.ts';
import { ConversationFds, region, ringAddr } from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { encodeMessage, u64 } from './testing/raw-peer.ts';

type Setup = {
  frontend: VhostUserFrontend;
  target: FakeTarget;
  session: BackendSession;
  fds: ConversationFds;
};

async function withBackend(
  options: FrontendOptions,
  body: (setup: Setup) => Promise<void>,
): Promise<void> {
  const before = openFdCount();
  {
    using fds = new ConversationFds(12);
    const [a, b] = socketPair();
    const target = new FakeTarget();
    const session = new BackendSession(a, target);
    const frontend = await VhostUserFrontend.attach(b, 'test', options);
    try {
      await body({ frontend, target, session, fds });
    } finally {
      await frontend.close();
      await session.closed;
    }
  }
  assert.equal(openFdCount(), before, 'every fd is closed again');
}

function regions(fds: ConversationFds, count: number): BackendMemoryRegion[] {
  return Array.from({ length: count }, (_, i) => ({ ...region(i), fd: fds.memory[i]!.number }));
}

function vring(fds: ConversationFds, index: number) {
  const { descUva, availUva, usedUva } = ringAddr(index);
  const [kick, call] = [fds.events[0]!.number, fds.events[1]!.number];
  return { size: 256, base: 3, descUva, availUva, usedUva, kick, call, err: null };
}

/** Offered by every session. */
const LOG_ALL = 1n << BigInt(wire.VHOST_F_LOG_ALL);

test('end to end: negotiation, memory, a ring up and down, config, status, MTU', () =>
  withBackend({ vringsPerQueue: 2 }, async ({ frontend, target, session, fds }) => {
    assert.equal(await frontend.getFeatures(), target.features | LOG_ALL);
    assert.equal(await frontend.getQueueNum(), 4);
    await frontend.setOwner();
    await frontend.setFeatures(1n << 32n);
    await frontend.setMemTable(regions(fds, 2));
    await startVring(frontend, 0, vring(fds, 0));
    assert.equal(target.running.get(0)!.base, 3);
    assert.ok(target.enabled.has(0));
    target.progress = 4;
    assert.equal(await stopVring(frontend, 0), 7);
    assert.deepEqual([...(await frontend.getConfig(1, 3))], [1, 2, 3]);
    await frontend.setConfig(0, Uint8Array.of(9, 8));
    assert.deepEqual([...target.config.subarray(0, 2)], [9, 8]);
    await frontend.setStatus(7);
    assert.equal(await frontend.getStatus(), 7);
    await frontend.setMtu(9000);
    assert.equal(session.state.mtu, 9000);
    assert.equal(session.state.features, (1n << 32n) | (1n << 30n));
    assert.equal(session.state.refusals, 0);
  }));

test('a refusal is an error of its call, and the session goes on', () =>
  withBackend({}, async ({ frontend, fds }) => {
    const refused = { code: 'ERR_VRING_REFUSED', recovery: 'reset' };
    await assert.rejects(frontend.setFeatures(1n << 60n), refused);
    await assert.rejects(frontend.setMtu(9001), { ...refused, request: 'VHOST_USER_NET_SET_MTU' });
    const [one] = regions(fds, 1);
    await assert.rejects(frontend.setMemTable([one!, one!]), refused);
    await assert.rejects(frontend.setVringNum(99, 256), refused);
    await assert.rejects(frontend.getConfig(15, 4), { code: 'ERR_VRING_CONFIG_RANGE' });
    await frontend.setOwner();
  }));

test('more than eight regions go by slots, and only the difference the second time', () =>
  withBackend({}, async ({ frontend, target, session, fds }) => {
    await frontend.setFeatures(0n);
    const all = regions(fds, 12);
    await frontend.setMemTable(all.slice(0, 11));
    assert.equal(session.state.memory!.regions, 11);
    const count = target.calls.length;
    await frontend.setMemTable(all.slice(1));
    assert.deepEqual(target.calls.slice(count), ['setMemTable 10', 'setMemTable 11']);
    await frontend.setMemTable(all.slice(0, 2));
    assert.equal(session.state.memory!.regions, 2);
    await frontend.setMemTable(all.slice(0, 9));
    assert.equal(session.state.memory!.regions, 9);
  }));

test('without CONFIGURE_MEM_SLOTS nine regions are refused here', () =>
  withBackend({ protocolFeatures: 0n }, async ({ frontend, fds }) => {
    assert.equal(frontend.protocolFeatures, 0n);
    assert.equal(await frontend.getQueueNum(), 1);
    const error = { code: 'ERR_VRING_MEMORY_SLOTS', message: /takes 8 memory regions, 9 are due/ };
    await assert.rejects(frontend.setMemTable(regions(fds, 9)), error);
    await assert.rejects(frontend.getConfig(0, 1), { code: 'ERR_VRING_NOT_NEGOTIATED' });
    await frontend.setStatus(3);
    assert.equal(await frontend.getStatus(), 3);
  }));

test('without REPLY_ACK a refusal closes the connection, which the next call says', () =>
  withBackend({ protocolFeatures: 0n }, async ({ frontend, session }) => {
    await frontend.setVringNum(99, 256);
    await session.closed;
    const error = { code: 'ERR_VRING_PEER_CLOSED', recovery: 'reconnect' };
    await assert.rejects(frontend.getFeatures(), {
      ...error,
      message: /^VHOST_USER_GET_FEATURES: /,
    });
    assert.equal(((await frontend.closed) as { code?: string }).code, 'ERR_VRING_PEER_CLOSED');
  }));

test('calls that are made at once are sent one after the other', () =>
  withBackend({}, async ({ frontend, target }) => {
    const features = await Promise.all(Array.from({ length: 50 }, () => frontend.getFeatures()));
    assert.ok(features.every((each) => each === (target.features | LOG_ALL)));
  }));

test('close() is idempotent, and calls after it say so', () =>
  withBackend({}, async ({ frontend }) => {
    await Promise.all([frontend.close(), frontend.close()]);
    assert.equal(await frontend.closed, null);
    await assert.rejects(frontend.getFeatures(), { code: 'ERR_VRING_CLOSED' });
  }));

/** A back-end that answers as `answer` says; null closes, undefined stays silent. */
async function withFake(
  answer: (
    message: Message,
  ) => [request: number, payload: Uint8Array, flags?: number] | null | undefined,
  body: (socket: ReturnType<typeof socketPair>[1]) => Promise<void>,
): Promise<void> {
  const before = openFdCount();
  const [ours, theirs] = socketPair();
  const back = new MessageConnection(ours, { expectReplies: false, nameOf: requestName });
  const serve = (async () => {
    for (;;) {
      const message = await back.receive();
      if (message === null) break;
      closeFds(message.fds);
      const reply = answer(message);
      if (reply === null) break;
      if (reply !== undefined) await back.send(reply[0], reply[2] ?? 5, reply[1]);
    }
    back.close();
  })().catch(() => undefined);
  await body(theirs);
  back.close();
  await serve;
  assert.equal(openFdCount(), before, 'every fd is closed again');
}

const attach = (socket: ReturnType<typeof socketPair>[1], options: FrontendOptions = {}) =>
  VhostUserFrontend.attach(socket, 'fake', options);

test('a back-end that never answers: ERR_VRING_TIMEOUT', () =>
  withFake(
    () => undefined,
    async (socket) => {
      const error = {
        code: 'ERR_VRING_TIMEOUT',
        recovery: 'reconnect',
        message: /no answer from the back-end for 50 ms/,
      };
      await assert.rejects(attach(socket, { timeoutMs: 50 }), error);
    },
  ));

test('a back-end that closes in the middle of a call', () =>
  withFake(
    () => null,
    async (socket) => {
      const error = {
        code: 'ERR_VRING_PEER_CLOSED',
        message: /^VHOST_USER_GET_FEATURES: the back-end closed the connection; connect again/,
      };
      await assert.rejects(attach(socket), error);
    },
  ));

test('a back-end without bit 30: no protocol features, rings are enabled', () =>
  withFake(
    ({ request }) => (request === 1 ? [1, u64(1n << 32n)] : undefined),
    async (socket) => {
      const frontend = await attach(socket);
      assert.equal(frontend.protocolFeatures, 0n);
      await frontend.setVringEnable(0, true);
      await assert.rejects(frontend.setVringEnable(0, false), { code: 'ERR_VRING_NOT_NEGOTIATED' });
      await frontend.close();
    },
  ));

const wrong: [string, [number, Uint8Array, number?], string, string][] = [
  ['a reply to something else', [2, u64(0)], 'ERR_VRING_REPLY', 'request'],
  ['a short reply', [1, new Uint8Array(4)], 'ERR_VRING_REPLY', 'size'],
  ['a long reply', [1, new Uint8Array(12)], 'ERR_VRING_REPLY', 'size'],
  ['a request instead of a reply', [1, u64(0), 1], 'ERR_VRING_MESSAGE_FLAGS', 'flags'],
  ['version 2', [1, u64(0), 6], 'ERR_VRING_MESSAGE_FLAGS', 'flags'],
];
for (const [what, reply, code, field] of wrong) {
  test(`a back-end that sends ${what}`, () =>
    withFake(
      () => reply,
      async (socket) => {
        await assert.rejects(attach(socket), { code, field });
      },
    ));
}

test('a back-end that closes at every byte of its reply', async () => {
  const before = openFdCount();
  const whole = encodeMessage(wire.VHOST_USER_GET_FEATURES, u64(0), 5);
  for (let cut = 0; cut < whole.length; cut++) {
    const [ours, theirs] = socketPair();
    const attached = attach(theirs);
    sendWithFds(ours.number, whole.subarray(0, cut), []);
    setImmediate(() => ours.close());
    const code = cut === 0 ? /PEER_CLOSED|SYS/ : /MESSAGE_TRUNCATED|SYS/; // or a reset
    await assert.rejects(attached, (error: VringError) => code.test(error.code));
  }
  assert.equal(openFdCount(), before);
});

test('fds that come with a reply are closed', async () => {
  const before = openFdCount();
  {
    using fds = new ConversationFds(1, 1);
    const [ours, theirs] = socketPair();
    const attached = attach(theirs);
    const reply = encodeMessage(wire.VHOST_USER_GET_FEATURES, u64(0), 5);
    sendWithFds(ours.number, reply, [fds.events[0]!.number, fds.memory[0]!.number]);
    const frontend = await attached;
    await frontend.close();
    ours.close();
  }
  assert.equal(openFdCount(), before);
});

test('a reply that nobody asked for ends the session', () =>
  withFake(
    ({ request }) => (request === 1 ? [1, u64(0)] : [request, u64(0)]),
    async (socket) => {
      const frontend = await attach(socket);
      await frontend.setOwner(); // no REPLY_ACK, no reply is due
      const reason = (await frontend.closed) as Error & { code: string };
      assert.equal(reason.code, 'ERR_VRING_REPLY');
      await assert.rejects(frontend.getFeatures(), { code: 'ERR_VRING_REPLY' });
    },
  ));

test('GET_VRING_BASE of another ring', () =>
  withFake(
    ({ request }) =>
      request === 1 ? [1, u64(0)] : [11, wire.VringState.encode({ index: 9, num: 0 })],
    async (socket) => {
      const frontend = await attach(socket);
      await assert.rejects(frontend.getVringBase(1), { code: 'ERR_VRING_REPLY', field: 'index' });
    },
  ));

test('over a path: both ways to connect', async () => {
  const before = openFdCount();
  const folder = mkdtempSync(join(tmpdir(), 'vring-'));
  const path = join(folder, 'a.sock');
  const target = new FakeTarget();

  const listener = new BackendListener({ path, target });
  const client = await VhostUserFrontend.connect(path);
  assert.equal(client.description, `vhost-user:${path}`);
  await client.close();
  await listener.close();

  const connector = new BackendConnector({ path, target });
  const server = await VhostUserFrontend.listen(path);
  assert.equal(await server.getFeatures(), target.features | LOG_ALL);
  await server.close();
  await connector.close();
  assert.deepEqual(target.reasons, [null, null]);

  const abort = new AbortController();
  const waiting = VhostUserFrontend.listen(path, { signal: abort.signal });
  setTimeout(() => abort.abort(), 10);
  await assert.rejects(waiting, { code: 'ERR_VRING_CLOSED' });
  await assert.rejects(VhostUserFrontend.connect(path), {
    code: 'ERR_VRING_SYS',
    errnoName: 'ENOENT',
    recovery: 'retry',
  });
  rmSync(folder, { recursive: true });
  assert.equal(openFdCount(), before);
});
