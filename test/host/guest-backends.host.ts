/**
 * One guest on every back-end that the kernel has, by the names that people write: the same ping,
 * the same traffic, stopping, going on, and moving from one to the other.
 *
 * @test-host time-limit=400 long
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { after, before, test } from 'node:test';
import {
  connectNetGuest,
  type ConnectOptions,
  GuestIommu,
  migrateGuest,
  NetConnector,
  type NetGuest,
  NetStack,
  parseFeatureChoice,
  parseIp,
  parsePrefix,
  runTraffic,
} from '../../src/guest/index.ts';
import { openFdCount } from '../../src/sys/index.ts';
import { VhostVdpaBackend } from '../../src/vhost-kernel/index.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';
import { runVring } from '../peers/software-guest.ts';
import { addVdpaDevice, deleteVdpaDevice, loadModules, sh, vhostVdpaPath } from './inside.ts';
import { limitPinning } from './vdpa-guest.ts';

const MACS = ['02:12:34:56:78:9a', '02:12:34:56:78:9b'];
const PING = 'ping -c 2 -W 5 10.77.0.2 || busybox ping -c 2 -W 5 10.77.0.2';
const vdpa: string[] = [];

before(async () => {
  await loadModules('tun', 'bridge', 'vhost_net', 'vdpa_sim_net', 'vhost_vdpa');
  await limitPinning('unlimited');
  await sh('sysctl -qw net.ipv6.conf.default.disable_ipv6=1');
  for (const [i, mac] of MACS.entries()) {
    await addVdpaDevice(`vdpa${i}`, 'vdpasim_net', 'mac', mac, 'mtu', '1500');
    vdpa[i] = await vhostVdpaPath(`vdpa${i}`);
  }
  // The first watch of a file opens Node's inotify descriptor, which stays.
  await (await VhostVdpaBackend.open(vdpa[0]!)).close();
});

/** Another file of this machine wants the names. */
after(async () => {
  for (const i of vdpa.keys()) await deleteVdpaDevice(`vdpa${i}`);
});

/** A guest with addresses: 10.77.0.2. */
class Machine {
  readonly guest: NetGuest;
  readonly stack: NetStack;

  private constructor(guest: NetGuest) {
    this.guest = guest;
    this.stack = new NetStack({ link: guest, ip: parsePrefix('10.77.0.2/24', 4, 'test') });
  }

  static async on(backend: string, options: ConnectOptions = {}): Promise<Machine> {
    return new Machine(await connectNetGuest({ backend, mac: '02:00:00:00:77:02', ...options }));
  }

  async hears(payloadBytes = 56): Promise<boolean> {
    const request = { identifier: 7, sequence: 1, timeoutMs: 5000, payloadBytes };
    return (await this.stack.ping(parseIp('10.77.0.1')!, request))?.intact === true;
  }

  async close(): Promise<void> {
    this.stack.close();
    await this.guest.close();
  }
}

async function address(device: string): Promise<void> {
  await sh(`ip address add 10.77.0.1/24 dev ${device}; ip link set ${device} up`);
}

/** Frames that all come back: what a loop is. */
async function loop(guest: NetGuest, frames = 200): Promise<void> {
  const generate = { sizeBytes: 300, targetMac: guest.mac, frames, window: 8 };
  const { records } = await runTraffic({ guest, seconds: 60, verifyEvery: 1, generate });
  deepEqual([records.good, records.verified, records.corrupt], [frames, frames, 0]);
}

/** Through the connector, as `--migrate-to` does it. */
function move(guest: NetGuest, backend: string) {
  const connector = new NetConnector({ backend });
  const connect = (signal?: AbortSignal) => connector.connect(signal, true);
  return migrateGuest(guest, { connect, verify: true });
}

for (const kind of ['vhost-net', 'in-process']) {
  for (const iommu of [false, 'offset', 'scatter'] as const) {
    const name = `${kind}:tap0, ${iommu === false ? 'no' : iommu} IOMMU`;
    test(`the kernel behind a TAP hears the guest: ${name}`, async () => {
      const fds = openFdCount();
      await using scratch = new Scratch();
      const machine = scratch.own(await Machine.on(`${kind}:tap0`, { iommu }));
      const { guest } = machine;
      equal(guest.backend.description, `${kind}:tap0`);
      await address('tap0');
      ok(await machine.hears());
      await guest.stop();
      await guest.resume();
      ok(await machine.hears(1400));
      if (iommu !== false) {
        const { updates, faults } = (guest.addressSpace as GuestIommu).counters;
        ok(updates > 0 && faults === 0, `${updates} updates, ${faults} faults`);
      }
      match(await sh(PING), / 0% packet loss/);
      await machine.close();
      await waitFor('descriptors', 5000, () => openFdCount() === fds);
    });
  }
}

for (const [what, iommu, shadow] of [
  ['as it is', false, ''],
  ['mapped at once', 'offset', ''],
  ['mapped piece by piece, which it never asks for', 'scatter', ''],
  ['behind a shadow', false, ',shadow'],
] as const) {
  test(`a vDPA device that returns frames: ${what}`, async () => {
    const fds = openFdCount();
    const backend = `vhost-vdpa:${vdpa[0]}${shadow}`;
    const guest = await connectNetGuest({ backend, iommu, notify: 'manual' });
    try {
      equal(guest.backend.restartsWhole, true, 'this kernel has no RESUME');
      equal(guest.mac, MACS[0], 'of its configuration space');
      equal(await guest.backend.getStatus(), 15);
      await loop(guest);
      for (let i = 0; i < 2; i++) {
        await guest.stop();
        await guest.resume();
        await loop(guest, 50);
      }
      if (iommu !== false) equal((guest.addressSpace as GuestIommu).counters.misses, 0);
    } finally {
      await guest.close();
    }
    await waitFor('descriptors', 5000, () => openFdCount() === fds);
  });
}

test('a guest moves: vhost-net, its own process, and back, its applications with it', async () => {
  await using scratch = new Scratch();
  const features = parseFeatureChoice('-mac,-mtu,-status', 'features');
  const machine = scratch.own(await Machine.on('vhost-net:tap0', { features }));
  // Its own address: a bridge without one changes it with its ports, and the guest knows the old.
  await sh('ip link add br0 address 02:00:00:00:77:01 type bridge forward_delay 0');
  scratch.own({ close: () => sh('ip link delete br0') });
  await address('br0');
  await sh('ip link set tap0 master br0');
  ok(await machine.hears());
  // The interface of the next one is made by it: it joins the bridge when it is there.
  for (const [next, tap] of [
    ['in-process:tap1', 'tap1'],
    ['vhost-net:tap0', 'tap0'],
  ] as const) {
    const joined = waitFor(tap, 20_000, async () => {
      const interfaces = await sh(`ip link set ${tap} master br0 && echo joined || true`);
      return interfaces.includes('joined');
    });
    const { unlogged, rounds, stateBytes } = await move(machine.guest, next);
    await joined;
    equal(machine.guest.backend.description, next);
    deepEqual([unlogged, stateBytes], [0, null], 'every page that it wrote was in its log');
    ok(rounds.length >= 2, `${rounds}`);
    machine.stack.announce();
    await waitFor('an answer', 20_000, () => machine.hears());
  }
});

test('a guest on a vDPA device moves to another one, by a shadow', async () => {
  const texts = vdpa.map((path) => `vhost-vdpa:${path},shadow`);
  const options = { backend: texts[0]!, notify: 'manual', mac: MACS[0]! } as const;
  const features = parseFeatureChoice('-mac', 'features');
  const guest = await connectNetGuest({ ...options, features });
  try {
    await loop(guest);
    const { unlogged } = await move(guest, texts[1]!);
    equal(unlogged, 0);
    // The simulator returns what is for its own address, or for everybody.
    const generate = { sizeBytes: 200, targetMac: 'ff:ff:ff:ff:ff:ff', frames: 50, window: 8 };
    const { records } = await runTraffic({ guest, seconds: 60, verifyEvery: 1, generate });
    deepEqual([records.good, records.corrupt], [50, 0]);
    equal(await guest.backend.getStatus(), 15);
  } finally {
    await guest.close();
  }
});

test('what cannot be is said, with the name of the back-end', async () => {
  await rejects(connectNetGuest({ backend: 'vhost-net:tap0', packed: true }), {
    code: 'ERR_VRING_GUEST_FEATURE',
    message: /^vhost-net:tap0 does not offer RING_PACKED/,
  });
  const direct = await connectNetGuest({ backend: `vhost-vdpa:${vdpa[0]}` });
  await rejects(move(direct, 'vhost-net:tap0'), {
    code: 'ERR_VRING_MIGRATION',
    message: /^vhost-vdpa:.* does not offer VHOST_F_LOG_ALL/,
  });
  await rejects(connectNetGuest({ backend: `vhost-vdpa:${vdpa[0]}` }), /in use/);
  await direct.close();
});

test('an interface that is deleted and made again: the guest goes on', async () => {
  await using scratch = new Scratch();
  const machine = scratch.own(await Machine.on('vhost-net:tap0', { reconnect: true }));
  await address('tap0');
  ok(await machine.hears());
  const events: string[] = [];
  machine.guest.onLink = ({ kind }) => void events.push(kind);
  await sh('ip link delete tap0');
  await waitFor('the next one', 20_000, () => events.includes('restored'));
  deepEqual(events, ['lost', 'restored']);
  await address('tap0');
  // From the host: its interface has another MAC address now, which the guest learns so.
  match(await sh(PING), / 0% packet loss/);
  ok(await machine.hears());
  equal(machine.guest.reconnects, 1);
});

test('the command line', async () => {
  const guest = (backend: string, ...args: string[]) =>
    runVring('guest', 'net', '--backend', backend, '--json', ...args);
  const info = await guest('vhost-net:tap0', 'info');
  equal(info.status, 0, info.err);
  const { kind, backend, config } = JSON.parse(info.out);
  deepEqual([kind, backend, config], ['vhost-net', 'vhost-net:tap0', null]);
  const loops = ['pps', '--loop', '--window', '8', '--seconds', '1', '--to', MACS[0]!];
  const { status, out, err } = await guest(`vhost-vdpa:${vdpa[0]}`, ...loops);
  equal(status, 0, err);
  const { records } = JSON.parse(out.trim().split('\n').at(-1)!);
  ok(records.sent > 0);
  deepEqual([records.good, records.corrupt], [records.sent, 0]);
});
