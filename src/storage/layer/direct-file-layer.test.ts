/** A file past the page cache: the same bytes, and no page of it in memory. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { openFd } from '../../sys/index.ts';
import { O_DIRECT, O_RDWR } from '../../wire/linux.ts';
import { BOUNCE_BYTES } from '../file-engine.ts';
import { type NbdExportStatus, openStack, parseStack } from '../index.ts';
import { openNbdLayer } from '../nbd/index.ts';
import { DirectFileLayer } from './direct-file-layer.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-direct-'));
after(() => rmSync(folder, { recursive: true }));
const memory = PrivateMemory.allocate(BOUNCE_BYTES);
after(() => memory.close());
const DISK_BYTES = 2 ** 21;

let files = 0;
function file(sizeBytes = DISK_BYTES): string {
  const path = join(folder, `${files++}.img`);
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
}

/** How much of the file is in memory. */
function pagesOf(path: string): number {
  return Number(execFileSync('fincore', ['-n', '-o', 'PAGES', path], { encoding: 'utf8' }));
}

function open(path: string, positionBytes: number): DirectFileLayer {
  const options = { file: openFd(path, O_RDWR | O_DIRECT), path, readOnly: false };
  return new DirectFileLayer(options, { at: memory.offset, positionBytes });
}

test('random requests leave what a byte array has, many at a time', async () => {
  const path = file();
  const layer = open(path, 512);
  const model = new Uint8Array(DISK_BYTES);
  const next = (below: number): number => Math.floor(Math.random() * below);
  for (let round = 0; round < 20; round++) {
    // Eighths of the disk, so that those at the same time do not meet.
    await Promise.all(
      Array.from({ length: 8 }, async (_, part) => {
        const size = 512 * (1 + next(512));
        const at = (part * DISK_BYTES) / 8 + 512 * next((DISK_BYTES / 8 - size) / 512 + 1);
        if (next(2) === 0) {
          const bytes = new Uint8Array(size).fill(next(256));
          await layer.write(at, bytes, next(4) === 0);
          model.set(bytes, at);
        } else {
          const bytes = new Uint8Array(size);
          await layer.read(at, bytes);
          assert.deepEqual(bytes, model.slice(at, at + size));
        }
      }),
    );
  }
  await layer.flush();
  assert.equal(pagesOf(path), 0);
  await layer.close();
  assert.deepEqual(new Uint8Array(readFileSync(path)), model);
});

test('larger blocks: reads of sectors, to the end of the file; writes of blocks only', async () => {
  const path = file(4096 + 1536);
  const layer = open(path, 4096);
  await layer.write(0, new Uint8Array(4096).fill(5), false);
  const bytes = new Uint8Array(1024);
  await layer.read(3584, bytes);
  assert.deepEqual([bytes[511], bytes[512]], [5, 0]);
  await layer.read(4608, bytes);
  await assert.rejects(layer.read(5120, bytes), /ends at byte 5632/);
  const unaligned = layer.write(512, bytes, false);
  await assert.rejects(unaligned, {
    errno: 22,
    message: /write of 1024 bytes at byte 512: .*4096/,
  });
  await layer.close();
});

test('below layers O_DIRECT is what was asked for; io_uring is refused', async () => {
  const path = file();
  const image = await openStack({
    stack: parseStack(['fault', `file:${path},direct=on`], 'layers'),
  });
  const { uri } = (await image.control('export', {
    at: { socket: join(folder, 'nbd') },
  })) as NbdExportStatus;
  const client = await openNbdLayer({ uri });
  await client.write(512, new Uint8Array(1024).fill(1), true);
  await client.read(8192, new Uint8Array(16384));
  assert.equal(pagesOf(path), 0);
  await client.close();
  await image.close();
  assert.equal(readFileSync(path)[1535], 1);

  const ring = parseStack(['limit:iops=1', `file:${path},uring=on`], 'layers');
  await (await openStack({ stack: ring })).close();
  const refused = { message: /l\[1\].*uring=on.*remove it/ };
  const wrong = async () =>
    openStack({ stack: parseStack(['fault', `file:${path},uring=on`], 'l') });
  await assert.rejects(wrong(), refused);
});

test('an export beside a data plane that uses O_DIRECT does so, too', async () => {
  const path = file();
  const image = await openStack({ stack: [{ kind: 'file', path, direct: 'on' }] });
  const pages = pagesOf(path); // opening it has looked at the first ones
  const at = { socket: join(folder, 'nbd') };
  const { uri } = (await image.control('export', { at })) as NbdExportStatus;
  const client = await openNbdLayer({ uri });
  await client.read(0, new Uint8Array(262144));
  await client.write(4096, new Uint8Array(4096).fill(2), true);
  assert.ok(pagesOf(path) <= pages, 'none came with the traffic');
  await client.close();
  await image.close();
});
