/** Locks of images: between two of ours, and between ours and QEMU's. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { requirePeer } from '../../../test/peers/require-peer.ts';
import { waitFor } from '../../../test/peers/scratch.ts';
import { dupFd } from '../../sys/index.ts';
import type { FileEngineSpec } from '../file-engine.ts';
import { openFileImage, openStack, type StackSpec } from '../index.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-lock-'));
after(() => rmSync(folder, { recursive: true }));

let files = 0;
function file(): string {
  const path = join(folder, `disk${files++}.img`);
  writeFileSync(path, '');
  truncateSync(path, 65536);
  return path;
}

test('who writes an image has it alone, who reads it does so beside others', () => {
  const path = file();
  const writer = openFileImage({ path });
  const inUse = { code: 'ERR_VRING_DISK_LOCKED' };
  assert.throws(() => openFileImage({ path }), inUse);
  const text = new RegExp(`${path} is in use: another process .*fuser -v ${path}.*lock: false`);
  assert.throws(() => openFileImage({ path, readOnly: true }), text);
  openFileImage({ path, lock: false }).close();
  assert.throws(() => openFileImage({ path }), inUse, 'who locked nothing gave nothing up');
  writer.close();

  const reader = openFileImage({ path, readOnly: true });
  const other = openFileImage({ path, readOnly: true });
  assert.throws(() => openFileImage({ path }), inUse);
  reader.close();
  assert.throws(() => openFileImage({ path }), inUse);
  other.close();
  openFileImage({ path }).close();
});

test('with O_DIRECT both open files hold the lock', () => {
  const path = file();
  const image = openFileImage({ path, direct: 'on' });
  assert.throws(() => openFileImage({ path, direct: 'on' }), { code: 'ERR_VRING_DISK_LOCKED' });
  // Requests of a server that was killed hold the second one open: as here, a copy of it does.
  const { uring } = image.spec as FileEngineSpec;
  const copy = dupFd(uring!.direct!.fd, 'what a request holds');
  image.close();
  const inUse = /is in use/;
  assert.throws(() => openFileImage({ path }), inUse);
  copy.close();
  openFileImage({ path }).close();
});

test('who was refused holds nothing', () => {
  const path = file();
  const reader = openFileImage({ path, readOnly: true });
  assert.throws(() => openFileImage({ path }), { code: 'ERR_VRING_DISK_LOCKED' });
  const third = openFileImage({ path, readOnly: true });
  third.close();
  reader.close();
  openFileImage({ path }).close();
});

test('who is about to go is waited for, and nothing else waits meanwhile', async () => {
  const path = file();
  const writer = openFileImage({ path });
  setTimeout(() => void writer.close(), 50); // never, if this thread slept
  const image = await openStack({ stack: [{ kind: 'file', path }] });
  await assert.rejects(openStack({ stack: [{ kind: 'file', path }] }), {
    code: 'ERR_VRING_DISK_LOCKED',
  });
  const folderOfOverlay = join(folder, 'changes');
  const stack: StackSpec = [
    { kind: 'overlay', folder: folderOfOverlay },
    { kind: 'memory', sizeBytes: 65536 },
  ];
  const first = await openStack({ stack });
  const second = openStack({ stack });
  setTimeout(() => void first.close(), 50);
  await (await second).close();
  await image.close();
});

test('QEMU and we refuse each other', async (t) => {
  if (!requirePeer(t, 'qemu-img', 'qemu-io')) return;
  const path = file();
  const image = openFileImage({ path });
  const qemu = (program: string, ...args: string[]) =>
    spawnSync(program, args, { encoding: 'utf8', timeout: 20_000 });
  const copy = ['convert', '-f', 'raw', '-O', 'raw', path, join(folder, 'copy.img')];
  const resize = ['resize', '-f', 'raw', path, '128k'];
  const write = ['-f', 'raw', '-c', 'write 0 512', path];
  assert.match(qemu('qemu-img', ...copy).stderr, /Failed to get shared "write" lock/);
  assert.match(qemu('qemu-img', ...resize).stderr, /Failed to get "write" lock/);
  assert.match(qemu('qemu-io', ...write).stderr, /Failed to get "write" lock/);
  assert.equal(qemu('qemu-img', 'convert', '-U', ...copy.slice(1)).status, 0, 'by force');
  image.close();
  const reader = openFileImage({ path, readOnly: true });
  assert.equal(qemu('qemu-img', ...copy).status, 0, 'who reads may, beside who reads');
  assert.match(qemu('qemu-io', ...write).stderr, /Failed to get "write" lock/);
  reader.close();
  assert.equal(qemu('qemu-io', ...write).status, 0, 'and afterwards it is free');

  const child = spawn('qemu-io', ['-f', 'raw', path], { stdio: ['pipe', 'pipe', 'ignore'] });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  try {
    const open = (readOnly: boolean) => openFileImage({ path, readOnly });
    const refusal = await waitFor('the lock of qemu-io', 10_000, () => {
      try {
        open(false).close();
        return undefined;
      } catch (error) {
        return error as Error & { code: string };
      }
    });
    assert.equal(refusal.code, 'ERR_VRING_DISK_LOCKED');
    assert.throws(() => open(true), { code: 'ERR_VRING_DISK_LOCKED' });
  } finally {
    child.stdin.end('quit\n');
    await exited;
  }
  openFileImage({ path }).close();
});
