/** Tables that follow each other: what stays mapped, what is new, what goes. */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { GuestMemory, GuestRegions, reservedRanges } from './index.ts';

const owned: { close(): void }[] = [];
afterEach(() => {
  for (const one of owned.splice(0)) one.close();
});

function memoryAt(baseGpa: number): GuestMemory {
  const memory = GuestMemory.create(1 << 16, { baseGpa });
  owned.push(memory);
  return memory;
}

function regions(): GuestRegions {
  const all = new GuestRegions();
  owned.push(all);
  return all;
}

test('what the next table names again stays where it is', () => {
  const all = regions();
  const [first, second] = [memoryAt(0x1000_0000), memoryAt(0x2000_0000)];
  all.commit(all.prepare([first.backendRegion(), second.backendRegion()]));
  const offsets = all.table.regions.map(({ offset }) => offset);
  const update = all.prepare([second.backendRegion(), first.backendRegion()]);
  assert.equal(update.fresh.length, 0);
  assert.equal(update.gone.length, 0);
  all.commit(update);
  assert.deepEqual(all.table.regions.map(({ offset }) => offset).toReversed(), offsets);
});

test('another file, another place of it, another address is another region', () => {
  const all = regions();
  const memory = memoryAt(0x1000_0000);
  const region = { ...memory.backendRegion(), sizeBytes: 0x8000n };
  all.commit(all.prepare([region]));
  const others = [
    { ...memoryAt(0x1000_0000).backendRegion(), sizeBytes: 0x8000n, userAddr: region.userAddr },
    { ...region, fdOffset: 0x8000n },
    { ...region, guestPhysAddr: 0x3000_0000n },
    { ...region, userAddr: region.userAddr + 0x10_0000n },
    { ...region, sizeBytes: 0x4000n },
  ];
  for (const other of others) {
    const update = all.prepare([other]);
    assert.deepEqual([update.fresh.length, update.gone.length], [1, 1]);
    all.abandon(update);
    assert.equal(all.table.regions[0]!.closed, false);
  }
});

test('a table that is refused changes nothing and leaves nothing', () => {
  const all = regions();
  const memory = memoryAt(0x1000_0000);
  all.commit(all.prepare([memory.backendRegion()]));
  const before = reservedRanges();
  const overlapping = { ...memoryAt(0x1000_8000).backendRegion() };
  assert.throws(() => all.prepare([memory.backendRegion(), overlapping]), {
    code: 'ERR_VRING_MEMORY_OVERLAP',
  });
  assert.equal(reservedRanges(), before + 1, 'the one that is still open here');
  assert.equal(all.table.regions.length, 1);
  assert.equal(all.table.regions[0]!.closed, false);
});
