/** A disk over its limits: requests stay where they are, the ring sleeps, and lets go when asked. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import { LimitEngine } from '../../storage/limit/limit-engine.ts';
import { LimitCells } from '../../storage/limit/rate-limits.ts';
import { createMemoryImage, type EngineSpec, openEngine, openStack } from '../../storage/index.ts';
import type { IoDone } from '../../storage/io-batch.ts';
import { createEventfd, Epoll } from '../../sys/index.ts';
import { VIRTIO_BLK_T_OUT } from '../../wire/virtio-blk.ts';
import { DRAINING } from '../../runtime/data-plane.ts';
import { LateEngine } from '../disk/late-engine.ts';
import { DiskFixture } from './disk-fixture.ts';

function limited(iops: number): {
  f: DiskFixture;
  engine: LimitEngine;
  addWrites(n: number): void;
} {
  const cells = new LimitCells();
  cells.rates = { iops, burstSeconds: 0 };
  let engine!: LimitEngine;
  const open = (spec: EngineSpec): LimitEngine =>
    (engine = new LimitEngine(openEngine(spec), cells.buffer));
  const f = new DiskFixture({ image: createMemoryImage(1 << 20), open, kickFd: 5000 });
  const queue = f.queues[0]!;
  const addWrites = (n: number): void => {
    for (let i = 0; i < n; i++) {
      const header = queue.header(VIRTIO_BLK_T_OUT, BigInt(i));
      queue.add([header, queue.put(new Uint8Array(512))], [queue.status()], true);
    }
  };
  return { f, engine, addWrites };
}

test('what waits is carried out by the timer, and nothing is polled meanwhile', () => {
  const { f, engine, addWrites } = limited(100);
  using epoll = new Epoll();
  epoll.add(engine.completionFd, 1, { edge: true });
  addWrites(20);
  let came = 0;
  let wakeUps = 0;
  const startMs = performance.now();
  f.plane.ready(f.watched.get(5000)!, startMs);
  for (; came < 20; wakeUps++) {
    f.poll();
    assert.equal(f.plane.awake, 0, 'no source is polled');
    came += f.queues[0]!.reap().size;
    if (came < 20) assert.equal(epoll.wait(new Int32Array(1), 2000), 1);
    f.plane.ready(f.watched.get(engine.completionFd)!, performance.now());
  }
  const tookMs = performance.now() - startMs;
  assert.ok(tookMs >= 180 && tookMs < 1500, `20 at 100 a second: ${tookMs} ms`);
  assert.ok(wakeUps <= 40, `${wakeUps} wake-ups`);
  epoll.remove(engine.completionFd);
  f.close();
});

test('a ring that is taken away does not wait for its limits', () => {
  const { f, addWrites } = limited(1);
  addWrites(10);
  f.plane.ready(f.watched.get(5000)!, performance.now());
  f.poll();
  assert.equal(f.queues[0]!.reap().size, 1);
  assert.equal(f.detach(0), 10, 'the base: all were done');
  assert.equal(f.queues[0]!.reap().size, 9);
  f.close();
});

/** As the engine over io_uring: silent from a look at it until it is armed. */
class SilentEngine extends LateEngine {
  isSilent = false;

  override reap(done: IoDone): number {
    this.isSilent = true;
    return super.reap(done);
  }

  arm(): boolean {
    this.isSilent = false;
    return this.pending > this.held.length;
  }
}

test('a ring that is taken away hears of what its engine completes later', () => {
  const cells = new LimitCells();
  cells.rates = { iops: 1, burstSeconds: 0 };
  const completion = createEventfd('completions of a test');
  let inner!: SilentEngine;
  let engine!: LimitEngine;
  const open = (spec: EngineSpec): LimitEngine => {
    inner = new SilentEngine(openEngine(spec), 64, completion.number);
    return (engine = new LimitEngine(inner, cells.buffer));
  };
  const f = new DiskFixture({ image: createMemoryImage(1 << 20), open, kickFd: 5000 });
  const queue = f.queues[0]!;
  for (let i = 0; i < 10; i++) {
    const header = queue.header(VIRTIO_BLK_T_OUT, BigInt(i));
    queue.add([header, queue.put(new Uint8Array(512))], [queue.status()], true);
  }
  f.plane.ready(f.watched.get(5000)!, performance.now());
  f.poll();
  for (let i = 0; i < 100 && f.plane.awake > 0; i++) f.poll();
  assert.deepEqual([inner.held.length, inner.isSilent], [1, false]);
  assert.equal(f.plane.detachVring(0, 0), DRAINING);
  for (let i = 0; i < 100 && f.plane.awake > 0; i++) f.poll();
  assert.deepEqual([inner.held.length, inner.isSilent], [10, false], 'it says when it is done');
  while (inner.held.length > 0) inner.finish(0);
  f.plane.ready(f.watched.get(engine.completionFd)!, performance.now());
  f.poll();
  assert.equal(f.detach(0), 10);
  f.close();
  completion.close();
});

test(
  'nor for limits that are below layers, on the storage thread',
  { timeout: 20_000 },
  async () => {
    const limit = { kind: 'limit', iops: 1, burstSeconds: 0 } as const;
    const image = await openStack({
      stack: [{ kind: 'fault' }, limit, { kind: 'memory', sizeBytes: 1 << 20 }],
    });
    const f = new DiskFixture({ image, open: openEngine, kickFd: 5000 });
    const queue = f.queues[0]!;
    for (let i = 0; i < 30; i++) {
      const header = queue.header(VIRTIO_BLK_T_OUT, BigInt(i));
      queue.add([header, queue.put(new Uint8Array(512))], [queue.status()], true);
    }
    f.plane.ready(f.watched.get(5000)!, performance.now());
    f.poll();
    const startMs = performance.now();
    let base = f.plane.detachVring(0, 0);
    assert.equal(base, DRAINING);
    for (; base === DRAINING; base = f.plane.detachVring(0, 0)) {
      await sleep(5);
      for (const token of f.watched.values()) f.plane.ready(token, performance.now());
      f.poll();
    }
    assert.equal(base, 30);
    assert.ok(performance.now() - startMs < 5000, '30 at one a second');
    f.close();
    await image.close();
  },
);
