import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { VringError } from '../base/errors.ts';
import { acceptUnix, connectUnix, type Fd, listenUnix, openFdCount } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { BackendConnector } from './backend-connector.ts';
import { BackendListener } from './backend-listener.ts';
import type { EndpointEvent } from './endpoint.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { RawPeer } from './testing/raw-peer.ts';

async function withPath(body: (path: string) => Promise<void>): Promise<void> {
  const before = openFdCount();
  const folder = mkdtempSync(join(tmpdir(), 'vring-'));
  try {
    await body(join(folder, 'vm0.sock'));
  } finally {
    rmSync(folder, { recursive: true });
  }
  assert.equal(openFdCount(), before, 'every fd is closed again');
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (let i = 0; i < 1000 && !condition(); i++) await delay(5);
  assert.ok(condition(), what);
}

test('listener: one session after the other, the second waits in the backlog', () =>
  withPath(async (path) => {
    const target = new FakeTarget();
    const events: string[] = [];
    const onEvent = (event: EndpointEvent): void => void events.push(event.kind);
    const listener = new BackendListener({ path, target, mode: 0o660, onEvent });
    assert.equal(listener.state, 'listening');
    assert.equal(statSync(path).mode & 0o777, 0o660);

    const first = new RawPeer(connectUnix(path));
    await first.ask(wire.VHOST_USER_GET_FEATURES);
    assert.equal(listener.state, 'connected');
    const second = new RawPeer(connectUnix(path));
    const waiting = second.ask(wire.VHOST_USER_GET_FEATURES);
    await delay(30);
    assert.equal(listener.sessions, 1);
    first.close();
    await waiting;
    assert.equal(listener.sessions, 2);
    assert.deepEqual(events, ['connected', 'disconnected', 'connected']);

    // A protocol error is the reason of that session; the listener goes on.
    await second.send(45);
    await until(() => listener.state === 'listening', 'the second session ends');
    assert.equal((listener.reason as VringError).code, 'ERR_VRING_MESSAGE_UNKNOWN');
    second.close();
    const third = new RawPeer(connectUnix(path));
    await third.ask(wire.VHOST_USER_GET_FEATURES);

    // close() ends the running session and removes the socket.
    await Promise.all([listener.close(), listener.close()]);
    assert.equal(listener.state, 'closed');
    assert.equal(existsSync(path), false);
    assert.equal(await third.reply(), null);
    third.close();
    assert.equal(target.reasons.length, 3);
  }));

test('listener: somebody who connects and closes in a loop does not keep the event loop', () =>
  withPath(async (path) => {
    const target = new FakeTarget();
    const listener = new BackendListener({ path, target });
    const turnsAt: number[] = [];
    for (let round = 0; round < 10; round++) {
      for (let i = 0; i < 16; i++) connectUnix(path).close(); // as many as the backlog holds
      const sessions = listener.sessions;
      await new Promise((resolve) => setImmediate(resolve));
      await new Promise((resolve) => setImmediate(resolve));
      turnsAt.push(listener.sessions - sessions);
      await until(() => listener.sessions === 16 * (round + 1), 'all were served');
    }
    assert.ok(Math.max(...turnsAt) <= 3, `sessions in two turns: ${turnsAt.join(' ')}`);
    await listener.close();
  }));

test('listener: a stale socket is removed, a live one is not', () =>
  withPath(async (path) => {
    listenUnix(path).close(); // leaves its file behind
    assert.ok(existsSync(path));
    const target = new FakeTarget();
    const listener = new BackendListener({ path, target });
    assert.throws(() => new BackendListener({ path, target }), { code: 'ERR_VRING_SOCKET_IN_USE' });
    await until(() => listener.state === 'listening', 'the probe came and went');
    await listener.close();
  }));

test('connector: retries, says the cause once, and connects again after a session', () =>
  withPath(async (path) => {
    const target = new FakeTarget();
    const events: EndpointEvent[] = [];
    const connector = new BackendConnector({ path, target, onEvent: (e) => void events.push(e) });
    assert.equal(connector.state, 'connecting');
    await delay(350); // attempts at 0, 100 and 300 ms
    assert.deepEqual(
      events.map((e) => e.kind),
      ['failed'],
    );
    assert.match(connector.reason!.message, /ENOENT/);

    const server = listenUnix(path);
    const accept = async (): Promise<Fd> => {
      for (;;) {
        const socket = acceptUnix(server.number);
        if (socket !== null) return socket;
        await delay(5);
      }
    };
    const first = new RawPeer(await accept());
    await first.ask(wire.VHOST_USER_GET_FEATURES);
    assert.equal(connector.state, 'connected');
    first.close();
    const started = performance.now();
    const second = new RawPeer(await accept());
    assert.ok(performance.now() - started < 300, 'the pause starts over after a good session');
    await second.send(0);
    await until(() => connector.session === null, 'the bad session ends');
    assert.equal((connector.reason as VringError).code, 'ERR_VRING_MESSAGE_UNKNOWN');
    second.close();
    const third = new RawPeer(await accept());
    await third.ask(wire.VHOST_USER_GET_FEATURES);
    assert.equal(connector.sessions, 3);
    await connector.close();
    assert.equal(connector.state, 'closed');
    third.close();
    server.close();
  }));

test('connector: close() while it waits', () =>
  withPath(async (path) => {
    const connector = new BackendConnector({ path, target: new FakeTarget() });
    await delay(20);
    const started = performance.now();
    await connector.close();
    assert.ok(performance.now() - started < 50);
    assert.equal(connector.sessions, 0);
  }));
