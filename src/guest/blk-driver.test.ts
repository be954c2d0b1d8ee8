import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VringError } from '../base/errors.ts';
import { openFdCount } from '../sys/index.ts';
import {
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
} from '../wire/virtio-blk.ts';
import { VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, featureSet } from '../wire/virtio.ts';
import { BlkDisk } from './blk-disk.ts';
import { parseBlkFeatures } from './blk-features.ts';
import { TOY_FEATURES, startToyGuest } from './blk-testing.ts';

const code = (expected: string) => (error: unknown) =>
  error instanceof VringError && error.code === expected;

function bytesOf(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 8) * 31 + seed) & 255);
}

const FORMATS = [false, true].flatMap((packed) =>
  ['+indirect_desc', '-indirect_desc'].flatMap((indirect) =>
    ['+event_idx', '-event_idx'].map((eventIdx) => ({ packed, list: `${indirect},${eventIdx}` })),
  ),
);

for (const { packed, list } of FORMATS) {
  const name = `${packed ? 'packed' : 'split'} ${list}`;
  test(`what is written can be read: ${name}`, async () => {
    const features = parseBlkFeatures(list, '--features');
    const options = { packed, features, queues: 2, ringSize: 32, segmentBytes: 1024 };
    const toy = await startToyGuest({ queues: 2, holds: 5 }, { ...options, requestBytes: 8192 });
    const disk = new BlkDisk(toy.guest);
    assert.equal(disk.sizeBytes, 1 << 20);
    const bytes = bytesOf(300_032, 1); // many requests, and a short one at the end
    await disk.write(4096, bytes);
    await disk.flush();
    assert.deepEqual(toy.disk.bytes.subarray(4096, 4096 + bytes.length), bytes);
    assert.deepEqual(await disk.read(4096, bytes.length), bytes);
    assert.equal(await disk.getId(), 'toy');
    await disk.writeZeroes(8192, 4096);
    assert.ok((await disk.read(8192, 4096)).every((byte) => byte === 0));
    await disk.discard(16384, 4096);
    assert.equal(toy.disk.bytes[16384], 0xd1);
    for (const queue of toy.guest.queues) {
      assert.ok(queue.submitted > 0, 'both queues have work');
      assert.equal(queue.wrongLengths, 0);
      assert.equal(queue.free, queue.slots, 'every slot came back');
    }
    await toy.close();
  });
}

test('IN_ORDER, where a disk has it', async () => {
  const features = TOY_FEATURES | featureSet(VIRTIO_F_IN_ORDER);
  const toy = await startToyGuest({ features }, { packed: true });
  const disk = new BlkDisk(toy.guest);
  await disk.write(0, bytesOf(500_224, 3));
  assert.deepEqual(await disk.read(0, 500_224), bytesOf(500_224, 3));
  await toy.close();
});

test('a disk says no, and the message says to what', async () => {
  const toy = await startToyGuest();
  const disk = new BlkDisk(toy.guest);
  const beyond = disk.sizeBytes;
  await assert.rejects(disk.read(beyond, 512), (error: VringError) => {
    assert.equal(error.code, 'ERR_VRING_BLK_IOERR');
    assert.match(error.message, /toy answered IN at sector 2048 \(512 bytes\) with an I\/O error/);
    return true;
  });
  await assert.rejects(disk.write(beyond - 512, bytesOf(1024, 1)), code('ERR_VRING_BLK_IOERR'));
  await assert.rejects(disk.read(100, 512), code('ERR_VRING_BLK_ALIGNMENT'));
  await assert.rejects(disk.secureErase(0, 512), code('ERR_VRING_BLK_UNSUPP'));
  const { requests, requestBytes } = toy.guest;
  const tooLong = requests.send({ type: VIRTIO_BLK_T_IN, sector: 0, readBytes: requestBytes + 1 });
  await assert.rejects(tooLong, code('ERR_VRING_GUEST_REQUEST_SIZE'));
  const unknown = await requests.send({ type: 0x7777, sector: 0, readBytes: 512 });
  assert.equal(unknown.status, VIRTIO_BLK_S_UNSUPP);
  await toy.close();
});

test('a read-only disk', async () => {
  const toy = await startToyGuest({ features: TOY_FEATURES | featureSet(VIRTIO_BLK_F_RO) });
  assert.equal(toy.guest.config.readOnly, true);
  const disk = new BlkDisk(toy.guest);
  await disk.read(0, 4096);
  await assert.rejects(disk.write(0, bytesOf(512, 1)), code('ERR_VRING_BLK_IOERR'));
  await toy.close();
});

test('more requests than slots wait for room', async () => {
  const options = { ringSize: 8, requestBytes: 512, notify: 'poll' } as const;
  const toy = await startToyGuest({ holds: 3 }, options);
  const writes = Array.from({ length: 500 }, (_, i) =>
    toy.guest.requests.send({ type: VIRTIO_BLK_T_OUT, sector: i, write: bytesOf(512, i) }),
  );
  assert.ok((await Promise.all(writes)).every(({ status }) => status === 0));
  for (let i = 0; i < 500; i++) {
    assert.deepEqual(toy.disk.bytes.subarray(512 * i, 512 * i + 512), bytesOf(512, i));
  }
  assert.equal(toy.guest.requests.pending, 0);
  await toy.close();
});

test('what a disk takes in one request is kept to', async () => {
  const toy = await startToyGuest({ config: { segMax: 3, blkSize: 4096 } }, { segmentBytes: 4096 });
  assert.equal(toy.guest.requestBytes, 3 * 4096);
  const disk = new BlkDisk(toy.guest);
  await assert.rejects(disk.read(512, 512), code('ERR_VRING_BLK_ALIGNMENT'));
  await disk.write(0, bytesOf(65536, 1));
  assert.deepEqual(await disk.read(0, 65536), bytesOf(65536, 1));
  await toy.close();
});

test('configuration spaces that make no sense are refused', async () => {
  const wrong = (config: object) => startToyGuest({ config });
  await assert.rejects(wrong({ blkSize: 1000 }), /block size of 1000; a power of two/);
  await assert.rejects(wrong({ blkSize: 256 }), /block size of 256/);
  await assert.rejects(wrong({ capacity: 2n ** 60n }), /capacity of 1152921504606846976 sectors/);
  const small = startToyGuest({ config: { segMax: 1, blkSize: 65536 } }, { segmentBytes: 4096 });
  await assert.rejects(small, code('ERR_VRING_GUEST_REQUEST_SIZE'));
});

test('what is not offered cannot be had', async () => {
  const without = (bit: number) => ({ features: TOY_FEATURES & ~featureSet(bit) });
  const packed = startToyGuest(without(VIRTIO_F_RING_PACKED), { packed: true });
  await assert.rejects(packed, /does not offer RING_PACKED/);
  await assert.rejects(startToyGuest({}, { queues: 2 }), code('ERR_VRING_GUEST_QUEUES'));
  const noMq = startToyGuest({ ...without(VIRTIO_BLK_F_MQ), queues: 2 }, { queues: 2 });
  await assert.rejects(noMq, /does not offer MQ/);
  assert.throws(() => parseBlkFeatures('+magic', '--features'), /"magic" is none of version_1, /);
  const toy = await startToyGuest(without(VIRTIO_BLK_F_FLUSH));
  await new BlkDisk(toy.guest).flush(); // writes through: nothing to do
  assert.equal(toy.disk.answered, 0);
  await toy.close();
});

for (const packed of [false, true]) {
  const format = packed ? 'packed' : 'split';
  test(`stop and resume, ${format}`, async () => {
    const toy = await startToyGuest({ holds: 4 }, { packed, ringSize: 16, requestBytes: 4096 });
    const disk = new BlkDisk(toy.guest);
    for (let i = 0; i < 5; i++) {
      const writing = disk.write(0, bytesOf(400_384, i));
      await new Promise((resolve) => setTimeout(resolve, 2));
      await toy.guest.stop();
      assert.equal(toy.guest.outstanding, 0, 'what was under way was finished');
      await toy.guest.resume();
      await writing;
      assert.deepEqual(toy.disk.bytes.subarray(0, 400_384), bytesOf(400_384, i));
    }
    await toy.close();
  });

  for (const inflight of [false, true]) {
    const how = inflight ? 'with an inflight region' : 'without an inflight region';
    test(`a disk that is killed and comes back, ${format}, ${how}`, async () => {
      const options = { packed, queues: 2, ringSize: 16, requestBytes: 4096 };
      const toy = await startToyGuest({ holds: 6, queues: 2, inflight }, options, true);
      assert.equal(toy.guest.hasInflight, inflight);
      const disk = new BlkDisk(toy.guest);
      for (let i = 1; i <= 10; i++) {
        const writing = disk.write(0, bytesOf(300_032, i));
        await new Promise((resolve) => setTimeout(resolve, i % 4));
        toy.kill();
        await writing;
        assert.deepEqual(await disk.read(0, 300_032), bytesOf(300_032, i));
        assert.equal(toy.guest.reconnects, i);
      }
      assert.equal(toy.guest.failure, null);
      await toy.close();
    });
  }
}

test('a disk that goes away ends the guest, and what waits for it', async () => {
  const toy = await startToyGuest({ holds: 8 });
  const waiting = toy.guest.requests.send({ type: VIRTIO_BLK_T_IN, sector: 0, readBytes: 512 });
  toy.kill();
  await assert.rejects(waiting, code('ERR_VRING_GUEST_BACKEND_GONE'));
  assert.ok(code('ERR_VRING_GUEST_BACKEND_GONE')(await toy.guest.closed));
  const late = toy.guest.requests.send({ type: VIRTIO_BLK_T_IN, sector: 0, readBytes: 512 });
  await assert.rejects(late, code('ERR_VRING_GUEST_BACKEND_GONE'));
  await toy.close();
});

test('a disk that leaves the status unwritten broke virtio', async () => {
  const toy = await startToyGuest({ onRequest: () => 0xff });
  const read = toy.guest.requests.send({ type: VIRTIO_BLK_T_IN, sector: 0, readBytes: 512 });
  await assert.rejects(read, code('ERR_VRING_GUEST_DEVICE_HEADER'));
  await toy.close();
});

test('a disk that answers what was not asked broke virtio', async () => {
  const toy = await startToyGuest({ sabotage: (_queue, chain) => (chain.head[0] = 77) });
  const read = toy.guest.requests.send({ type: VIRTIO_BLK_T_IN, sector: 0, readBytes: 512 });
  await assert.rejects(read, code('ERR_VRING_GUEST_USED_ID'));
  await toy.close();
});

test('wrong lengths are counted', async () => {
  const toy = await startToyGuest({ sabotage: (_queue, chain) => (chain.written[0] = 1) });
  await toy.guest.requests.send({ type: VIRTIO_BLK_T_IN, sector: 0, readBytes: 512 });
  assert.equal(toy.guest.queues[0]!.wrongLengths, 1);
  await toy.close();
});

test('an error of the device is an answer, and nothing else is hurt', async () => {
  const onRequest = ({ sector }: { sector: number }) => (sector === 8 ? VIRTIO_BLK_S_IOERR : null);
  const toy = await startToyGuest({ onRequest });
  const sectors = [0, 8, 16];
  const answers = await Promise.all(
    sectors.map((sector) =>
      toy.guest.requests.send({ type: VIRTIO_BLK_T_IN, sector, readBytes: 512 }),
    ),
  );
  assert.deepEqual(
    answers.map(({ status }) => status),
    [0, VIRTIO_BLK_S_IOERR, 0],
  );
  await toy.close();
});

test('a resized disk', async () => {
  const config = {};
  const toy = await startToyGuest({ config });
  Object.assign(config, { capacity: 4096n });
  assert.equal((await toy.guest.refreshConfig()).capacityBytes, 4096 * 512);
  await toy.close();
});

test('no descriptor stays open', async () => {
  const before = openFdCount();
  for (const packed of [false, true]) {
    const toy = await startToyGuest({ inflight: true }, { packed });
    await new BlkDisk(toy.guest).read(0, 65536);
    await toy.close();
  }
  await assert.rejects(startToyGuest({}, { queues: 3 }));
  assert.ok(openFdCount() <= before);
});
