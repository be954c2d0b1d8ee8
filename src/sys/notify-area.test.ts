/** A file of memory in the place of a device: what a doorbell writes, and where. */
import assert from 'node:assert/strict';
import { readSync } from 'node:fs';
import { test } from 'node:test';
import { createEventfd } from './eventfd.ts';
import { createMemfd } from './memfd.ts';
import { NotifyArea } from './notify-area.ts';

function wordAt(fd: number, position: number): number {
  const bytes = new Uint8Array(4);
  readSync(fd, bytes, 0, 4, position);
  return new DataView(bytes.buffer).getUint32(0, true);
}

test('a doorbell writes the start of its page: two bytes, or four', () => {
  using file = createMemfd('doorbells', 3 * 4096);
  using first = NotifyArea.map(file.number, 0)!;
  using third = NotifyArea.map(file.number, 2)!;
  first.ringWith(0x8765_4321);
  third.ring(7);
  assert.equal(wordAt(file.number, 0), 0x8765_4321);
  assert.equal(wordAt(file.number, 4096), 0);
  assert.equal(wordAt(file.number, 8192), 7);
  first.ring(0xffff);
  assert.equal(wordAt(file.number, 0), 0x8765_ffff, 'the upper half stays');
});

test('after close nothing is written, and closing again is nothing', () => {
  using file = createMemfd('doorbells', 4096);
  const area = NotifyArea.map(file.number, 0)!;
  area.close();
  area.close();
  area.ring(3);
  area.ringWith(3);
  assert.equal(wordAt(file.number, 0), 0);
});

test('what has no page to map is null; a mistake is an error', () => {
  using eventfd = createEventfd('no doorbell');
  assert.equal(NotifyArea.map(eventfd.number, 0), null);
  assert.throws(() => NotifyArea.map(-1, 0), { errnoName: 'EBADF' });
});
