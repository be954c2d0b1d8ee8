/** What needs no vhost: mistakes that are named before the kernel is asked, and wrong nodes. */
import { equal, match, throws } from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { createMemfd, interfaceMac, openFdCount } from '../sys/index.ts';
import { VHOST_IOCTL } from '../wire/vhost-kernel.ts';
import { VhostDevice } from './vhost-device.ts';
import { VhostNetBackend } from './vhost-net.ts';
import { VhostVsockBackend } from './vhost-vsock.ts';

function canTap(t: TestContext): boolean {
  if (process.getuid!() === 0 && existsSync('/dev/net/tun')) return true;
  t.skip('needs root and /dev/net/tun');
  return false;
}

test('no node: what to load, and the interface is gone again', (t) => {
  if (!canTap(t)) return;
  const before = openFdCount();
  throws(() => VhostNetBackend.open({ tap: 'vrtn0', path: '/dev/vhost-none' }), {
    code: 'ERR_VRING_DEVICE_MISSING',
    message: '/dev/vhost-none does not exist; load its module: modprobe vhost_net',
    recovery: 'retry',
  });
  throws(() => interfaceMac('vrtn0'), { errnoName: 'ENODEV' });
  equal(openFdCount(), before);
});

test('a node that is no vhost device', (t) => {
  if (!canTap(t)) return;
  const before = openFdCount();
  throws(() => VhostNetBackend.open({ tap: 'vrtn0', path: '/dev/null' }), {
    code: 'ERR_VRING_KERNEL_LACKS',
    message: '/dev/null: this kernel has no VHOST_GET_FEATURES (Linux 2.6.34 or newer has it)',
  });
  throws(() => VhostVsockBackend.open({ cid: 42, path: '/dev/null' }), {
    code: 'ERR_VRING_KERNEL_LACKS',
  });
  equal(openFdCount(), before);
});

test('queue pairs and interfaces that cannot be', (t) => {
  if (!canTap(t)) return;
  for (const queuePairs of [0, 257, 1.5]) {
    throws(() => VhostNetBackend.open({ tap: 'vrtn0', queuePairs }), {
      code: 'ERR_VRING_INTERFACE',
    });
  }
  throws(() => VhostNetBackend.open({ tap: 'a name that is too long' }), {
    code: 'ERR_VRING_INTERFACE',
  });
  throws(() => VhostNetBackend.open({ tap: 'lo' }), {
    code: 'ERR_VRING_INTERFACE',
    message: /^lo: it is there, and is no TAP/,
  });
  const file = createMemfd('no TAP', 4096);
  throws(() => VhostNetBackend.open({ tap: [file] }), { errnoName: 'ENOTTY' });
  equal(file.closed, true);
});

test('a context id that no guest can have', () => {
  for (const cid of [-1, 0, 1, 2, 2 ** 32 - 1, Number.NaN]) {
    throws(() => VhostVsockBackend.open({ cid }), {
      code: 'ERR_VRING_VSOCK_CID',
      message: `${cid} is no context id of a guest: 3 to 4294967294 are (2 is the host)`,
    });
  }
});

test('a refusal says of which ring, and what the kernel lacks', () => {
  using device = VhostDevice.open('/dev/null', 'there is always one');
  throws(() => device.setVringNum(1, 256), { code: 'ERR_VRING_KERNEL_LACKS' });
  throws(
    () => device.setVringEndian(0, true),
    (error: Error) => {
      match(error.message, /built without CONFIG_VHOST_CROSS_ENDIAN_LEGACY/);
      return true;
    },
  );
  equal(device.negotiateBackendFeatures(~0n & 0xffn), 0n, 'a kernel before 4.19 has none');
  throws(() => device.device.exchange(VHOST_IOCTL.NEW_WORKER, new Uint8Array(4)), {
    message: '/dev/null: this kernel has no VHOST_NEW_WORKER (Linux 6.5 or newer has it)',
  });
  device.close();
  device.close();
  throws(() => device.setOwner(), { code: 'ERR_VRING_CLOSED' });
});
