/** Messages between two processes that hand over: any size, any number of fds, any mishap. */
import { deepEqual, equal, rejects } from 'node:assert/strict';
import { test } from 'node:test';
import {
  createEventfd,
  drainEventfd,
  openFdCount,
  sendWithFds,
  signalEventfd,
  socketPair,
} from '../sys/index.ts';
import { HAND_OVER_FORMAT, HandOverChannel, SentFds } from './hand-over-channel.ts';

function pair() {
  const [near, far] = socketPair();
  return { near, a: new HandOverChannel(near), b: new HandOverChannel(far) };
}

test('JSON, bytes and more descriptors than one message of the kernel carries', async (t) => {
  const { a, b } = pair();
  const eventfds = Array.from({ length: 600 }, (_, i) => createEventfd(`${i}`));
  t.after(() => (a.close(), b.close()));
  const before = openFdCount();
  const fds = new SentFds();
  for (const fd of eventfds) fds.add(fd);
  const blob = Uint8Array.from({ length: 300_000 }, (_, i) => i);
  const body = { ports: ['a', 'b'.repeat(100_000)] };
  const sent = a.send('prepare', body, fds, blob);
  const got = await b.receive(5000);
  await sent;
  equal(got.kind, 'prepare');
  deepEqual(got.body, body);
  deepEqual(got.blob, blob);
  equal(got.fds.count, 600);
  for (const i of [0, 252, 253, 599]) {
    const fd = got.fds.take(i, 'x');
    signalEventfd(fd.number);
    equal(drainEventfd(eventfds[i]!.number), 1, `descriptor ${i} is where it was`);
    fd.close();
  }
  await rejects(async () => got.fds.take(0, 'the kick of ring 0'), /for the kick of ring 0/);
  got.fds.close();
  equal(openFdCount(), before, 'nothing is left open');
  for (const fd of eventfds) fd.close();

  await b.send('ready', null);
  await b.send('restored', 1);
  equal((await a.receive(1000)).kind, 'ready');
  equal((await a.receive(1000)).body, 1, 'messages do not run into each other');
});

test('another format is refused with both versions', async (t) => {
  const { near, a, b } = pair();
  t.after(() => (a.close(), b.close()));
  const header = Buffer.alloc(20);
  header.writeUInt32LE(0x4f485256, 0);
  header.writeUInt32LE(HAND_OVER_FORMAT + 1, 4);
  sendWithFds(near.number, header, []);
  const text = new RegExp(`format ${HAND_OVER_FORMAT + 1}, this one knows ${HAND_OVER_FORMAT}`);
  await rejects(b.receive(1000), text);
});

test('whatever goes wrong is an error with a reason, and leaves nothing open', async () => {
  const raw = async (bytes: Buffer, expected: RegExp, fds = 0) => {
    const before = openFdCount();
    const { near, a, b } = pair();
    const eventfd = createEventfd('x');
    sendWithFds(
      near.number,
      bytes,
      Array.from({ length: fds }, () => eventfd.number),
    );
    eventfd.close();
    a.close();
    await rejects(b.receive(300), expected);
    b.close();
    equal(openFdCount(), before);
  };
  const header = (json: number, blob: number, fds: number, magic = 0x4f485256) => {
    const bytes = Buffer.alloc(20);
    [magic, HAND_OVER_FORMAT, json, blob, fds].forEach((v, i) => bytes.writeUInt32LE(v, 4 * i));
    return bytes;
  };
  await raw(Buffer.from('GET / HTTP/1.1\r\nHost: x'), /no hand-over message/);
  await raw(header(2 ** 31, 0, 0), /larger than any of ours/);
  await raw(header(2, 2 ** 31, 0), /larger than any of ours/);
  await raw(header(2, 0, 100_000), /100000 descriptors/);
  await raw(Buffer.concat([header(2, 0, 3), Buffer.from('{}')]), /2 descriptors came, 3/, 2);
  await raw(Buffer.concat([header(2, 0, 0), Buffer.from('{}')]), /without a kind/);
  await raw(Buffer.concat([header(2, 0, 0), Buffer.from('{x')]), /no JSON/);
  await raw(header(100, 0, 1), /gone/, 1);
  const { a, b } = pair();
  await rejects(b.receive(20), /did not say anything in time/);
  const endless = new Uint8Array(4 * 1024 * 1024);
  await rejects(a.send('x', null, new SentFds(), endless, 20), /did not take "x" in time/);
  b.close();
  await rejects(a.send('x', null), /gone/);
  a.close();
});
