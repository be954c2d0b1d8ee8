import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Epoll } from './epoll.ts';
import { Timerfd } from './timerfd.ts';

test('a timer is readable once its time has come, and not when it was cleared', () => {
  using epoll = new Epoll();
  const timer = new Timerfd('test');
  const tokens = new Int32Array(4);
  epoll.add(timer.fd, 7);
  assert.equal(epoll.wait(tokens, 0), 0);
  const startMs = performance.now();
  timer.set(20);
  assert.equal(epoll.wait(tokens, 0), 0);
  assert.equal(epoll.wait(tokens, 5000), 1);
  assert.equal(tokens[0], 7);
  assert.ok(performance.now() - startMs >= 19.9);
  timer.set(5000);
  assert.equal(epoll.wait(tokens, 0), 0, 'set anew');
  timer.set(0);
  assert.equal(epoll.wait(tokens, 1000), 1, 'no time is at once');
  timer.clear();
  assert.equal(epoll.wait(tokens, 10), 0);
  epoll.remove(timer.fd);
  timer.close();
  timer.close();
});
