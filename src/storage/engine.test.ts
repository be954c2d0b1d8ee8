/** Both engines, held against a plain byte array; and what the file engine makes of bad media. */
import assert from 'node:assert/strict';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { PrivateMemory } from '../memory/index.ts';
import { arena, createEventfd } from '../sys/index.ts';
import {
  createMemoryImage,
  createNullImage,
  type DiskImage,
  type Engine,
  IO_DISCARD,
  IO_ERASE,
  IO_FLUSH,
  IO_FUA,
  IO_READ,
  IO_UNMAP,
  IO_WRITE,
  IO_ZEROES,
  IoBatch,
  IoDone,
  openEngine,
  openFileImage,
} from './index.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-storage-'));
after(() => rmSync(folder, { recursive: true }));
/** tmpfs has no FALLOC_FL_ZERO_RANGE: zeros are written there. */
const shm = mkdtempSync('/dev/shm/vring-storage-');
after(() => rmSync(shm, { recursive: true }));
const memory = PrivateMemory.allocate(1 << 20);
after(() => memory.close());
const { bytes } = arena();

let files = 0;
function file(sizeBytes: number, inside = folder): string {
  const path = join(inside, `disk${files++}.img`);
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
}

const DISK_BYTES = 1 << 20;
const IMAGES: Readonly<Record<string, () => DiskImage>> = {
  memory: () => createMemoryImage(DISK_BYTES),
  'file, by system calls': () => openFileImage({ path: file(DISK_BYTES), uring: 'off' }),
  'file, as it comes': () => openFileImage({ path: file(DISK_BYTES) }),
  'file, all through io_uring': () => openFileImage({ path: file(DISK_BYTES), uring: 'on' }),
  'file, O_DIRECT': () => openFileImage({ path: file(DISK_BYTES), direct: 'on' }),
  'file on tmpfs': () => openFileImage({ path: file(DISK_BYTES, shm) }),
  'file on tmpfs, all through io_uring': () =>
    openFileImage({ path: file(DISK_BYTES, shm), uring: 'on', direct: 'off' }),
};

type Segment = readonly [number, number];

/** Submits one request and returns its status. */
function run(
  engine: Engine,
  op: number,
  at: number,
  size: number,
  segments: readonly Segment[] = [],
  flags = 0,
): number {
  const batch = new IoBatch();
  batch.add(op, at, size, segments, flags);
  assert.equal(engine.submit(batch, 0), 1);
  engine.settle();
  const done = new IoDone();
  assert.equal(engine.reap(done), 1);
  assert.equal(done.op[0], op);
  assert.equal(done.at[0], at);
  assert.equal(engine.pending, 0);
  return done.status[0]!;
}

function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** Splits `size` bytes of the scratch memory, from `at` on, into up to eight pieces with gaps. */
function pieces(next: (below: number) => number, at: number, size: number): Segment[] {
  const result: Segment[] = [];
  for (let left = size, offset = at; left > 0;) {
    const len = result.length === 7 ? left : Math.min(left, 1 + next(left));
    result.push([offset, len]);
    left -= len;
    offset += len + next(64);
  }
  return result;
}

for (const [kind, open] of Object.entries(IMAGES)) {
  test(`${kind}: random requests leave what a byte array has`, () => {
    const image = open();
    const engine = openEngine(image.spec);
    const model = new Uint8Array(DISK_BYTES);
    const seed = Date.now() >>> 0;
    const next = random(seed);
    for (let round = 0; round < 600; round++) {
      const op = [IO_READ, IO_WRITE, IO_WRITE, IO_ZEROES, IO_FLUSH, IO_READ, IO_ERASE][next(7)]!;
      const size = op === IO_FLUSH ? 0 : 512 * next(op >= IO_ZEROES ? 64 : 24);
      const at = op === IO_FLUSH ? 0 : 512 * next((DISK_BYTES - size) / 512 + 1);
      const text = `seed ${seed}, round ${round}, op ${op}, ${size} bytes at ${at}`;
      const moves = op === IO_READ || op === IO_WRITE;
      const segments = moves ? pieces(next, memory.offset, size) : [];
      if (op === IO_WRITE) {
        for (const [offset, len] of segments) bytes.fill(next(256), offset, offset + len);
      }
      const flags = [0, IO_FUA, IO_UNMAP, IO_FUA | IO_UNMAP][next(4)]!;
      assert.equal(run(engine, op, at, size, segments, flags), 0, text);
      let position = at;
      for (const [offset, len] of segments) {
        const part = bytes.slice(offset, offset + len);
        if (op === IO_WRITE) model.set(part, position);
        else assert.deepEqual(part, model.slice(position, position + len), text);
        position += len;
      }
      if (op >= IO_ZEROES) model.fill(0, at, at + size);
    }
    engine.close();
    image.close();
  });

  test(`${kind}: a batch is carried out in order and handed back once`, () => {
    const image = open();
    const engine = openEngine(image.spec);
    if (!engine.inOrder) {
      engine.close();
      return image.close(); // file/uring-engine.test.ts has batches of it
    }
    bytes.fill(1, memory.offset, memory.offset + 512);
    bytes.fill(2, memory.offset + 512, memory.offset + 1024);
    const batch = new IoBatch();
    batch.add(IO_WRITE, 4096, 512, [[memory.offset, 512]]);
    batch.add(IO_WRITE, 4096, 512, [[memory.offset + 512, 512]]);
    batch.add(IO_READ, 4096, 512, [[memory.offset + 1024, 512]]);
    batch.add(IO_ZEROES, 4096, 512);
    batch.add(IO_READ, 4096, 512, [[memory.offset + 1536, 512]]);
    batch.add(IO_FLUSH, 0, 0);
    assert.equal(engine.submit(batch, 1), 5, 'from the row on that was named');
    assert.equal(engine.pending, 5);
    const done = new IoDone(3);
    assert.equal(engine.reap(done), 3);
    assert.deepEqual([...done.id], [1, 2, 3]);
    assert.equal(engine.reap(done), 2);
    assert.deepEqual([...done.id.subarray(0, 2)], [4, 5]);
    assert.equal(engine.reap(done), 0);
    assert.equal(bytes[memory.offset + 1024], 2);
    assert.equal(bytes[memory.offset + 1536], 0);
    engine.close();
    image.close();
  });

  test(`${kind}: what is outside of the disk is EINVAL`, () => {
    const image = open();
    const engine = openEngine(image.spec);
    const segment: Segment[] = [[memory.offset, 1024]];
    assert.equal(run(engine, IO_READ, DISK_BYTES - 512, 1024, segment), -22);
    assert.equal(run(engine, IO_WRITE, DISK_BYTES, 1024, segment), -22);
    assert.equal(run(engine, IO_ZEROES, 2 ** 60, 512), -22);
    assert.equal(run(engine, IO_READ, DISK_BYTES - 1024, 1024, segment), 0);
    engine.resize(DISK_BYTES - 512);
    assert.equal(run(engine, IO_READ, DISK_BYTES - 1024, 1024, segment), -22);
    engine.close();
    image.close();
  });

  test(`${kind}: a discard is taken`, () => {
    const image = open();
    const engine = openEngine(image.spec);
    assert.equal(run(engine, IO_DISCARD, 512, 65536), 0);
    assert.equal(run(engine, IO_DISCARD, 0, DISK_BYTES), 0);
    engine.close();
    image.close();
  });
}

test('a read-only image refuses whatever changes it', () => {
  const path = file(8192);
  const image = openFileImage({ path, readOnly: true });
  const engine = openEngine(image.spec);
  const segment: Segment[] = [[memory.offset, 512]];
  for (const op of [IO_WRITE, IO_DISCARD, IO_ZEROES, IO_ERASE]) {
    assert.equal(run(engine, op, 0, 512, op === IO_WRITE ? segment : []), -30, `op ${op}`);
  }
  assert.equal(run(engine, IO_READ, 0, 512, segment), 0);
  assert.equal(run(engine, IO_FLUSH, 0, 0), 0);
  engine.close();
  image.close();
});

test('a file that was truncated while open: EIO for what is gone, the rest is read', () => {
  const path = file(8192);
  const image = openFileImage({ path });
  const engine = openEngine(image.spec);
  truncateSync(path, 4096 + 100);
  assert.equal(run(engine, IO_READ, 0, 4096, [[memory.offset, 4096]]), 0);
  assert.equal(run(engine, IO_READ, 4096, 512, [[memory.offset, 512]]), -5, 'ends within');
  assert.equal(run(engine, IO_READ, 7680, 512, [[memory.offset, 512]]), -5, 'begins behind');
  engine.close();
  image.close();
});

test('a failed flush stays failed, though the medium has recovered', () => {
  const zeros = PrivateMemory.allocate(65536);
  const bad = createEventfd('knows no fdatasync').take();
  const spec = { kind: 'file', fd: bad, sizeBytes: 4096, readOnly: false } as const;
  const engine = openEngine({ ...spec, zerosAt: zeros.offset });
  assert.equal(run(engine, IO_FLUSH, 0, 0), -22);
  closeSync(bad);
  const good = openSync(file(4096), 'r+');
  assert.equal(good, bad, 'the lowest free number');
  assert.equal(run(engine, IO_WRITE, 0, 512, [[memory.offset, 512]]), 0);
  assert.equal(run(engine, IO_FLUSH, 0, 0), -22, 'sticky');
  assert.equal(run(engine, IO_WRITE, 0, 512, [[memory.offset, 512]], IO_FUA), -22);
  assert.equal(run(engine, IO_ZEROES, 0, 512, [], IO_FUA), -22);
  const anew = openEngine({ ...spec, zerosAt: zeros.offset });
  assert.equal(run(anew, IO_FLUSH, 0, 0), 0, 'reopened');
  closeSync(good);
  zeros.close();
});

test('null touches no data, and answers like any other disk', async () => {
  const image = createNullImage(8192);
  const engine = openEngine(image.spec);
  bytes.fill(7, memory.offset, memory.offset + 512);
  const segment: Segment[] = [[memory.offset, 512]];
  assert.equal(run(engine, IO_READ, 0, 512, segment), 0);
  assert.equal(bytes[memory.offset], 7, 'a read leaves the buffer as it was');
  for (const op of [IO_WRITE, IO_FLUSH, IO_DISCARD, IO_ZEROES]) {
    assert.equal(run(engine, op, 0, 512, op === IO_WRITE ? segment : []), 0, `op ${op}`);
  }
  assert.equal(run(engine, IO_READ, 8192, 512, segment), -22, 'outside');
  engine.close();
  const readOnly = openEngine(createNullImage(8192, true).spec);
  assert.equal(run(readOnly, IO_WRITE, 0, 512, segment), -30);
  readOnly.close();
  await image.resize(16384);
  assert.equal(await image.measure(), 16384);
  assert.throws(() => createNullImage(1000), /1000 bytes is no size of a disk/);
  await image.close();
});

test('what is no disk is refused with what to do', () => {
  const path = file(1000);
  const text = /has 1000 bytes; a disk has a whole number of 512-byte sectors.*truncate -s/;
  assert.throws(() => openFileImage({ path }), text);
  assert.throws(() => openFileImage({ path: file(0) }), { code: 'ERR_VRING_DISK_FILE' });
  assert.throws(() => openFileImage({ path: '/dev/null' }), /neither a regular file nor a block/);
  const none = join(folder, 'none');
  assert.throws(() => openFileImage({ path: none }), /ENOENT: .*none: there is no .*truncate -s/);
  assert.throws(() => openFileImage({ path: folder }), {
    code: 'ERR_VRING_SYS',
    errnoName: 'EISDIR',
    message: /it is a folder; a disk is a file or a block device/,
  });
  assert.throws(() => createMemoryImage(1000), /1000 bytes is no size of a disk, expected a mult/);
});

test('a file grows and shrinks, memory does not', async () => {
  const path = file(4096);
  const image = openFileImage({ path });
  await image.resize(8192);
  assert.equal(image.sizeBytes, 8192);
  const again = openFileImage({ path, lock: false });
  assert.equal(again.sizeBytes, 8192);
  again.close();
  const ram = createMemoryImage(4096);
  await assert.rejects(ram.resize(8192), { code: 'ERR_VRING_DISK_RESIZE' });
  ram.close();
  image.close();
  image.close();
});

test('what is erased was overwritten where it was: no holes are made', async () => {
  const path = file(1 << 20);
  writeFileSync(path, new Uint8Array(1 << 20).fill(7));
  const image = openFileImage({ path });
  const engine = openEngine(image.spec);
  const before = statSync(path).blocks;
  assert.equal(run(engine, IO_ERASE, 4096, 1 << 19), 0);
  assert.equal(statSync(path).blocks, before, 'the room is still taken');
  const bytes = readFileSync(path);
  assert.equal(bytes.indexOf(0), 4096);
  assert.ok(bytes.subarray(4096, 4096 + (1 << 19)).every((byte) => byte === 0));
  assert.equal(bytes[4096 + (1 << 19)], 7);
  engine.close();
  await image.close();
});
