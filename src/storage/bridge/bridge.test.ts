/** A stack on a storage thread, seen as an engine, held against a plain byte array. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { after, test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { arena, createEventfd, drainEventfd, signalEventfd } from '../../sys/index.ts';
import { openFileImage } from '../disk-image.ts';
import {
  type DiskImage,
  IO_DISCARD,
  IO_FLUSH,
  IO_FUA,
  IO_READ,
  IO_UNMAP,
  IO_WRITE,
  IO_ZEROES,
  IoBatch,
  IoDone,
} from '../index.ts';
import { openEngine } from '../open-engine.ts';
import type { Engine } from '../engine.ts';
import { LayeredImage } from './layered-image.ts';
import { REQUEST_RING_BYTES, RequestRing } from './request-ring.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-bridge-'));
after(() => rmSync(folder, { recursive: true }));
const memory = PrivateMemory.allocate(1 << 20);
after(() => memory.close());
const { bytes } = arena();
const DISK_BYTES = 1 << 20;

let files = 0;
function emptyFile(): string {
  const path = join(folder, `${files++}.img`);
  writeFileSync(path, '');
  truncateSync(path, DISK_BYTES);
  return path;
}

async function open(path: string, problems: string[] = [], readOnly = false): Promise<DiskImage> {
  const source = openFileImage({ path, readOnly });
  const onProblem = (problem: string): void => void problems.push(problem);
  return LayeredImage.open({ stack: [{ kind: 'file', path }], source, readOnly, onProblem });
}

type Segment = readonly [number, number];

/** Submits one request, waits for it, and returns its status. */
function run(engine: Engine, op: number, at: number, size: number, segments: Segment[], flags = 0) {
  const batch = new IoBatch();
  batch.add(op, at, size, segments, flags);
  assert.equal(engine.submit(batch, 0), 1);
  engine.settle();
  const done = new IoDone();
  assert.equal(engine.reap(done), 1);
  assert.deepEqual([done.op[0], done.at[0], engine.pending], [op, at, 0]);
  return done.status[0]!;
}

test('random requests leave what a byte array has', async () => {
  const image = await open(emptyFile());
  const engine = openEngine(image.spec);
  const model = new Uint8Array(DISK_BYTES);
  const next = (below: number): number => Math.floor(Math.random() * below);
  for (let round = 0; round < 500; round++) {
    const op = [IO_READ, IO_WRITE, IO_ZEROES, IO_FLUSH, IO_READ, IO_WRITE][next(6)]!;
    const size = op === IO_FLUSH ? 0 : 512 * (1 + next(24));
    const at = op === IO_FLUSH ? 0 : 512 * next((DISK_BYTES - size) / 512 + 1);
    const cut = 1 + next(Math.max(1, size - 1));
    const two: Segment[] = [
      [memory.offset, cut],
      [memory.offset + 65536, size - cut],
    ];
    const segments = op === IO_READ || op === IO_WRITE ? two : [];
    if (op === IO_WRITE)
      for (const [offset, len] of two) bytes.fill(next(256), offset, offset + len);
    const flags = [0, IO_FUA, IO_UNMAP][next(3)]!;
    assert.equal(run(engine, op, at, size, segments, flags), 0);
    let position = at;
    for (const [offset, len] of segments) {
      const part = bytes.slice(offset, offset + len);
      if (op === IO_WRITE) model.set(part, position);
      else assert.deepEqual(part, model.slice(position, position + len), `round ${round}`);
      position += len;
    }
    if (op === IO_ZEROES) model.fill(0, at, at + size);
  }
  engine.close();
  await image.close();
});

test('more requests than slots: the rest is offered again, each comes back once', async () => {
  const image = await open(emptyFile());
  const engine = openEngine(image.spec);
  const batch = new IoBatch(1000, 1000);
  for (let i = 0; i < 600; i++) batch.add(IO_WRITE, 512 * i, 512, [[memory.offset + 512 * i, 512]]);
  const came = new Set<number>();
  const done = new IoDone(100);
  for (let row = 0; came.size < 600;) {
    row += engine.submit(batch, row);
    engine.settle();
    for (let count = engine.reap(done); count > 0; count = engine.reap(done)) {
      for (let i = 0; i < count; i++) {
        assert.equal(done.status[i], 0);
        assert.equal(came.has(done.id[i]!), false);
        came.add(done.id[i]!);
      }
    }
  }
  engine.close();
  await image.close();
});

test('what cannot be done has its errno, and people hear of disk, place and reason', async () => {
  const path = emptyFile();
  const problems: string[] = [];
  const image = await open(path, problems, true);
  const engine = openEngine(image.spec);
  assert.equal(run(engine, IO_READ, DISK_BYTES, 512, [[memory.offset, 512]]), -22);
  assert.equal(run(engine, IO_WRITE, 0, 512, [[memory.offset, 512]]), -30);
  assert.equal(run(engine, IO_DISCARD, 0, 512, []), -30);
  truncateSync(path, 4096);
  assert.equal(run(engine, IO_READ, 4096, 512, [[memory.offset, 512]]), -5);
  assert.equal(run(engine, IO_READ, 0, 4096, [[memory.offset, 4096]]), 0);
  await sleep(50);
  assert.equal(problems.length, 1, 'one in a second');
  assert.match(problems[0]!, /file:.*\.img: read of 512 bytes at 1048576 failed with EINVAL/);
  assert.equal(await image.measure(), 4096);
  await assert.rejects(image.control('snapshot', {}), { code: 'ERR_VRING_DISK_CONTROL' });
  engine.close();
  await image.close();
});

test('another size', async () => {
  const image = await open(emptyFile());
  const engine = openEngine(image.spec);
  await image.resize(2 * DISK_BYTES);
  engine.resize(image.sizeBytes);
  assert.equal(image.sizeBytes, 2 * DISK_BYTES);
  assert.equal(run(engine, IO_READ, DISK_BYTES, 512, [[memory.offset, 512]]), 0);
  engine.close();
  await image.close();
});

test('a stack that cannot be opened says why, and leaves nothing open', async () => {
  const path = emptyFile();
  const source = openFileImage({ path });
  const stack = [{ kind: 'qcow2' }, { kind: 'file', path }] as const;
  const opening = LayeredImage.open({ stack, source, readOnly: false, onProblem: () => undefined });
  await assert.rejects(opening, /file:.*\.img/);
  await source.close();
});

test('a thread that has ended: what is out fails with EIO, and so does what comes', () => {
  const ring = new SharedArrayBuffer(REQUEST_RING_BYTES);
  const [submit, completion] = [createEventfd('submit'), createEventfd('completion')];
  const fds = { submitFd: submit.number, completionFd: completion.number };
  const spec = { kind: 'bridge', ring, sizeBytes: DISK_BYTES, readOnly: false, ...fds } as const;
  const engine = openEngine(spec);
  const batch = new IoBatch();
  for (let i = 0; i < 3; i++) batch.add(IO_READ, 512 * i, 512, [[memory.offset, 512]]);
  assert.equal(engine.submit(batch, 0), 3);
  const other = new RequestRing(ring);
  other.complete(other.take(), 0);
  other.die();
  engine.settle();
  const done = new IoDone();
  assert.equal(engine.reap(done), 3);
  assert.deepEqual([...done.id.subarray(0, 3)].toSorted(), [0, 1, 2]);
  assert.deepEqual([...done.status.subarray(0, 3)], [0, -5, -5]);
  assert.equal(run(engine, IO_WRITE, 0, 512, [[memory.offset, 512]]), -5);
  engine.close();
  submit.close();
  completion.close();
});

test('what completes while the engine looks away is signalled all the same', (t) => {
  const ring = new SharedArrayBuffer(REQUEST_RING_BYTES);
  const [submit, completion] = [createEventfd('submit'), createEventfd('completion')];
  const fds = { submitFd: submit.number, completionFd: completion.number };
  const engine = openEngine({ kind: 'bridge', ring, sizeBytes: 4096, readOnly: false, ...fds });
  const batch = new IoBatch();
  for (let i = 0; i < 2; i++) batch.add(IO_READ, 512 * i, 512, [[memory.offset, 512]]);
  engine.submit(batch, 0);
  const other = new RequestRing(ring);
  const complete = (): void => {
    other.complete(other.take(), 0);
    signalEventfd(completion.number);
  };
  complete();
  const { reap } = RequestRing.prototype;
  const patched = t.mock.method(RequestRing.prototype, 'reap', function (this: RequestRing) {
    const slot = reap.call(this);
    if (slot < 0) complete(); // just after it was looked for
    return slot;
  });
  const done = new IoDone();
  assert.equal(engine.reap(done), 1);
  patched.mock.restore();
  assert.equal(engine.pending, 1);
  assert.ok(drainEventfd(completion.number) > 0, 'somebody wakes up for the second one');
  assert.equal(engine.reap(done), 1);
  engine.close();
  submit.close();
  completion.close();
});
