import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import {
  arena,
  closeRecordedFds,
  createEventfd,
  createMemfd,
  drainEventfd,
  Epoll,
  Fd,
  FD_RECORD_BYTES,
  fdStat,
  listenUnix,
  mapRegionAt,
  openFd,
  openFdCount,
  signalEventfd,
  socketPair,
  truncate,
} from './index.ts';

test('an Fd closes once and says what it was', () => {
  const before = openFdCount();
  const fd = createEventfd('kick of vring 0');
  const copy = fd.dup();
  assert.equal(openFdCount(), before + 2);
  assert.notEqual(copy.number, fd.number);
  assert.equal(copy.what, 'kick of vring 0');
  fd.close();
  fd.close();
  assert.equal(fd.closed, true);
  assert.throws(() => fd.number, {
    code: 'ERR_VRING_CLOSED',
    message: 'kick of vring 0 is closed',
  });
  const number = copy.take();
  copy.close();
  assert.equal(openFdCount(), before + 1);
  {
    using again = new Fd(number, 'again');
    assert.equal(again.closed, false);
  }
  assert.equal(openFdCount(), before);
});

test('a failed call closes what it opened', () => {
  const before = openFdCount();
  assert.throws(() => createMemfd('odd', 4097, { hugePages: true }), {
    syscall: 'ftruncate',
    errnoName: 'EINVAL',
  });
  assert.throws(() => listenUnix('/nonexistent/folder/socket'), {
    syscall: 'bind',
    errnoName: 'ENOENT',
    recovery: 'retry',
  });
  assert.throws(() => openFd('/nonexistent', 0), { errnoName: 'ENOENT' });
  using pipe = createEventfd('x');
  assert.throws(() => mapRegionAt(arena().sizeBytes / 4, 4096, pipe.number, 0), {
    errnoName: 'ENODEV',
  });
  pipe.close();
  assert.equal(openFdCount(), before);
});

test('fdStat tells what can be mapped', () => {
  using memfd = createMemfd('m', 12345);
  assert.deepEqual(fdStat(memfd.number), {
    kind: 'memfd-like',
    sizeBytes: 12345,
    pageSizeBytes: 4096,
  });
  const [one, two] = socketPair();
  assert.equal(fdStat(one.number).kind, 'socket');
  one.close();
  two.close();
  using zero = openFd('/dev/null', 0);
  assert.equal(fdStat(zero.number).kind, 'char');
  using file = openFd('/etc/passwd', 0);
  assert.equal(fdStat(file.number).kind, 'file');
  using eventfd = createEventfd('e');
  assert.equal(fdStat(eventfd.number).kind, 'other');
  assert.throws(() => fdStat(-1), { errnoName: 'EBADF' });
});

test('sealed memory keeps its size', () => {
  using fd = createMemfd('sealed', 8192, { seal: true });
  assert.throws(() => truncate(fd.number, 0), { errnoName: 'EPERM', code: 'ERR_VRING_SYS' });
  assert.throws(() => truncate(fd.number, 16384), { errnoName: 'EPERM' });
});

test('eventfds count, and a full or closed one is no error', () => {
  using fd = createEventfd('e');
  assert.equal(drainEventfd(fd.number), 0);
  for (let i = 0; i < 5; i++) signalEventfd(fd.number);
  assert.equal(drainEventfd(fd.number), 5);
  assert.equal(drainEventfd(fd.number), 0);
  signalEventfd(-1);
});

test('epoll reports tokens', () => {
  using epoll = new Epoll();
  using one = createEventfd('one');
  using two = createEventfd('two');
  const tokens = new Int32Array(4);
  assert.equal(epoll.wait(tokens, 0), 0);
  epoll.add(one.number, 11);
  epoll.add(two.number, -22, { edge: true });
  assert.throws(() => epoll.add(one.number, 1), { errnoName: 'EEXIST' });
  signalEventfd(one.number);
  signalEventfd(two.number);
  assert.equal(epoll.wait(tokens, -1), 2);
  assert.deepEqual([...tokens.subarray(0, 2)].sort(), [-22, 11]);
  assert.equal(epoll.wait(tokens, 0), 1, 'the edge is over, the level is not');
  assert.equal(tokens[0], 11);
  assert.equal(epoll.wait(tokens.subarray(0, 1), 0), 1);
  epoll.remove(one.number);
  assert.throws(() => epoll.remove(one.number), { errnoName: 'ENOENT' });
  assert.equal(epoll.wait(tokens, 1), 0);
  epoll.add(one.number, 5, { write: true });
  assert.equal(epoll.wait(tokens, 0), 1);
  epoll.close();
  assert.throws(() => epoll.wait(tokens, 0), { errnoName: 'EBADF' });
});

test('what a thread had open is closed by who survives it', async () => {
  const before = openFdCount();
  const record = new SharedArrayBuffer(FD_RECORD_BYTES);
  const code = `
    import { workerData } from 'node:worker_threads';
    const sys = await import(workerData.sys);
    sys.recordFds(workerData.record);
    const kept = [sys.createEventfd('a'), sys.createEventfd('b'), sys.createEventfd('c')];
    kept[1].close();
    sys.closeFd(kept[2].take()); // somebody else's by then
  `;
  const sys = new URL('./index.ts', import.meta.url).href;
  const url = new URL(`data:text/javascript,${encodeURIComponent(code)}`);
  const worker = new Worker(url, { workerData: { record, sys } });
  await once(worker, 'exit');
  assert.equal(openFdCount(), before + 1, 'it left one open');
  assert.equal(closeRecordedFds(record), 1);
  assert.equal(closeRecordedFds(record), 0);
  assert.equal(openFdCount(), before);
});
