/** Requests that complete later and out of order, that fail, and that outlive their device. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { DRAINING } from '../../runtime/data-plane.ts';
import { createMemoryImage, type EngineSpec, IO_FUA, openEngine } from '../../storage/index.ts';
import { createEventfd, drainEventfd } from '../../sys/index.ts';
import { needsKick } from '../../virtqueue/driver/index.ts';
import { faultName } from '../../virtqueue/faults.ts';
import { inflightQueueBytes } from '../../wire/inflight.ts';
import * as blk from '../../wire/virtio-blk.ts';
import { featureSet, PACKED_BASE_FRESH, VIRTIO_F_VERSION_1 } from '../../wire/virtio.ts';
import {
  DiskFixture,
  type DiskFixtureOptions,
  type BlkFixtureQueue,
  UNTOUCHED,
} from './disk-fixture.ts';
import { LateEngine } from '../disk/late-engine.ts';

const SECTORS = 2048;
const COMPLETION_FD = 1000;

type Late = {
  readonly f: DiskFixture;
  /** Of each plane; there is a second one after a crash. */
  readonly engines: LateEngine[];
  readonly engine: LateEngine;
  readonly queue: BlkFixtureQueue;
};

function late(room: number, options: Partial<DiskFixtureOptions> = {}): Late {
  const engines: LateEngine[] = [];
  const open = (spec: EngineSpec): LateEngine => {
    const engine = new LateEngine(openEngine(spec), room);
    engines.push(engine);
    return engine;
  };
  const f = new DiskFixture({ image: createMemoryImage(SECTORS * 512), open, ...options });
  return { f, engines, engine: engines[0]!, queue: f.queues[0]! };
}

/** The worker saw the engine's descriptor. */
function complete(f: DiskFixture): void {
  f.plane.ready(f.watched.get(COMPLETION_FD)!, performance.now());
  f.poll();
}

/** A write of one sector filled with a number. */
function write(
  queue: BlkFixtureQueue,
  sector: number,
  value: number,
  indirect = true,
): { id: number; status: number } {
  const status = queue.status();
  const data = queue.put(new Uint8Array(512).fill(value));
  const header = queue.header(blk.VIRTIO_BLK_T_OUT, BigInt(sector));
  return { id: queue.add([header, data], [status], indirect), status: status.gpa };
}

for (const packed of [false, true]) {
  const ring = packed ? 'packed' : 'split';

  test(`${ring}: requests come back as they complete, each once`, () => {
    const { f, engine, queue } = late(1000, { packed });
    const writes = Array.from({ length: 40 }, (_, i) => {
      const one = write(queue, i, i);
      if (i % 7 === 0) f.poll(); // in several flights
      return one;
    });
    f.poll();
    assert.equal(queue.reap().size, 0, 'nothing is done yet');
    assert.equal(engine.held.length, 40);
    assert.equal(f.status().vrings[0]!.busy, 7);
    const came = new Set<number>();
    for (let n = 0; engine.held.length > 0; n++) {
      for (let k = 0; k < 3 && engine.held.length > 0; k++) {
        engine.finish((n * 13 + k * 5) % engine.held.length);
      }
      complete(f);
      for (const id of queue.reap().keys()) {
        assert.equal(came.has(id), false);
        came.add(id);
      }
    }
    assert.deepEqual(came, new Set(writes.map(({ id }) => id)));
    for (const { status } of writes) assert.equal(queue.read(status, 1)[0], 0);
    assert.equal(f.status().vrings[0]!.busy, 0);
    f.close();
  });

  test(`${ring}: an engine without room holds rings up, and loses nothing`, () => {
    const { f, engine, queue } = late(3, { packed, queues: 2 });
    const other = f.queues[1]!;
    for (let i = 0; i < 20; i++) write(queue, i, i + 1);
    for (let i = 0; i < 20; i++) write(other, 100 + i, i + 1);
    let used = 0;
    for (let n = 0; used < 40 && n < 100; n++) {
      f.poll();
      assert.ok(engine.held.length <= 3);
      while (engine.held.length > 0) engine.finish(engine.held.length - 1);
      complete(f);
      used += queue.reap().size + other.reap().size;
    }
    assert.equal(used, 40);
    const [data, status] = [{ gpa: other.alloc(512), len: 512 }, other.status()];
    other.add([other.header(blk.VIRTIO_BLK_T_IN, 119n)], [data, status]);
    f.poll();
    engine.settle();
    complete(f);
    assert.equal(other.reap().size, 1);
    assert.deepEqual(other.read(data.gpa, 512), new Uint8Array(512).fill(20));
    f.close();
  });

  test(`${ring}: a ring is let go of when its requests are done`, () => {
    const { f, engine, queue } = late(1000, { packed });
    const first = write(queue, 1, 1);
    f.poll();
    assert.equal(f.plane.detachVring(0, 0), DRAINING);
    const second = write(queue, 2, 2);
    f.poll();
    assert.equal(engine.held.length, 1, 'nothing more is taken');
    engine.finish(0);
    complete(f);
    assert.deepEqual([...queue.reap().keys()], [first.id]);
    const base = f.detach(0);
    f.attach(0, base);
    f.poll();
    engine.settle();
    complete(f);
    assert.deepEqual([...queue.reap().keys()], [second.id], 'the successor goes on');
    f.close();
  });

  test(`${ring}: requests in front of a broken chain are answered before the queue breaks`, () => {
    const { f, engine, queue } = late(1000, { packed });
    const good = write(queue, 1, 1);
    f.poll();
    queue.add([queue.header(blk.VIRTIO_BLK_T_IN, 0n)], []);
    f.poll();
    write(queue, 2, 2);
    f.poll();
    assert.equal(f.events.length, 0);
    assert.equal(engine.held.length, 1);
    engine.finish(0);
    complete(f);
    assert.deepEqual([...queue.reap().keys()], [good.id]);
    const [event] = f.events;
    assert.ok(event?.kind === 'fault');
    assert.equal(faultName(event.code), 'CHAIN_SHORT');
    f.close();
  });

  test(`${ring}: what a device had taken when it was killed, the next one does, once`, () => {
    const sizeBytes = inflightQueueBytes(64, packed);
    const area = PrivateMemory.allocate(sizeBytes);
    const inflight = { offset: area.offset, handle: area.handle, sizeBytes };
    const { f, engines, engine, queue } = late(1000, { packed, inflight });
    const writes = Array.from({ length: 10 }, (_, i) => write(queue, i, i + 1, i % 2 === 0));
    f.poll();
    for (const index of [7, 2, 4]) engine.finish(index);
    complete(f);
    const came = new Map(queue.reap());
    assert.equal(came.size, 3);
    // As after kill -9: nobody drains or detaches anything, another plane finds ring and region.
    f.crash();
    const { usedCells } = queue.pair.driver;
    f.attach(0, packed ? PACKED_BASE_FRESH : usedCells[1]!);
    f.poll();
    engines[1]!.settle();
    complete(f);
    for (const [id, len] of queue.reap()) {
      assert.equal(came.has(id), false, `chain ${id} came back twice`);
      came.set(id, len);
    }
    assert.equal(came.size, 10);
    for (const { id, status } of writes) {
      assert.equal(came.has(id), true);
      assert.equal(queue.read(status, 1)[0], 0);
    }
    assert.equal(engines[1]!.carriedOut, 7);
    engine.settle();
    f.close();
    area.close();
  });
}

test('what the medium refuses is told once a second, and counted', () => {
  const { f, engine, queue } = late(1000);
  const writes = [1, 2, 3].map((sector) => write(queue, sector, sector));
  f.poll();
  engine.finish(0, -5);
  engine.finish(0, -28);
  engine.finish(0);
  complete(f);
  assert.equal(queue.reap().size, 3);
  const statuses = writes.map(({ status }) => queue.read(status, 1)[0]);
  assert.deepEqual(statuses, [blk.VIRTIO_BLK_S_IOERR, blk.VIRTIO_BLK_S_IOERR, 0]);
  const io = { op: 'write', at: 512, errno: 5, count: 1 };
  const error = { kind: 'io-error', device: 0, index: 0, part: 0, ...io };
  assert.deepEqual(f.events, [error]);
  const { errors, lastError, vrings } = f.status();
  assert.equal(errors, 2);
  assert.deepEqual(lastError, { op: 'write', at: 1024, errno: 28 });
  assert.equal(vrings[0]!.counters['failed'], 2);
  assert.equal(vrings[0]!.counters['writes'], 1);
  f.close();
});

test('one range that fails makes its request fail', () => {
  const { f, engine, queue } = late(1000);
  const status = queue.status();
  const ranges = new DataView(new ArrayBuffer(32));
  blk.BlkRange.write(ranges, 0, { sector: 0n, numSectors: 1, flags: 0 });
  blk.BlkRange.write(ranges, 16, { sector: 9n, numSectors: 1, flags: 0 });
  const header = queue.header(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0n);
  queue.add([header, queue.put(new Uint8Array(ranges.buffer))], [status]);
  f.poll();
  assert.equal(engine.held.length, 2);
  engine.finish(1, -5);
  complete(f);
  assert.equal(queue.reap().size, 0, 'the other one is under way');
  assert.equal(queue.read(status.gpa, 1)[0], UNTOUCHED);
  engine.finish(0);
  complete(f);
  assert.equal(queue.reap().size, 1);
  assert.equal(queue.read(status.gpa, 1)[0], blk.VIRTIO_BLK_S_IOERR);
  f.close();
});

test('a translation is forgotten when no request uses it any more', () => {
  const { f, engine, queue } = late(2, { iotlb: true });
  const { pair } = queue;
  const range = { iova: pair.map.start[0]!, sizeBytes: pair.sizeBytes, offset: pair.offset };
  f.plane.updateIotlb(0, { ...range, permissions: 3 });
  for (let i = 0; i < 5; i++) write(queue, i, i + 1);
  f.poll();
  assert.equal(engine.held.length, 2);
  f.plane.invalidateIotlb(0, range.iova, range.sizeBytes);
  assert.equal(engine.held.length, 0);
  assert.equal(queue.reap().size, 5, 'those that waited for room, too');
  // The ring that waited for room looks again: its driver was asked not to kick.
  f.plane.updateIotlb(0, { ...range, permissions: 3 });
  for (let i = 0; i < 4; i++) write(queue, i, i + 1);
  f.poll();
  assert.equal(f.status().vrings[0]!.busy, 1);
  write(queue, 5, 6);
  f.plane.invalidateIotlb(0, 0x1000, 0x1000);
  assert.equal(queue.reap().size, 4);
  assert.ok(f.plane.awake > 0);
  f.poll();
  engine.settle();
  complete(f);
  assert.equal(queue.reap().size, 1);
  f.close();
});

test('without a cache that is flushed, what changes the disk is durable when it completes', () => {
  const { f, engine, queue } = late(1000);
  const zeroes = new DataView(new ArrayBuffer(16));
  blk.BlkRange.write(zeroes, 0, { sector: 0n, numSectors: 1, flags: 0 });
  const submit = (): number[] => {
    write(queue, 1, 1);
    const range = queue.put(new Uint8Array(zeroes.buffer));
    queue.add([queue.header(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0n), range], [queue.status()]);
    const into = { gpa: queue.alloc(512), len: 512 };
    queue.add([queue.header(blk.VIRTIO_BLK_T_IN, 0n)], [into, queue.status()]);
    f.poll();
    const flags = engine.held.map((batch) => batch.flags[0]!);
    engine.settle();
    complete(f);
    queue.reap();
    return flags;
  };
  assert.deepEqual(submit(), [0, 0, 0]);
  f.device.writeConfig(blk.BlkConfig.fields.writeback.at, Uint8Array.of(0));
  assert.deepEqual(submit(), [IO_FUA, IO_FUA, 0]);
  f.device.writeConfig(blk.BlkConfig.fields.writeback.at, Uint8Array.of(1));
  assert.deepEqual(submit(), [0, 0, 0]);
  f.close();
  // A driver that never flushes: it did not negotiate FLUSH.
  const careless = late(1000, { features: featureSet(VIRTIO_F_VERSION_1) });
  write(careless.queue, 1, 1);
  careless.f.poll();
  assert.equal(careless.engine.held[0]!.flags[0], IO_FUA);
  careless.engine.settle();
  complete(careless.f);
  careless.f.close();
});

test('a ring sleeps until its driver kicks; a full engine and a broken ring sleep too', () => {
  const { f, engine, queue } = late(1, { kickFd: 77 });
  const kick = (): void => f.plane.ready(f.watched.get(77)!, performance.now());
  const sleeps = (): boolean => {
    for (let round = 0; round < 1000 && f.plane.awake > 0; round++) {
      f.plane.poll(performance.now());
    }
    return f.plane.awake === 0;
  };
  assert.ok(sleeps());
  write(queue, 1, 1);
  write(queue, 2, 2);
  assert.equal(needsKick(queue.pair.driver), true);
  kick();
  assert.ok(sleeps(), 'the engine has no room for the second request');
  assert.equal(engine.held.length, 1);
  engine.finish(0);
  complete(f);
  assert.equal(engine.held.length, 1);
  engine.finish(0);
  complete(f);
  assert.equal(queue.reap().size, 2);
  assert.ok(sleeps());
  f.plane.enableVring(0, 0, false);
  write(queue, 3, 3);
  kick();
  assert.ok(sleeps(), 'a disabled ring is not worked on');
  assert.equal(engine.held.length, 0);
  f.plane.enableVring(0, 0, true);
  assert.ok(sleeps());
  engine.settle();
  complete(f);
  assert.equal(queue.reap().size, 1);
  queue.add([queue.header(blk.VIRTIO_BLK_T_IN, 0n)], []);
  kick();
  assert.ok(sleeps());
  assert.equal(f.events.length, 1);
  kick();
  assert.ok(sleeps(), 'a broken ring keeps nobody awake');
  f.close();
});

for (const packed of [false, true]) {
  const ring = packed ? 'packed' : 'split';

  test(`${ring}: the successor of a device that died calls at once, the first one does not`, () => {
    const call = createEventfd('call');
    const { f, engine, queue } = late(1000, { packed, callFd: call.number });
    assert.equal(drainEventfd(call.number), 0, 'there is nothing to tell of a fresh ring');
    write(queue, 1, 1);
    f.poll();
    engine.settle();
    complete(f);
    drainEventfd(call.number); // as if the device had died before it called
    const base = f.detach(0);
    f.attach(0, base);
    assert.equal(drainEventfd(call.number), 1);
    f.close();
    call.close();
  });
}

test('how long requests took is told by op, from taken to used', async () => {
  const { f, engine, queue } = late(1000);
  write(queue, 0, 1);
  f.poll();
  await new Promise((resolve) => setTimeout(resolve, 40));
  write(queue, 1, 1); // of a flight of its own
  f.poll();
  engine.finish(0);
  engine.finish(0);
  complete(f);
  queue.add([queue.header(blk.VIRTIO_BLK_T_FLUSH, 0n)], [queue.status()], true);
  queue.add([queue.header(blk.VIRTIO_BLK_T_IN, 1n << 40n)], [queue.status()], true); // refused
  f.poll();
  engine.finish(0, -5); // failed
  complete(f);
  assert.equal(queue.reap().size, 4);
  const { read, write: writes, flush, discard } = f.status().latency;
  assert.equal(writes.count, 2);
  assert.ok(writes.sumUs >= 39_000 && writes.sumUs < 1_000_000, `${writes.sumUs} us together`);
  const slow = writes.buckets.slice(16).reduce((sum, some) => sum + some, 0);
  assert.equal(slow, 1, 'one took more than 2^15 us');
  assert.deepEqual([read.count, flush.count, discard.count], [0, 0, 0], 'refused and failed');
  f.close();
});

test('nothing is under way any more when a disk has become smaller', () => {
  const { f, engine, queue } = late(1);
  const writes = [0, 1].map((sector) => write(queue, sector, 7));
  f.poll();
  assert.equal(engine.held.length, 1, 'the other one waits for room');
  const resize = (sectors: number): unknown =>
    f.plane.command('resizeDisk', { device: 0, sizeBytes: sectors * 512 });
  resize(2 * SECTORS);
  assert.equal(engine.held.length, 1, 'a larger one may go on');
  resize(1);
  assert.deepEqual([engine.pending, engine.carriedOut], [0, 2]);
  assert.equal(f.status().sizeBytes, 512);
  f.poll();
  const came = queue.reap();
  for (const { id, status } of writes) {
    assert.ok(came.has(id));
    assert.equal(queue.read(status, 1)[0], 0);
  }
  f.close();
});

test('a flush that failed with the engine before goes on failing, and is told', () => {
  const { f, engine, queue } = late(64);
  const flush = (status: number): void => {
    queue.add([queue.header(blk.VIRTIO_BLK_T_FLUSH, 0n)], [queue.status()]);
    f.poll();
    engine.finish(0, status);
    complete(f);
  };
  flush(-5);
  assert.equal(f.status().failedFlush, -5);
  flush(0);
  assert.equal(f.status().failedFlush, 0, 'this engine says that all is well again');
  f.close();

  const image = createMemoryImage(SECTORS * 512);
  const next = new DiskFixture({ image, failedFlush: -28 });
  const request = (type: number, out: Uint8Array, inBytes = 0): number =>
    next.request(type, 0n, out, inBytes).status;
  const none = new Uint8Array(0);
  const sector = new Uint8Array(512);
  assert.equal(request(blk.VIRTIO_BLK_T_OUT, sector), blk.VIRTIO_BLK_S_OK, 'in the cache');
  assert.equal(request(blk.VIRTIO_BLK_T_FLUSH, none), blk.VIRTIO_BLK_S_IOERR);
  assert.equal(request(blk.VIRTIO_BLK_T_IN, none, 512), blk.VIRTIO_BLK_S_OK);
  Atomics.store(next.device.cache, 0, 0);
  assert.equal(request(blk.VIRTIO_BLK_T_OUT, sector), blk.VIRTIO_BLK_S_IOERR, 'write-through');
  assert.equal(request(blk.VIRTIO_BLK_T_FLUSH, none), blk.VIRTIO_BLK_S_IOERR);
  assert.equal(next.status().failedFlush, -28);
  next.close();
});
