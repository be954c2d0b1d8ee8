import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { copyFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { requirePeer } from '../../../test/peers/require-peer.ts';
import { VringError } from '../../base/errors.ts';
import { LayerError } from '../layer/layer.ts';
import { PassLayer } from '../layer/pass-layer.ts';
import { createQcow2 } from './create.ts';
import { Qcow2Layer } from './qcow2-layer.ts';
import {
  carryOut,
  fileLayer,
  openImage,
  qemuCheck,
  qemuCompare,
  qemuImg,
  randomOf,
  randomRequest,
  readAll,
  temporaryFolder,
} from './testing.ts';

const SIZE = 6 * 2 ** 20 + 512 * 3;

/** A disk of several kinds of places, for QEMU to make images of. */
function modelDisk(sizeBytes = SIZE): Buffer {
  const random = randomOf(7);
  const disk = Buffer.alloc(sizeBytes);
  for (let i = 0; i < 60; i++) {
    const at = random(sizeBytes / 512) * 512;
    const end = Math.min(sizeBytes, at + (1 + random(200)) * 512);
    if (random(3) === 0) for (let n = at; n < end; n++) disk[n] = random(256);
    else disk.fill(random(256), at, end);
  }
  return disk;
}

/** Options of qemu-img create or convert, and whether we write to such an image. */
const FORMATS: readonly (readonly [string, readonly string[], boolean])[] = [
  ['clusters of 512', ['-o', 'cluster_size=512'], true],
  ['clusters of 4K', ['-o', 'cluster_size=4k'], true],
  ['clusters of 64K', ['-o', 'cluster_size=64k'], true],
  ['clusters of 2M', ['-o', 'cluster_size=2M'], true],
  ['version 2', ['-o', 'compat=0.10'], false],
  ['version 2, compressed', ['-c', '-o', 'compat=0.10'], false],
  ['lazy refcounts', ['-o', 'lazy_refcounts=on'], true],
  ['compressed with zlib', ['-c', '-o', 'cluster_size=16k'], true],
  ['compressed with zstd', ['-c', '-o', 'compression_type=zstd'], true],
  ['extended L2 entries', ['-o', 'extended_l2=on,cluster_size=32k'], true],
  ['refcounts of 1 bit', ['-o', 'refcount_bits=1,cluster_size=4k'], true],
  ['refcounts of 4 bits', ['-o', 'refcount_bits=4,cluster_size=4k'], true],
  ['refcounts of 64 bits', ['-o', 'refcount_bits=64,cluster_size=1k'], true],
  ['metadata allocated', ['-o', 'preallocation=metadata'], true],
  ['all allocated', ['-o', 'preallocation=falloc,cluster_size=8k'], true],
];

for (const [name, words, isWritable] of FORMATS) {
  test(`an image by qemu-img, ${name}`, async (t) => {
    if (!requirePeer(t, 'qemu-img')) return;
    const folder = temporaryFolder(t);
    const raw = join(folder, 'raw');
    const path = join(folder, 'image');
    const model = modelDisk();
    writeFileSync(raw, model);
    qemuImg('convert', '-f', 'raw', '-O', 'qcow2', ...words, raw, path);

    const reader = await openImage(path, true);
    assert.equal(reader.sizeBytes, SIZE);
    assert.ok((await readAll(reader)).equals(model), 'reads as QEMU wrote it');
    const extents = await reader.extents(0, SIZE);
    assert.equal(
      extents.reduce((sum, extent) => sum + extent.sizeBytes, 0),
      SIZE,
    );
    for (const { at, sizeBytes, kind } of extents) {
      if (kind === 'data') continue;
      assert.ok(model.subarray(at, at + sizeBytes).every((byte) => byte === 0));
    }
    await reader.close();
    if (!isWritable) {
      await assert.rejects(openImage(path), /version is 2.*qemu-img amend/);
      return;
    }
    const writer = await openImage(path);
    const random = randomOf(1);
    for (let i = 0; i < 80; i++) {
      await carryOut(writer, model, randomRequest(random, SIZE, 300 * 1024));
      if (i % 40 === 0) await writer.flush();
    }
    assert.ok((await readAll(writer)).equals(model), 'reads as it was written');
    await writer.close();
    assert.deepEqual({ ...qemuCheck(path), text: '' }, { corruptions: 0, leaks: 0, text: '' });
    qemuCompare(path, model);
  });
}

test('an image of our own', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  for (const clusterBits of [9, 12, 16, 21]) {
    const path = join(temporaryFolder(t), 'image');
    const file = fileLayer(path);
    await createQcow2(file, { sizeBytes: SIZE, clusterBits });
    assert.equal(qemuCheck(path).corruptions + qemuCheck(path).leaks, 0);
    const layer = await Qcow2Layer.open({ below: file, backing: null, readOnly: false });
    const model = Buffer.alloc(SIZE);
    const random = randomOf(clusterBits);
    for (let i = 0; i < 40; i++) {
      await carryOut(layer, model, randomRequest(random, SIZE, 200 * 1024));
    }
    await layer.close();
    assert.equal(qemuCheck(path).corruptions + qemuCheck(path).leaks, 0);
    qemuCompare(path, model);
    const info = JSON.parse(qemuImg('info', '--output=json', path));
    assert.equal(info['virtual-size'], SIZE);
    assert.equal(info['cluster-size'], 2 ** clusterBits);
    assert.equal(info['dirty-flag'], false);
  }
});

test('many requests at once leave each sector to one of them', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const path = join(temporaryFolder(t), 'image');
  const file = fileLayer(path);
  const size = 2 ** 20;
  await createQcow2(file, { sizeBytes: size, clusterBits: 12 });
  const backing = fileLayer(`${path}.base`);
  await backing.resize(size);
  await backing.write(0, Buffer.alloc(size, 1), false);
  const layer = await Qcow2Layer.open({ below: file, backing, readOnly: false });
  const random = randomOf(3);
  const possible = Array.from({ length: size / 512 }, () => new Set([1]));
  for (let round = 0; round < 40; round++) {
    const requests = Array.from({ length: 16 }, () => randomRequest(random, size, 32 * 1024));
    await Promise.all(
      requests.map(async ({ op, at, sizeBytes, unmap, fill }) => {
        if (op === 'write') return layer.write(at, Buffer.alloc(sizeBytes, fill), false);
        if (op === 'zero') return layer.zero(at, sizeBytes, { unmap, fua: false });
        return layer.read(at, Buffer.alloc(sizeBytes));
      }),
    );
    const now = new Map<number, Set<number>>();
    for (const { op, at, sizeBytes, fill } of requests) {
      if (op === 'discard') continue;
      for (let s = at / 512; s < (at + sizeBytes) / 512; s++) {
        const values = now.get(s) ?? new Set();
        now.set(s, values.add(op === 'write' ? fill : 0));
      }
    }
    for (const [s, values] of now) possible[s] = values;
    const disk = await readAll(layer);
    for (const [s, values] of possible.entries()) {
      const sector = disk.subarray(s * 512, s * 512 + 512);
      assert.ok(values.has(sector[0]!), `sector ${s} has ${sector[0]}, not ${[...values]}`);
      assert.ok(
        sector.every((byte) => byte === sector[0]),
        `sector ${s} is one request's`,
      );
    }
  }
  const disk = await readAll(layer);
  await layer.close();
  assert.equal(qemuCheck(path).corruptions + qemuCheck(path).leaks, 0);
  const again = await openImage(path, true, fileLayer(`${path}.base`, true));
  assert.ok((await readAll(again)).equals(disk));
  await again.close();
});

test('clusters of internal snapshots are copied before they are changed', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const folder = temporaryFolder(t);
  const path = join(folder, 'image');
  const model = modelDisk();
  writeFileSync(join(folder, 'raw'), model);
  const options = ['-c', '-o', 'cluster_size=8k'];
  qemuImg('convert', '-f', 'raw', '-O', 'qcow2', ...options, join(folder, 'raw'), path);
  qemuImg('snapshot', '-c', 'one', path);
  const layer = await openImage(path);
  const now = Buffer.from(model);
  const random = randomOf(9);
  for (let i = 0; i < 100; i++) await carryOut(layer, now, randomRequest(random, SIZE, 65536));
  await layer.close();
  assert.equal(qemuCheck(path).corruptions + qemuCheck(path).leaks, 0);
  qemuCompare(path, now);
  qemuImg('snapshot', '-a', 'one', path);
  qemuCompare(path, model);
  assert.equal(qemuCheck(path).corruptions, 0);
});

test('bitmaps are no longer believed once an image was written to', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const path = join(temporaryFolder(t), 'image');
  qemuImg('create', '-f', 'qcow2', path, '8M');
  qemuImg('bitmap', '--add', path, 'b0');
  const layer = await openImage(path);
  await layer.write(0, Buffer.alloc(4096, 5), false);
  await layer.close();
  assert.equal(qemuCheck(path).corruptions, 0);
  assert.doesNotMatch(qemuImg('info', path), /name: b0/);
});

test('a larger disk reads as zeros where it is new', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const folder = temporaryFolder(t);
  const path = join(folder, 'image');
  const file = fileLayer(path);
  await createQcow2(file, { sizeBytes: 512 * 3, clusterBits: 9 });
  const backing = fileLayer(join(folder, 'base'));
  await backing.resize(2 ** 20);
  await backing.write(0, Buffer.alloc(2 ** 20, 9), false);
  const layer = await Qcow2Layer.open({ below: file, backing, readOnly: false });
  await layer.write(512, Buffer.alloc(512, 3), false);
  await layer.resize(8 * 2 ** 20);
  const model = Buffer.alloc(8 * 2 ** 20);
  model.fill(9, 0, 512 * 3).fill(3, 512, 1024);
  assert.ok((await readAll(layer)).equals(model));
  await layer.write(7 * 2 ** 20, Buffer.alloc(5120, 4), false);
  model.fill(4, 7 * 2 ** 20, 7 * 2 ** 20 + 5120);
  await assert.rejects(layer.resize(512), /keeps its 8388608 bytes, 512 were wanted/);
  await layer.close();
  assert.equal(qemuCheck(path).corruptions + qemuCheck(path).leaks, 0);
  const again = await openImage(path, true, fileLayer(join(folder, 'base'), true));
  assert.ok((await readAll(again)).equals(model));
  await again.close();
});

test('space that was freed is used again', async (t) => {
  const path = join(temporaryFolder(t), 'image');
  const file = fileLayer(path);
  const size = 16 * 2 ** 20;
  await createQcow2(file, { sizeBytes: size });
  const layer = await Qcow2Layer.open({ below: file, backing: null, readOnly: false });
  for (let round = 1; round <= 6; round++) {
    await layer.write(0, Buffer.alloc(size, round), false);
    assert.ok((await readAll(layer)).equals(Buffer.alloc(size, round)));
    await layer.discard(0, size);
    for (let i = 0; i < 3; i++) {
      await layer.flush();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  assert.ok(file.sizeBytes < 3 * size, `the file has ${file.sizeBytes} bytes`);
  await layer.close();
  assert.ok(statSync(path).size < 2 ** 20, 'nothing is allocated, nothing is kept');
});

/** Cannot grow, as a block device; or has no room, for a while. */
class Narrow extends PassLayer {
  isFull = false;
  isFixed = false;

  get description(): string {
    return 'narrow';
  }

  override async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    if (this.isFull && at > 0) throw new LayerError(28, 'no room');
    return this.below.write(at, from, fua);
  }

  override async resize(sizeBytes: number): Promise<void> {
    if (this.isFixed) throw new VringError('ERR_VRING_DISK_RESIZE', 'as large as it is');
    return this.below.resize(sizeBytes);
  }
}

test('on a device of one size freed clusters are used again, and the last is ENOSPC', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const path = join(temporaryFolder(t), 'image');
  const file = fileLayer(path);
  await createQcow2(file, { sizeBytes: 2 ** 22, clusterBits: 12 });
  await file.resize(2 ** 21);
  // What was there before is not zeros.
  await file.write(2 ** 16, Buffer.alloc(2 ** 21 - 2 ** 16, 0xee), false);
  const below = new Narrow(file);
  below.isFixed = true;
  const layer = await Qcow2Layer.open({ below, backing: null, readOnly: false });
  const model = Buffer.alloc(2 ** 22);
  for (let round = 1; round < 5; round++) {
    for (let i = 0; i < 60; i++) {
      await layer.write(i * 16384, Buffer.alloc(512, round), false);
      model.fill(round, i * 16384, i * 16384 + 512);
    }
    assert.ok((await readAll(layer)).equals(model));
    await layer.discard(0, 2 ** 20);
    model.fill(0, 0, 2 ** 20);
  }
  await assert.rejects(layer.write(0, Buffer.alloc(2 ** 22, 1), false), { errno: 28 });
  await layer.flush();
  await layer.read(0, model);
  await layer.close();
  assert.equal(qemuCheck(path).corruptions + qemuCheck(path).leaks, 0);
  qemuCompare(path, model);
});

test('a full file system fails requests, and nothing that was there', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const path = join(temporaryFolder(t), 'image');
  const file = fileLayer(path);
  await createQcow2(file, { sizeBytes: 2 ** 24, clusterBits: 9 });
  const below = new Narrow(file);
  const layer = await Qcow2Layer.open({ below, backing: null, readOnly: false });
  const random = randomOf(4);
  const model = Buffer.alloc(2 ** 24);
  const full = new Set<number>();
  for (let i = 0; i < 200; i++) {
    below.isFull = random(3) === 0;
    const at = random(2 ** 15) * 512;
    try {
      await layer.write(at, Buffer.alloc(512, 1 + (i % 255)), false);
      model.fill(1 + (i % 255), at, at + 512);
    } catch (error) {
      assert.equal((error as LayerError).errno, 28);
      full.add(at);
    }
  }
  below.isFull = false;
  assert.ok(full.size > 10);
  for (const at of full) {
    await layer.write(at, Buffer.alloc(512, 77), true);
    model.fill(77, at, at + 512);
  }
  assert.ok((await readAll(layer)).equals(model));
  await layer.close();
  const { corruptions, text } = qemuCheck(path);
  assert.equal(corruptions, 0, text);
  qemuCompare(path, model);
});

test('an image that was left dirty is repaired when it is opened for writing', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const folder = temporaryFolder(t);
  const path = join(folder, 'image');
  qemuImg('create', '-f', 'qcow2', '-o', 'cluster_size=4k', path, '16M');
  const layer = await openImage(path);
  await layer.write(12345 * 512, Buffer.alloc(40960, 7), false);
  const copy = join(folder, 'copy');
  copyFileSync(path, copy); // as kill -9 leaves it
  await layer.close();
  assert.match(qemuImg('info', copy), /cleanly shut down: no/);
  const again = await openImage(copy);
  const bytes = Buffer.alloc(40960);
  await again.read(12345 * 512, bytes);
  assert.ok(bytes.equals(Buffer.alloc(40960, 7)));
  await again.close();
  assert.equal(qemuCheck(copy).corruptions + qemuCheck(copy).leaks, 0);
});

test('qemu-io writes where we did, and we where it did', async (t) => {
  if (!requirePeer(t, 'qemu-img', 'qemu-io')) return;
  const path = join(temporaryFolder(t), 'image');
  const file = fileLayer(path);
  await createQcow2(file, { sizeBytes: 2 ** 24 });
  await file.close();
  const model = Buffer.alloc(2 ** 24);
  for (let round = 0; round < 3; round++) {
    const layer = await openImage(path);
    const random = randomOf(round);
    for (let i = 0; i < 20; i++)
      await carryOut(layer, model, randomRequest(random, 2 ** 24, 2 ** 18));
    await layer.close();
    execFileSync('qemu-io', ['-c', `write -P ${round + 1} ${round}M 200k`, path], {
      stdio: 'pipe',
    });
    model.fill(round + 1, round * 2 ** 20, round * 2 ** 20 + 200 * 1024);
    qemuCompare(path, model);
    assert.equal(qemuCheck(path).corruptions + qemuCheck(path).leaks, 0);
  }
});
