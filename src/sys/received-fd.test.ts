import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createEventfd, createMemfd, openFd, ReceivedFd, socketPair } from './index.ts';
import { closeMayWait } from './received-fd.ts';

const O_RDWR = 2;
const O_CREAT = 0o100;

test('what lives in the kernel is closed at once', () => {
  const folder = mkdtempSync(join(tmpdir(), 'vring-fd-'));
  const [a, b] = socketPair();
  const fds = [
    createEventfd('test'),
    createMemfd('test', 4096),
    a,
    b,
    openFd('/dev/null', O_RDWR),
    openFd('/proc/self/status', 0),
    openFd(join(folder, 'f'), O_RDWR | O_CREAT),
  ];
  for (const fd of fds) {
    const number = fd.take();
    assert.equal(closeMayWait(number), false, fd.what);
    const received = new ReceivedFd(number, 'test');
    received.close();
    received.close();
    assert.throws(() => closeMayWait(number), { code: 'ENOENT' });
  }
  rmSync(folder, { recursive: true });
});
