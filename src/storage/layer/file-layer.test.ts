/** What is particular to files as the bottom of a stack; the rest is tested through stacks. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { openFd } from '../../sys/index.ts';
import { O_RDWR } from '../../wire/linux.ts';
import { FileLayer } from './file-layer.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-file-layer-'));
after(() => rmSync(folder, { recursive: true }));

type End = (error: Error | null) => void;

/** `fdatasync` that ends when the test says so. */
function heldSyncs(t: test.TestContext): End[] {
  const held: End[] = [];
  t.mock.method(fs, 'fdatasync', (_fd: number, end: End) => void held.push(end));
  syncBuiltinESMExports();
  t.after(() => {
    t.mock.restoreAll();
    syncBuiltinESMExports();
  });
  return held;
}

function opened(): FileLayer {
  const path = join(folder, 'disk.img');
  writeFileSync(path, '');
  truncateSync(path, 4096);
  return new FileLayer({ file: openFd(path, O_RDWR), path, readOnly: false });
}

test('flushes come one after the other, and one that waits is for all that wait', async (t) => {
  const held = heldSyncs(t);
  const layer = opened();
  const first = layer.flush();
  await turn();
  const second = layer.flush();
  assert.equal(layer.flush(), second);
  await turn();
  assert.equal(held.length, 1, 'the kernel is asked by one at a time');
  held[0]!(null);
  await first;
  await turn();
  assert.equal(held.length, 2, 'what was written since the first began needs another one');
  const third = layer.flush();
  assert.notEqual(third, second);
  held[1]!(null);
  await second;
  await turn();
  held[2]!(null);
  await third;
  await layer.close();
});

test('a flush that failed is told to everybody, once and for all', async (t) => {
  const held = heldSyncs(t);
  const layer = opened();
  const all = [layer.flush()];
  await turn();
  all.push(layer.flush());
  held[0]!(Object.assign(new Error('EIO'), { errno: -5 }));
  for (const { status } of await Promise.allSettled(all)) assert.equal(status, 'rejected');
  await assert.rejects(layer.write(0, new Uint8Array(512), true), { errno: 5 });
  assert.equal(held.length, 1, 'nobody asks again');
  await layer.close();
});
