/**
 * The traditional path: a guest whose device is its own process, with the kernel's network stack
 * behind a TAP, in a network namespace of the test's own.
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { VringProcess, ip4, ip6, macOf, runVring } from '../peers/software-guest.ts';
import { NetNamespace } from '../peers/netns.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { SwitchProcess } from '../peers/switch.ts';

type Host = NetNamespace;

/** `vring guest net --backend in-process:tap0 ...` inside the namespace. */
function inside(host: Host, backend: string, ...args: string[]): VringProcess {
  const net = ['guest', 'net', '--backend', backend, '--json', ...args];
  return new VringProcess({ netns: host.name }, ...net);
}

async function address(host: Host, tap: string): Promise<void> {
  await waitFor(tap, 10_000, async () => (await host.ip('link', 'show')).includes(tap));
  await host.ip('address', 'add', `${ip4(100)}/24`, 'dev', tap);
  await host.ip('address', 'add', `${ip6(100)}/64`, 'dev', tap, 'nodad');
}

async function counter(host: Host, tap: string, name: string): Promise<number> {
  return Number(await host.shell(`cat /sys/class/net/${tap}/statistics/${name}`));
}

const last = (text: string) => JSON.parse(text.trim().split('\n').at(-1)!);
const ADDRESSES = ['--ip', `${ip4(1)}/24`, '--ip6', `${ip6(1)}/64`, '--mac', macOf(1)];

for (const ring of ['split', 'packed']) {
  test(`the kernel behind the TAP, ${ring}`, { timeout: 60_000 }, async (t) => {
    if (!requirePeer(t, 'ip', 'busybox') || !requireRoot(t)) return;
    await using scratch = new Scratch();
    const host = scratch.own(await NetNamespace.create());
    const echo = inside(host, 'in-process:tap0', ...ADDRESSES, '--ring', ring, 'echo');
    scratch.own(echo);
    await echo.says(/"event":"ready"/);
    await address(host, 'tap0');
    const ping = 'busybox ping -c 5 -i 0.2 -W 2';
    match(await host.shell(`${ping} ${ip4(1)}`), /5 packets received, 0% packet loss/);
    match(await host.shell(`${ping} -s 1400 ${ip6(1)}`), /5 packets received, 0% packet loss/);
    // Unfinished checksums of the kernel arrive finished, or as what the guest takes.
    const send = `const socket = require('dgram').createSocket('udp4');
      socket.on('message', (m) => { console.log(String(m)); socket.close(); });
      socket.send('there and back', 4000, '${ip4(1)}')`;
    equal(await host.shell(`${process.execPath} -e "${send}"`), 'there and back\n');
    equal((await echo.close()).code, 0);
    const { counters } = last(echo.out);
    equal(counters.echoRequestsIn, 10);
    equal(counters.rxBadChecksum, 0);
    ok(!(await host.ip('link', 'show')).includes('tap0'), 'the interface went with it');
  });
}

test(
  'the guest pings the kernel, and an idle device costs nothing',
  { timeout: 60_000 },
  async (t) => {
    if (!requirePeer(t, 'ip') || !requireRoot(t)) return;
    await using scratch = new Scratch();
    const host = scratch.own(await NetNamespace.create());
    await host.ip('tuntap', 'add', 'tap0', 'mode', 'tap', 'vnet_hdr');
    await address(host, 'tap0');
    const args = [...ADDRESSES, 'ping', ip4(100), '-c', '5', '-i', '0.05'];
    const ping = inside(host, 'in-process:tap0', ...args);
    equal((await ping.ended()).code, 0, ping.err);
    equal(last(ping.out).received, 5);
    const echo = scratch.own(inside(host, 'in-process:tap0', ...ADDRESSES, 'echo'));
    await echo.says(/"event":"ready"/);
    await sleep(500);
    const before = echo.cpuSeconds();
    await sleep(1000);
    ok(echo.cpuSeconds() - before < 0.1, `${echo.cpuSeconds() - before} s of a second`);
  },
);

test(
  'an interface that is deleted: nothing spins, the guest ends well',
  { timeout: 60_000 },
  async (t) => {
    if (!requirePeer(t, 'ip') || !requireRoot(t)) return;
    await using scratch = new Scratch();
    const host = scratch.own(await NetNamespace.create());
    const echo = scratch.own(inside(host, 'in-process:tap0', ...ADDRESSES, 'echo'));
    await echo.says(/"event":"ready"/);
    await host.ip('link', 'delete', 'tap0');
    await sleep(500);
    const before = echo.cpuSeconds();
    await sleep(1000);
    ok(echo.cpuSeconds() - before < 0.1, `${echo.cpuSeconds() - before} s of a second`);
    equal((await echo.close()).code, 0, echo.err);
  },
);

test('frames that are sent are frames that the interface has', { timeout: 60_000 }, async (t) => {
  if (!requirePeer(t, 'ip') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const host = scratch.own(await NetNamespace.create());
  await host.shell('sysctl -qw net.ipv6.conf.default.disable_ipv6=1');
  await host.ip('tuntap', 'add', 'tap0', 'mode', 'tap', 'vnet_hdr');
  for (const size of [64, 1500]) {
    const before = await counter(host, 'tap0', 'rx_packets');
    const bytesBefore = await counter(host, 'tap0', 'rx_bytes');
    const sender = inside(host, 'in-process:tap0', 'pps', '--size', `${size}`, '--seconds', '1');
    equal((await sender.ended()).code, 0, sender.err);
    const { sent } = last(sender.out);
    ok(sent.frames > 1000, `${sent.frames}`);
    equal((await counter(host, 'tap0', 'rx_packets')) - before, sent.frames, `${size} bytes`);
    equal((await counter(host, 'tap0', 'rx_bytes')) - bytesBefore, sent.frames * size);
  }
});

test('an interface in use, and one that is none', { timeout: 60_000 }, async (t) => {
  if (!requirePeer(t, 'ip') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const host = scratch.own(await NetNamespace.create());
  const first = scratch.own(inside(host, 'in-process:tap0', ...ADDRESSES, 'echo'));
  await first.says(/"event":"ready"/);
  const cases: [string, RegExp][] = [
    ['tap0', /tap0: another process has this interface open/],
    ['lo', /lo: it is there, and is no TAP/],
  ];
  for (const [tap, message] of cases) {
    const second = inside(host, `in-process:${tap}`, 'info');
    equal((await second.ended()).code, 1);
    match(second.err, message);
  }
});

test('from its own process to a switch and back, under traffic', { timeout: 90_000 }, async (t) => {
  if (!requirePeer(t, 'ip', 'busybox') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const host = scratch.own(await NetNamespace.create());
  const [control, a] = [scratch.path('control'), scratch.path('a')];
  const ports = [`a=vhost-user:${a}`, 'up=tap:tap1'];
  scratch.own(await SwitchProcess.start({ ports, control, netns: host.name }));
  const guest = scratch.own(
    inside(host, 'in-process:tap0', ...ADDRESSES, '--migrate-to', a, 'echo'),
  );
  await guest.says(/"event":"ready"/);
  // Both interfaces are ports of a bridge of the kernel: the guest stays reachable.
  await host.ip('link', 'add', 'br0', 'type', 'bridge', 'forward_delay', '0');
  for (const tap of ['tap0', 'tap1']) await host.ip('link', 'set', tap, 'master', 'br0');
  await host.ip('link', 'set', 'br0', 'up');
  await address(host, 'br0');
  const ping = `busybox ping -c 5 -i 0.1 -W 2 ${ip4(1)}`;
  match(await host.shell(ping), / 0% packet loss/);
  guest.signal('SIGUSR1');
  await guest.says(/"event":"moved"/);
  const moved = JSON.parse(guest.out.split('\n').find((line) => line.includes('"moved"'))!);
  deepEqual([moved.to, moved.stateBytes], [a, null]);
  ok(moved.rounds.length >= 2, `${moved.rounds}`);
  match(await host.shell(ping), / 0% packet loss/);
  equal((await guest.close()).code, 0, guest.err);
});

test('a device of its own takes no socket', async () => {
  const { status, err } = await runVring('guest', 'net', '--backend', 'in-process:', 'info');
  equal(status, 2);
  match(err, /lacks the name of a TAP interface/);
});
