/**
 * A network card of this kernel that is made by TypeScript: VDUSE, bound to virtio_vdpa, its frames
 * through a TAP; killed and succeeded under traffic; and what may go wrong.
 */
// @test-host time-limit=900 long
import { equal, match, ok, rejects } from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildConfig } from '../../src/daemon/index.ts';
import { VirtualSwitch } from '../../src/daemon/virtual-switch.ts';
import { mapVduseDomain } from '../../src/memory/index.ts';
import { arena, openFdCount, regionFaults } from '../../src/sys/index.ts';
import {
  bindVdpa,
  LAST_IOVA,
  VdpaNetlink,
  VduseControl,
  VduseDevice,
} from '../../src/vhost-kernel/index.ts';
import { waitFor } from '../peers/scratch.ts';
import { loadModules, run, sh, unloadModules } from './inside.ts';
import { receive, send } from './tcp-peer.ts';
import { VduseServer } from './vduse-server.ts';

/** Until the successor serves, then ten more. */
const PINGS = `while [ ! -e /tmp/succeeded ]; do busybox ping -c 1 -W 1 10.9.0.1 >&2 || true; done
  busybox ping -c 10 -i 0.2 -W 5 10.9.0.1`;
const STREAM_BYTES = 2 << 20;
const MAC = '02:11:22:33:44:55';

function start(device = '', uplink = ''): Promise<VirtualSwitch> {
  const ports = [`up=tap:tap0${uplink}`, `card=vduse:net0,mac=${MAC}${device}`];
  const config = buildConfig({ file: undefined, ports, control: undefined, http: undefined });
  return VirtualSwitch.start(config);
}

/** Addresses, and a namespace for the card, so that frames take the wire. */
async function configure(card: string): Promise<void> {
  await sh(`ip link set ${card} netns far
    ip netns exec far ip address add 10.9.0.2/24 dev ${card}
    ip netns exec far ip link set ${card} up
    ip address replace 10.9.0.1/24 dev tap0`);
}

const far = (...words: string[]): Promise<string> => run('ip', ['netns', 'exec', 'far', ...words]);

async function pingBothWays(count: number): Promise<void> {
  const words = ['ping', '-c', String(count), '-i', '0.2', '-W', '5'];
  match(await run('busybox', [...words, '10.9.0.2']), / 0% packet loss/);
  match(await far('busybox', ...words, '10.9.0.1'), / 0% packet loss/);
}

async function devices(): Promise<string[]> {
  const netlink = await VdpaNetlink.open();
  try {
    return (await netlink.devices()).map(({ name }) => name);
  } finally {
    await netlink.close();
  }
}

before(async () => {
  await loadModules('tun', 'vduse', 'virtio_vdpa', 'virtio_net');
  // The interface stays when its process is killed, and with it its address, which others know.
  await sh('ip netns add far; ip tuntap add dev tap0 mode tap vnet_hdr');
});
after(() => sh('ip netns del far || true; ip link del tap0 || true'));

for (const [format, options] of [
  ['packed rings', ''],
  ['split rings, no offload', ',packed=off,csum=off'],
] as const) {
  test(`a card of this kernel, with ${format}: pings and a stream both ways`, async () => {
    const before = openFdCount();
    const network = await start(`${options},mtu=1400`);
    try {
      const presence = network.presence('card')!;
      equal(presence.driver, 'virtio_vdpa');
      equal(presence.resumed, false);
      const card = presence.interface!;
      equal(readFileSync(`/sys/class/net/${card}/address`, 'utf8').trim(), MAC);
      equal(readFileSync(`/sys/class/net/${card}/mtu`, 'utf8').trim(), '1400');
      await configure(card);
      await pingBothWays(5);
      for (const sender of ['here', 'far'] as const) await streamFrom(sender);
      const port = await network.port('card');
      equal(port.state, 'up');
      equal(port.features!.names.includes('RING_PACKED'), options === '');
      ok(!port.features!.names.includes('CTRL_VQ'));
      equal(port.counters['faults'], 0);
      await setLink(network, card);
    } finally {
      await network.close();
    }
    ok(!existsSync('/dev/vduse/net0'), 'destroyed');
    equal((await devices()).includes('net0'), false, 'off the bus');
    equal(openFdCount(), before, 'nothing is left open');
  });
}

/** 2 MiB by TCP, compared by their hash. */
async function streamFrom(sender: 'here' | 'far'): Promise<void> {
  const peer = (...words: string[]): Promise<string> => {
    const script = join(import.meta.dirname, 'tcp-peer.ts');
    const all = ['netns', 'exec', 'far', process.execPath, script, ...words];
    return run('ip', all, { timeoutMs: 120_000 });
  };
  const [sent, received] =
    sender === 'here'
      ? await Promise.all([
          send('10.9.0.2', 5000, randomBytes(STREAM_BYTES)),
          peer('receive', '10.9.0.2', '5000'),
        ])
      : await Promise.all([
          peer('send', '10.9.0.1', '5000', String(STREAM_BYTES)),
          receive('10.9.0.1', 5000),
        ]);
  match(received, new RegExp(`^${STREAM_BYTES} `));
  equal(received, sent, `${sender} sends`);
}

/** The kernel sees the plug pulled, and put in again. */
async function setLink(network: VirtualSwitch, card: string): Promise<void> {
  const carrier = async (): Promise<string> =>
    (await far('cat', `/sys/class/net/${card}/carrier`)).trim();
  equal(await carrier(), '1');
  await network.updatePort('card', { linkUp: false });
  await waitFor('no carrier', 10_000, async () => (await carrier()) === '0');
  await network.updatePort('card', { linkUp: true });
  await waitFor('a carrier', 10_000, async () => (await carrier()) === '1');
  await pingBothWays(2);
}

test('the driver is taken away and comes back', async () => {
  const network = await start();
  try {
    for (let round = 0; round < 2; round++) {
      await bindVdpa('net0', null);
      equal((await network.port('card')).state, 'listening');
      await bindVdpa('net0', 'virtio_vdpa');
      await waitFor('rings', 10_000, async () => {
        return (await network.port('card')).features !== null;
      });
    }
  } finally {
    await network.close();
  }
});

test('a process that is killed under ping is succeeded; nobody else may serve', async () => {
  const args = ['--vduse', 'net0', '--tap', 'tap0', '--mac', MAC];
  const first = await VduseServer.start(...args);
  let second: VduseServer | undefined;
  try {
    await configure(first.readiness.interface!);
    await pingBothWays(3);
    await rejects(start(), { code: 'ERR_VRING_INTERFACE_BUSY' }); // its TAP
    await rejects(async () => VduseDevice.open('net0'), { code: 'ERR_VRING_VDUSE_BUSY' });
    const pings = run('ip', ['netns', 'exec', 'far', 'sh', '-c', PINGS], { timeoutMs: 300_000 });
    await first.kill();
    ok(existsSync('/dev/vduse/net0'), 'the device stays');
    second = await VduseServer.start(...args);
    equal(second.readiness.resumed, true, second.log);
    writeFileSync('/tmp/succeeded', '');
    match(await pings, / 0% packet loss/, 'and those after the succession');
    await pingBothWays(5);
    await streamFrom('far');
  } finally {
    await first.kill();
    equal(await second?.end(), 0, second?.log ?? '');
  }
  ok(!existsSync('/dev/vduse/net0'));
});

test('what is wrong is said by name', async () => {
  using control = VduseControl.open();
  const config = {
    name: 'odd0',
    deviceId: 26, // fs
    vendorId: 0,
    features: 1n << 33n,
    queueCount: 2,
    queueSizeMax: 16,
    config: new Uint8Array(8),
  };
  const create = async (changes: Partial<typeof config>): Promise<void> => {
    control.create({ ...config, ...changes });
  };
  await rejects(create({}), {
    code: 'ERR_VRING_VDUSE_REFUSED',
    message: /this kernel refuses a virtio-fs device/,
  });
  await rejects(create({ deviceId: 1, features: 0n }), { code: 'ERR_VRING_VDUSE_REFUSED' });
  await rejects(async () => control.destroy('odd0'), { code: 'ERR_VRING_VDUSE_UNKNOWN' });
  await create({ deviceId: 1 });
  await rejects(create({ deviceId: 1 }), { code: 'ERR_VRING_VDUSE_EXISTS' });
  const netlink = await VdpaNetlink.open();
  const device = VduseDevice.open('odd0');
  try {
    const queueless = { name: 'odd0', management: 'vduse' };
    await rejects(netlink.add(queueless), /must be served/);
    await rejects(netlink.add({ name: 'odd0', management: 'nobody' }), {
      message: /Fail to find the specified management device/,
    });
    const mac = Uint8Array.of(2, 0, 0, 0, 0, 1);
    await rejects(netlink.add({ name: 'odd0', management: 'vduse', mac }), {
      message: /All provided attributes are not supported/,
    });
    await rejects(async () => control.destroy('odd0'), { code: 'ERR_VRING_VDUSE_BUSY' });
    ok((await netlink.managementDevices()).some(({ name }) => name === 'vduse'));
  } finally {
    device.close();
    await netlink.close();
    control.destroy('odd0');
  }
});

test('memory that the driver never mapped is zeros, counted, and only there', async () => {
  const network = await start(',keep=on');
  await network.close(); // the driver stays, and what it has mapped
  const device = VduseDevice.open('net0');
  try {
    const mapping = device.mapping(64n << 20n, LAST_IOVA)!; // a ring: behind the bounce buffer
    const region = mapVduseDomain(mapping.fd.number, 2 ** 31, 'the domain');
    mapping.fd.close();
    const faults = (): number => Atomics.load(regionFaults(), region.handle);
    arena().view.getUint32(region.offset + Number(mapping.start));
    equal(faults(), 0, 'what is mapped is read');
    equal(arena().view.getUint32(region.offset + 2 ** 31 - 4096), 0);
    equal(faults(), 1);
    region.close();
  } finally {
    device.close();
  }
  const again = await start();
  equal(again.presence('card')!.resumed, true);
  await again.close();
});

test('without the module, the remedy', async () => {
  await unloadModules('virtio_vdpa', 'vduse');
  await rejects(start(), { code: 'ERR_VRING_DEVICE_MISSING', message: /modprobe vduse/ });
  await loadModules('vduse');
  await rejects(start(), { code: 'ERR_VRING_VDPA_DRIVER', message: /modprobe virtio_vdpa/ });
  ok(!existsSync('/dev/vduse/net0'), 'what was made is taken away');
  await loadModules('virtio_vdpa');
});
