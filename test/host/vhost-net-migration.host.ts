/**
 * A guest on vhost-net moves, while a transfer to it runs: to another TAP of the same bridge, back,
 * and to a vhost-user port of a switch. The kernel's dirty log is compared with what it wrote.
 */
// @test-host time-limit=400
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { buildConfig } from '../../src/daemon/index.ts';
import { VirtualSwitch } from '../../src/daemon/virtual-switch.ts';
import {
  migrateGuest,
  NetConnector,
  parseIp,
  patternSource,
  receiveBulk,
  sendBulk,
  type MigrateOptions,
} from '../../src/guest/index.ts';
import { VhostNetBackend } from '../../src/vhost-kernel/index.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { ip, loadModules, TapGuest, vhostThreads } from './tap-guest.ts';

loadModules('tun', 'vhost_net', 'bridge');
const MOVING = parseIp('10.77.4.2')!;

/** Two guests on one bridge: one stays on `tapp`, the other moves; `10.77.4.2` and `10.77.5.2`. */
async function setUp(scratch: Scratch) {
  await ip('link', 'add', 'br0', 'type', 'bridge', 'forward_delay', '0');
  scratch.own({ close: () => ip('link', 'delete', 'br0') });
  await ip('link', 'set', 'br0', 'up');
  const peer = scratch.own(
    await TapGuest.start({ tap: 'tapp', net: null, address: '10.77.4.9/24' }),
  );
  const host = scratch.own(
    await TapGuest.start({ tap: 'tap0', net: null, address: `${MOVING.text}/24` }),
  );
  for (const tap of ['tapp', 'tap0']) await ip('link', 'set', tap, 'master', 'br0');
  const hears = () =>
    peer.stack.ping(MOVING, { sequence: 1, identifier: 1, payloadBytes: 56, timeoutMs: 500 });
  await waitFor('the guest', 10_000, hears);
  return { peer, host, hears };
}

/** Opens a TAP of the bridge. */
const toTap = (tap: string): MigrateOptions['connect'] => {
  return async () => {
    const backend = VhostNetBackend.open({ tap });
    await ip('link', 'set', tap, 'master', 'br0');
    return backend;
  };
};

function transfer(peer: TapGuest, host: TapGuest, bytes: number) {
  const receiving = receiveBulk(host.stack, { port: 7700 });
  const source = patternSource(bytes);
  return Promise.all([
    receiving,
    sendBulk(peer.stack, { to: MOVING, port: 7700, source, stallMs: 30_000 }),
  ]);
}

test('from TAP to TAP and back, under a transfer', { timeout: 120_000 }, async () => {
  await using scratch = new Scratch();
  const { peer, host, hears } = await setUp(scratch);
  const done = transfer(peer, host, 6 * 2 ** 20);
  for (const tap of ['tap1', 'tap0']) {
    await sleep(300);
    const report = await migrateGuest(host.guest, { connect: toTap(tap), verify: true });
    equal(report.unlogged, 0, 'every page that the kernel wrote was in its log');
    ok(report.rounds.length >= 2, `${report.rounds}`);
    equal(report.announcedBy, 'guest');
    equal(host.guest.backend.description, `vhost-net:${tap}`);
    equal(vhostThreads().length, 2, "the old one's thread has ended");
  }
  const [received, sent] = await done;
  deepEqual([received.matches, received.sha256], [true, sent.sha256]);
  ok(await hears());
});

test('from a TAP to a vhost-user port, under a transfer', { timeout: 120_000 }, async () => {
  await using scratch = new Scratch();
  const { peer, host, hears } = await setUp(scratch);
  const socket = scratch.path('a');
  // In this process: another one takes twenty seconds to start on an emulated machine.
  const ports = [`a=vhost-user:${socket}`, 'up=tap:tap3'];
  const vswitch = scratch.own(await VirtualSwitch.start(buildConfig({ ports })));
  await ip('link', 'set', 'tap3', 'master', 'br0');
  const done = transfer(peer, host, 3 * 2 ** 20);
  await sleep(300);
  const connector = new NetConnector({ socket });
  const report = await migrateGuest(host.guest, {
    connect: (signal) => connector.connect(signal, true),
    verify: true,
  });
  equal(report.unlogged, 0);
  match(host.guest.backend.description, /vhost-user:/);
  equal((await vswitch.port('a')).state, 'up');
  const [received, sent] = await done;
  deepEqual([received.matches, received.sha256], [true, sent.sha256]);
  ok(await hears());
  equal(vhostThreads().length, 1, 'only the peer is on vhost-net');
  ok(!readFileSync('/proc/net/dev', 'utf8').includes('tap0'), 'the old TAP is gone');
});
