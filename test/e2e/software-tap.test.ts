/** A TAP uplink beside a software guest, in a network namespace of the test's own. */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { NetNamespace } from '../peers/netns.ts';
import { readPcapng } from '../peers/pcapng.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { Host, VringProcess, ip4, ip6 } from '../peers/software-guest.ts';
import { SwitchProcess, vring } from '../peers/switch.ts';

test('TAP uplink and a software guest', { timeout: 60_000 }, async (t) => {
  if (!requirePeer(t, 'ip', 'busybox') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const host = scratch.own(await NetNamespace.create());
  const control = scratch.path('control');
  const ports = [`a=vhost-user:${scratch.path('a')}`, 'up=tap:tap0'];
  const vswitch = scratch.own(await SwitchProcess.start({ ports, control, netns: host.name }));
  await host.ip('address', 'add', `${ip4(100)}/24`, 'dev', 'tap0');
  await host.ip('address', 'add', `${ip6(100)}/64`, 'dev', 'tap0', 'nodad');
  const a = scratch.own(await Host.join(scratch.path('a'), 1, { features: '-guest_csum' }));

  await t.test('ping in both directions, IPv4 and IPv6', async () => {
    ok(await a.hears(ip4(100)));
    ok(await a.hears(ip6(100), 1400));
    const ping = 'busybox ping -c 3 -i 0.2 -W 2';
    match(await host.shell(`${ping} ${ip4(1)}`), /3 packets received, 0% packet loss/);
    match(await host.shell(`${ping} -s 1400 ${ip6(1)}`), /3 packets received, 0% packet loss/);
    equal(a.stack.counters.rxBadChecksum, 0);
  });

  await t.test("UDP: the host's unfinished checksums are completed for the guest", async () => {
    const { promise, resolve } = Promise.withResolvers<string>();
    a.stack.udp.bindOther((payload) => resolve(Buffer.from(payload).toString()));
    const before = (await vswitch.port('a')).counters['csumCompleted']!;
    const send = `const socket = require('dgram').createSocket('udp4');
      socket.send('from the host', 4000, '${ip4(1)}', () => socket.close())`;
    await host.shell(`${process.execPath} -e "${send}"`);
    equal(await promise, 'from the host');
    ok((await vswitch.port('a')).counters['csumCompleted']! > before);
    equal(a.stack.counters.rxBadChecksum, 0);
  });

  await t.test('capture on the uplink', async () => {
    const file = scratch.path('up.pcapng');
    const args = ['-w', file, '--count', '2', '--control', control];
    const capture = new VringProcess('capture', 'up', ...args);
    await waitFor('the capture', 5000, async () => {
      return (await vswitch.events()).some(({ kind }) => kind === 'capture');
    });
    ok(await a.hears(ip4(100)));
    equal((await capture.ended()).code, 0);
    const frames = readPcapng(readFileSync(file));
    deepEqual(
      frames.map(({ direction, bytes }) => [direction, bytes[34]]),
      [
        [2, 8],
        [1, 0],
      ],
      'the request leaves, the reply comes',
    );
  });

  await t.test('`vring port set --link` is the state of the interface', async () => {
    await vring('port', 'set', 'up', '--link', 'down', '--control', control);
    equal((await vswitch.port('up')).state, 'down');
    match(await host.ip('link', 'show', 'tap0'), /state DOWN/);
    equal(await a.hears(ip4(100), 56, 300), false);
    await vring('port', 'set', 'up', '--link', 'up', '--control', control);
    equal((await vswitch.port('up')).state, 'up');
    await waitFor('an answer', 3000, () => a.hears(ip4(100), 56, 300));
  });

  await t.test('a removed uplink takes its interface along, and can come back', async () => {
    const port = (...args: string[]) => vring('port', ...args, '--control', control);
    equal(await port('remove', 'up'), 'port up is removed\n');
    ok(!(await host.ip('link', 'show')).includes('tap0'));
    equal(await a.hears(ip4(100), 56, 300), false);
    equal(await port('add', 'up=tap:tap0'), 'port up is up: tap:tap0\n');
    await host.ip('address', 'add', `${ip4(100)}/24`, 'dev', 'tap0');
    // From the host: its interface has another MAC address now, which the guest learns so.
    match(await host.shell(`busybox ping -c 2 ${ip4(1)}`), / 0% packet loss/);
  });

  await t.test('an interface that goes away: the port is down and says so', async () => {
    await host.ip('link', 'delete', 'tap0');
    const port = await vswitch.waitState('up', 'down', 3000);
    match(port.reason?.message ?? '', /tap0/);
    const before = vswitch.cpuSeconds();
    await sleep(1000);
    ok(vswitch.cpuSeconds() - before < 0.3, 'and costs nothing');
  });

  await t.test('SIGTERM ends the switch with status 0', async () => {
    await a.close();
    deepEqual(await vswitch.close(), { code: 0, signal: null });
  });
});
