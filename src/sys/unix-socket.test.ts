import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import {
  acceptUnix,
  closeFd,
  connectUnix,
  createEventfd,
  drainEventfd,
  fdStat,
  listenUnix,
  openFdCount,
  peerCredentials,
  receiveWithFds,
  sendWithFds,
  signalEventfd,
  socketPair,
} from './index.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-'));
after(() => rmSync(folder, { recursive: true }));
const text = (bytes: Uint8Array, length: number) =>
  Buffer.from(bytes.subarray(0, length)).toString();

test('listen, connect, accept', () => {
  const path = join(folder, 'a.sock');
  const before = openFdCount();
  assert.throws(() => connectUnix(path), { errnoName: 'ENOENT', recovery: 'retry' });
  const listener = listenUnix(path, {
    mode: 0o620,
    owner: { uid: 0 + process.getuid!(), gid: process.getgid!() },
  });
  assert.equal(statSync(path).mode & 0o777, 0o620);
  assert.equal(acceptUnix(listener.number), null);
  assert.throws(() => listenUnix(path), { code: 'ERR_VRING_SOCKET_IN_USE' });
  acceptUnix(listener.number)?.close(); // the probe of that
  const client = connectUnix(path);
  const server = acceptUnix(listener.number)!;
  const buffer = new Uint8Array(64);
  assert.equal(receiveWithFds(server.number, buffer, 8), null);
  assert.equal(sendWithFds(client.number, Buffer.from('hello'), []), 5);
  assert.deepEqual(receiveWithFds(server.number, buffer, 8), {
    bytes: 5,
    fds: [],
    fdsTruncated: false,
  });
  assert.equal(text(buffer, 5), 'hello');
  client.close();
  assert.equal(receiveWithFds(server.number, buffer, 8)?.bytes, 0);
  assert.throws(() => sendWithFds(server.number, buffer, []), {
    errnoName: 'EPIPE',
    recovery: 'reconnect',
  });
  server.close();
  listener.close();
  assert.throws(() => connectUnix(path), { errnoName: 'ECONNREFUSED', recovery: 'retry' });
  const nobody = { uid: -5, gid: 0 };
  assert.throws(() => listenUnix(`${path}2`, { owner: nobody }));
  assert.equal(existsSync(`${path}2`), false);
  listenUnix(path).close(); // the stale one was removed
  assert.equal(openFdCount(), before);
});

test('what is no socket is not removed', () => {
  const path = join(folder, 'file');
  writeFileSync(path, 'precious');
  const before = openFdCount();
  assert.throws(() => listenUnix(path), { code: 'ERR_VRING_SOCKET_PATH' });
  assert.equal(statSync(path).size, 8);
  const long = join(folder, 'x'.repeat(108 - folder.length));
  const problem = { code: 'ERR_VRING_SOCKET_PATH', message: /109 bytes, at most 107/ };
  assert.throws(() => listenUnix(long), problem);
  assert.throws(() => connectUnix(long), problem);
  assert.throws(() => connectUnix(''), { code: 'ERR_VRING_SOCKET_PATH' });
  assert.throws(() => connectUnix('a\0b'), { code: 'ERR_VRING_SOCKET_PATH' });
  listenUnix(long.slice(0, 107)).close();
  assert.equal(openFdCount(), before);
});

test('fds travel with the bytes, and none is lost', () => {
  const before = openFdCount();
  const [one, two] = socketPair();
  const kick = createEventfd('kick');
  const buffer = new Uint8Array(16);
  assert.equal(sendWithFds(one.number, Uint8Array.of(1, 2, 3), [kick.number, kick.number]), 3);
  const got = receiveWithFds(two.number, buffer, 8)!;
  assert.equal(got.bytes, 3);
  assert.equal(got.fds.length, 2);
  signalEventfd(got.fds[0]!);
  assert.equal(drainEventfd(kick.number), 1);
  got.fds.forEach(closeFd);

  // More than the receiver wants, up to the kernel's limit.
  const many = Array.from({ length: 253 }, () => kick.number);
  for (const [sent, wanted] of [
    [9, 8],
    [253, 8],
    [253, 253],
    [1, 0],
  ] as const) {
    assert.equal(sendWithFds(one.number, Uint8Array.of(9), many.slice(0, sent)), 1);
    const received = receiveWithFds(two.number, buffer, wanted)!;
    assert.equal(received.fds.length, wanted);
    assert.equal(received.fdsTruncated, sent > wanted);
    assert.equal(fdStat(received.fds[0] ?? kick.number).kind, 'other');
    received.fds.forEach(closeFd);
    assert.equal(openFdCount(), before + 3);
  }
  assert.throws(() => sendWithFds(one.number, buffer, [...many, 1]), { errnoName: 'EINVAL' });
  assert.throws(() => sendWithFds(one.number, buffer, [-1]), { errnoName: 'EBADF' });

  // Unread messages and their fds go with the socket.
  sendWithFds(one.number, buffer, [kick.number]);
  for (const fd of [one, two, kick]) fd.close();
  assert.equal(openFdCount(), before);
});

test('a full socket takes no more', () => {
  const [one, two] = socketPair();
  const chunk = new Uint8Array(65536);
  let sent = 0;
  for (let got = 1; got > 0; sent += got) got = sendWithFds(one.number, chunk, []);
  assert.ok(sent > 65536);
  assert.equal(sendWithFds(one.number, chunk, []), 0);
  const into = new Uint8Array(65536);
  for (let left = sent; left > 0;) left -= receiveWithFds(two.number, into, 0)!.bytes;
  assert.equal(receiveWithFds(two.number, into, 0), null);
  one.close();
  two.close();
});

test('the kernel says who is at the other end', () => {
  const [near, far] = socketPair();
  const { pid, uid } = peerCredentials(near.number);
  assert.deepEqual([pid, uid], [process.pid, process.getuid!()]);
  far.close();
  near.close();
});
