/**
 * vhost-vDPA against the kernel's block simulator, directly and behind a shadow ring: requests of
 * every kind, what is out of range, and going on after a stop.
 *
 * @test-host memory=1024
 */
import { deepEqual, equal, ok } from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { VhostBackend } from '../../src/base/vhost-backend.ts';
import { DirtyPages } from '../../src/guest/dirty-pages.ts';
import { ShadowBackend } from '../../src/runtime/index.ts';
import { VhostVdpaBackend } from '../../src/vhost-kernel/index.ts';
import {
  BlkConfig,
  BlkRange,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from '../../src/wire/virtio-blk.ts';
import { featureSet, VIRTIO_F_VERSION_1, VIRTIO_ID_BLOCK } from '../../src/wire/virtio.ts';
import { BlkDriver } from './blk-driver.ts';
import { addVdpaDevice, deleteVdpaDevice, loadModules, vhostVdpaPath } from './inside.ts';
import { limitPinning, LOG_ALL } from './vdpa-guest.ts';

const FEATURES = featureSet(
  VIRTIO_F_VERSION_1,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_WRITE_ZEROES,
);
const CAPACITY = 0x40000n; // sectors; VDPASIM_BLK_CAPACITY
const NOTHING = new Uint8Array(0);

let path = '';

before(async () => {
  await loadModules('vdpa_sim_blk', 'vhost_vdpa');
  await limitPinning('unlimited');
  await addVdpaDevice('blk0', 'vdpasim_blk');
  path = await vhostVdpaPath('blk0');
});

after(async () => {
  await deleteVdpaDevice('blk0');
});

function pattern(bytes: number, seed: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, i) => (i * 131 + seed * 17 + (i >> 8)) & 0xff);
}

async function directly(): Promise<VhostBackend> {
  return VhostVdpaBackend.open(path);
}

async function shadowed(): Promise<VhostBackend> {
  return new ShadowBackend(await VhostVdpaBackend.open(path));
}

for (const [name, open] of [
  ['directly', directly],
  ['behind a shadow ring', shadowed],
] as const) {
  test(`what the block device says of itself, ${name}`, async () => {
    const driver = await BlkDriver.start(await open(), FEATURES);
    try {
      equal(driver.features, FEATURES);
      const config = new Uint8Array(BlkConfig.size);
      config.set(await driver.backend.getConfig(0, 60));
      const { capacity, sizeMax, segMax, blkSize } = BlkConfig.decode(config);
      deepEqual(
        { capacity, sizeMax, segMax, blkSize },
        {
          capacity: CAPACITY,
          sizeMax: 4096,
          segMax: 32,
          blkSize: 512,
        },
      );
      const id = await driver.request(VIRTIO_BLK_T_GET_ID, 0n, NOTHING, VIRTIO_BLK_ID_BYTES);
      equal(id.status, VIRTIO_BLK_S_OK);
      equal(Buffer.from(id.data).toString('latin1').replaceAll('\0', ''), 'vdpa_blk_sim');
    } finally {
      await driver.close();
    }
  });

  test(`what is written is read, ${name}`, async () => {
    const driver = await BlkDriver.start(await open(), FEATURES);
    try {
      const places = [0n, 8n, 1000n, CAPACITY - 8n];
      for (const [i, sector] of places.entries()) {
        const write = await driver.request(VIRTIO_BLK_T_OUT, sector, pattern(4096, i), 0);
        deepEqual([write.status, write.written], [VIRTIO_BLK_S_OK, 1]);
      }
      equal((await driver.request(VIRTIO_BLK_T_FLUSH, 0n, NOTHING, 0)).status, VIRTIO_BLK_S_OK);
      for (const [i, sector] of places.entries()) {
        const read = await driver.request(VIRTIO_BLK_T_IN, sector, NOTHING, 4096);
        deepEqual([read.status, read.written], [VIRTIO_BLK_S_OK, 4097]);
        deepEqual(Buffer.from(read.data), Buffer.from(pattern(4096, i)), `sector ${sector}`);
      }
      const zeroes = BlkRange.encode({ sector: 1002n, numSectors: 2, flags: 0 });
      equal(
        (await driver.request(VIRTIO_BLK_T_WRITE_ZEROES, 0n, zeroes, 0)).status,
        VIRTIO_BLK_S_OK,
      );
      const expected = pattern(4096, 2).fill(0, 1024, 2048);
      const read = await driver.request(VIRTIO_BLK_T_IN, 1000n, NOTHING, 4096);
      deepEqual(Buffer.from(read.data), Buffer.from(expected));
      const discard = BlkRange.encode({ sector: 0n, numSectors: 8, flags: 0 });
      equal((await driver.request(VIRTIO_BLK_T_DISCARD, 0n, discard, 0)).status, VIRTIO_BLK_S_OK);
      ok(driver.calls > 0, 'answers are called');
    } finally {
      await driver.close();
    }
  });

  test(`what is out of range, or unknown, is refused by the device, ${name}`, async () => {
    const driver = await BlkDriver.start(await open(), FEATURES);
    try {
      for (const [type, sector, bytes] of [
        [VIRTIO_BLK_T_IN, CAPACITY, 512],
        [VIRTIO_BLK_T_IN, CAPACITY - 1n, 1024],
        [VIRTIO_BLK_T_IN, 2n ** 63n, 512],
        [77, 0n, 512],
      ] as const) {
        const answer = await driver.request(type, sector, NOTHING, bytes);
        equal(answer.status, VIRTIO_BLK_S_IOERR, `type ${type} at ${sector}`);
      }
      const write = await driver.request(VIRTIO_BLK_T_OUT, CAPACITY, pattern(512, 1), 0);
      equal(write.status, VIRTIO_BLK_S_IOERR);
      equal((await driver.request(VIRTIO_BLK_T_FLUSH, 0n, NOTHING, 0)).status, VIRTIO_BLK_S_OK);
    } finally {
      await driver.close();
    }
  });

  test(`a stopped ring goes on where it was, ${name}`, async () => {
    const driver = await BlkDriver.start(await open(), FEATURES);
    const { backend } = driver;
    try {
      for (let round = 0; round < 3; round++) {
        const data = pattern(512, round);
        await driver.request(VIRTIO_BLK_T_OUT, 5n, data, 0);
        const base = await backend.getVringBase(0);
        equal(base, 2 * round + 1);
        await driver.introduce();
        await driver.startRing(base);
        const read = await driver.request(VIRTIO_BLK_T_IN, 5n, NOTHING, 512);
        deepEqual(Buffer.from(read.data), Buffer.from(data));
      }
    } finally {
      await driver.close();
    }
  });
}

test('the page of a status byte is marked, also behind what was not written', async () => {
  const driver = await BlkDriver.start(await shadowed(), FEATURES);
  const { backend, memory } = driver;
  const log = new DirtyPages(memory);
  try {
    await backend.dirtyLog!.setLogBase(log.fd.number, log.sizeBytes);
    await backend.setFeatures(driver.features | LOG_ALL);
    await backend.setVringAddr(0, driver.addresses, driver.usedGpa);
    log.take();
    // The simulator skips the data and says that it wrote one byte: the status, behind them.
    const answer = await driver.request(VIRTIO_BLK_T_IN, CAPACITY, NOTHING, 4096);
    deepEqual([answer.status, answer.written], [VIRTIO_BLK_S_IOERR, 1]);
    const marked = log.take();
    ok(marked.includes(driver.statusPage), `pages ${marked} are marked`);
    const read = await driver.request(VIRTIO_BLK_T_IN, 0n, NOTHING, 8192);
    equal(read.status, VIRTIO_BLK_S_OK);
    deepEqual(log.take(), [0, driver.statusPage, 16, 17], 'used ring, status, two pages of data');
  } finally {
    log.close();
    await driver.close();
  }
});

test('it is a block device', async () => {
  const backend = await VhostVdpaBackend.open(path);
  equal(backend.deviceId, VIRTIO_ID_BLOCK);
  equal(await backend.getQueueNum(), 1);
  equal(backend.device.getAddressSpaceCount(), 1);
  await backend.close();
});
