/**
 * Live migration of a guest between two QEMUs with our back-end under both: the pages that we write
 * while memory is copied must be in the dirty log, or the guest arrives with old ones.
 */
import { deepEqual, equal, ok } from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { LinuxGuest, type GuestNic, type MigrationResult } from '../../src/vmm/index.ts';
import { MessageLog } from '../peers/message-log.ts';
import { NetNamespace } from '../peers/netns.ts';
import { Luggage, MAIL_BYTES, MovingGuest, UnreadMail } from '../peers/qemu-migration.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';
import { SwitchProcess } from '../peers/switch.ts';
import { checkBulkFromHost, checkBulkToHost, LongStream } from '../peers/traffic.ts';

/** Slow enough that the log is in use for a second or more, faster than the guest writes. */
const BYTES_PER_SECOND = 64 * 2 ** 20;

function peersMissing(t: TestContext): boolean {
  return !requirePeer(t, 'qemu-system-x86_64', 'linux kernel', 'busybox');
}

const isLogging = async (vswitch: SwitchProcess, port: string): Promise<boolean> =>
  (await vswitch.port(port)).features?.names.includes('LOG_ALL') ?? false;

const describe = (result: MigrationResult): string =>
  `${result.totalMs} ms, guest stood still ${result.downtimeMs} ms, ` +
  `${(result.transferredBytes / 2 ** 20).toFixed(0)} MiB, ${result.dirtySyncs} looks at dirty pages`;

test('there and back between two ports, while it receives, pings and writes', async (t) => {
  if (peersMissing(t)) return;
  await using scratch = new Scratch();
  const log = new MessageLog(scratch.path('messages'));
  const names = ['a', 'b', 'peer'] as const;
  const ports = names.map((name) => `${name}=vhost-user:${scratch.path(name)}`);
  const control = scratch.path('control');
  const vswitch = scratch.own(await SwitchProcess.start({ ports, control, ...log }));
  const [a, b] = [{ socket: scratch.path('a') }, { socket: scratch.path('b') }];
  const peer = launchPeer(scratch);
  const moving = await MovingGuest.start(scratch, a, {
    ip: '10.0.0.1/24',
    packed: false,
    queuePairs: 1,
  });
  await peer.waitReady();
  const luggage = await Luggage.pack(moving.guest, '10.0.0.2');
  const stream = await LongStream.start(peer, moving.guest, '10.0.0.1');

  await t.test('a migration that is cancelled leaves no log behind', async () => {
    equal(await isLogging(vswitch, 'a'), false);
    await cancelledMigration(moving.guest, () => isLogging(vswitch, 'a'));
    await waitFor('the end of logging', 10_000, async () => !(await isLogging(vswitch, 'a')));
    ok(log.received('SET_LOG_BASE') >= 1);
  });
  for (const [from, to, place] of [
    ['a', 'b', b],
    ['b', 'a', a],
  ] as const) {
    await t.test(`from port ${from} to a new QEMU on port ${to}`, async () => {
      const [set, written] = [log.received('SET_LOG_BASE'), await luggage.writes(moving.guest)];
      const mail = await UnreadMail.expect(peer, moving.guest, '10.0.0.1');
      let logging = false;
      let bytesBefore = -1;
      const result = await moving.move(place, {
        bytesPerSecond: BYTES_PER_SECOND,
        downtimeLimitMs: 1, // the guest writes faster; ends when the mail is there
        onCopying: async (status) => {
          logging ||= await isLogging(vswitch, from);
          const txBytes = async (): Promise<number> =>
            (await vswitch.port(from)).counters['txBytes'] ?? 0;
          if (bytesBefore < 0) bytesBefore = await txBytes();
          await mail.send(peer, moving.guest, status, async () => {
            return (await txBytes()) > bytesBefore + MAIL_BYTES;
          });
        },
      });
      t.diagnostic(`to port ${to}: ${describe(result)}`);
      deepEqual(result.lostPages, [], 'pages that differ before the guest runs again');
      await mail.read(peer, moving.guest);
      ok(logging, `port ${from} had LOG_ALL while memory was copied`);
      ok(log.received('SET_LOG_BASE') > set);
      await vswitch.waitState(to, 'up');
      equal(await isLogging(vswitch, to), false);
      await vswitch.waitState(from, 'listening');
      await waitFor('the guest goes on', 20_000, async () => {
        return (await luggage.writes(moving.guest)) > written;
      });
    });
  }
  await t.test('its memory and what it received are what they should be', async () => {
    const bytes = await stream.end(peer, moving.guest);
    ok(bytes > 2 ** 20, `the stream had ${bytes} bytes`);
    const { sent, lost } = await luggage.unpack(moving.guest);
    t.diagnostic(`${lost} of ${sent} echo requests lost, one each 100 ms; stream ${bytes} bytes`);
    // What comes while the guest is at neither port is lost, as on every move of a cable.
    ok(lost <= sent / 10, `${lost} of ${sent} echo requests were not answered`);
    for (const port of await vswitch.ports()) equal(port.counters['faults'], 0);
  });
});

for (const packed of [false, true]) {
  test(`postcopy, there and back, ${packed ? 'packed' : 'split'}`, async (t) => {
    if (peersMissing(t)) return;
    await using scratch = new Scratch();
    const log = new MessageLog(scratch.path('messages'));
    const ports = ['a', 'b', 'peer'].map(
      (name) => `${name}=vhost-user:${scratch.path(name)},postcopy=on`,
    );
    const control = scratch.path('control');
    const vswitch = scratch.own(await SwitchProcess.start({ ports, control, ...log }));
    const peer = launchPeer(scratch);
    const [a, b] = [{ socket: scratch.path('a') }, { socket: scratch.path('b') }];
    const moving = await MovingGuest.start(scratch, a, {
      ip: '10.0.0.1/24',
      packed,
      queuePairs: 1,
    });
    await peer.waitReady();
    const luggage = await Luggage.pack(moving.guest, '10.0.0.2');
    const stream = await LongStream.start(peer, moving.guest, '10.0.0.1');
    for (const [name, place] of Object.entries({ b, a })) {
      // Slow: it runs for seconds with most of its memory elsewhere, and so does our back-end.
      const result = await moving.move(place, { postcopy: true, bytesPerSecond: 32 * 2 ** 20 });
      t.diagnostic(
        `to port ${name}: ${describe(result)}, ${result.postcopyRequests} pages asked for`,
      );
      ok(result.postcopyRequests > 0);
      await vswitch.waitState(name, 'up');
    }
    for (const message of ['ADVISE', 'LISTEN', 'END']) {
      equal(log.received(`POSTCOPY_${message}`), 2, message);
    }
    const bytes = await stream.end(peer, moving.guest);
    ok(bytes > 2 ** 20, `the stream had ${bytes} bytes`);
    const { sent, lost } = await luggage.unpack(moving.guest);
    t.diagnostic(`${lost} of ${sent} echo requests lost, one each 100 ms; stream ${bytes} bytes`);
    ok(lost <= sent / 10, `${lost} of ${sent} echo requests were not answered`);
    for (const port of await vswitch.ports()) equal(port.counters['faults'], 0);
  });
}

test('from one switch to another and back, over packed rings', async (t) => {
  if (peersMissing(t) || !requireRoot(t) || !requirePeer(t, 'ip')) return;
  await using scratch = new Scratch();
  const host = scratch.own(await NetNamespace.create());
  await host.ip('link', 'add', 'br0', 'type', 'bridge');
  await host.ip('address', 'add', '10.124.0.254/24', 'dev', 'br0');
  await host.ip('link', 'set', 'br0', 'up');
  const places = [];
  const switches: SwitchProcess[] = [];
  for (const i of [0, 1]) {
    const socket = scratch.path(`vm${i}`);
    const ports = [`vm=vhost-user:${socket},queues=2`, `up=tap:tap${i}`];
    const control = scratch.path(`control${i}`);
    const started = await SwitchProcess.start({ ports, control, netns: host.name });
    switches.push(scratch.own(started));
    await host.ip('link', 'set', `tap${i}`, 'master', 'br0');
    await host.ip('link', 'set', `tap${i}`, 'up');
    places.push({ socket });
  }
  const moving = await MovingGuest.start(scratch, places[0]!, {
    ip: '10.124.0.1/24',
    packed: true,
    queuePairs: 2,
  });
  const luggage = await Luggage.pack(moving.guest, '10.124.0.254');
  for (const to of [1, 0]) {
    const result = await moving.move(places[to]!, { bytesPerSecond: BYTES_PER_SECOND });
    t.diagnostic(`to switch ${to}: ${describe(result)}`);
    deepEqual(result.lostPages, [], 'pages that differ before the guest runs again');
    equal((await switches[to]!.waitState('vm', 'up')).features?.names.includes('LOG_ALL'), false);
    await checkBulkFromHost(host, moving.guest, '10.124.0.1', 4);
    await checkBulkToHost(moving.guest, host, '10.124.0.254', 4);
  }
  const { sent, lost } = await luggage.unpack(moving.guest);
  t.diagnostic(`${lost} of ${sent} echo requests lost, one each 100 ms`);
  ok(lost <= sent / 10, `${lost} of ${sent} echo requests were not answered`);
});

/** Another guest, on port `peer`, with the address 10.0.0.2. */
function launchPeer(scratch: Scratch): LinuxGuest {
  const nic: GuestNic = {
    path: scratch.path('peer'),
    mode: 'client',
    queuePairs: 1,
    packed: false,
    mrgRxbuf: true,
    mac: '52:54:00:00:11:02',
    mtu: null,
  };
  return scratch.own(LinuxGuest.launch({ name: 'peer', ip: '10.0.0.2/24', nics: [nic] }));
}

/** Starts to migrate, too slowly to end, and changes its mind once `isLogging`. */
async function cancelledMigration(
  guest: LinuxGuest,
  isLogging: () => Promise<boolean>,
): Promise<void> {
  await guest.qmp('migrate-set-parameters', { 'max-bandwidth': 2 ** 20 });
  await guest.qmp('migrate', { uri: 'exec:cat > /dev/null' });
  await waitFor('LOG_ALL', 20_000, isLogging);
  await guest.qmp('migrate_cancel');
  await waitFor('the end of the migration', 20_000, async () => {
    const { status } = (await guest.qmp('query-migrate')) as { status: string };
    return status === 'cancelled';
  });
}
