/**
 * The software guest moves from one switch port to another while its applications work: precopy
 * with a dirty log, postcopy with page faults, the port's state over SET_DEVICE_STATE_FD.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { test } from 'node:test';
import {
  migrateGuest,
  NetConnector,
  parseIp,
  patternSource,
  receiveBulk,
  runTraffic,
  sendBulk,
  type MigrateOptions,
} from '../../src/guest/index.ts';
import { requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep } from '../peers/scratch.ts';
import { Host, VringProcess, ip4, ip6, macOf } from '../peers/software-guest.ts';
import { startSwitch } from '../peers/switch.ts';

/** Moves a host to another socket. */
function move(host: Host, socket: string, options: Omit<MigrateOptions, 'connect'> = {}) {
  const connector = new NetConnector({ socket });
  const connect = (signal?: AbortSignal) => connector.connect(signal, true);
  return migrateGuest(host.guest, { connect, ...options });
}

const KINDS: readonly [string, object][] = [
  ['split', {}],
  ['packed', { packed: true }],
  ['split without mergeable buffers', { features: '-mrg', ringSize: 64 }],
];
for (const [kind, options] of KINDS) {
  test(`there and back under a transfer, ${kind}`, { timeout: 60_000 }, async () => {
    await using scratch = new Scratch();
    const vswitch = await startSwitch(scratch, { a: '', b: '', p: '' });
    const peer = scratch.own(await Host.join(scratch.path('p'), 1));
    const host = scratch.own(await Host.join(scratch.path('a'), 2, options));
    ok(await peer.hears(ip4(2)));
    const receiving = receiveBulk(host.stack, { port: 7700 });
    const sending = sendBulk(peer.stack, {
      to: parseIp(ip4(2))!,
      port: 7700,
      source: patternSource(48 * 2 ** 20),
    });
    for (const port of ['b', 'a', 'b']) {
      await sleep(150);
      const report = await move(host, scratch.path(port), { verify: true });
      equal(report.unlogged, 0, 'every page that the switch wrote was in its log');
      ok(report.rounds.length >= 3, `${report.rounds}`);
      ok((report.stateBytes ?? 0) > 0, 'the port told what it knew');
      equal(report.announcedBy, 'back-end');
      await vswitch.waitState(port, 'up');
    }
    const [received, sent] = [await receiving, await sending];
    deepEqual([received.matches, received.sha256], [true, sent.sha256]);
    ok(await peer.hears(ip4(2)));
    ok(await host.hears(ip6(1), 1400));
    equal(host.guest.failure, null);
    equal((await vswitch.port('b')).state, 'up');
  });
}

test('numbers go on where they were', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  await startSwitch(scratch, { a: '', b: '', p: '' });
  const manual = { notify: 'manual', ringSize: 1024 } as const;
  const sink = scratch.own(await Host.join(scratch.path('p'), 1, manual));
  const host = scratch.own(await Host.join(scratch.path('a'), 2, { ...manual, packed: true }));
  sink.guest.announce();
  const stop = new AbortController();
  const counting = runTraffic({ guest: sink.guest, signal: stop.signal });
  const generate = { sizeBytes: 200, targetMac: macOf(1), rate: 2000, frames: 4000 };
  const sending = runTraffic({ guest: host.guest, generate });
  for (const port of ['b', 'a', 'b']) {
    await sleep(300);
    await move(host, scratch.path(port), { verify: true });
  }
  await sending;
  await sleep(200);
  stop.abort();
  const { records } = await counting;
  const { good, lost, repeated, reordered, corrupt } = records;
  deepEqual([good, lost, repeated, reordered, corrupt], [4000, 0, 0, 0, 0]);
});

test('to another switch', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  await using elsewhere = new Scratch();
  const first = await startSwitch(scratch, { a: '', b: '' });
  const second = await startSwitch(elsewhere, { a: '', b: '' });
  const a = scratch.own(await Host.join(scratch.path('a'), 1));
  const b = scratch.own(await Host.join(scratch.path('b'), 2, { packed: true }));
  ok(await a.hears(ip4(2)));
  await move(a, elsewhere.path('a'), { verify: true });
  equal(await a.hears(ip4(2), 56, 200), false, 'there is no way between the two');
  await move(b, elsewhere.path('b'), { verify: true });
  ok(await a.hears(ip4(2)));
  ok(await b.hears(ip6(1)));
  await first.waitState('a', 'listening');
  await first.close();
  equal((await second.port('a')).state, 'up');
});

test('a move that fails leaves the guest where it was', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  await startSwitch(scratch, { a: '', b: '', c: ',packed=off' });
  const a = scratch.own(await Host.join(scratch.path('a'), 1, { packed: true }));
  const b = scratch.own(await Host.join(scratch.path('b'), 2));
  await rejects(move(a, scratch.path('none')), { code: 'ERR_VRING_GUEST_NO_BACKEND' });
  ok(await b.hears(ip4(1)));
  await rejects(move(a, scratch.path('c')), (error: Error & { code?: string }) => {
    match(error.message, /does not offer the features RING_PACKED/);
    return error.code === 'ERR_VRING_FEATURES';
  });
  ok(await b.hears(ip4(1)));
  ok(await a.hears(ip6(2)));
  equal(a.guest.failure, null);
});

test(
  'on the command line: SIGUSR1 moves, the next one moves back',
  { timeout: 60_000 },
  async () => {
    await using scratch = new Scratch();
    const vswitch = await startSwitch(scratch, { a: '', b: '', p: '' });
    const peer = scratch.own(await Host.join(scratch.path('p'), 1));
    const there = ['--migrate-to', scratch.path('b')];
    const guest = scratch.own(await VringProcess.guest(scratch.path('a'), 2, ...there, 'echo'));
    ok(await peer.hears(ip4(2)));
    guest.signal('SIGUSR1');
    await guest.says(/moved to .*b in \d+ ms, .* \d+ bytes of device state/);
    await vswitch.waitState('b', 'up');
    ok(await peer.hears(ip4(2)));
    guest.signal('SIGUSR1');
    await guest.says(/moved to .*a in /);
    ok(await peer.hears(ip4(2)));
    deepEqual(await guest.close(), { code: 0, signal: null });
  },
);

test('postcopy: pages come when somebody waits for them', { timeout: 60_000 }, async (t) => {
  if (!requireRoot(t)) return;
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: ',postcopy=on', b: ',postcopy=on', p: '' });
  const peer = scratch.own(await Host.join(scratch.path('p'), 1));
  const host = scratch.own(await Host.join(scratch.path('a'), 2));
  ok(await peer.hears(ip4(2)));
  const receiving = receiveBulk(host.stack, { port: 7700 });
  const source = patternSource(32 * 2 ** 20);
  const sending = sendBulk(peer.stack, { to: parseIp(ip4(2))!, port: 7700, source });
  let faults = 0;
  for (const port of ['b', 'a']) {
    await sleep(150);
    // Pings meanwhile: what they bring goes into buffers that are still elsewhere.
    const moved = new AbortController();
    const pings = (async () => {
      while (!moved.signal.aborted) await peer.hears(ip4(2), 56, 10);
    })();
    const report = await move(host, scratch.path(port), { postcopy: true, bundlePauseMs: 50 });
    moved.abort();
    await pings;
    faults += report.faults;
    ok((report.stateBytes ?? 0) > 0);
    await vswitch.waitState(port, 'up');
  }
  ok(faults > 0, `${faults} faults`);
  const [received, sent] = [await receiving, await sending];
  deepEqual([received.matches, received.sha256], [true, sent.sha256]);
  ok(await peer.hears(ip4(2)));
  ok(vswitch.isRunning);
});
