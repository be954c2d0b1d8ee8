import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { VringError } from '../base/errors.ts';
import { Fd, socketPair } from '../sys/index.ts';
import * as vduse from '../wire/vduse.ts';
import * as net from '../wire/virtio-net.ts';
import * as virtio from '../wire/virtio.ts';
import { VduseControl, VduseDevice, vduseFeatures, checkVduseName } from './index.ts';
import { checkVduseConfig } from './vduse-features.ts';
import { baseOfState, stateOfBase } from './vduse-state.ts';

const code = (expected: string) => (error: unknown) =>
  error instanceof VringError && error.code === expected;

test('net loses its control queue and all that needs it, and gains ACCESS_PLATFORM', () => {
  const features = virtio.featureSet(
    virtio.VIRTIO_F_VERSION_1,
    virtio.VIRTIO_RING_F_EVENT_IDX,
    virtio.VIRTIO_F_RING_RESET,
    26,
    30,
    net.VIRTIO_NET_F_CTRL_VQ,
    net.VIRTIO_NET_F_CTRL_RX,
    net.VIRTIO_NET_F_MQ,
    net.VIRTIO_NET_F_GUEST_ANNOUNCE,
    net.VIRTIO_NET_F_RSS,
    net.VIRTIO_NET_F_HASH_TUNNEL,
    net.VIRTIO_NET_F_CSUM,
    net.VIRTIO_NET_F_HOST_TSO4,
    net.VIRTIO_NET_F_MAC,
  );
  const names = virtio.featureNames(vduseFeatures(virtio.VIRTIO_ID_NET, features), 1);
  const expected = ['CSUM', 'MAC', 'HOST_TSO4', 'EVENT_IDX', 'VERSION_1', 'ACCESS_PLATFORM'];
  assert.deepEqual(names, expected);
});

test('blk loses CONFIG_WCE alone', () => {
  const features = virtio.featureSet(11, 9, 2, virtio.VIRTIO_F_VERSION_1);
  const expected = virtio.featureSet(9, 2, virtio.VIRTIO_F_VERSION_1, 33);
  assert.equal(vduseFeatures(virtio.VIRTIO_ID_BLOCK, features), expected);
});

test('a device without VERSION_1 is refused by name', () => {
  assert.throws(() => vduseFeatures(1, 0n), code('ERR_VRING_VDUSE_FEATURES'));
});

test('what the kernel would refuse without a reason is refused with one', () => {
  const good = {
    name: 'net0',
    deviceId: 1,
    vendorId: 0,
    features: 0n,
    queueCount: 2,
    queueSizeMax: 256,
    config: new Uint8Array(12),
  };
  checkVduseConfig(good);
  for (const bad of [
    { name: '' },
    { name: 'a/b' },
    { name: 'control' },
    { name: '..' },
    { name: 'x'.repeat(256) },
    { queueCount: 0 },
    { queueCount: 65536 },
    { queueSizeMax: 65535 },
    { config: new Uint8Array(4097) },
  ]) {
    assert.throws(() => checkVduseConfig({ ...good, ...bad }), code('ERR_VRING_VDUSE_CONFIG'));
  }
  checkVduseName('a'.repeat(255));
});

test('ring positions survive the way into the structs and back', () => {
  for (const base of [0, 1, 0xffff])
    assert.equal(baseOfState(stateOfBase(base, false), false), base);
  for (const base of [virtio.PACKED_BASE_FRESH, 0x0005_8007, 0x7fff_ffff, 0xffff_ffff]) {
    assert.equal(baseOfState(stateOfBase(base, true), true), base);
  }
  assert.deepEqual([...stateOfBase(0x8003_0005, true)], [0, 0, 5, 0, 1, 0, 3, 0]);
});

test('without the module, the error says how to get it', (t) => {
  if (existsSync('/dev/vduse/control')) return t.skip('this kernel has VDUSE');
  for (const open of [() => VduseControl.open(), () => VduseDevice.open('net0')]) {
    assert.throws(open, (error: unknown) => {
      assert.ok(code('ERR_VRING_DEVICE_MISSING')(error));
      assert.match((error as Error).message, /modprobe vduse.*docs\/vduse\.md/);
      return true;
    });
  }
});

/** A device whose file is a socket: requests and answers are messages, ioctls fail. */
function pair(): { device: VduseDevice; kernel: Fd } {
  const [ours, kernel] = socketPair();
  return { device: new VduseDevice('test0', new Fd(ours.take(), '/dev/vduse/test0')), kernel };
}

test('an ioctl that the kernel does not know names the ioctl', () => {
  const { device, kernel } = pair();
  assert.throws(() => device.queueInfo(0, false), code('ERR_VRING_KERNEL_LACKS'));
  assert.throws(() => device.receive(), /VDUSE_DEV_GET_FEATURES/);
  device.close();
  device.close();
  kernel.close();
});

test('requests are read as what they are', async () => {
  const { device, kernel } = pair();
  const { writeBytes, readBytes } = await import('../sys/index.ts');
  const send = (type: number, requestId: number, payload: Uint8Array) => {
    const full = new Uint8Array(128);
    full.set(payload);
    const request = { type, requestId, reserved: new Uint8Array(16), payload: full };
    writeBytes(kernel.number, vduse.VduseDevRequest.encode(request));
    return device.receive();
  };
  assert.deepEqual(send(vduse.VDUSE_SET_STATUS, 7, Uint8Array.of(15)), {
    kind: 'status',
    id: 7,
    status: 15,
  });
  const range = vduse.VduseIovaRange.encode({ start: 1n, last: 0xffff_ffff_ffff_ffffn });
  assert.deepEqual(send(vduse.VDUSE_UPDATE_IOTLB, 8, range), {
    kind: 'update-iotlb',
    id: 8,
    start: 1n,
    last: 0xffff_ffff_ffff_ffffn,
  });
  assert.deepEqual(send(77, 9, new Uint8Array()), { kind: 'unknown', id: 9, type: 77 });
  const asked = send(vduse.VDUSE_GET_VQ_STATE, 10, Uint8Array.of(1));
  assert.deepEqual(asked, { kind: 'queue-state', id: 10, index: 1 });
  assert.ok(device.answer(asked!, true, { base: 0x1234, packed: false }));
  const answer = new Uint8Array(vduse.VduseDevResponse.size);
  assert.equal(readBytes(kernel.number, answer), answer.length);
  const { requestId, result, payload } = vduse.VduseDevResponse.decode(answer);
  assert.deepEqual([requestId, result], [10, vduse.VDUSE_REQ_RESULT_OK]);
  assert.deepEqual([...payload.subarray(0, 6)], [1, 0, 0, 0, 0x34, 0x12]);
  device.close();
  kernel.close();
});
