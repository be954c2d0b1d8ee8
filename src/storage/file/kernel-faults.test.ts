/** Media that interrupt, and kernels without io_uring: what the addon says is replaced. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { replaceNative } from '../../sys/native-faults.ts';
import type { Engine } from '../engine.ts';

const { EINTR, ENOMEM, ENOSYS, EPERM } = constants.errno;

/** The next calls of anything that moves bytes end with EINTR, or move a sector only. */
const faults = { interruptions: 0, shortened: 0, setup: 0, completions: 0 };

function interrupted<A extends unknown[]>(real: (...args: A) => number): (...args: A) => number {
  return (...args) => {
    if (faults.interruptions <= 0) return real(...args);
    faults.interruptions--;
    return -EINTR;
  };
}

for (const name of ['preadvArena', 'pwritevArena'] as const) {
  replaceNative(name, (real) => {
    const call = interrupted(real);
    return (fd, offsets, lengths, first, count, at, flags) => {
      if (faults.shortened <= 0 || lengths[first]! <= 512) {
        return call(fd, offsets, lengths, first, count, at, flags);
      }
      faults.shortened--;
      faults.interruptions++;
      return real(fd, offsets, Int32Array.of(...lengths.map(() => 512)), first, 1, at, flags);
    };
  });
}
replaceNative('fallocate', (real) => interrupted(real));
replaceNative('fdatasync', (real) => interrupted(real));

// struct io_uring_params: cq_off begins at 80 (include/uapi/linux/io_uring.h).
let completions: { tail: number; mask: number; entries: number } | null = null;
let ring: Int32Array | null = null;
let seen = 0;
replaceNative('uringSetup', (real) => (entries, params) => {
  if (faults.setup !== 0) return -faults.setup;
  const fd = real(entries, params);
  const words = new Int32Array(params.buffer, params.byteOffset, params.byteLength >> 2);
  completions = { tail: words[21]! >> 2, mask: words[1]! - 1, entries: words[25]! >> 2 };
  ring = null;
  seen = 0;
  return fd;
});
replaceNative('uringMap', (real) => (fd, bytes, at) => {
  const memory = real(fd, bytes, at);
  if (at === 0 && typeof memory !== 'number') ring = new Int32Array(memory);
  return memory;
});
replaceNative('uringEnter', (real) => (...args) => {
  const result = interrupted(real)(...args);
  if (ring === null || completions === null) return result;
  for (const { tail, mask, entries } = completions; seen !== ring[tail]; seen++) {
    if (faults.completions <= 0) continue;
    faults.completions--;
    ring[entries + 4 * (seen & mask) + 2] = -EINTR; // res of struct io_uring_cqe
  }
  return result;
});

// With what was replaced.
const { PrivateMemory } = await import('../../memory/index.ts');
const { arena } = await import('../../sys/index.ts');
const storage = await import('../index.ts');
const { IO_DISCARD, IO_ERASE, IO_FLUSH, IO_FUA, IO_READ, IO_WRITE, IO_ZEROES } = storage;
const { IoBatch, IoDone, openEngine, openFileImage } = storage;

const folder = mkdtempSync(join(tmpdir(), 'vring-kernel-'));
after(() => rmSync(folder, { recursive: true }));
const memory = PrivateMemory.allocate(1 << 20);
after(() => memory.close());
const DISK_BYTES = 1 << 20;

let files = 0;
function file(): string {
  const path = join(folder, `${files++}.img`);
  writeFileSync(path, '');
  truncateSync(path, DISK_BYTES);
  return path;
}

function run(engine: Engine, op: number, at: number, size: number, flags = 0): number {
  const batch = new IoBatch();
  const moves = op === IO_READ || op === IO_WRITE;
  batch.add(op, at, size, moves ? [[memory.offset, size]] : [], flags);
  assert.equal(engine.submit(batch, 0), 1);
  engine.settle();
  const done = new IoDone();
  assert.equal(engine.reap(done), 1);
  return done.status[0]!;
}

for (const uring of ['off', 'on'] as const) {
  const by = uring === 'on' ? 'io_uring' : 'system calls';

  test(`${by}: what is interrupted is begun again`, async () => {
    const path = file();
    const image = openFileImage({ path, uring });
    const engine = openEngine(image.spec);
    const bytes = arena().bytes.subarray(memory.offset, memory.offset + 8192);
    const disturb = (): void => {
      faults.interruptions = 3;
      faults.shortened = uring === 'on' ? 0 : 2;
      faults.completions = uring === 'on' ? 3 : 0;
    };
    const calm = (): void => {
      assert.ok(faults.interruptions === 0 && faults.completions === 0, JSON.stringify(faults));
    };
    for (const flags of [0, IO_FUA]) {
      bytes.fill(7 + flags);
      disturb();
      assert.equal(run(engine, IO_WRITE, 4096, 8192, flags), 0);
      calm();
      bytes.fill(0);
      disturb();
      assert.equal(run(engine, IO_READ, 4096, 8192), 0);
      calm();
      assert.ok(bytes.every((byte) => byte === 7 + flags));
    }
    for (const op of [IO_FLUSH, IO_DISCARD, IO_ZEROES, IO_ERASE]) {
      disturb();
      assert.equal(run(engine, op, 4096, op === IO_FLUSH ? 0 : 4096), 0, `op ${op}`);
      faults.shortened = 0;
      calm();
    }
    assert.equal(readFileSync(path)[4096], 0);
    assert.equal(readFileSync(path)[8192], 8);
    engine.close();
    await image.close();
  });

  test(`${by}: what is interrupted without end fails, and the flush for good`, async () => {
    const image = openFileImage({ path: file(), uring });
    const engine = openEngine(image.spec);
    const forever = (): void => {
      faults.completions = uring === 'on' ? 1e9 : 0;
      faults.interruptions = uring === 'on' ? 0 : 1e9;
    };
    const calm = (): void => void (faults.completions = faults.interruptions = 0);
    forever();
    assert.ok([-EINTR, -5].includes(run(engine, IO_READ, 0, 4096)));
    calm();
    assert.equal(run(engine, IO_READ, 0, 4096), 0);
    forever();
    const status = run(engine, IO_FLUSH, 0, 0);
    assert.ok([-EINTR, -5].includes(status));
    calm();
    assert.equal(run(engine, IO_FLUSH, 0, 0), status);
    engine.close();
    await image.close();
  });
}

for (const [name, errno] of Object.entries({ ENOSYS, EPERM })) {
  test(`io_uring_setup fails with ${name}: system calls, unless a ring was asked for`, async () => {
    const path = file();
    faults.setup = errno;
    try {
      const image = openFileImage({ path });
      assert.match(image.means!, new RegExp(`^system calls: .*io_uring_setup.*${name}`));
      const engine = openEngine(image.spec);
      assert.equal(engine.completionFd, -1);
      assert.equal(run(engine, IO_WRITE, 0, 4096, IO_FUA), 0);
      engine.close();
      await image.close();
      for (const wanted of [{ uring: 'on' }, { direct: 'on' }] as const) {
        const text = new RegExp(`cannot be served through io_uring: .*${name}.*take uring: 'auto'`);
        const refused = { code: 'ERR_VRING_DISK_URING', message: text };
        assert.throws(() => openFileImage({ path, ...wanted }), refused);
      }
    } finally {
      faults.setup = 0;
    }
  });
}

test('a ring that the worker cannot have: system calls, unless a ring was asked for', async () => {
  const path = file();
  for (const uring of ['auto', 'on'] as const) {
    const image = openFileImage({ path, uring });
    faults.setup = ENOMEM;
    try {
      if (uring === 'on') {
        assert.throws(() => openEngine(image.spec), { errnoName: 'ENOMEM' });
      } else {
        const engine = openEngine(image.spec);
        assert.deepEqual([engine.completionFd, run(engine, IO_READ, 0, 512)], [-1, 0]);
        engine.close();
      }
    } finally {
      faults.setup = 0;
      await image.close();
    }
  }
});
