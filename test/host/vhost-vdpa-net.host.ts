/**
 * vhost-vDPA against the kernel's network simulator, which sends every frame back that is for it:
 * the status machine, memory, rings, SUSPEND, address spaces, a shadow ring, and what may go wrong.
 *
 * @test-host memory=1024
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { before, test } from 'node:test';
import { parseFeatureChoice } from '../../src/guest/features.ts';
import { GuestIommu } from '../../src/guest/iommu.ts';
import { NetGuest } from '../../src/guest/net-driver.ts';
import { GuestMemory } from '../../src/memory/index.ts';
import { ShadowBackend } from '../../src/runtime/index.ts';
import { openFdCount } from '../../src/sys/index.ts';
import { VdpaDevice, VhostVdpaBackend } from '../../src/vhost-kernel/index.ts';
import { VHOST_ACCESS_RW } from '../../src/wire/vhost-kernel.ts';
import {
  hasFeature,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../../src/wire/virtio.ts';
import {
  addVdpaDevice,
  deleteVdpaDevice,
  loadModules,
  unloadModules,
  vhostVdpaPath,
  waitUntilGone,
} from './inside.ts';
import { comparingLog, limitPinning, loopFrames } from './vdpa-guest.ts';

const MAC = [0x02, 0x12, 0x34, 0x56, 0x78, 0x9a];
const MAC_TEXT = '02:12:34:56:78:9a';
const DRIVER = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;

let path = '';

before(async () => {
  await loadModules('vdpa_sim_net', 'vhost_vdpa');
  await limitPinning('unlimited');
  await addVdpaDevice('vdpa0', 'vdpasim_net', 'mac', MAC_TEXT, 'mtu', '1500');
  path = await vhostVdpaPath('vdpa0');
});

test('what the device is', async () => {
  const backend = await VhostVdpaBackend.open(path);
  try {
    equal(backend.description, `vhost-vdpa:${path}`);
    equal(backend.deviceId, 1);
    equal(await backend.getQueueNum(), 3);
    equal(backend.backendFeatures, 0x1en, 'IOTLB v2, batch, ASID, SUSPEND');
    equal(backend.restartsWhole, true, 'this kernel has no RESUME');
    const features = await backend.getFeatures();
    ok(hasFeature(features, VIRTIO_F_VERSION_1));
    ok(!hasFeature(features, VIRTIO_F_ACCESS_PLATFORM), 'acked by us, not shown');
    equal(backend.device.getMaxVringSize(), 256);
    equal(backend.device.getVringSize(0), 256, 'before 6.10: what all rings take');
    equal(backend.device.getGroupCount(), 2);
    equal(backend.device.getAddressSpaceCount(), 2);
    deepEqual(
      [0, 1, 2].map((i) => backend.device.getVringGroup(i)),
      [0, 0, 1],
    );
    deepEqual(backend.iovaRange, { first: 0n, last: 2n ** 64n - 1n });
    equal(backend.notifyArea(0), null, 'a simulator has no doorbell');
    equal(backend.iotlb, null);
    equal(backend.dirtyLog, null);
  } finally {
    await backend.close();
  }
});

test('what this kernel lacks is refused by name', async () => {
  const backend = await VhostVdpaBackend.open(path);
  try {
    for (const call of [() => backend.device.resume(), () => backend.device.getVringDescGroup(0)]) {
      await rejects(async () => call(), { code: 'ERR_VRING_KERNEL_LACKS' });
    }
    await rejects(async () => backend.device.setGroupAsid(1, 7), {
      code: 'ERR_VRING_VDPA_GROUP',
      message: /group 1 cannot be in address space 7: there are 2 groups and 2 address spaces/,
    });
    await rejects(backend.setVringNum(3, 8), { code: 'ERR_VRING_RING_INDEX' });
    await rejects(backend.setVringNum(0, 512), { code: 'ERR_VRING_RING_SIZE' });
    const addresses = { descUva: 0n, availUva: 0n, usedUva: 0n };
    await rejects(backend.setVringAddr(0, addresses, 0n), { code: 'ERR_VRING_NOT_NEGOTIATED' });
  } finally {
    await backend.close();
  }
});

test('configuration space, and status step by step', async () => {
  const backend = await VhostVdpaBackend.open(path);
  try {
    deepEqual([...(await backend.getConfig(0, 6))], MAC);
    deepEqual([...(await backend.getConfig(10, 2))], [1500 & 0xff, 1500 >> 8]);
    await rejects(backend.getConfig(4000, 6), { code: 'ERR_VRING_CONFIG_RANGE' });
    await rejects(backend.setConfig(-1, Uint8Array.of(0)), { code: 'ERR_VRING_CONFIG_RANGE' });
    const other = Uint8Array.of(2, 1, 1, 1, 1, 1);
    await backend.setConfig(0, other);
    deepEqual([...(await backend.getConfig(0, 6))], [...other]);
    await backend.setConfig(0, Uint8Array.from(MAC));

    await backend.setOwner();
    await backend.setOwner();
    equal(await backend.getStatus(), 0);
    await backend.setStatus(DRIVER);
    equal(await backend.getStatus(), DRIVER);
    const offered = await backend.getFeatures();
    await rejects(backend.setFeatures(offered | (1n << 34n)), {
      code: 'ERR_VRING_FEATURES',
      message: /does not offer: RING_PACKED/,
    });
    await backend.setFeatures(offered);
    await backend.setStatus(DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    equal(await backend.getStatus(), DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    await backend.setFeatures(offered); // the same once more
    await rejects(backend.setFeatures(1n << BigInt(VIRTIO_F_VERSION_1)), {
      code: 'ERR_VRING_FEATURES',
      message: /negotiated already; a driver that wants others resets/,
    });
    await backend.setStatus(0);
    equal(await backend.getStatus(), 0);
    await backend.setStatus(DRIVER);
    await backend.setFeatures(1n << BigInt(VIRTIO_F_VERSION_1));
  } finally {
    await backend.close();
  }
});

for (const [name, choice] of [
  ['all features', ''],
  ['without MTU', '-mtu'],
] as const) {
  test(`frames come back whole: ${name}`, async () => {
    const backend = await VhostVdpaBackend.open(path);
    const features = choice === '' ? {} : { features: parseFeatureChoice(choice, 'test') };
    const guest = await NetGuest.start(backend, features);
    try {
      equal(guest.mac, MAC_TEXT);
      await loopFrames(guest, 300);
      await loopFrames(guest, 100, MAC);
    } finally {
      await guest.close();
    }
  });
}

test('rings are suspended, and go on after a reset where they were', async () => {
  const backend = await VhostVdpaBackend.open(path);
  const guest = await NetGuest.start(backend);
  try {
    for (let round = 0; round < 3; round++) {
      await loopFrames(guest, 70);
      const bases = await guest.stop();
      deepEqual(bases, [70 * (round + 1), 70 * (round + 1)], 'receiveq and transmitq');
      await rejects(backend.setVringNum(0, 256), {
        code: 'ERR_VRING_VDPA_STOPPED',
        message: /goes on only after a reset/,
      });
      await guest.resume();
    }
    await loopFrames(guest, 70);
  } finally {
    await guest.close();
  }
});

test('memory tables are compared, told and taken back', async () => {
  const backend = await VhostVdpaBackend.open(path);
  using first = GuestMemory.create(1 << 20, { baseGpa: 0x1000_0000 });
  using second = GuestMemory.create(1 << 20, { baseGpa: 0x2000_0000 });
  using third = GuestMemory.create(1 << 20, { baseGpa: 0x1000_0000 });
  try {
    const regions = [first.backendRegion(), second.backendRegion()];
    await backend.setMemTable(regions);
    await backend.setMemTable(regions);
    await backend.setMemTable(regions.slice(1));
    await backend.setMemTable([third.backendRegion(), ...regions.slice(1)]);
    // The same place, other memory: the kernel would refuse it, were the old one not taken back.
    await backend.setMemTable(regions);
    await backend.setStatus(0); // the simulator forgets, vhost does not
    await backend.setMemTable(regions);
    const twice = [first.backendRegion(), { ...third.backendRegion(), userAddr: 0n }];
    await rejects(backend.setMemTable(twice), { code: 'ERR_VRING_MEMORY_OVERLAP' });
    await backend.setMemTable([]);
  } finally {
    await backend.close();
  }
});

test('memory that may not be pinned is refused with the remedy', async () => {
  const backend = await VhostVdpaBackend.open(path);
  using memory = GuestMemory.create(4 << 20);
  try {
    await limitPinning(1 << 20);
    await rejects(backend.setMemTable([memory.backendRegion()]), {
      code: 'ERR_VRING_VDPA_PIN',
      message: /region 0, 0x0 to 0x3fffff, cannot be pinned.*RLIMIT_MEMLOCK.*ulimit -l/s,
    });
    await limitPinning('unlimited');
    await backend.setMemTable([memory.backendRegion()]);
  } finally {
    await limitPinning('unlimited');
    await backend.close();
  }
});

/** Puts the control queue into address space 1, which has all memory or none. */
class ControlApart extends VhostVdpaBackend {
  isMapped = true;

  override async setMemTable(regions: Parameters<VhostVdpaBackend['setMemTable']>[0]) {
    await super.setMemTable(regions);
    this.device.setGroupAsid(1, 1);
    if (!this.isMapped) return;
    for (const { guestPhysAddr: iova, sizeBytes, userAddr } of regions) {
      const permissions = VHOST_ACCESS_RW;
      await this.iotlbOf(1).update({ iova, sizeBytes, userAddr, permissions });
      await this.iotlbOf(1).update({ iova, sizeBytes, userAddr, permissions }); // replaced
    }
  }
}

test('the control queue works in an address space of its own', async () => {
  const backend = new ControlApart(VdpaDevice.open(path));
  const guest = await NetGuest.start(backend, { features: parseFeatureChoice('+ctrl_vq', 'test') });
  try {
    await guest.control!.setMac('02:aa:bb:cc:dd:ee');
    deepEqual([...(await backend.getConfig(0, 6))], [0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee]);
    await guest.control!.setMac(MAC_TEXT);
    await loopFrames(guest, 50);
  } finally {
    await guest.close();
  }
});

test('an address space without memory answers nothing', async () => {
  const backend = new ControlApart(VdpaDevice.open(path));
  backend.isMapped = false;
  const guest = await NetGuest.start(backend, { features: parseFeatureChoice('+ctrl_vq', 'test') });
  try {
    const asked = guest.control!.setMac('02:aa:bb:cc:dd:ee').then(
      () => 'answered',
      () => 'refused',
    );
    const waited = new Promise((resolve) => setTimeout(() => resolve('silent'), 500));
    equal(await Promise.race([asked, waited]), 'silent');
    await loopFrames(guest, 20);
    deepEqual([...(await backend.getConfig(0, 6))], MAC);
  } finally {
    await guest.close();
  }
});

/** Tells what the guest's IOMMU has, when the memory is known. */
class Behind extends VhostVdpaBackend {
  override async setMemTable(regions: Parameters<VhostVdpaBackend['setMemTable']>[0]) {
    await super.setMemTable(regions);
    for (const { guestPhysAddr, sizeBytes, userAddr } of regions) {
      const iova = guestPhysAddr + 0x10_0000_0000n; // as GuestIommu('offset')
      await this.iotlb!.update({ iova, sizeBytes, userAddr, permissions: VHOST_ACCESS_RW });
    }
  }
}

test('a driver with an IOMMU of its own tells its translations', async () => {
  const backend = new Behind(VdpaDevice.open(path), { iommu: true });
  equal(backend.iotlb?.asks, false);
  ok(hasFeature(await backend.getFeatures(), VIRTIO_F_ACCESS_PLATFORM));
  const guest = await NetGuest.start(backend, {}, { addressSpace: new GuestIommu('offset') });
  try {
    ok(hasFeature(guest.features, VIRTIO_F_ACCESS_PLATFORM));
    await loopFrames(guest, 100);
  } finally {
    await guest.close();
  }
});

test('a shadow ring marks every page that the simulator wrote', async () => {
  const backend = await VhostVdpaBackend.open(path);
  const shadow = new ShadowBackend(backend);
  const guest = await NetGuest.start(shadow);
  try {
    ok(!hasFeature(await shadow.getFeatures(), VIRTIO_F_RING_PACKED));
    const marked = await comparingLog(guest, shadow, () => loopFrames(guest, 200));
    ok(marked > 50, `${marked} pages are marked`);
    await loopFrames(guest, 100);

    deepEqual(await guest.stop(), [300, 300]);
    await guest.resume();
    await loopFrames(guest, 100);

    // The guest's rings, from the shadow to the device itself, while they stand still.
    deepEqual(await guest.stop(), [400, 400]);
  } finally {
    await guest.close();
  }
});

test('a second opener is told that the device has a user', async () => {
  const backend = await VhostVdpaBackend.open(path);
  await rejects(VhostVdpaBackend.open(path), {
    code: 'ERR_VRING_DEVICE_BUSY',
    message: /in use by another process/,
  });
  await rejects(unloadModules('vhost_vdpa'), /in use/);
  await backend.close();
  await backend.close();
  await (await VhostVdpaBackend.open(path)).close();
});

test('closing leaves nothing open', async () => {
  await (await VhostVdpaBackend.open(path)).close(); // the event loop's own inotify stays
  const before = openFdCount();
  for (let i = 0; i < 3; i++) {
    const guest = await NetGuest.start(await VhostVdpaBackend.open(path));
    await loopFrames(guest, 10);
    await guest.close();
  }
  equal(openFdCount(), before);
});

test('a device that is deleted under its user is let go of', async () => {
  await addVdpaDevice('vdpa1', 'vdpasim_net');
  const node = await vhostVdpaPath('vdpa1');
  const backend = await VhostVdpaBackend.open(node, { onConfigChange: () => {} });
  const guest = await NetGuest.start(backend);
  await loopFrames(guest, 10);
  await deleteVdpaDevice('vdpa1'); // waits in the kernel until we have closed
  const reason = await backend.closed;
  equal((reason as { code?: string }).code, 'ERR_VRING_DEVICE_GONE');
  match(String(reason), /the device was deleted/);
  await rejects(backend.getStatus(), { code: 'ERR_VRING_CLOSED' });
  await rejects(backend.setVringNum(0, 8), { code: 'ERR_VRING_CLOSED' });
  await guest.close();
  await waitUntilGone(node);
  await rejects(VhostVdpaBackend.open(node), {
    code: 'ERR_VRING_DEVICE_MISSING',
    message: /modprobe vhost_vdpa.*vdpa dev add/s,
  });
});

test('so is one whose module is taken out', async () => {
  const backend = await VhostVdpaBackend.open(path);
  await unloadModules('vdpa_sim_net'); // which deletes its devices
  equal(((await backend.closed) as { code?: string }).code, 'ERR_VRING_DEVICE_GONE');
});
