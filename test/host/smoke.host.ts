/**
 * Is the test host what its tests rely on: the pinned Node, a kernel with every module, device
 * nodes, Debian's programs, a tree that may be written and changes nothing outside.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { existsSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import { availableParallelism, release } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { openDeviceNode } from '../../src/sys/index.ts';
import { KernelDevice } from '../../src/vhost-kernel/kernel-device.ts';
import { VDUSE_IOCTL, VDUSE_API_VERSION, VduseDevConfig } from '../../src/wire/vduse.ts';
import { VHOST_IOCTL } from '../../src/wire/vhost-kernel.ts';
import {
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_BLOCK,
  VIRTIO_ID_NET,
} from '../../src/wire/virtio.ts';
import {
  addVdpaDevice,
  bindVdpaDevice,
  deleteVdpaDevice,
  kernelDeviceOf,
  loadModules,
  run,
  sh,
  unloadModules,
  vhostVdpaPath,
  waitForPath,
} from './inside.ts';

const ROOT = join(import.meta.dirname, '..', '..');

test('the pinned node, two processors, the kernel of Debian 12', () => {
  const pinned = realpathSync(join(ROOT, 'node_modules', '.bin', 'node'));
  equal(realpathSync(process.execPath), pinned);
  match(process.version, /^v26\./);
  match(release(), /^6\.1\..*-cloud-amd64$/);
  equal(availableParallelism(), 2);
});

/** Debian's own, and those that the machine outside built. */
const MODULES = (
  'tun tap vhost vhost_iotlb vhost_net vhost_vsock vsock_loopback virtio_pci virtio_net ' +
  'virtio_blk virtio_console veth bridge loop fuse virtiofs overlay kvm_amd ' +
  'vdpa vringh vdpa_sim vdpa_sim_net vdpa_sim_blk vduse vhost_vdpa virtio_vdpa vp_vdpa'
).split(' ');

for (const name of MODULES) {
  test(`modprobe ${name}`, async () => {
    await loadModules(name);
    ok(existsSync(`/sys/module/${name}`));
  });
}

test('a module that is not there is refused by name', async () => {
  await rejects(loadModules('no_such_module'), /Module no_such_module not found/);
});

test('a module goes and comes again', async () => {
  await loadModules('vdpa_sim_blk');
  await unloadModules('vdpa_sim_blk');
  ok(!existsSync('/sys/module/vdpa_sim_blk'));
  await loadModules('vdpa_sim_blk');
});

test('vhost-net takes an owner, and a TAP is there to join it', async () => {
  await loadModules('tun', 'vhost_net');
  using device = KernelDevice.open('/dev/vhost-net', 'modprobe vhost_net');
  device.call(VHOST_IOCTL.SET_OWNER);
  ok((device.getU64(VHOST_IOCTL.GET_FEATURES) & (1n << BigInt(VIRTIO_F_VERSION_1))) !== 0n);
  await run('ip', ['tuntap', 'add', 'tap0', 'mode', 'tap']);
  match(await run('ip', ['link', 'show', 'tap0']), /tap0/);
  await run('ip', ['link', 'del', 'tap0']);
});

test('vhost-vsock is there', async () => {
  await loadModules('vhost_vsock');
  openDeviceNode('/dev/vhost-vsock', 'modprobe vhost_vsock').close();
});

test('vDPA devices can be made by the two simulators and by VDUSE', async () => {
  await loadModules('vdpa_sim_net', 'vdpa_sim_blk', 'vduse');
  const shown = await run('vdpa', ['mgmtdev', 'show']);
  const names = [...shown.matchAll(/^(\w+):/gm)].map(([, name]) => name);
  deepEqual(names.toSorted(), ['vdpasim_blk', 'vdpasim_net', 'vduse']);
  match(shown, /vduse: \n\s+supported_classes net block/); // the change in modules.ts
});

test('a simulated card, on either bus driver', async () => {
  await loadModules('vdpa_sim_net', 'vhost_vdpa', 'virtio_vdpa', 'virtio_net');
  await addVdpaDevice('card0', 'vdpasim_net', 'mac', '52:54:00:00:20:01');
  try {
    bindVdpaDevice('card0', 'vhost_vdpa');
    openDeviceNode(await vhostVdpaPath('card0'), 'modprobe vhost_vdpa').close();
    bindVdpaDevice('card0', 'virtio_vdpa');
    const name = await kernelDeviceOf('/sys/bus/vdpa/devices/card0', 'net');
    match(await run('ip', ['link', 'show', name]), /52:54:00:00:20:01/);
  } finally {
    await deleteVdpaDevice('card0');
  }
});

for (const [what, deviceId] of [
  ['card', VIRTIO_ID_NET],
  ['disk', VIRTIO_ID_BLOCK],
] as const) {
  test(`VDUSE takes a ${what}`, async (t: TestContext) => {
    await loadModules('vduse');
    const control = KernelDevice.open('/dev/vduse/control', 'modprobe vduse');
    t.after(() => control.close());
    control.setU64(VDUSE_IOCTL.SET_API_VERSION, BigInt(VDUSE_API_VERSION));
    const name = `smoke-${what}`;
    control.exchange(VDUSE_IOCTL.CREATE_DEV, vduseConfig(name, deviceId));
    await waitForPath(`/dev/vduse/${name}`);
    control.exchange(VDUSE_IOCTL.DESTROY_DEV, nameBytes(name));
    ok(!existsSync(`/dev/vduse/${name}`));
  });
}

test("Debian's programs work: ext4 on a loop device, tcpdump, namespaces", async () => {
  await loadModules('loop', 'veth');
  await sh(`truncate -s 32M /tmp/disk
    mkfs.ext4 -q /tmp/disk
    mkdir -p /mnt/disk
    mount -o loop /tmp/disk /mnt/disk
    echo kept > /mnt/disk/file
    umount /mnt/disk
    fsck.ext4 -fn /tmp/disk`);
  equal(await run('debugfs', ['-R', 'cat file', '/tmp/disk']), 'kept\n');
  match(await run('tcpdump', ['--list-interfaces']), /lo \[Up/);
  await sh(`ip netns add ns0
    ip link add v0 type veth peer name v1 netns ns0
    ip netns exec ns0 ip link set v1 up
    ip netns del ns0`);
});

test('the tree may be written, but not the one outside', async () => {
  writeFileSync(join(ROOT, 'written'), 'x');
  writeFileSync('/etc/written', 'x');
  const mounts = readFileSync('/proc/self/mounts', 'utf8');
  match(mounts, /^root \/ overlay rw,/m);
  // Below the overlay, too: whoever reaches the share, which is mounted rw, is refused outside.
  await sh('mkdir -p /mnt/share; mount -t virtiofs vring-host /mnt/share');
  match(readFileSync('/proc/self/mounts', 'utf8'), / \/mnt\/share virtiofs rw,/);
  try {
    for (const path of ['/usr/x', '/etc/x', join(ROOT, 'x'), '/x']) {
      await rejects(sh(`touch /mnt/share${path}`), /Read-only file system/);
    }
  } finally {
    await sh('umount /mnt/share');
  }
});

function vduseConfig(name: string, deviceId: number): Uint8Array {
  const configSize = 64;
  const bytes = new Uint8Array(VduseDevConfig.size + configSize);
  VduseDevConfig.write(new DataView(bytes.buffer), 0, {
    name: nameBytes(name),
    vendorId: 0,
    deviceId,
    // 6.1 refuses a device without the second: vduse_dev.c, features_is_valid.
    features: (1n << BigInt(VIRTIO_F_VERSION_1)) | (1n << BigInt(VIRTIO_F_ACCESS_PLATFORM)),
    vqNum: 2,
    vqAlign: 4096,
    reserved: new Uint8Array(52),
    configSize,
  });
  return bytes;
}

function nameBytes(name: string): Uint8Array {
  const bytes = new Uint8Array(256);
  bytes.set(Buffer.from(name));
  return bytes;
}
