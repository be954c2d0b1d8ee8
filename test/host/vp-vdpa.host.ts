/**
 * vhost-vDPA with a device that reaches the outside: an emulated virtio-net card behind an IOMMU,
 * bound to vp_vdpa. What the software guest sends through it arrives at a second card of the same
 * machine, which the kernel's own driver has.
 *
 * @test-host cards=vp-vdpa-pair memory=1024 long
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { parseFeatureChoice } from '../../src/guest/features.ts';
import { parseIp, parsePrefix } from '../../src/guest/ip-address.ts';
import { migrateGuest } from '../../src/guest/migrate.ts';
import { NetGuest, type NetGuestOptions } from '../../src/guest/net-driver.ts';
import { GuestMemory } from '../../src/memory/index.ts';
import { NetStack } from '../../src/guest/stack.ts';
import type { VhostBackend } from '../../src/base/vhost-backend.ts';
import { ShadowBackend } from '../../src/runtime/index.ts';
import { VhostNetBackend, VhostVdpaBackend } from '../../src/vhost-kernel/index.ts';
import { hasFeature, VIRTIO_F_ACCESS_PLATFORM } from '../../src/wire/virtio.ts';
import { kernelDeviceOf, loadModules, run, sh, vhostVdpaPath } from './inside.ts';
import { VP_VDPA_PAIR } from './machine-command.ts';
import { releaseVpVdpaCard, takeVpVdpaCard } from './vp-vdpa-card.ts';
import { comparingLog, limitPinning } from './vdpa-guest.ts';

const { device, peer } = VP_VDPA_PAIR;
const GUEST_IP = '10.77.0.2';
const PEER_IP = '10.77.0.1';

let name = '';
let path = '';
let peerInterface = '';

before(async () => {
  await limitPinning('unlimited');
  name = await takeVpVdpaCard('vhost_vdpa');
  path = await vhostVdpaPath(name);
  await loadModules('virtio_net');
  peerInterface = await kernelDeviceOf(`/sys/bus/pci/devices/${peer.pci}`, 'net');
  await sh(`ip address add ${PEER_IP}/24 dev ${peerInterface}; ip link set ${peerInterface} up`);
});

after(async () => {
  await releaseVpVdpaCard(name);
});

type Running = { guest: NetGuest; stack: NetStack; close(): Promise<void> };

async function startGuest(backend: VhostBackend, options: NetGuestOptions = {}): Promise<Running> {
  const guest = await NetGuest.start(backend, options);
  const stack = new NetStack({ link: guest, ip: parsePrefix(`${GUEST_IP}/24`, 4, 'test') });
  const close = async (): Promise<void> => {
    stack.close();
    await guest.close();
  };
  return { guest, stack, close };
}

let sequence = 0;

async function ask(
  { stack }: Running,
  timeoutMs: number,
  payloadBytes: number,
  address = PEER_IP,
): Promise<boolean> {
  const options = { sequence: sequence++ & 0xffff, identifier: 77, timeoutMs, payloadBytes };
  const result = await stack.ping(parseIp(address)!, options);
  return result?.intact === true;
}

/** Both ways: the guest asks the kernel, the kernel asks the guest. */
async function pingBoth(running: Running, bytes = 56): Promise<void> {
  for (let i = 0; i < 5; i++) ok(await ask(running, 10_000, bytes), `an answer to ping ${i}`);
  // busybox waits for the last answer as long as the longest took, at least a second: on a machine
  // that others use, too, that may be too short. Those before it have to be there.
  const text = await run('busybox', ['ping', '-c', '6', '-s', String(bytes), GUEST_IP]);
  match(text, /6 packets transmitted, [56] packets received/);
  for (let i = 0; i < 5; i++) match(text, new RegExp(` seq=${i} `));
}

function packets(direction: 'rx' | 'tx'): number {
  const folder = `/sys/class/net/${peerInterface}/statistics`;
  return Number(readFileSync(`${folder}/${direction}_packets`, 'utf8'));
}

test('what the card is as a vDPA device', async () => {
  const backend = await VhostVdpaBackend.open(path);
  try {
    equal(backend.deviceId, 1);
    equal(await backend.getQueueNum(), 3);
    equal(backend.backendFeatures, 0xen, 'no SUSPEND');
    ok(!hasFeature(await backend.getFeatures(), VIRTIO_F_ACCESS_PLATFORM));
    const mac = [...(await backend.getConfig(0, 6))].map((b) => b.toString(16).padStart(2, '0'));
    equal(mac.join(':'), device.mac);
    await rejects(async () => backend.device.getVringGroup(0), { code: 'ERR_VRING_DEVICE_LACKS' });
    await rejects(async () => backend.device.suspend(), { code: 'ERR_VRING_KERNEL_LACKS' });
    deepEqual(backend.iovaRange, { first: 0n, last: 2n ** 39n - 1n }, 'the IOMMU has 39 bits');
    using memory = GuestMemory.create(4096, { baseGpa: 2 ** 39 });
    await rejects(backend.setMemTable([memory.backendRegion()]), {
      code: 'ERR_VRING_VDPA_IOVA',
      message: /region 0, 0x8000000000 to 0x8000000fff, is not within .* 0x0 to 0x7fffffffff/,
    });
  } finally {
    await backend.close();
  }
});

for (const packed of [false, true]) {
  test(`frames reach the other card and its kernel, ${packed ? 'packed' : 'split'}`, async () => {
    const running = await startGuest(await VhostVdpaBackend.open(path), { packed });
    try {
      equal(running.guest.mac, device.mac);
      const before = packets('rx');
      await pingBoth(running);
      await pingBoth(running, 1400);
      ok(packets('rx') - before >= 20, 'the kernel counted our frames');
      if (packed) await rejects(running.guest.stop(), { code: 'ERR_VRING_RING_STATE' });
    } finally {
      await running.close();
    }
  });
}

test('kicks by the doorbell, without an eventfd', async () => {
  const backend = await VhostVdpaBackend.open(path);
  const areas = [0, 1, 2].map((index) => backend.notifyArea(index));
  ok(
    areas.every((area) => area !== null),
    'page-per-vq: a page each',
  );
  equal(backend.notifyArea(3), null);
  // The guest's eventfds lead nowhere: what reaches the device is the doorbell alone.
  backend.setVringKick = async () => {};
  const running = await startGuest(backend);
  const bell = setInterval(() => {
    areas[0]!.ring(0);
    areas[1]!.ring(1);
  }, 2);
  try {
    await pingBoth(running);
    clearInterval(bell);
    await new Promise((resolve) => setTimeout(resolve, 50));
    equal(await ask(running, 500, 56), false, 'nobody rings, nothing is sent');
  } finally {
    clearInterval(bell);
    await running.close();
  }
  areas[0]!.ring(0); // unmapped with the back-end: nothing
});

test('a direct ring stops by a reset and cannot go on in the middle', async () => {
  const backend = await VhostVdpaBackend.open(path);
  const running = await startGuest(backend);
  try {
    await pingBoth(running);
    const bases = await running.guest.stop();
    ok(bases[1]! >= 10, `transmitq stands at ${bases[1]}`);
    equal(await backend.getStatus(), 0);
    await rejects(running.guest.resume(), {
      code: 'ERR_VRING_DEVICE_LACKS',
      message: /begins every ring at its start; drive it through a ShadowBackend/,
    });
  } finally {
    await running.close();
  }
});

test('a shadow ring logs, stops and goes on', async () => {
  const shadow = new ShadowBackend(await VhostVdpaBackend.open(path));
  const running = await startGuest(shadow);
  const { guest } = running;
  try {
    const marked = await comparingLog(guest, shadow, async () => {
      for (let i = 0; i < 4; i++) await pingBoth(running, 1000);
    });
    ok(marked > 10, `${marked} pages are marked`);
    for (let round = 0; round < 3; round++) {
      equal((await guest.stop()).length, 2);
      await guest.resume();
      await pingBoth(running);
    }
  } finally {
    await running.close();
  }
});

test('no notification is lost behind a shadow ring: one frame at a time', async () => {
  const shadow = new ShadowBackend(await VhostVdpaBackend.open(path));
  const running = await startGuest(shadow);
  try {
    // A frame that waits for another one to be noticed would wait for ever.
    for (let i = 0; i < 400; i++) ok(await ask(running, 10_000, 56), `an answer to ping ${i}`);
  } finally {
    await running.close();
  }
});

test('packed rings stop and go on behind a shadow ring', async () => {
  const shadow = new ShadowBackend(await VhostVdpaBackend.open(path));
  const running = await startGuest(shadow, { packed: true });
  try {
    for (let round = 0; round < 3; round++) {
      await pingBoth(running);
      await running.guest.stop();
      await running.guest.resume();
    }
    await pingBoth(running);
  } finally {
    await running.close();
  }
});

test('a guest moves from the card to a TAP, and back', async () => {
  await loadModules('vhost_net', 'tun');
  const TAP_IP = '10.78.0.1';
  const toTap = async (): Promise<VhostBackend> => {
    const tap = VhostNetBackend.open({ tap: 'moved0' });
    await sh(`ip address add ${TAP_IP}/24 dev moved0; ip link set moved0 up`);
    return tap;
  };
  const toCard = async (): Promise<VhostBackend> =>
    new ShadowBackend(await VhostVdpaBackend.open(path));
  // What both have: a TAP knows neither MTU nor link status, vhost-net no control queue.
  const features = parseFeatureChoice('-mac,-mtu,-status,-uso', 'test');
  const running = await startGuest(await toCard(), { features, mac: device.mac });
  const { guest, stack } = running;
  try {
    await pingBoth(running);
    const away = await migrateGuest(guest, { connect: toTap, verify: true });
    equal(away.unlogged, 0, 'every page that the card wrote was marked');
    equal(guest.backend.description.split(':')[0], 'vhost-net');
    const stackThere = new NetStack({ link: guest, ip: parsePrefix('10.78.0.2/24', 4, 'test') });
    ok(await ask({ ...running, stack: stackThere }, 10_000, 500, TAP_IP), 'the TAP answers');
    stackThere.close();

    const home = await migrateGuest(guest, { connect: toCard, verify: true });
    equal(home.unlogged, 0);
    equal(guest.backend.description, `shadow:vhost-vdpa:${path}`);
    running.stack = new NetStack({ link: guest, ip: parsePrefix(`${GUEST_IP}/24`, 4, 'test') });
    await pingBoth(running);
    stack.close();
  } finally {
    await running.close();
  }
});
