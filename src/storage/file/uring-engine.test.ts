/**
 * The engine over io_uring: many requests at once, silence and signals of its completions, and bad
 * media. What it has in common with the others is in ../engine.test.ts.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { requireRoot } from '../../../test/peers/require-peer.ts';
import { PrivateMemory, reservedRanges, reserveRange } from '../../memory/index.ts';
import { arena, createEventfd, Epoll } from '../../sys/index.ts';
import { FILE_ENGINE_ZERO_BYTES, type FileEngineSpec } from '../file-engine.ts';
import {
  type DiskImage,
  type Engine,
  IO_DISCARD,
  IO_FLUSH,
  IO_FUA,
  IO_READ,
  IO_WRITE,
  IO_ZEROES,
  IoBatch,
  IoDone,
  openEngine,
  openFileImage,
} from '../index.ts';
import { URING_PLACE_BYTES, URING_SLOTS } from './uring.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-uring-'));
after(() => rmSync(folder, { recursive: true }));
const memory = PrivateMemory.allocate(4 << 20);
after(() => memory.close());
const zeros = PrivateMemory.allocate(FILE_ENGINE_ZERO_BYTES);
after(() => zeros.close());
const { bytes } = arena();

let files = 0;
function file(sizeBytes: number): string {
  const path = join(folder, `disk${files++}.img`);
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
}

type Way = { readonly name: string; readonly direct: 'on' | 'off'; readonly uring: 'on' | 'auto' };
const WAYS: readonly Way[] = [
  { name: 'page cache', direct: 'off', uring: 'on' },
  { name: 'page cache, writes by calls', direct: 'off', uring: 'auto' },
  { name: 'O_DIRECT', direct: 'on', uring: 'on' },
];

/** Waits for everything that is under way; statuses by id. */
function finish(engine: Engine): Map<number, number> {
  const done = new IoDone(64);
  const statuses = new Map<number, number>();
  engine.settle();
  while (engine.reap(done) > 0) {
    for (let i = 0; i < done.count; i++) {
      assert.equal(statuses.has(done.id[i]!), false, 'each once');
      statuses.set(done.id[i]!, done.status[i]!);
    }
  }
  assert.equal(engine.pending, 0);
  return statuses;
}

type Segment = readonly [number, number];

function run(engine: Engine, op: number, at: number, size: number, flags = 0): number {
  const batch = new IoBatch();
  const segments: Segment[] = op <= IO_WRITE ? [[memory.offset, size]] : [];
  batch.add(op, at, size, segments, flags);
  assert.equal(engine.submit(batch, 0), 1);
  return finish(engine).get(0)!;
}

for (const { name, direct, uring } of WAYS) {
  test(`${name}: hundreds of requests at once, aligned or not, and each sector is right`, () => {
    const path = file(4 << 20);
    const image = openFileImage({ path, direct, uring });
    const engine = openEngine(image.spec);
    assert.equal(engine.inOrder, false);
    const model = new Uint8Array(4 << 20);
    for (let round = 0; round < 12; round++) {
      const batch = new IoBatch();
      const isWrite = round % 3 !== 2;
      for (let i = 0; i < 200; i++) {
        // Every other one is not aligned to a page, on the disk or in memory.
        const at = i * 20_480 + (i % 2) * 512;
        const size = i % 4 === 3 ? 8192 : 4096;
        const from = memory.offset + i * 12_288 + (i % 3 === 1 ? 64 : 0);
        const half = i % 5 === 0 ? 1024 : size / 2;
        if (isWrite) {
          bytes.fill((round * 31 + i) & 0xff, from, from + size);
          model.fill((round * 31 + i) & 0xff, at, at + size);
        } else bytes.fill(0xee, from, from + size);
        const segments: Segment[] = [
          [from, half],
          [from + half, size - half],
        ];
        const fua = isWrite && i % 7 === 0 ? IO_FUA : 0;
        batch.add(isWrite ? IO_WRITE : IO_READ, at, size, segments, fua);
      }
      const statuses = new Map<number, number>();
      for (let row = 0; row < batch.count;) {
        row += engine.submit(batch, row);
        for (const [id, status] of finish(engine)) statuses.set(id, status);
      }
      assert.equal(statuses.size, 200);
      for (const [id, status] of statuses) assert.equal(status, 0, `round ${round}, ${id}`);
      if (isWrite) continue;
      for (let i = 0; i < 200; i++) {
        const at = i * 20_480 + (i % 2) * 512;
        const size = i % 4 === 3 ? 8192 : 4096;
        const from = memory.offset + i * 12_288 + (i % 3 === 1 ? 64 : 0);
        assert.deepEqual(bytes.slice(from, from + size), model.slice(at, at + size), `${i}`);
      }
    }
    assert.equal(run(engine, IO_FLUSH, 0, 0), 0);
    assert.deepEqual(new Uint8Array(readFileSync(path)), model);
    engine.close();
    image.close();
  });

  test(`${name}: it takes what it has room for, and the rest after a reap`, () => {
    const image = openFileImage({ path: file(1 << 20), direct, uring });
    const engine = openEngine(image.spec);
    const batch = new IoBatch();
    for (let i = 0; i < 300; i++) batch.add(IO_READ, i * 512, 512, [[memory.offset, 512]]);
    assert.equal(engine.submit(batch, 0), URING_SLOTS);
    assert.equal(engine.submit(batch, URING_SLOTS), 0);
    assert.equal(finish(engine).size, URING_SLOTS);
    assert.equal(engine.submit(batch, URING_SLOTS), 300 - URING_SLOTS);
    assert.equal(finish(engine).size, 300 - URING_SLOTS);
    engine.close();
    image.close();
  });

  test(`${name}: a direct write and the page cache never work at the same time`, () => {
    const image = openFileImage({ path: file(1 << 20), direct, uring });
    const engine = openEngine(image.spec);
    const batch = new IoBatch();
    const aligned: Segment[] = [[memory.offset, 4096]];
    const odd: Segment[] = [[memory.offset + 8192 + 1, 4096]];
    const add = (op: number, segments: Segment[]): void => {
      batch.add(op, 0, 4096, segments);
    };
    add(IO_READ, odd);
    add(IO_READ, aligned);
    add(IO_WRITE, aligned);
    add(IO_WRITE, aligned);
    add(IO_READ, aligned);
    batch.add(IO_FLUSH, 0, 0);
    add(IO_READ, odd);
    add(IO_WRITE, odd);
    add(IO_WRITE, aligned);
    const taken: number[] = [];
    for (let row = 0; row < batch.count; row += taken.at(-1)!) {
      taken.push(engine.submit(batch, row));
      for (const [, status] of finish(engine)) assert.equal(status, 0);
    }
    assert.deepEqual(taken, direct === 'off' ? [9] : [2, 4, 2, 1]);
    engine.close();
    image.close();
  });

  test(`${name}: a request of more segments than a slot has vectors`, () => {
    const path = file(1 << 20);
    const image = openFileImage({ path, direct, uring });
    const engine = openEngine(image.spec);
    const segments = Array.from({ length: 600 }, (_, i): Segment => [memory.offset + i * 64, 512]);
    for (let i = 0; i < 600; i++) bytes[memory.offset + i * 64] = i;
    const batch = new IoBatch();
    batch.add(IO_WRITE, 512, 600 * 512, segments, IO_FUA);
    engine.submit(batch, 0);
    assert.equal(batch.flags[0], IO_FUA, 'the batch is as it was');
    assert.equal(finish(engine).get(0), 0);
    const written = readFileSync(path);
    for (let i = 0; i < 600; i++) assert.equal(written[512 + i * 512], i & 0xff);
    engine.close();
    image.close();
  });

  test(`${name}: a file that was truncated gives EIO where it ends, and grows again`, async () => {
    const path = file(64 << 10);
    const image = openFileImage({ path, direct, uring });
    const engine = openEngine(image.spec);
    truncateSync(path, 8192 + 512);
    assert.equal(run(engine, IO_READ, 4096, 4096), 0);
    assert.equal(run(engine, IO_READ, 8192, 4096), -5, 'ends within');
    assert.equal(run(engine, IO_READ, 32_768, 4096), -5, 'begins behind');
    assert.equal(run(engine, IO_READ, 65_536, 4096), -22, 'outside of the disk');
    truncateSync(path, 128 << 10);
    assert.equal(await image.measure(), 128 << 10);
    await image.resize(128 << 10);
    engine.resize(128 << 10);
    bytes.fill(9, memory.offset, memory.offset + 4096);
    assert.equal(run(engine, IO_WRITE, 65_536, 4096), 0);
    assert.equal(run(engine, IO_READ, 8192, 4096), 0);
    assert.equal(readFileSync(path)[65_536 + 4095], 9);
    engine.close();
    image.close();
  });
}

function opened(path: string): { image: DiskImage; engine: Engine } {
  const image = openFileImage({ path, uring: 'on', direct: 'off' });
  return { image, engine: openEngine(image.spec) };
}

/** A wait may end early: the kernel makes a thread of the ring by interrupting ours. */
function waitReady(epoll: Epoll, tokens: Int32Array): number {
  const deadline = performance.now() + 5000;
  let ready = 0;
  while (ready === 0 && performance.now() < deadline) ready = epoll.wait(tokens, 100);
  return ready;
}

test('completions signal; once armed, they do so only when asked to', () => {
  const { image, engine } = opened(file(1 << 20));
  const epoll = new Epoll();
  epoll.add(engine.completionFd, 7);
  const tokens = new Int32Array(4);
  const done = new IoDone();
  const submit = (): void => {
    const batch = new IoBatch();
    batch.add(IO_FLUSH, 0, 0); // never within submit
    engine.submit(batch, 0);
  };
  const reapOne = (): void => {
    while (engine.reap(done) === 0);
    assert.equal(done.status[0], 0);
  };
  for (let round = 0; round < 3; round++) {
    submit();
    assert.equal(waitReady(epoll, tokens), 1, 'who does not arm is always told');
    reapOne();
    assert.equal(epoll.wait(tokens, 0), 0, 'and the signal was taken');
  }
  for (let round = 0; round < 20; round++) {
    submit();
    if (engine.arm!()) {
      reapOne();
      continue;
    }
    assert.equal(waitReady(epoll, tokens), 1, 'armed');
    reapOne();
    assert.equal(epoll.wait(tokens, 0), 0);
    submit();
    reapOne();
    assert.equal(epoll.wait(tokens, 0), 0, 'silent while it is looked at');
  }
  epoll.close();
  engine.close();
  image.close();
});

/** An engine over a descriptor that no image would be opened from. */
function over(fd: number, uring = true, witnessFd = -1): { engine: Engine; close(): void } {
  const place = reserveRange(URING_PLACE_BYTES);
  const ring = { bufferedReads: true, bufferedWrites: true, direct: null, required: true };
  const spec: FileEngineSpec = {
    kind: 'file',
    fd,
    sizeBytes: 1 << 20,
    readOnly: false,
    zerosAt: zeros.offset,
    witnessFd,
    ...(uring && { uring: { at: place.offset, ...ring } }),
  };
  const engine = openEngine(spec);
  const close = (): void => {
    engine.close();
    place.close();
  };
  return { engine, close };
}

for (const uring of [true, false]) {
  const by = uring ? 'io_uring' : 'system calls';

  test(`${by}: a full medium is ENOSPC, whatever is written`, () => {
    const fd = openSync('/dev/full', 'r+');
    const { engine, close } = over(fd, uring);
    assert.equal(run(engine, IO_WRITE, 4096, 4096), -28);
    assert.equal(run(engine, IO_READ, 4096, 4096), 0, 'and it can still be read');
    close();
    closeSync(fd);
  });

  test(`${by}: a durable write without room: it alone, or older ones as well`, (t) => {
    if (!requireRoot(t)) return;
    const at = mkdtempSync(join(folder, 'small-'));
    const mount = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'none', at]);
    assert.equal(mount.status, 0, String(mount.stderr));
    const path = join(at, 'disk.img');
    writeFileSync(path, '');
    truncateSync(path, 1 << 20);
    const fd = openSync(path, 'r+');
    const unwell = createEventfd('knows no fdatasync');
    try {
      for (const [witness, later] of [
        [fd, 0],
        [unwell.number, -28],
        [-1, -28], // nobody to ask
      ] as const) {
        const { engine, close } = over(fd, uring, witness);
        const statuses = Array.from({ length: 32 }, (_, i) => {
          return run(engine, IO_WRITE, 4096 * i, 4096, IO_FUA);
        });
        assert.equal(statuses.at(-1), -28);
        assert.equal(engine.failedFlush, later);
        assert.equal(run(engine, IO_DISCARD, 0, 1 << 20), 0);
        assert.equal(run(engine, IO_WRITE, 0, 4096), 0, 'there is room again');
        assert.equal(run(engine, IO_WRITE, 0, 4096, IO_FUA), later);
        assert.equal(run(engine, IO_FLUSH, 0, 0), later);
        close();
      }
    } finally {
      closeSync(fd);
      unwell.close();
      spawnSync('umount', [at]);
    }
  });

  test(`${by}: a medium that fails is EIO`, () => {
    // Nothing is mapped at the start of our own address space.
    const fd = openSync('/proc/self/mem', 'r+');
    const { engine, close } = over(fd, uring);
    assert.equal(run(engine, IO_READ, 4096, 4096), -5);
    assert.equal(run(engine, IO_WRITE, 4096, 4096), -5);
    close();
    closeSync(fd);
  });

  test(`${by}: a file system that fills up, and has room again`, (t) => {
    if (!requireRoot(t)) return;
    const at = mkdtempSync(join(folder, 'small-'));
    const mount = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'none', at]);
    assert.equal(mount.status, 0, String(mount.stderr));
    try {
      const path = join(at, 'disk.img');
      writeFileSync(path, '');
      truncateSync(path, 1 << 20);
      const image = openFileImage({ path, uring: uring ? 'on' : 'off', direct: 'off' });
      const engine = openEngine(image.spec);
      const batch = new IoBatch();
      for (let i = 0; i < 128; i++) batch.add(IO_WRITE, i * 8192, 4096, [[memory.offset, 4096]]);
      for (let row = 0; row < batch.count;) row += engine.submit(batch, row) || assert.fail();
      const statuses = [...finish(engine).values()];
      const full = statuses.filter((status) => status === -28).length;
      assert.ok(full > 32 && full < 128, `${full} of 128 found no room`);
      assert.equal(full + statuses.filter((status) => status === 0).length, 128);
      assert.equal(run(engine, IO_DISCARD, 0, 1 << 20), 0);
      assert.equal(run(engine, IO_WRITE, 0, 4096), 0, 'there is room again');
      engine.close();
      image.close();
    } finally {
      spawnSync('umount', [at]);
    }
  });

  test(`${by}: a limit on the size of files is EFBIG`, () => {
    const path = file(64 << 10);
    const child = spawnSync(
      'sh',
      ['-c', 'trap "" XFSZ; ulimit -f 16; exec "$0" "$@"', process.execPath, SCRIPT, path, by],
      { encoding: 'utf8', timeout: 60_000 },
    );
    assert.equal(child.stdout, '0 -27\n', child.stderr);
  });
}

test('a durable write that a medium fails fails for good', () => {
  const fd = openSync('/proc/self/mem', 'r+');
  const { engine, close } = over(fd);
  assert.equal(run(engine, IO_WRITE, 4096, 4096, IO_FUA), -5);
  assert.deepEqual([engine.failedFlush, run(engine, IO_FLUSH, 0, 0)], [-5, -5]);
  close();
  closeSync(fd);
});

const SCRIPT = new URL('./size-limit-fixture.ts', import.meta.url).pathname;

test('a flush that failed stays failed, also for who flushes at the same time', () => {
  const bad = createEventfd('knows no fdatasync').take();
  const { engine, close } = over(bad);
  const batch = new IoBatch();
  for (let i = 0; i < 8; i++) batch.add(IO_FLUSH, 0, 0);
  engine.submit(batch, 0);
  assert.deepEqual(
    [...finish(engine).values()],
    Array.from({ length: 8 }, () => -22),
  );
  closeSync(bad);
  const good = openSync(file(1 << 20), 'r+');
  assert.equal(good, bad, 'the lowest free number');
  assert.equal(run(engine, IO_WRITE, 0, 512), 0);
  assert.equal(run(engine, IO_FLUSH, 0, 0), -22, 'sticky');
  assert.equal(run(engine, IO_WRITE, 0, 512, IO_FUA), -22);
  assert.equal(run(engine, IO_ZEROES, 0, 512, IO_FUA), -22);
  close();
  closeSync(good);
});

test('a ring that is required and cannot be is said so; else there are system calls', () => {
  const path = file(8192);
  assert.throws(() => openFileImage({ path, uring: 'off', direct: 'on' }), {
    code: 'ERR_VRING_DISK_URING',
  });
  const byCalls = openFileImage({ path, uring: 'off' });
  assert.equal(byCalls.means, 'system calls');
  assert.equal(openEngine(byCalls.spec).completionFd, -1);
  byCalls.close();
  const { image, engine } = opened(path);
  assert.match(image.means!, /^io_uring/);
  // Its place is taken: this thread cannot have another ring for it.
  assert.throws(() => openEngine(image.spec), { code: 'ERR_VRING_SYS' });
  const { uring, ...rest } = image.spec as FileEngineSpec;
  const fallback = openEngine({ ...rest, uring: { ...uring!, required: false } });
  assert.equal(fallback.completionFd, -1);
  fallback.close();
  engine.close();
  image.close();
});

test('nothing is left of an engine', () => {
  const path = file(8192);
  const count = (): number => spawnSync('ls', [`/proc/${process.pid}/fd`]).stdout.length;
  const before = [reservedRanges(), count()];
  for (let i = 0; i < 5; i++) {
    const { image, engine } = opened(path);
    assert.equal(run(engine, IO_WRITE, 0, 512), 0);
    engine.close();
    engine.close();
    image.close();
  }
  assert.equal(reservedRanges(), before[0]);
  assert.ok(Math.abs(count() - before[1]!) <= 4, 'descriptors, in bytes of their list');
});
