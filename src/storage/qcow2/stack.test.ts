/** As a stack of a disk: backing files that are followed or not, and storage threads. */
import assert from 'node:assert/strict';
import { symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { requirePeer } from '../../../test/peers/require-peer.ts';
import { openFdCount } from '../../sys/index.ts';
import { openStack, parseStack } from '../index.ts';
import { openQcow2Layer } from './open-qcow2.ts';
import { fileLayer, qemuImg, readAll, temporaryFolder } from './testing.ts';

const SIZE = 2 ** 20;

test('a chain of images by qemu-img is followed', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const folder = temporaryFolder(t);
  const base = Buffer.alloc(SIZE, 3);
  writeFileSync(join(folder, 'base.raw'), base);
  const at = (name: string): string => join(folder, name);
  qemuImg('create', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', at('a'), String(SIZE));
  qemuImg('create', '-f', 'qcow2', '-b', 'a', '-F', 'qcow2', at('b'), String(2 * SIZE));
  const fds = openFdCount();
  const open = (path: string, backing: 'refuse' | 'follow', readOnly = false) => {
    const below = fileLayer(path, readOnly);
    return openQcow2Layer(below, { backing, readOnly, path }).catch(async (error: unknown) => {
      await below.close();
      throw error;
    });
  };
  await assert.rejects(open(at('b'), 'refuse'), /backing_file is "a", which is not opened.*follow/);
  const layer = await open(at('b'), 'follow');
  await layer.write(4096, Buffer.alloc(4096, 9), true);
  const model = Buffer.alloc(2 * SIZE);
  base.copy(model);
  model.fill(9, 4096, 8192);
  assert.ok((await readAll(layer)).equals(model));
  await layer.close();
  writeFileSync(at('model'), model);
  qemuImg('compare', '-f', 'qcow2', '-F', 'raw', at('b'), at('model'));

  const rebase = (image: string, name: string, format: string): string =>
    qemuImg('rebase', '-u', '-b', name, '-F', format, at(image));
  rebase('a', 'b', 'qcow2');
  await assert.rejects(open(at('b'), 'follow'), /backing_file is "b", which is above it/);
  symlinkSync('b', at('link'));
  rebase('a', 'link', 'qcow2');
  await assert.rejects(open(at('b'), 'follow'), /is "link", which is above it/);
  rebase('a', 'nbd:localhost:1', 'raw');
  await assert.rejects(open(at('b'), 'follow'), /is "nbd:localhost:1", expected a path/);
  rebase('a', 'none', 'raw');
  await assert.rejects(open(at('b'), 'follow'), /ENOENT/);
  rebase('a', '.', 'raw');
  await assert.rejects(open(at('b'), 'follow'), /neither a regular file nor a block device/);
  rebase('a', 'base.raw', 'vmdk');
  await assert.rejects(open(at('b'), 'follow'), /its format is "vmdk", expected raw or qcow2/);
  assert.equal(openFdCount(), fds, 'what was refused is closed');
});

test('a chain of many files is refused by its length', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const folder = temporaryFolder(t);
  for (let i = 0; i < 34; i++) {
    const backing = i === 0 ? [] : ['-u', '-b', String(i - 1), '-F', 'qcow2'];
    qemuImg('create', '-f', 'qcow2', ...backing, join(folder, String(i)), '1M');
  }
  const path = join(folder, '33');
  const below = fileLayer(path);
  const opened = openQcow2Layer(below, { backing: 'follow', readOnly: true, path });
  await assert.rejects(opened, /the file number 33 of its chain/);
  await below.close();
});

test('stacks of qcow2 and overlay run on storage threads', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const folder = temporaryFolder(t);
  const path = join(folder, 'image');
  qemuImg('create', '-f', 'qcow2', path, '8M'); // 196616 bytes: no whole sectors
  const problems: string[] = [];
  const onProblem = (message: string): void => void problems.push(message);
  const overlay = parseStack([`overlay:${folder}/vm0`, 'qcow2', path], 'layers');
  let image = await openStack({ stack: overlay, onProblem });
  assert.equal(image.sizeBytes, 8 * 2 ** 20);
  assert.match(image.description, /^overlay:.*vm0 over qcow2 over file:/);
  await image.control('snapshot', { name: 'first' });
  await image.resize(16 * 2 ** 20);
  assert.equal(image.sizeBytes, 16 * 2 ** 20);
  await image.close();
  image = await openStack({ stack: overlay, onProblem });
  const snapshots = (await image.control('snapshots', null)) as { name: string }[];
  assert.deepEqual(
    snapshots.map(({ name }) => name),
    ['first'],
  );
  await image.close();
  await assert.rejects(
    openStack({ stack: parseStack(['qcow2', join(folder, 'vm0/chain.json')], 'layers') }),
    /magic is 0x7b0a2020, expected 0x514649fb/,
  );
  assert.deepEqual(problems, []);
});
