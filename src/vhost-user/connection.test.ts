import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { createEventfd, openFdCount, socketPair } from '../sys/index.ts';
import { closeFds, MessageConnection } from './connection.ts';
import { MAX_QUEUED_BYTES } from './limits.ts';

const options = { expectReplies: false, nameOf: (request: number) => `REQUEST_${request}` };

function pair(): [MessageConnection, MessageConnection] {
  const [a, b] = socketPair();
  return [new MessageConnection(a, options), new MessageConnection(b, options)];
}

test('messages arrive whole, in order, with their fds', async () => {
  const before = openFdCount();
  const [a, b] = pair();
  const event = createEventfd('test');
  for (let i = 0; i < 100; i++) {
    const payload = new Uint8Array(i * 40).fill(i);
    const fds = Array<number>(i % 9).fill(event.number);
    const sent = a.send(i, 1, payload, fds);
    const message = (await b.receive())!;
    await sent;
    assert.equal(message.request, i);
    assert.deepEqual(Buffer.from(message.payload), Buffer.from(payload));
    assert.equal(message.fds.length, i % 9);
    closeFds(message.fds);
  }
  event.close();
  a.close();
  assert.equal(await b.receive(), null);
  b.close();
  assert.equal(openFdCount(), before);
});

test('a peer that does not read: sends wait, then are refused, then all arrive', async () => {
  const [a, b] = pair();
  const payload = new Uint8Array(4000);
  const sent: Promise<void>[] = [];
  let accepted = 0;
  let refusal: Error & { code?: string } = new Error('none');
  for (let i = 0; i < 1000 && refusal.code === undefined; i++) {
    const sending = a.send(i, 1, payload);
    sending.then(
      () => {},
      (error: Error) => (refusal = error),
    );
    sent.push(sending);
    accepted++;
    if (i % 16 === 0) await delay(0);
  }
  await delay(0);
  assert.equal(refusal.code, 'ERR_VRING_BACKPRESSURE');
  const settled = Promise.allSettled(sent);
  let received = 0;
  while (received < accepted) {
    const message = await Promise.race([b.receive(), delay(200).then(() => null)]);
    if (message === null) break;
    assert.equal(message.request, received++);
  }
  const refused = (await settled).filter((each) => each.status === 'rejected').length;
  assert.equal(received + refused, accepted);
  assert.ok(refused < MAX_QUEUED_BYTES / 4000 + 1);
  a.close();
  b.close();
});

test('close() frees whoever waits, and is idempotent', async () => {
  const before = openFdCount();
  const [a, b] = pair();
  const waiting = a.receive();
  const sends = Array.from({ length: 80 }, () => a.send(1, 1, new Uint8Array(4000)));
  const settled = Promise.allSettled(sends);
  a.close();
  a.close();
  assert.equal(await waiting, null);
  assert.equal(await a.receive(), null);
  assert.ok((await settled).some((each) => each.status === 'rejected'));
  await assert.rejects(a.send(1, 1, new Uint8Array(0)), { code: 'ERR_VRING_CLOSED' });
  b.close();
  assert.equal(openFdCount(), before);
});

test('a message that never completes gives its fds back', async () => {
  const before = openFdCount();
  const [a, b] = pair();
  const event = createEventfd('test');
  const receiving = b.receive();
  // A payload that is announced by a header with fds, and then nothing.
  await a.send(1, 1, new Uint8Array(100), [event.number, event.number]);
  closeFds((await receiving)!.fds);
  const second = b.receive();
  a.close();
  b.close();
  assert.equal(await second, null);
  event.close();
  assert.equal(openFdCount(), before);
});

test('a peer that dies with an answer unread has closed, like any other', async () => {
  const [a, b] = socketPair();
  const reader = new MessageConnection(a, options);
  await reader.send(1, 1, new Uint8Array(8));
  b.close(); // resets the connection: 20 bytes were never read
  assert.equal(await reader.receive(), null);
  reader.close();
});
