import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { openFdCount, socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { closeFds, MessageConnection } from './connection.ts';
import { fuzz } from './frontend.fuzz.ts';
import { VhostUserFrontend } from './frontend.ts';
import { requestName } from './message-table.ts';
import { u64 } from './testing/raw-peer.ts';

test('the fuzzer finds nothing in 100 sessions, and calls succeed and fail', async () => {
  const { iterations, succeeded, failed } = await fuzz({ seconds: 60, seed: 9, iterations: 100 });
  assert.equal(iterations, 100);
  assert.ok(Object.keys(succeeded).length > 30, JSON.stringify(succeeded));
  assert.ok(Object.keys(failed).length > 5, JSON.stringify(failed));
});

/** Bit 30; BACKEND_REQ, BACKEND_SEND_FD, SHMEM. */
const FEATURES = (1n << 30n) | (1n << 5n) | (1n << 10n) | (1n << 22n);
const shmem = { map: () => true, unmap: () => {} };

test('a channel that opens after the end of its session is closed at once', async () => {
  const attempt = async (): Promise<number> => {
    const [ours, theirs] = socketPair();
    const nameOf = requestName;
    const backend = new MessageConnection(theirs, { expectReplies: false, nameOf });
    const serving = (async () => {
      for (;;) {
        const message = await backend.receive();
        if (message === null) return;
        closeFds(message.fds);
        const { request } = message;
        if (request === wire.VHOST_USER_SET_PROTOCOL_FEATURES) continue;
        // The answer, then a header of another version: the session is over.
        const isLast = request === wire.VHOST_USER_GET_SHMEM_CONFIG;
        const payload = isLast ? new Uint8Array(8 + 256 * 8) : u64(FEATURES);
        await backend.send(request, 5, payload);
        if (isLast) await backend.send(request, 7, payload);
      }
    })().catch(() => undefined);
    await assert.rejects(VhostUserFrontend.attach(ours, 'test', { events: { shmem } }));
    const open = openFdCount(); // not in a turn of the event loop, when its other end is seen closed
    backend.close();
    await serving;
    return open;
  };
  await attempt();
  for (let i = 0; i < 5; i++) await nextTurn(); // what it left is closed by now
  const before = openFdCount();
  assert.equal(await attempt(), before + 1, 'the back-end’s end of the socket');
});
