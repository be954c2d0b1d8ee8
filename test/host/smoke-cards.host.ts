/**
 * The pair of cards that `cards=vp-vdpa-pair` gives: vp_vdpa takes the one, vhost-vdpa opens it
 * and maps memory for it through the IOMMU, and the kernel's own driver has the other.
 *
 * @test-host cards=vp-vdpa-pair
 */
import { equal, match, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { PrivateMemory } from '../../src/memory/index.ts';
import { arenaHostAddress, writeBytes } from '../../src/sys/index.ts';
import { KernelDevice } from '../../src/vhost-kernel/kernel-device.ts';
import {
  VHOST_ACCESS_RW,
  VHOST_BACKEND_F_IOTLB_MSG_V2,
  VHOST_IOCTL,
  VHOST_IOTLB_INVALIDATE,
  VHOST_IOTLB_MSG_V2,
  VHOST_IOTLB_UPDATE,
  VhostMessageV2,
} from '../../src/wire/vhost-kernel.ts';
import { VIRTIO_ID_NET } from '../../src/wire/virtio.ts';
import { kernelDeviceOf, loadModules, run, sh, vhostVdpaPath } from './inside.ts';
import { VP_VDPA_PAIR } from './machine-command.ts';
import { releaseVpVdpaCard, takeVpVdpaCard } from './vp-vdpa-card.ts';

const { device, peer } = VP_VDPA_PAIR;
const MEMORY_BYTES = 1 << 20;

test('vhost-vdpa opens the card of vp_vdpa and maps memory through the IOMMU', async (t) => {
  const name = await takeVpVdpaCard('vhost_vdpa');
  t.after(() => releaseVpVdpaCard(name));
  using vhost = KernelDevice.open(await vhostVdpaPath(name), 'modprobe vhost_vdpa');
  equal(vhost.getU32(VHOST_IOCTL.VDPA_GET_DEVICE_ID), VIRTIO_ID_NET);
  vhost.call(VHOST_IOCTL.SET_OWNER);
  const offered = vhost.getU64(VHOST_IOCTL.GET_BACKEND_FEATURES);
  const messageV2 = 1n << BigInt(VHOST_BACKEND_F_IOTLB_MSG_V2);
  ok((offered & messageV2) !== 0n);
  vhost.setU64(VHOST_IOCTL.SET_BACKEND_FEATURES, messageV2);
  using memory = PrivateMemory.allocate(MEMORY_BYTES);
  const userAddr = arenaHostAddress() + BigInt(memory.offset);
  for (const iotlbType of [VHOST_IOTLB_UPDATE, VHOST_IOTLB_INVALIDATE]) {
    equal(writeBytes(vhost.fd, iotlbMessage(iotlbType, userAddr)), VhostMessageV2.size);
  }
});

test('virtio_vdpa makes an interface of it, which reaches the other card', async (t) => {
  const name = await takeVpVdpaCard('virtio_vdpa');
  t.after(() => releaseVpVdpaCard(name));
  await loadModules('virtio_net');
  const near = await kernelDeviceOf(`/sys/bus/vdpa/devices/${name}`, 'net');
  const far = await kernelDeviceOf(`/sys/bus/pci/devices/${peer.pci}`, 'net');
  match(await run('ip', ['link', 'show', near]), new RegExp(device.mac));
  match(await run('ip', ['link', 'show', far]), new RegExp(peer.mac));
  t.after(() => run('ip', ['netns', 'del', 'far']));
  // A namespace, or the kernel would answer itself without any card.
  await sh(`ip netns add far
    ip link set ${far} netns far
    ip -n far addr add 10.9.0.2/24 dev ${far}
    ip -n far link set ${far} up
    ip addr add 10.9.0.1/24 dev ${near}
    ip link set ${near} up`);
  match(await run('busybox', ['ping', '-c', '5', '-W', '5', '10.9.0.2']), / 0% packet loss/);
});

function iotlbMessage(iotlbType: number, userAddr: bigint): Uint8Array {
  const bytes = new Uint8Array(VhostMessageV2.size);
  VhostMessageV2.write(new DataView(bytes.buffer), 0, {
    type: VHOST_IOTLB_MSG_V2,
    asid: 0,
    iova: 0x10000n,
    sizeBytes: BigInt(MEMORY_BYTES),
    userAddr,
    permissions: VHOST_ACCESS_RW,
    iotlbType,
    padding: new Uint8Array(38),
  });
  return bytes;
}
