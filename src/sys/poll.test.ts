import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { createEventfd, drainEventfd, openFd, pollFd, signalEventfd, socketPair } from './index.ts';

const indexUrl = new URL('./index.ts', import.meta.url).href;

test('calls back while the fd is ready, until closed', async () => {
  using fd = createEventfd('e');
  let calls = 0;
  const done = Promise.withResolvers<void>();
  const poll = pollFd(fd.number, { read: true }, (readable, writable) => {
    assert.equal(readable, true);
    assert.equal(writable, false);
    calls++;
    if (calls === 2) drainEventfd(fd.number); // level-triggered: called until it is drained
    if (calls === 2) done.resolve();
  });
  await sleep(5);
  assert.equal(calls, 0);
  signalEventfd(fd.number);
  await done.promise;
  await sleep(5);
  assert.equal(calls, 2);
  poll.update({ read: false });
  signalEventfd(fd.number);
  await sleep(5);
  assert.equal(calls, 2);
  poll.update({ read: true });
  await sleep(5);
  assert.equal(calls > 2, true);
  poll.close();
  poll.close();
  poll.update({ read: true });
  const before = calls;
  await sleep(5);
  assert.equal(calls, before);
});

test('writable, and the end of the peer', async () => {
  const [one, two] = socketPair();
  const seen: string[] = [];
  const poll = pollFd(one.number, { read: true, write: true }, (readable, writable) => {
    seen.push(`${readable} ${writable}`);
    poll.update({ read: true });
    if (readable) poll.close();
  });
  await sleep(5);
  assert.deepEqual(seen, ['false true']);
  two.close();
  await sleep(5);
  assert.equal(seen.length, 2);
  assert.match(seen[1]!, /^true/);
  one.close();
});

test('closing inside the callback, and polling the same fd again', async () => {
  using fd = createEventfd('e');
  signalEventfd(fd.number);
  for (let i = 0; i < 50; i++) {
    await new Promise<void>((resolve) => {
      const poll = pollFd(fd.number, { read: true }, () => {
        poll.close();
        resolve();
      });
    });
  }
  using file = openFd('/etc/passwd', 0);
  assert.throws(() => pollFd(file.number, { read: true }, () => {}), { errnoName: 'EPERM' });
  assert.throws(() => pollFd(-1, { read: true }, () => {}), { code: 'ERR_VRING_SYS' });
});

function child(body: string): ReturnType<typeof spawnSync> {
  const source = `import * as s from ${JSON.stringify(indexUrl)};
    const fd = s.createEventfd('e'); ${body}`;
  return spawnSync(process.execPath, ['--input-type=module', '-e', source], {
    encoding: 'utf8',
    timeout: 10_000,
  });
}

test('keeps the loop alive, and lets go of it', () => {
  // Nothing else holds this process: the timer is unreferenced.
  const kept = child(`
    const poll = s.pollFd(fd.number, { read: true }, () => { console.log('ready'); poll.close(); });
    setTimeout(() => s.signalEventfd(fd.number), 100).unref();`);
  assert.equal(kept.stdout, 'ready\n');
  assert.equal(kept.status, 0);
  const paused = child(`
    s.pollFd(fd.number, {}, () => console.log('ready'));
    setTimeout(() => console.log('late'), 1000).unref();
    s.signalEventfd(fd.number);`);
  assert.equal(paused.stdout, '');
  assert.equal(paused.status, 0);
});

test('an exception of the callback is an uncaught one', () => {
  const thrown = child(`
    s.signalEventfd(fd.number);
    s.pollFd(fd.number, { read: true }, () => { throw new Error('from the callback'); });`);
  assert.equal(thrown.status, 1);
  assert.match(String(thrown.stderr), /Error: from the callback/);
  const rejected = child(`
    s.signalEventfd(fd.number);
    const poll = s.pollFd(fd.number, { read: true }, async () => {
      s.drainEventfd(fd.number);
      process.nextTick(() => console.log('tick'));
      await null;
      console.log('microtask');
      poll.close();
    });`);
  assert.equal(rejected.stdout, 'tick\nmicrotask\n');
  assert.equal(rejected.status, 0);
});

test('a worker that ends with open polls takes them along', async () => {
  const source = `
    import * as s from ${JSON.stringify(indexUrl)};
    import { parentPort } from 'node:worker_threads';
    for (let i = 0; i < 3; i++) {
      const fd = s.createEventfd('e');
      s.pollFd(fd.number, { read: true }, () => {});
      if (i === 2) s.signalEventfd(fd.number);
    }
    parentPort.postMessage('up');`;
  const url = new URL(`data:text/javascript,${encodeURIComponent(source)}`);
  for (let i = 0; i < 3; i++) {
    const worker = new Worker(url);
    await once(worker, 'message');
    await worker.terminate();
  }
});
