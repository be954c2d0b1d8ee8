import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GuestMemory } from '../memory/index.ts';
import type { IotlbMapping } from '../base/index.ts';
import { DIRECT, GuestIommu } from './iommu.ts';

/** Remembers what a back-end is told. */
class Peer {
  asks = true;
  readonly updates: IotlbMapping[] = [];
  readonly invalidated: bigint[] = [];
  readonly order: string[] = [];

  async update(entry: IotlbMapping): Promise<void> {
    this.updates.push(entry);
    this.order.push('update');
  }

  async invalidate(iova: bigint): Promise<void> {
    this.invalidated.push(iova);
    this.order.push('invalidate');
  }
}

const GPA = 0x4000_0000;

function withMemory(iommu: GuestIommu, body: (memory: GuestMemory, peer: Peer) => void): void {
  using memory = GuestMemory.create(1 << 20, { baseGpa: GPA });
  const peer = new Peer();
  iommu.setMemory(memory);
  iommu.setPeer(peer);
  body(memory, peer);
}

test('without an IOMMU addresses are guest-physical', () => {
  assert.equal(DIRECT.map(GPA, 4096, true), GPA);
});

test('an offset is one mapping for all memory', () => {
  const iommu = new GuestIommu('offset');
  withMemory(iommu, (memory, peer) => {
    const iova = iommu.map(GPA + 0x5010, 64, true);
    assert.notEqual(iova, GPA + 0x5010);
    iommu.missed(BigInt(iova), true);
    const [entry] = peer.updates;
    assert.equal(entry!.sizeBytes, BigInt(memory.sizeBytes));
    assert.equal(BigInt(iova) - entry!.iova + entry!.userAddr, BigInt(memory.baseUva + 0x5010));
    iommu.missed(entry!.iova - 1n, false);
    iommu.missed(entry!.iova + entry!.sizeBytes, false);
    assert.deepEqual(iommu.counters, { misses: 3, updates: 1, faults: 2, invalidations: 0 });
  });
});

test('scattered ranges are apart, contiguous in themselves, and keep their permissions', () => {
  const iommu = new GuestIommu('scatter');
  withMemory(iommu, (memory, peer) => {
    const one = iommu.map(GPA + 0x1ff0, 0x2000, false); // three pages
    const two = iommu.map(GPA + 0x3ff0, 64, true);
    assert.equal(one % 4096, 0xff0);
    assert.ok(two > one + 0x3000, 'a gap lies between');
    for (let page = 0; page < 3; page++) {
      iommu.missed(BigInt(one - 0xff0 + 4096 * page), false);
      const entry = peer.updates.at(-1)!;
      assert.equal(entry.userAddr, BigInt(memory.baseUva + 0x1000 + 4096 * page));
      assert.deepEqual([entry.sizeBytes, entry.permissions], [4096n, 1]);
    }
    iommu.missed(BigInt(one), true);
    assert.equal(iommu.counters.faults, 1, 'the device may not write there');
    iommu.missed(BigInt(two), true);
    assert.equal(peer.updates.at(-1)!.permissions, 3);
    iommu.missed(BigInt(one + 0x3000), false);
    assert.equal(iommu.counters.faults, 2);
  });
});

test('a range that moves is gone from where it was', async () => {
  const iommu = new GuestIommu('scatter');
  using memory = GuestMemory.create(1 << 20, { baseGpa: GPA });
  const peer = new Peer();
  iommu.setMemory(memory);
  iommu.setPeer(peer);
  const before = iommu.map(GPA + 0x7123, 0x1000, true);
  const after = await iommu.remap(before, 0x1000);
  assert.deepEqual(peer.invalidated, [BigInt(before - 0x123)]);
  iommu.missed(BigInt(before), false);
  assert.equal(iommu.counters.faults, 1);
  iommu.missed(BigInt(after), true);
  assert.equal(peer.updates[0]!.userAddr, BigInt(memory.baseUva + 0x7000));
  await iommu.invalidateAll();
  assert.deepEqual(peer.invalidated.length, 2);
});

test('a back-end that asks is told nothing beforehand', async () => {
  const iommu = new GuestIommu('scatter');
  using memory = GuestMemory.create(1 << 20, { baseGpa: GPA });
  const peer = new Peer();
  iommu.setMemory(memory);
  iommu.setPeer(peer);
  iommu.map(GPA, 4096, true);
  await iommu.settle();
  assert.deepEqual(peer.updates, []);
});

test('one that never asks is told everything, and what moves before it is gone', async () => {
  using memory = GuestMemory.create(1 << 20, { baseGpa: GPA });
  const whole = new GuestIommu('offset');
  const scattered = new GuestIommu('scatter');
  for (const iommu of [whole, scattered]) iommu.setMemory(memory);
  const peers = [new Peer(), new Peer()] as const;
  for (const peer of peers) peer.asks = false;
  whole.setPeer(peers[0]);
  scattered.setPeer(peers[1]);
  await whole.settle();
  assert.deepEqual(
    peers[0].updates.map(({ sizeBytes }) => sizeBytes),
    [BigInt(memory.sizeBytes)],
  );
  const one = scattered.map(GPA + 0x1ff0, 0x2000, false); // three pages, one range
  const two = scattered.map(GPA + 0x8000, 64, true);
  await scattered.settle();
  const told = peers[1].updates.map(({ iova, sizeBytes, userAddr, permissions }) => {
    return [Number(iova), Number(sizeBytes), Number(userAddr) - memory.baseUva, permissions];
  });
  assert.deepEqual(told, [
    [one - 0xff0, 0x3000, 0x1000, 1],
    [two, 0x1000, 0x8000, 3],
  ]);
  peers[1].order.length = 0;
  const moved = await scattered.remap(one, 0x2000);
  assert.deepEqual(peers[1].order, ['update', 'invalidate']);
  assert.equal(peers[1].updates.at(-1)!.iova, BigInt(moved - 0xff0));
  assert.equal(peers[1].updates.at(-1)!.sizeBytes, 0x3000n);
  assert.deepEqual(peers[1].invalidated, [BigInt(one - 0xff0)]);
  await scattered.invalidateAll();
  assert.equal(peers[1].order.at(-1), 'update', 'it is told again');
});
