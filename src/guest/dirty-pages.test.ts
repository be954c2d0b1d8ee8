import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GuestMemory } from '../memory/index.ts';
import { arena, mapRegionAt, openFdCount, releaseRegion } from '../sys/index.ts';
import { reserveRange } from '../memory/index.ts';
import { DirtyPages } from './dirty-pages.ts';

test('marks of a back-end are read once, and only those of our memory', () => {
  const before = openFdCount();
  {
    using memory = GuestMemory.create(70 * 4096, { baseGpa: 0x4000_0000 });
    const log = new DirtyPages(memory);
    // The back-end's own mapping.
    const range = reserveRange(log.sizeBytes);
    const theirs = mapRegionAt(range.offset, log.sizeBytes, log.fd.number, 0);
    const mark = (page: number): void => {
      arena().bytes[range.offset + (page >> 3)]! |= 1 << (page & 7);
    };
    assert.deepEqual(log.take(), []);
    const first = 0x4000_0000 / 4096;
    for (const page of [0, 31, 32, 63, 69]) mark(first + page);
    mark(first - 1);
    mark(3);
    assert.deepEqual(log.take(), [0, 31, 32, 63, 69]);
    assert.deepEqual(log.take(), []);
    mark(first + 31);
    assert.deepEqual(log.take(), [31]);
    releaseRegion(theirs);
    range.close();
    log.close();
  }
  assert.equal(openFdCount(), before);
});
