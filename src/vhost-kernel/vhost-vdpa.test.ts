/**
 * The order in which a vDPA device is told things, without a device: what the kernel would see. The
 * device's own answers are in test/host/vhost-vdpa-*.host.ts.
 */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { GuestMemory } from '../memory/index.ts';
import { arena, createEventfd, drainEventfd, openFdCount, signalEventfd } from '../sys/index.ts';
import { VHOST_ACCESS_RW } from '../wire/vhost-kernel.ts';
import {
  featureSet,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../wire/virtio.ts';
import { FakeVdpa, type FakeVdpaOptions } from './testing/fake-vdpa.ts';
import { VdpaDevice } from './vdpa-device.ts';
import { VhostDevice } from './vhost-device.ts';
import { VhostVdpaBackend, type VhostVdpaOptions } from './vhost-vdpa.ts';

const DRIVER = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
const RUNNING = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

const VERSION_1 = featureSet(VIRTIO_F_VERSION_1);
const FEATURES = VERSION_1 | featureSet(VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED);
/** Without SUSPEND; SUSPEND; SUSPEND and RESUME: see VHOST_BACKEND_F_*. */
const PLAIN = 0xen;
const SUSPEND = 0x1en;
const RESUME = 0x3en;

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).toReversed()) await one.close();
});

function backendOn(options: FakeVdpaOptions = {}, ours: VhostVdpaOptions = {}) {
  const kernel = new FakeVdpa({ features: FEATURES, ...options });
  const backend = new VhostVdpaBackend(new VdpaDevice(new VhostDevice(kernel)), ours);
  open.push(backend);
  kernel.take();
  return { kernel, backend };
}

function memoryAt(baseGpa: number, sizeBytes = 0x10000): GuestMemory {
  const memory = GuestMemory.create(sizeBytes, { baseGpa });
  open.push(memory);
  return memory;
}

function eventfd() {
  const fd = createEventfd('test');
  open.push(fd);
  return fd;
}

async function introduce(backend: VhostVdpaBackend, memory: GuestMemory, features = VERSION_1) {
  await backend.setStatus(DRIVER);
  await backend.setFeatures(features);
  await backend.setStatus(FEATURES_OK);
  await backend.setMemTable([memory.backendRegion()]);
}

async function handOver(
  backend: VhostVdpaBackend,
  index: number,
  memory: GuestMemory,
  base = 0,
): Promise<{ kick: number; call: number }> {
  const fds = { kick: eventfd().number, call: eventfd().number };
  const at = BigInt(memory.baseUva + 0x1000 * index);
  await backend.setVringNum(index, 64);
  await backend.setVringBase(index, base);
  const addresses = { descUva: at, availUva: at + 0x400n, usedUva: at + 0x600n };
  await backend.setVringAddr(index, addresses);
  await backend.setVringEnable(index, true);
  await backend.setVringKick(index, fds.kick);
  await backend.setVringCall(index, fds.call);
  return fds;
}

test('a driver is introduced: platform bit, memory, rings ready before DRIVER_OK, kicks after', async () => {
  const { kernel, backend } = backendOn();
  assert.equal(await backend.getFeatures(), FEATURES & ~featureSet(VIRTIO_F_ACCESS_PLATFORM));
  const memory = memoryAt(0x4000_0000);
  await introduce(backend, memory);
  assert.deepEqual(kernel.take(), [
    'SET_STATUS 0x3',
    'SET_FEATURES 0x300000000',
    'SET_STATUS 0xb',
    'batch',
    'map 0x40000000 +0x10000',
    'end',
  ]);
  await handOver(backend, 0, memory);
  await handOver(backend, 1, memory, 7);
  assert.deepEqual(kernel.take(), [
    'SET_VRING_NUM 0 64',
    'SET_VRING_BASE 0 0',
    'SET_VRING_ADDR 0 0x40000000',
    'SET_VRING_CALL 0 fd',
    'SET_VRING_NUM 1 64',
    'SET_VRING_BASE 1 7',
    'SET_VRING_ADDR 1 0x40001000',
    'SET_VRING_CALL 1 fd',
  ]);
  await backend.setStatus(RUNNING);
  assert.deepEqual(kernel.take(), [
    'SET_VRING_ENABLE 0 1',
    'SET_VRING_ENABLE 1 1',
    'SET_STATUS 0xf',
    'SET_VRING_KICK 0 fd',
    'SET_VRING_KICK 1 fd',
  ]);
  await handOver(backend, 2, memory);
  assert.deepEqual(kernel.take().slice(3), [
    'SET_VRING_ENABLE 2 1',
    'SET_VRING_KICK 2 fd',
    'SET_VRING_CALL 2 fd',
  ]);
});

test('a table is compared with the one before', async () => {
  const { kernel, backend } = backendOn();
  const first = memoryAt(0x1000_0000);
  const second = memoryAt(0x2000_0000);
  const third = memoryAt(0x1000_0000);
  const set = async (...memories: GuestMemory[]): Promise<string[]> => {
    await backend.setMemTable(memories.map((memory) => memory.backendRegion()));
    return kernel.take();
  };
  const [one, two] = ['0x10000000 +0x10000', '0x20000000 +0x10000'];
  assert.deepEqual(await set(first), ['batch', `map ${one}`, 'end']);
  assert.deepEqual(await set(first, second), ['batch', `map ${two}`, 'end']);
  assert.deepEqual(await set(second, first), [], 'the order is nothing');
  assert.deepEqual(await set(second), ['batch', `unmap ${one}`, 'end']);
  assert.deepEqual(await set(second, first), ['batch', `map ${one}`, 'end']);
  const swapped = ['batch', `unmap ${one}`, `map ${one}`, 'end'];
  assert.deepEqual(await set(second, third), swapped, 'another file at its place');
  await backend.setStatus(0);
  assert.deepEqual(kernel.take(), ['SET_STATUS 0x0', `unmap ${two}`, `unmap ${one}`]);
  assert.deepEqual(await set(second), ['batch', `map ${two}`, 'end'], 'told anew');
});

test('regions beyond what the device can address are refused by name, and nothing is told', async () => {
  const { kernel, backend } = backendOn({ iovaLast: 0x3fff_ffffn });
  const memory = memoryAt(0x3fff_8000);
  await assert.rejects(backend.setMemTable([memory.backendRegion()]), {
    code: 'ERR_VRING_VDPA_IOVA',
    message: /region 0, 0x3fff8000 to 0x40007fff, is not within .* 0x0 to 0x3fffffff/,
  });
  assert.deepEqual(kernel.take(), []);
});

test('SUSPEND stops all rings, and what stopped goes on after a reset only', async () => {
  const { kernel, backend } = backendOn({ backendFeatures: SUSPEND });
  assert.equal(backend.restartsWhole, true);
  const memory = memoryAt(0x4000_0000);
  await introduce(backend, memory);
  await handOver(backend, 0, memory);
  await handOver(backend, 1, memory);
  await backend.setStatus(RUNNING);
  kernel.take();
  kernel.bases.set(0, 11).set(1, 12);
  assert.deepEqual([await backend.getVringBase(1), await backend.getVringBase(0)], [12, 11]);
  await backend.setVringEnable(1, false);
  assert.deepEqual(kernel.take(), ['SUSPEND', 'GET_VRING_BASE 0', 'GET_VRING_BASE 1']);
  await assert.rejects(backend.setVringNum(0, 64), { code: 'ERR_VRING_VDPA_STOPPED' });
  await assert.rejects(backend.setVringBase(0, 11), { code: 'ERR_VRING_VDPA_STOPPED' });
  await backend.setStatus(DRIVER); // whoever begins anew
  assert.deepEqual(kernel.take(), [
    'SET_STATUS 0x0',
    'unmap 0x40000000 +0x10000',
    'SET_STATUS 0x3',
  ]);
});

test('with RESUME a device goes on as it stands once all its rings are wanted again', async () => {
  const { kernel, backend } = backendOn({ backendFeatures: RESUME });
  assert.equal(backend.restartsWhole, false);
  const memory = memoryAt(0x4000_0000);
  await introduce(backend, memory);
  await handOver(backend, 0, memory);
  await handOver(backend, 1, memory);
  await backend.setStatus(RUNNING);
  kernel.bases.set(0, 11).set(1, 12);
  for (const index of [0, 1]) {
    await backend.getVringBase(index);
    await backend.setVringEnable(index, false);
  }
  kernel.take();
  const at = BigInt(memory.baseUva);
  await assert.rejects(backend.setVringBase(0, 5), { code: 'ERR_VRING_VDPA_STOPPED' });
  await assert.rejects(backend.setVringNum(0, 32), { code: 'ERR_VRING_VDPA_STOPPED' });
  const elsewhere = { descUva: at + 0x1000n, availUva: at, usedUva: at };
  await assert.rejects(backend.setVringAddr(0, elsewhere), { code: 'ERR_VRING_VDPA_STOPPED' });
  await handOver(backend, 0, memory, 11);
  assert.deepEqual(kernel.take(), ['SET_VRING_CALL 0 fd'], 'one of two');
  const { kick } = await handOver(backend, 1, memory, 12);
  assert.deepEqual(kernel.take(), [
    'RESUME',
    'SET_VRING_KICK 0 fd',
    'SET_VRING_KICK 1 fd',
    'SET_VRING_KICK 1 fd',
    'SET_VRING_CALL 1 fd',
  ]);
  assert.ok(drainEventfd(kick) >= 0);
  assert.equal(await backend.getVringBase(0), 11, 'and stops again');
});

test('a device without SUSPEND is reset, and a split ring stands at its used index', async () => {
  const { kernel, backend } = backendOn({ backendFeatures: PLAIN });
  const memory = memoryAt(0x4000_0000);
  await introduce(backend, memory);
  await handOver(backend, 0, memory);
  await backend.setStatus(RUNNING);
  arena().view.setUint16(memory.offset + 0x600 + 2, 777, true);
  kernel.take();
  assert.equal(await backend.getVringBase(0), 777);
  assert.deepEqual(kernel.take(), ['SET_STATUS 0x0', 'unmap 0x40000000 +0x10000']);
  assert.equal(await backend.getVringBase(0), 777);
  assert.deepEqual(kernel.take(), []);
  await introduce(backend, memory);
  await handOver(backend, 0, memory, 777);
  await backend.setStatus(RUNNING);
});

test('where a packed ring stood after a reset nobody knows', async () => {
  const { backend } = backendOn({ backendFeatures: PLAIN });
  const memory = memoryAt(0x4000_0000);
  await introduce(backend, memory, VERSION_1 | featureSet(VIRTIO_F_RING_PACKED));
  await handOver(backend, 0, memory);
  await backend.setStatus(RUNNING);
  await assert.rejects(backend.getVringBase(0), {
    code: 'ERR_VRING_RING_STATE',
    message: /stopped by a reset.*ShadowBackend/,
  });
  assert.equal(await backend.getStatus(), 0);
});

test('features: what is not offered, what is not taken, what is settled', async () => {
  const { backend } = backendOn({ isPicky: true });
  await backend.setStatus(DRIVER);
  await assert.rejects(backend.setFeatures(VERSION_1 | 1n), { code: 'ERR_VRING_FEATURES' });
  await backend.setFeatures(VERSION_1);
  await assert.rejects(backend.setStatus(FEATURES_OK), {
    code: 'ERR_VRING_FEATURES',
    message: /FEATURES_OK does not stay set/,
  });
  const busy = backendOn({ refuses: { SET_FEATURES: 'EBUSY' } }).backend;
  await assert.rejects(busy.setFeatures(VERSION_1), { message: /resets the device first/ });
  const invalid = backendOn({ refuses: { SET_FEATURES: 'EINVAL' } }).backend;
  await assert.rejects(invalid.setFeatures(VERSION_1), { message: /does not take together/ });
});

test('a driver with an IOMMU tells its translations, and rings lie at I/O addresses', async () => {
  const { kernel, backend } = backendOn({ backendFeatures: PLAIN }, { iommu: true });
  const memory = memoryAt(0x4000_0000);
  const platform = featureSet(VIRTIO_F_ACCESS_PLATFORM);
  assert.equal(await backend.getFeatures(), FEATURES);
  await introduce(backend, memory, VERSION_1 | platform);
  assert.deepEqual(kernel.take().slice(3), [], 'the table alone tells the device nothing');
  const mapping = {
    iova: 0x9_0000_0000n,
    sizeBytes: 0x10000n,
    userAddr: BigInt(memory.baseUva),
    permissions: VHOST_ACCESS_RW,
  };
  await backend.iotlb!.update(mapping);
  assert.deepEqual(kernel.take(), ['map 0x900000000 +0x10000']);
  await backend.setVringNum(0, 64);
  const at = 0x9_0000_0000n;
  await backend.setVringAddr(0, { descUva: at, availUva: at + 0x400n, usedUva: at + 0x600n });
  await backend.setVringEnable(0, true);
  assert.deepEqual(kernel.take(), ['SET_VRING_NUM 0 64', 'SET_VRING_ADDR 0 0x900000000']);
  await backend.setStatus(RUNNING);
  arena().view.setUint16(memory.offset + 0x602, 3, true);
  kernel.take();
  assert.equal(await backend.getVringBase(0), 3, 'found by its translation');
  assert.deepEqual(kernel.take(), ['SET_STATUS 0x0', 'unmap 0x0 +0xffffffffffffffff']);
  await backend.iotlb!.invalidate(0n, 0x1000n);
  assert.deepEqual(kernel.take(), [], 'nothing is known, nothing is taken back');
  const beyond = { ...mapping, iova: 2n ** 48n };
  await assert.rejects(backend.iotlb!.update(beyond), { code: 'ERR_VRING_VDPA_IOVA' });
  const nowhere = { ...mapping, userAddr: 0x1000n };
  await assert.rejects(backend.iotlb!.update(nowhere), { code: 'ERR_VRING_MEMORY_ADDRESS' });
});

test('other address spaces are told apart', async () => {
  const { kernel, backend } = backendOn();
  const memory = memoryAt(0x4000_0000);
  await backend.setMemTable([memory.backendRegion()]);
  backend.device.setGroupAsid(1, 1);
  kernel.take();
  const userAddr = BigInt(memory.baseUva) + 0x1000n;
  const mapping = { iova: 0x1000n, sizeBytes: 0x1000n, userAddr, permissions: VHOST_ACCESS_RW };
  await backend.iotlbOf(1).update(mapping);
  await backend.setStatus(0);
  assert.deepEqual(kernel.take(), [
    'map 0x1000 +0x1000 in 1',
    'SET_STATUS 0x0',
    'unmap 0x40000000 +0x10000',
    'unmap 0x0 +0xffffffffffffffff in 1',
  ]);
});

test('what a kernel or a device lacks is refused by name', async () => {
  const { backend } = backendOn({
    backendFeatures: PLAIN,
    refuses: { GET_VRING_GROUP: 'ENOTSUP' },
  });
  for (const call of [
    () => backend.device.suspend(),
    () => backend.device.resume(),
    () => backend.device.getVringDescGroup(0),
  ]) {
    assert.throws(call, { code: 'ERR_VRING_KERNEL_LACKS', message: /Linux 6\.\d+ or newer/ });
  }
  await assert.rejects(backend.setVringNum(0, 512), { code: 'ERR_VRING_RING_SIZE' });
  await assert.rejects(backend.setVringNum(3, 64), { code: 'ERR_VRING_RING_INDEX' });
  await assert.rejects(backend.getConfig(8, 8), {
    code: 'ERR_VRING_CONFIG_RANGE',
    message: /8 bytes at 8 .* of 12 bytes/,
  });
  assert.equal((await backend.getConfig(0, 12)).length, 12);
  const fixed = backendOn({ refuses: { SET_VRING_BASE: 'ENOTSUP' } }).backend;
  await assert.rejects(fixed.setVringBase(0, 9), {
    code: 'ERR_VRING_DEVICE_LACKS',
    message: /base 0x9.*begins every ring at its start/,
  });
});

test('a change of the configuration, and a device that wants a reset, are told', async () => {
  const told: string[] = [];
  const { kernel } = backendOn(
    {},
    { onConfigChange: () => told.push('changed'), onNeedsReset: () => told.push('broken') },
  );
  const next = async (what: string): Promise<void> => {
    const count = told.length;
    signalEventfd(kernel.configCall);
    while (told.length === count) await new Promise((resolve) => setTimeout(resolve, 1));
    assert.equal(told.at(-1), what);
  };
  await next('changed');
  await next('changed');
  kernel.status = RUNNING | VIRTIO_CONFIG_S_NEEDS_RESET;
  await next('broken');
  assert.equal(backendOn().kernel.configCall, -1, 'nobody listens, nothing is asked for');
});

test('a missing node says how to get one', async () => {
  await assert.rejects(VhostVdpaBackend.open('/dev/vhost-vdpa-4711'), {
    code: 'ERR_VRING_DEVICE_MISSING',
    message: /does not exist; load vhost_vdpa.*vdpa dev add/,
  });
});

test('closing resets, leaves nothing open, and is final', async () => {
  const before = openFdCount();
  const kernel = new FakeVdpa({ features: FEATURES });
  const backend = new VhostVdpaBackend(new VdpaDevice(new VhostDevice(kernel)));
  const memory = GuestMemory.create(0x10000, { baseGpa: 0x4000_0000 });
  const fd = createEventfd('kick');
  await introduce(backend, memory);
  await backend.setVringKick(0, fd.number);
  kernel.take();
  const last = kernel.status;
  await backend.close();
  await backend.close();
  assert.equal(await backend.closed, null);
  assert.equal(last, FEATURES_OK);
  assert.equal(kernel.status, 0);
  fd.close();
  memory.close();
  assert.equal(openFdCount(), before);
  await assert.rejects(backend.getStatus(), { code: 'ERR_VRING_CLOSED' });
});
