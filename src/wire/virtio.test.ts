import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import * as net from './virtio-net.ts';
import * as virtio from './virtio.ts';

/** `#define NAME value` of a kernel header, for the values that are plain numbers or shifts. */
function defines(header: string): Map<string, number> {
  const text = readFileSync(header, 'utf8');
  const found = new Map<string, number>();
  for (const [, name, value] of text.matchAll(
    /^\s*#define\s+(\w+)\s+(\(1 << \d+\)|0x[\da-f]+|\d+)/gim,
  )) {
    const shift = /1 << (\d+)/.exec(value);
    found.set(name, shift === null ? Number(value) : 1 << Number(shift[1]));
  }
  return found;
}

/** Names that the headers spell differently from the specification. */
const RENAMED: Readonly<Record<string, string>> = {
  VIRTQ_DESC_F_NEXT: 'VRING_DESC_F_NEXT',
  VIRTQ_DESC_F_WRITE: 'VRING_DESC_F_WRITE',
  VIRTQ_DESC_F_INDIRECT: 'VRING_DESC_F_INDIRECT',
  VIRTQ_AVAIL_F_NO_INTERRUPT: 'VRING_AVAIL_F_NO_INTERRUPT',
  VIRTQ_USED_F_NO_NOTIFY: 'VRING_USED_F_NO_NOTIFY',
  RING_EVENT_FLAGS_ENABLE: 'VRING_PACKED_EVENT_FLAG_ENABLE',
  RING_EVENT_FLAGS_DISABLE: 'VRING_PACKED_EVENT_FLAG_DISABLE',
  RING_EVENT_FLAGS_DESC: 'VRING_PACKED_EVENT_FLAG_DESC',
};

for (const [module, headers, atLeast] of [
  [virtio, ['config', 'ids', 'ring'], 40],
  [net, ['net'], 60],
] as const) {
  const paths = headers.map((name) => `/usr/include/linux/virtio_${name}.h`);
  const skip = paths.every((path) => existsSync(path)) ? false : 'no kernel headers installed';
  test(`constants agree with linux/virtio_{${headers.join(',')}}.h`, { skip }, () => {
    const known = new Map(paths.flatMap((path) => [...defines(path)]));
    let compared = 0;
    for (const [name, value] of Object.entries(module)) {
      const other = known.get(RENAMED[name] ?? name.replace('NET_HASH_TYPE', 'NET_RSS_HASH_TYPE'));
      if (typeof value !== 'number' || other === undefined) continue;
      assert.equal(value, other, name);
      compared++;
    }
    assert.ok(compared >= atLeast, `${compared} constants were found in the headers`);
  });
}

test('every feature constant has its name in the table', () => {
  for (const [prefix, module, id] of [
    ['VIRTIO_NET_F_', net, virtio.VIRTIO_ID_NET],
    ['VIRTIO_F_', virtio, virtio.VIRTIO_ID_BLOCK],
    ['VIRTIO_RING_F_', virtio, virtio.VIRTIO_ID_BLOCK],
  ] as const) {
    for (const [name, bit] of Object.entries(module)) {
      if (!name.startsWith(prefix) || name === 'VIRTIO_NET_F_GUEST_RSC4') continue;
      const names = virtio.featureNames(virtio.featureSet(bit as number), id);
      assert.deepEqual(names, [name.slice(prefix.length)]);
    }
  }
});

test('feature sets', () => {
  const set = virtio.featureSet(0, 32, virtio.VIRTIO_F_RING_PACKED, 31);
  assert.equal(set, 0x5_8000_0001n);
  assert.equal(virtio.hasFeature(set, 34), true);
  assert.equal(virtio.hasFeature(set, 33), false);
  const names = ['CSUM', 'BIT_31', 'VERSION_1', 'RING_PACKED'];
  assert.deepEqual(virtio.featureNames(set, virtio.VIRTIO_ID_NET), names);
  assert.deepEqual(virtio.featureNames(0n, virtio.VIRTIO_ID_NET), []);
  assert.equal(virtio.deviceName(1), 'net');
  assert.equal(virtio.deviceName(63), 'device-63');
});

test('ring layout: sizes of 2.7 and 2.8.10.1, areas apart and aligned', () => {
  for (const size of [1, 2, 256, 32768]) {
    const split = virtio.ringLayout(size, false);
    assert.equal(split.descBytes, 16 * size);
    assert.equal(split.availBytes, 6 + 2 * size);
    assert.equal(split.usedBytes, 6 + 8 * size);
    assert.equal(virtio.ringLayout(size, false, false).usedBytes, 4 + 8 * size);
    const packed = virtio.ringLayout(size, true);
    assert.equal(packed.availBytes, 4);
    assert.equal(packed.usedBytes, 4);
    for (const layout of [split, packed]) {
      assert.ok(layout.availAt >= layout.descBytes);
      assert.ok(layout.usedAt >= layout.availAt + layout.availBytes);
      assert.ok(layout.totalBytes >= layout.usedAt + layout.usedBytes);
      assert.equal(layout.availAt % virtio.RING_EVENT_ALIGN, 0);
      assert.equal(layout.usedAt % virtio.RING_USED_ALIGN, 0);
    }
  }
});

test('net queue names', () => {
  const names = [0, 1, 2, 3, 4].map((index) => net.netQueueName(index, 2));
  assert.deepEqual(names, ['receiveq1', 'transmitq1', 'receiveq2', 'transmitq2', 'controlq']);
});
