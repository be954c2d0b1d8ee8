/**
 * Real Linux guests in QEMU on our ports. Each test boots two; together they cover every pair of
 * {port listens, connects} x {1, 2 queue pairs} x {split, packed} x {mergeable buffers or not}.
 * Where both have two queue pairs the switch has two workers.
 */
import { equal, match, ok } from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { LinuxGuest, type GuestNic } from '../../src/vmm/index.ts';
import { NetNamespace } from '../peers/netns.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { SwitchProcess } from '../peers/switch.ts';
import {
  checkBulk,
  checkBulkFromHost,
  checkBulkToHost,
  checkPing,
  endlessPing,
} from '../peers/traffic.ts';

/** How a guest is attached. */
type Attachment = {
  /** The switch connects to QEMU's socket. */
  readonly client: boolean;
  readonly queuePairs: 1 | 2;
  readonly packed: boolean;
  readonly mrgRxbuf: boolean;
};

const LISTENS = { client: false } as const;
const CONNECTS = { client: true } as const;
const SPLIT = { packed: false } as const;
const PACKED = { packed: true } as const;
const ONE = { queuePairs: 1 } as const;
const TWO = { queuePairs: 2 } as const;
const MERGED = { mrgRxbuf: true } as const;
const PLAIN = { mrgRxbuf: false } as const;

const PAIRS: readonly (readonly [Attachment, Attachment])[] = [
  [
    { ...LISTENS, ...ONE, ...SPLIT, ...MERGED },
    { ...CONNECTS, ...ONE, ...PACKED, ...PLAIN },
  ],
  [
    { ...LISTENS, ...TWO, ...SPLIT, ...PLAIN },
    { ...CONNECTS, ...TWO, ...PACKED, ...MERGED },
  ],
  [
    { ...LISTENS, ...ONE, ...PACKED, ...MERGED },
    { ...CONNECTS, ...TWO, ...SPLIT, ...PLAIN },
  ],
  [
    { ...LISTENS, ...TWO, ...PACKED, ...PLAIN },
    { ...CONNECTS, ...ONE, ...SPLIT, ...MERGED },
  ],
];

/** Enough for several windows of TCP, little enough for an interpreted guest. */
const BULK_MIB = 8;

const word = (a: Attachment): string =>
  `${a.client ? 'connects' : 'listens'} ${a.queuePairs}x${a.packed ? 'packed' : 'split'}` +
  `${a.mrgRxbuf ? '' : ' unmerged'}`;

const portSpec = (name: string, path: string, a: Attachment): string =>
  `${name}=vhost-user:${path},queues=${a.queuePairs}${a.client ? ',client' : ''}`;

function nicOf(index: number, path: string, a: Attachment): GuestNic {
  const mac = `52:54:00:00:0e:0${index}`;
  const { queuePairs, packed, mrgRxbuf } = a;
  return {
    path,
    mode: a.client ? 'server' : 'client',
    queuePairs,
    packed,
    mrgRxbuf,
    mac,
    mtu: null,
  };
}

function peersMissing(t: TestContext): boolean {
  return !requirePeer(t, 'qemu-system-x86_64', 'linux kernel', 'busybox');
}

for (const [first, second] of PAIRS) {
  const workers = Math.min(first.queuePairs, second.queuePairs);
  const by = workers === 1 ? '' : `, ${workers} workers`;
  test(`two guests: ${word(first)} and ${word(second)}${by}`, async (t) => {
    if (peersMissing(t)) return;
    await using scratch = new Scratch();
    const attachments = [first, second] as const;
    const paths = [scratch.path('a'), scratch.path('b')] as const;
    const guests = attachments.map((attachment, i) =>
      scratch.own(
        LinuxGuest.launch({
          name: `guest${i}`,
          ip: `10.0.0.${i + 1}/24,fd00::${i + 1}/64`,
          nics: [nicOf(i, paths[i] as string, attachment)],
        }),
      ),
    );
    const ports = attachments.map((a, i) => portSpec(`p${i}`, paths[i] as string, a));
    const control = scratch.path('control');
    const args = ['--workers', `${workers}`];
    const vswitch = scratch.own(await SwitchProcess.start({ ports, control, args }));
    await Promise.all(guests.map((guest) => guest.waitReady()));
    const [a, b] = guests as [LinuxGuest, LinuxGuest];

    for (const [i, attachment] of attachments.entries()) {
      const port = await vswitch.waitState(`p${i}`, 'up');
      const names = new Set(port.features?.names);
      equal(names.has('RING_PACKED'), attachment.packed);
      equal(names.has('MRG_RXBUF'), attachment.mrgRxbuf);
      const running = port.queues.filter((queue) => queue.enabled && queue.started);
      equal(running.length, 2 * attachment.queuePairs);
    }
    await checkPing(a, '10.0.0.2');
    await checkPing(b, 'fd00::1');
    await checkBulk(a, b, '10.0.0.2', BULK_MIB);
    await checkBulk(b, a, '10.0.0.1', BULK_MIB);
    if (workers > 1) {
      await pingByBothQueues(a, '10.0.0.2');
      await pingByBothQueues(b, '10.0.0.1');
      for (const { queues } of await vswitch.ports()) {
        const sent = queues.filter(({ name }) => name.startsWith('transmitq'));
        equal(sent.length, 2);
        for (const { counters } of sent) ok(counters['chains']! >= PINGS, 'each queue was used');
      }
      for (const { id, queues } of await vswitch.workers()) {
        ok(
          queues.some(({ index }) => index % 2 === 1),
          `worker ${id} has a transmit queue`,
        );
      }
    }
    for (const port of await vswitch.portsByCommand()) {
      equal(port.state, 'up');
      ok((port.counters['rxBytes'] ?? 0) > BULK_MIB * 2 ** 20, 'the stream went through the port');
    }
  });
}

const PINGS = 20;

/** A guest sends by the queue of the processor that the sender runs on. */
async function pingByBothQueues(from: LinuxGuest, address: string): Promise<void> {
  for (const mask of [1, 2]) {
    const ping = `taskset ${mask} ping -c ${PINGS} -i 0.02 -W 10 ${address}`;
    match(await from.check(ping), new RegExp(`${PINGS} packets received, 0% packet loss`));
  }
}

test('guests and the host over a TAP; one reboots and dies, the other goes on', async (t) => {
  if (peersMissing(t) || !requireRoot(t) || !requirePeer(t, 'ip')) return;
  await using scratch = new Scratch();
  const host = scratch.own(await NetNamespace.create());
  const paths = [scratch.path('a'), scratch.path('b')] as const;
  const attachment = { ...LISTENS, ...ONE, ...SPLIT, ...MERGED };
  const ports = paths.map((path, i) => portSpec(`p${i}`, path, attachment));
  const control = scratch.path('control');
  const vswitch = scratch.own(
    await SwitchProcess.start({ ports: [...ports, 'up=tap:tap0'], control, netns: host.name }),
  );
  await host.ip('address', 'add', '10.123.0.254/24', 'dev', 'tap0');
  const launch = (i: number): LinuxGuest => {
    const nics = [nicOf(i, paths[i] as string, attachment)];
    return scratch.own(LinuxGuest.launch({ name: `guest${i}`, ip: `10.123.0.${i + 1}/24`, nics }));
  };
  const [steady, victim] = [launch(0), launch(1)];
  await Promise.all([steady.waitReady(), victim.waitReady()]);

  await t.test('bulk TCP both ways, checksums compared', async () => {
    await checkPing(steady, '10.123.0.254');
    await checkBulkToHost(steady, host, '10.123.0.254', BULK_MIB);
    await checkBulkFromHost(host, steady, '10.123.0.1', BULK_MIB);
  });
  await t.test('a guest reboots while another has traffic', async () => {
    await undisturbed(steady, async () => {
      await victim.reboot();
      await vswitch.waitState('p1', 'up');
      await checkPing(victim, '10.123.0.254');
    });
  });
  await t.test('QEMU is killed while its guest and another have traffic', async () => {
    await undisturbed(steady, async () => {
      const before = (await vswitch.port('p1')).counters['rxFrames']!;
      victim.run('while true; do ping -q -A -c 100 -s 1400 10.123.0.254; done').catch(() => {}); // it ends with QEMU
      await waitFor('frames of the victim', 30_000, async () => {
        return (await vswitch.port('p1')).counters['rxFrames']! > before + 100;
      });
      await victim.kill();
      const port = await vswitch.waitState('p1', 'listening');
      equal(port.sessions, 1);
      await sleep(1500);
    });
  });
  await t.test('its successor takes the port over', async () => {
    const successor = launch(1);
    await successor.waitReady();
    await checkPing(successor, '10.123.0.1');
    equal((await vswitch.port('p1')).sessions, 2);
    equal((await vswitch.port('p0')).sessions, 1);
  });
});

/** While `work` runs, ten requests a second from the guest to the host are all answered. */
async function undisturbed(guest: LinuxGuest, work: () => Promise<void>): Promise<void> {
  const ping = await endlessPing(guest, '10.123.0.254');
  await work();
  const { sent, lost } = await ping.end();
  ok(sent >= 10, `the guest sent only ${sent} requests`);
  equal(lost, 0, `${lost} of ${sent} requests were not answered`);
}
