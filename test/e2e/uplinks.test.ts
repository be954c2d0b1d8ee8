/** Uplinks by AF_PACKET and AF_XDP: a veth pair to another host, in namespaces of the test's own. */
import { equal, match, ok, rejects } from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { NetNamespace } from '../peers/netns.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { Host, ip4, ip6, VringProcess } from '../peers/software-guest.ts';
import { SwitchProcess, vring } from '../peers/switch.ts';
import { VethPair } from '../peers/veth.ts';

type Bed = {
  readonly host: NetNamespace;
  readonly pair: VethPair;
  readonly control: string;
};

async function makeBed(scratch: Scratch, queues = 1): Promise<Bed> {
  const host = scratch.own(await NetNamespace.create());
  const pair = scratch.own(await VethPair.create(host, queues));
  return { host, pair, control: scratch.path('control') };
}

function startSwitch(bed: Bed, ports: readonly string[]): Promise<SwitchProcess> {
  return SwitchProcess.start({ ports, control: bed.control, netns: bed.host.name });
}

const mayRun = (t: TestContext): boolean => requirePeer(t, 'ip', 'busybox') && requireRoot(t);
const PING = 'busybox ping -c 3 -i 0.2 -W 2';

for (const uplink of ['packet:up0', 'xdp:up0']) {
  test(`${uplink} and a software guest`, { timeout: 60_000 }, async (t) => {
    if (!mayRun(t)) return;
    await using scratch = new Scratch();
    const bed = await makeBed(scratch);
    const { far } = bed.pair;
    const ports = [`a=vhost-user:${scratch.path('a')}`, `up=${uplink}`];
    if (uplink.startsWith('xdp')) await bed.pair.withoutOffloads();
    await far.ip('address', 'add', `${ip4(100)}/24`, 'dev', 'far0');
    await far.ip('address', 'add', `${ip6(100)}/64`, 'dev', 'far0', 'nodad');
    const vswitch = scratch.own(await startSwitch(bed, ports));
    const a = scratch.own(await Host.join(scratch.path('a'), 1, { features: '-guest_csum' }));
    await pingBothWays(t, a, far);
    await t.test('UDP: whoever left the checksum, the guest has it whole', async () => {
      const { promise, resolve } = Promise.withResolvers<string>();
      a.stack.udp.bindOther((payload) => resolve(Buffer.from(payload).toString()));
      const send = `const socket = require('dgram').createSocket('udp4');
        socket.send('from far away', 4000, '${ip4(1)}', () => socket.close())`;
      await far.shell(`${process.execPath} -e "${send}"`);
      equal(await promise, 'from far away');
      const { csumCompleted } = (await vswitch.port('a')).counters;
      if (uplink.startsWith('packet')) ok(csumCompleted! > 0, 'the far host leaves checksums');
    });
    equal(a.stack.counters.rxBadChecksum, 0);
    await t.test('many frames at once, for which it stops being told of frames', async () => {
      const before = (await vswitch.port('up')).counters['rxFrames']!;
      const burst = `const socket = require('dgram').createSocket('udp4');
        let left = 1000;
        const sent = () => { if (--left === 0) socket.close(); };
        for (let i = 0; i < 1000; i++) socket.send('many', 4000, '${ip4(1)}', sent)`;
      await far.shell(`${process.execPath} -e "${burst}"`);
      await waitFor('the frames', 3000, async () => {
        return (await vswitch.port('up')).counters['rxFrames']! >= before + 500;
      });
    });
    await checkIdle(t, vswitch);
    ok(await a.hears(ip4(100)), 'and is told of frames again');
    await t.test('killed, it leaves nothing at the interface', async () => {
      process.kill(vswitch.pid, 'SIGKILL');
      await waitFor('no XDP program', 3000, async () => {
        const shown = await bed.host.ip('-d', 'link', 'show', 'up0');
        return !shown.includes('xdp') && !/promiscuity [1-9]/.test(shown);
      });
    });
  });
}

async function pingBothWays(t: TestContext, a: Host, far: NetNamespace): Promise<void> {
  await t.test('ping in both directions, IPv4 and IPv6', async () => {
    ok(await a.hears(ip4(100)));
    ok(await a.hears(ip6(100), 1400));
    match(await far.shell(`${PING} ${ip4(1)}`), /3 packets received, 0% packet loss/);
    match(await far.shell(`${PING} -s 1400 ${ip6(1)}`), /3 packets received, 0% packet loss/);
    equal(a.stack.counters.rxBadChecksum, 0);
  });
}

async function checkIdle(t: TestContext, vswitch: SwitchProcess): Promise<void> {
  await t.test('idle, it takes no processor time', async () => {
    await sleep(1000); // the polls of the API are over
    const before = vswitch.cpuSeconds();
    await sleep(2000);
    ok(vswitch.cpuSeconds() - before <= 0.02, 'two ticks of the clock are noise');
  });
}

for (const kind of ['packet', 'xdp']) {
  test(`${kind}: VLANs of a trunk, between two switches`, { timeout: 60_000 }, async (t) => {
    if (!mayRun(t)) return;
    await using scratch = new Scratch();
    const bed = await makeBed(scratch);
    if (kind === 'xdp') await bed.pair.withoutOffloads();
    const socket = (name: string): string => `${name}=vhost-user:${scratch.path(name)}`;
    const ports = [`${socket('a')},vlan=10`, `${socket('b')},trunk=20`];
    scratch.own(await startSwitch(bed, [...ports, `up=${kind}:up0,trunk=all`]));
    const far = await SwitchProcess.start({
      ports: [`${socket('c')},vlan=10`, `${socket('d')},vlan=20`, 'up=packet:far0,trunk=all'],
      control: scratch.path('far'),
      netns: bed.pair.far.name,
    });
    scratch.own(far);
    const a = scratch.own(await Host.join(scratch.path('a'), 1));
    const b = scratch.own(await Host.join(scratch.path('b'), 2, { vlan: 20 }));
    scratch.own(await Host.join(scratch.path('c'), 3));
    scratch.own(await Host.join(scratch.path('d'), 4));
    ok(await a.hears(ip4(3)), 'untagged to the guests, tagged on the wire');
    ok(await a.hears(ip6(3), 1400));
    ok(await b.hears(ip4(4), 1400), 'tagged on one side');
    equal(await a.hears(ip4(4), 56, 300), false, 'another VLAN');
  });

  test(`${kind}: frames of 9000 bytes`, { timeout: 60_000 }, async (t) => {
    if (!mayRun(t)) return;
    await using scratch = new Scratch();
    const bed = await makeBed(scratch);
    const { far } = bed.pair;
    if (kind === 'xdp') await bed.pair.withoutOffloads();
    await far.ip('address', 'add', `${ip4(100)}/24`, 'dev', 'far0');
    const ports = [`a=vhost-user:${scratch.path('a')},mtu=9000`, `up=${kind}:up0,mtu=9000`];
    await rejects(startSwitch(bed, ports), /the interface up0 has an MTU of 1500 and the port/);
    await bed.host.ip('link', 'set', 'up0', 'mtu', '9000');
    await far.ip('link', 'set', 'far0', 'mtu', '9000');
    scratch.own(await startSwitch(bed, ports));
    const a = scratch.own(await Host.join(scratch.path('a'), 1));
    ok(await a.hears(ip4(100), 8900));
    ok(await a.hears(ip4(100), 3900));
    match(await far.shell(`${PING} -s 8900 ${ip4(1)}`), / 0% packet loss/);
  });

  test(`${kind}: TCP of two kernels, through a TAP`, { timeout: 60_000 }, async (t) => {
    if (!mayRun(t) || !requirePeer(t, 'socat')) return;
    await using scratch = new Scratch();
    const bed = await makeBed(scratch);
    const { far } = bed.pair;
    if (kind === 'xdp') await bed.pair.withoutOffloads();
    await far.ip('address', 'add', `${ip4(100)}/24`, 'dev', 'far0');
    const vswitch = scratch.own(await startSwitch(bed, ['t=tap:tap0,queues=2', `up=${kind}:up0`]));
    await bed.host.ip('address', 'add', `${ip4(1)}/24`, 'dev', 'tap0');
    const bytes = 16 * 2 ** 20;
    const made = `head -c ${bytes} /dev/zero | openssl enc -aes-128-ctr -K 00 -iv 00 2>/dev/null`;
    const wanted = (await bed.host.shell(`${made} | sha256sum`)).trim();
    for (const [from, to, address] of [
      [bed.host, far, ip4(100)],
      [far, bed.host, ip4(1)],
    ] as const) {
      const received = to.shell('socat -u TCP-LISTEN:7000,reuseaddr STDOUT | sha256sum');
      const send = `socat -u STDIN TCP:${address}:7000,retry=20,interval=0.2`;
      await from.shell(`${made} | ${send}`);
      equal((await received).trim(), wanted);
    }
    const up = (await vswitch.port('up')).counters;
    const tap = (await vswitch.port('t')).counters;
    if (kind === 'packet') {
      equal(up['gsoSegmented'], 0, 'the interface takes large frames as they are');
      ok(tap['txFrames']! < bytes / 1500, 'and they come in large from there');
    } else {
      ok(up['gsoSegmented']! > 100, 'XDP has no offloads: the switch cut them up');
    }
    equal(up['txDropRefused'], 0);
  });
}

for (const kind of ['packet', 'xdp']) {
  test(`${kind}: the interface goes down, goes away and comes back`, async (t) => {
    if (!mayRun(t)) return;
    await using scratch = new Scratch();
    const bed = await makeBed(scratch);
    const { far } = bed.pair;
    await far.ip('address', 'add', `${ip4(100)}/24`, 'dev', 'far0');
    const paths = ['a', 'b'].map((name) => scratch.path(name));
    const guests = ['a', 'b'].map((name, i) => `${name}=vhost-user:${paths[i]}`);
    const vswitch = scratch.own(await startSwitch(bed, [...guests, `up=${kind}:up0`]));
    const a = scratch.own(await Host.join(paths[0]!, 1));
    scratch.own(await Host.join(paths[1]!, 2));
    ok(await a.hears(ip4(100)));

    await far.ip('link', 'set', 'far0', 'down');
    const down = await vswitch.waitState('up', 'down', 3000);
    match(down.reason?.message ?? '', /up0 is down, or has no carrier/);
    ok(await a.hears(ip4(2)), 'the others go on');
    await far.ip('link', 'set', 'far0', 'up');
    await vswitch.waitState('up', 'up', 3000);
    await waitFor('an answer', 3000, () => a.hears(ip4(100), 56, 300));

    await bed.host.ip('link', 'delete', 'up0');
    const gone = await vswitch.waitState('up', 'down', 3000);
    equal(gone.reason?.code, 'ERR_VRING_INTERFACE_GONE');
    ok(await a.hears(ip4(2)));
    await bed.pair.plug();
    await far.ip('address', 'add', `${ip4(100)}/24`, 'dev', 'far0');
    await vswitch.waitState('up', 'up', 3000);
    // From there: the interface has another MAC address now, which the guest learns so.
    match(await far.shell(`${PING} ${ip4(1)}`), / 0% packet loss/);
    ok(await a.hears(ip4(100)));
    const kinds = (await vswitch.events()).map((event) => event.kind);
    ok(kinds.filter((name) => name === 'port-down').length >= 2);

    const port = (...args: string[]) => vring('port', ...args, '--control', bed.control);
    await port('set', 'up', '--link', 'down');
    equal(await a.hears(ip4(100), 56, 300), false);
    await port('set', 'up', '--link', 'up');
    await waitFor('an answer', 3000, () => a.hears(ip4(100), 56, 300));
    equal(await port('remove', 'up'), 'port up is removed\n');
    equal(await port('add', `up=${kind}:up0`), `port up is up: ${kind}:up0\n`);
    await waitFor('an answer', 3000, () => a.hears(ip4(100), 56, 300));
  });
}

test('what an interface cannot do is said by name', async (t) => {
  if (!mayRun(t)) return;
  await using scratch = new Scratch();
  const bed = await makeBed(scratch, 2);
  const vswitch = scratch.own(await startSwitch(bed, ['up=xdp:up0']));
  const { events } = { events: await vswitch.events() };
  ok(events.some(({ message }) => /AF_XDP, 2 queues, native, copy mode/.test(message)));
  const add = (spec: string) => vring('port', 'add', spec, '--control', bed.control);
  await bed.host.ip('link', 'add', 'other0', 'type', 'veth', 'peer', 'name', 'other1');
  await rejects(add('x=packet:nosuch'), /there is no interface nosuch/);
  await rejects(add('x=xdp:other0,mode=zero-copy'), /the driver has no zero copy/);
  await rejects(add('x=xdp:other0,queues=9'), /queue \d: the interface has no such queue/);
  await rejects(add('x=packet:up0'), /belongs to|exists|is in use/);
  const second = SwitchProcess.start({
    ports: ['up=xdp:up0'],
    control: scratch.path('second'),
    netns: bed.host.name,
  });
  await rejects(second, /has an XDP program of somebody else/);
});

const without = (...names: string[]) => [
  'setpriv',
  `--bounding-set=${names.map((name) => `-${name}`).join(',')}`,
];

const LACKING = [
  {
    lacks: 'CAP_NET_RAW',
    launcher: without('net_raw'),
    refused: {
      packet: /packet:up0 needs root, or CAP_NET_RAW and CAP_NET_ADMIN \(missing: CAP_NET_RAW\)/,
      xdp: /xdp:up0 needs .* CAP_NET_ADMIN and CAP_BPF \(missing: CAP_NET_RAW\).* socket.*EPERM/,
    },
  },
  {
    lacks: 'CAP_NET_ADMIN',
    launcher: without('net_admin'),
    refused: {
      packet: /\(missing: CAP_NET_ADMIN\).*EPERM/,
      xdp: /\(missing: CAP_NET_ADMIN\).*EPERM/,
    },
  },
  {
    // CAP_SYS_ADMIN includes it.
    lacks: 'CAP_BPF',
    launcher: without('bpf', 'sys_admin'),
    refused: { xdp: /\(missing: CAP_BPF\).*EPERM/ },
  },
  {
    lacks: 'every right',
    launcher: without('all'),
    refused: {
      packet: /\(missing: CAP_NET_RAW, CAP_NET_ADMIN\)/,
      xdp: /\(missing: CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF\)/,
    },
  },
  {
    lacks: 'memory that may be locked',
    launcher: ['prlimit', '--memlock=65536', ...without('ipc_lock')],
    refused: { xdp: /xdp:up0 locks more memory .*ulimit -l unlimited.*CAP_IPC_LOCK.*ENOBUFS/ },
  },
];

test('a process that lacks a right is told which', { concurrency: true }, async (t) => {
  if (!mayRun(t) || !requirePeer(t, 'setpriv', 'prlimit')) return;
  await Promise.all(LACKING.map((lacking) => t.test(lacking.lacks, () => checkRefused(lacking))));
});

async function checkRefused({ lacks, launcher, refused }: (typeof LACKING)[number]) {
  await using scratch = new Scratch();
  const { host, control } = await makeBed(scratch);
  const options = { ports: [], control, netns: host.name, launcher };
  const vswitch = scratch.own(await SwitchProcess.start(options));
  const add = (kind: string) =>
    vswitch.api('/v1/ports', 'POST', { name: kind, kind, interface: 'up0' });
  for (const [kind, message] of Object.entries(refused)) {
    await rejects(add(kind), { message });
    await rejects(add(kind), { message }, 'nothing is left of the first one');
    if (lacks !== 'CAP_NET_ADMIN') continue;
    await host.ip('link', 'set', 'up0', 'down');
    await rejects(add(kind), { message }, 'nor can it set the interface up');
    await host.ip('link', 'set', 'up0', 'up');
  }
  if ('packet' in refused) return;
  await add('packet');
  equal((await vswitch.port('packet')).state, 'up', 'it has what that kind needs');
}

for (const kind of ['packet', 'xdp']) {
  test(`${kind}: a new process takes the switch over`, { timeout: 60_000 }, async (t) => {
    if (!mayRun(t)) return;
    await using scratch = new Scratch();
    const bed = await makeBed(scratch);
    const { far } = bed.pair;
    if (kind === 'xdp') await bed.pair.withoutOffloads();
    await far.ip('address', 'add', `${ip4(100)}/24`, 'dev', 'far0');
    const ports = [`a=vhost-user:${scratch.path('a')}`, 't=tap:tap0,queues=2', `up=${kind}:up0`];
    const vswitch = scratch.own(await startSwitch(bed, ports));
    await bed.host.ip('address', 'add', `${ip4(50)}/24`, 'dev', 'tap0');
    const a = scratch.own(await Host.join(scratch.path('a'), 1));
    ok(await a.hears(ip4(100)));
    const before = (await vswitch.port('up')).counters;
    const within = { netns: bed.host.name };
    const args = ['switch', '--take-over', '--control', bed.control];
    const next = scratch.own(new VringProcess(...args, within));
    await next.says(/ready: \d+ port/);
    equal((await vswitch.ended()).code, 0);
    await waitFor('an answer', 5000, () => a.hears(ip4(100), 56, 300));
    ok(await a.hears(ip4(50)), 'the queues of the TAP went along');
    const after = await vswitch.port('up');
    equal(after.state, 'up');
    ok(after.counters['rxFrames']! > before['rxFrames']!, 'counters go on');
  });
}
