/** SECURE_ERASE and LIFETIME: 5.2.6.2. QEMU 7.2 drives neither, Linux 6.1 the first. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createMemoryImage, type EngineSpec, openEngine } from '../../storage/index.ts';
import * as blk from '../../wire/virtio-blk.ts';
import { hasFeature } from '../../wire/virtio.ts';
import { BlkDevice, type BlkDeviceOptions } from './blk-device.ts';
import { DiskFixture } from './disk-fixture.ts';
import { LateEngine } from '../disk/late-engine.ts';

const SECTORS = 2048;
const { OK, IOERR, UNSUPP } = {
  OK: blk.VIRTIO_BLK_S_OK,
  IOERR: blk.VIRTIO_BLK_S_IOERR,
  UNSUPP: blk.VIRTIO_BLK_S_UNSUPP,
};

function fixture(device: Partial<BlkDeviceOptions>, readOnly = false): DiskFixture {
  return new DiskFixture({ image: createMemoryImage(SECTORS * 512, readOnly), device });
}

function range(sector: number, numSectors: number, flags = 0): Uint8Array {
  return blk.BlkRange.encode({ sector: BigInt(sector), numSectors, flags });
}

const erase = (f: DiskFixture, bytes: Uint8Array): number =>
  f.request(blk.VIRTIO_BLK_T_SECURE_ERASE, 0n, bytes, 0).status;

test('what is erased reads as zeros, its neighbours stay', () => {
  const f = fixture({ secureErase: true });
  assert.ok(hasFeature(f.device.features, blk.VIRTIO_BLK_F_SECURE_ERASE));
  const config = blk.BlkConfig.decode(f.device.readConfig(0, blk.BlkConfig.size)!);
  assert.deepEqual([config.maxSecureEraseSectors, config.maxSecureEraseSeg], [65536, 16]);
  f.request(blk.VIRTIO_BLK_T_OUT, 0n, new Uint8Array(512 * 16).fill(5), 0);
  const two = Buffer.concat([range(2, 3), range(8, 1)]);
  assert.equal(erase(f, two), OK);
  const { data } = f.request(blk.VIRTIO_BLK_T_IN, 0n, new Uint8Array(0), 512 * 16);
  const zeros = Array.from(
    { length: 16 },
    (_, s) => data[s * 512] === 0 && data[s * 512 + 511] === 0,
  );
  assert.deepEqual(
    zeros.flatMap((isZero, s) => (isZero ? [s] : [])),
    [2, 3, 4, 8],
  );
  f.close();
});

test('an erase that is wrong is refused, and nothing is done', () => {
  const f = fixture({ secureErase: true });
  f.request(blk.VIRTIO_BLK_T_OUT, 0n, new Uint8Array(512).fill(5), 0);
  assert.equal(erase(f, range(0, 1, 1)), UNSUPP, 'a flag');
  assert.equal(erase(f, Buffer.concat([range(0, 1), range(SECTORS, 1)])), IOERR, 'beyond the end');
  assert.equal(erase(f, range(0, 65537)), IOERR, 'over the limit');
  assert.equal(erase(f, new Uint8Array(15)), IOERR, 'half a range');
  assert.equal(f.request(blk.VIRTIO_BLK_T_IN, 0n, new Uint8Array(0), 512).data[0], 5);
  f.close();
});

test('where it was not offered it is not supported; a read-only disk does not offer it', () => {
  const f = fixture({});
  assert.equal(hasFeature(f.device.features, blk.VIRTIO_BLK_F_SECURE_ERASE), false);
  assert.equal(erase(f, range(0, 1)), UNSUPP);
  f.close();
  const readOnly = fixture({ secureErase: true, readOnly: true }, true);
  assert.equal(hasFeature(readOnly.device.features, blk.VIRTIO_BLK_F_SECURE_ERASE), false);
  readOnly.close();
});

test('an engine that cannot erase is not taken for one that has', () => {
  const engines: LateEngine[] = [];
  const open = (spec: EngineSpec): LateEngine => {
    engines.push(new LateEngine(openEngine(spec), 100));
    return engines[0]!;
  };
  const image = createMemoryImage(SECTORS * 512);
  const f = new DiskFixture({ image, open, device: { secureErase: true } });
  const queue = f.queues[0]!;
  const status = queue.status();
  queue.add([queue.header(blk.VIRTIO_BLK_T_SECURE_ERASE, 0n), queue.put(range(0, 1))], [status]);
  f.poll();
  engines[0]!.finish(0, -95);
  f.plane.ready(f.watched.get(1000)!, performance.now());
  f.poll();
  assert.equal(queue.read(status.gpa, 1)[0], UNSUPP);
  f.close();
});

test('the wear of the medium is told as it was given', () => {
  const lifetime = { preEolInfo: 1, deviceLifetimeEstTypA: 3, deviceLifetimeEstTypB: 11 };
  const f = fixture({ lifetime });
  assert.ok(hasFeature(f.device.features, blk.VIRTIO_BLK_F_LIFETIME));
  const answer = f.request(blk.VIRTIO_BLK_T_GET_LIFETIME, 0n, new Uint8Array(0), 6);
  assert.equal(answer.status, OK);
  assert.deepEqual(blk.BlkLifetime.decode(answer.data), lifetime);
  f.close();
  const without = fixture({});
  const refused = without.request(blk.VIRTIO_BLK_T_GET_LIFETIME, 0n, new Uint8Array(0), 6);
  assert.equal(refused.status, UNSUPP);
  without.close();
});

test('wear that cannot be is refused by name', () => {
  const shape = { sizeBytes: 512, readOnly: false, queues: 1, blockBytes: 512, packed: true };
  const lifetime = { preEolInfo: 1, deviceLifetimeEstTypA: 12, deviceLifetimeEstTypB: 0 };
  const text = /lifetime\.deviceLifetimeEstTypA: 12 is not in 0\.\.11/;
  assert.throws(() => new BlkDevice({ ...shape, iommu: false, lifetime }), text);
});
