/**
 * DPDK's virtio driver (`net_virtio_user` in testpmd) as front-end of our ports, in every form it
 * has: split and packed rings, in order or not, mergeable buffers or not, vectorized, several
 * queue pairs, listening or connecting. Frames run in circles through a reflecting port; then the
 * counters of both sides must agree to the frame.
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { existsSync, readFileSync } from 'node:fs';
import { Testpmd, virtioUserVdev, type PortStats, type VirtioUserOptions } from '../peers/dpdk.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { SwitchProcess } from '../peers/switch.ts';
import { dropOf } from '../../src/daemon/switch-control.ts';
import type { PortStatus } from '../../src/daemon/switch-types.ts';

type Form = {
  readonly name: string;
  readonly options: Omit<VirtioUserOptions, 'path'>;
  /** What was negotiated, besides VERSION_1. */
  readonly features: { readonly [name: string]: boolean };
  /** The driver's own words for the path that it took. */
  readonly path?: RegExp;
};

/** DPDK's vectorized packed ring is written for AVX-512 alone. */
const HAS_AVX512 = /\bavx512vl\b/.test(readFileSync('/proc/cpuinfo', 'utf8'));

const FORMS: readonly Form[] = [
  {
    name: 'split',
    options: { inOrder: false, mrgRxbuf: true },
    features: { MRG_RXBUF: true, RING_PACKED: false, IN_ORDER: false },
    path: /using mergeable buffer Rx path/,
  },
  {
    name: 'split without mergeable buffers',
    options: { inOrder: false, mrgRxbuf: false },
    features: { MRG_RXBUF: false, RING_PACKED: false },
    path: /using standard Rx path/,
  },
  {
    name: 'split in order',
    options: { inOrder: true, mrgRxbuf: true },
    features: { MRG_RXBUF: true, IN_ORDER: true },
    path: /using inorder Rx path/,
  },
  {
    name: 'split vectorized',
    options: { inOrder: false, mrgRxbuf: false, vectorized: true },
    features: { MRG_RXBUF: false, IN_ORDER: false },
    path: /using vectorized Rx path/,
  },
  {
    name: 'packed',
    options: { packed: true, inOrder: false, mrgRxbuf: true },
    features: { RING_PACKED: true, MRG_RXBUF: true, IN_ORDER: false },
    path: /using packed ring mergeable buffer Rx path/,
  },
  {
    name: 'packed in order without mergeable buffers',
    options: { packed: true, inOrder: true, mrgRxbuf: false },
    features: { RING_PACKED: true, MRG_RXBUF: false, IN_ORDER: true },
    path: /using packed ring standard Rx path/,
  },
  {
    name: 'packed vectorized',
    options: { packed: true, inOrder: true, mrgRxbuf: false, vectorized: true },
    features: { RING_PACKED: true, MRG_RXBUF: false, IN_ORDER: true },
    path: HAS_AVX512 ? /packed ring vectorized Rx path/ : /packed ring standard Rx path/,
  },
  {
    name: 'split, two queue pairs',
    options: { queues: 2 },
    features: { RING_PACKED: false },
  },
  {
    name: 'packed, two queue pairs',
    options: { packed: true, queues: 2 },
    features: { RING_PACKED: true },
  },
  {
    name: 'listening front-end',
    options: { server: true },
    features: { RING_PACKED: false },
  },
];

/** So many bursts of 32 frames are on their way, per queue. */
const BURSTS = 4;
const RUN_MS = 1000;

let scratch: Scratch;
let vswitch: SwitchProcess;
const socketOf = (index: number): string => scratch.path(`p${index}`);

before(async () => {
  scratch = new Scratch();
});
after(async () => {
  await scratch[Symbol.asyncDispose]();
});

test('DPDK front-ends on reflecting ports', async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  const ports = FORMS.map((form, index) => {
    const { queues = 1, server = false } = form.options;
    const role = server ? ',client' : '';
    return `p${index}=vhost-user:${socketOf(index)},reflect,queues=${queues}${role}`;
  });
  vswitch = scratch.own(await SwitchProcess.start({ ports, control: scratch.path('control') }));
  for (const [index, form] of FORMS.entries()) {
    await t.test(form.name, () => checkForm(form, index));
  }
  await t.test('two ports with addresses learned', () => checkPair());
});

async function checkForm(form: Form, index: number): Promise<void> {
  const path = socketOf(index);
  const queues = form.options.queues ?? 1;
  const testpmd = await Testpmd.start({
    vdevs: [virtioUserVdev(0, { ...form.options, path })],
    queues,
    ealArgs: ['--force-max-simd-bitwidth=512', '--log-level=pmd.net.virtio.init:info'],
  });
  try {
    const status = await vswitch.waitState(`p${index}`, 'up');
    const features = new Set(status.features?.names);
    for (const [name, wanted] of Object.entries(form.features)) {
      equal(features.has(name), wanted, `${name} of ${[...features].join(' ')}`);
    }
    equal(status.queues.filter((queue) => queue.enabled).length, 2 * queues);
    if (form.path !== undefined) match(testpmd.log, form.path);
    const [client] = await loadAndDrain(testpmd);
    ok(client !== undefined && client.rxPackets > 10_000, `only ${client?.rxPackets} frames`);
    const port = await settledPort(`p${index}`);
    checkCounts(client, port);
    equal(client.rxPackets, client.txPackets, 'every frame comes back');
    deepEqual(dropsOf(port), {});
  } finally {
    await testpmd.close();
  }
  await vswitch.waitState(`p${index}`, form.options.server ? 'connecting' : 'listening');
}

/** Frames run between two ports by address; what one sends, the other gets. */
async function checkPair(): Promise<void> {
  const macs = ['52:54:00:00:00:01', '52:54:00:00:00:02'] as const;
  const names = ['pair0', 'pair1'] as const;
  for (const name of names) {
    const body = { name, kind: 'vhost-user', path: scratch.path(name) };
    await vswitch.api('/v1/ports', 'POST', body);
  }
  const testpmd = await Testpmd.start({
    vdevs: names.map((name, i) =>
      virtioUserVdev(i, { path: scratch.path(name), mac: macs[i] as string, packed: i === 1 }),
    ),
    args: [`--eth-peer=0,${macs[1]}`, `--eth-peer=1,${macs[0]}`],
  });
  try {
    for (const name of names) await vswitch.waitState(name, 'up');
    await testpmd.start(1);
    await sleep(300);
    await testpmd.stop();
    const learned = await vswitch.api<{ mac: string; port: string }[]>('/v1/macs');
    const found = macs.map((mac) => learned.find((entry) => entry.mac === mac)?.port);
    deepEqual(found, [...names]);
    const clients = await loadAndDrain(testpmd);
    const ports = [await settledPort(names[0]), await settledPort(names[1])];
    clients.forEach((client, i) => {
      ok(client.rxPackets > 10_000, `port ${i} got only ${client.rxPackets} frames`);
      checkCounts(client, ports[i] as PortStatus);
      deepEqual(dropsOf(ports[i] as PortStatus), {});
      equal(ports[i]?.counters['txFrames'], ports[1 - i]?.counters['rxFrames']);
    });
  } finally {
    await testpmd.close();
    for (const name of names) await vswitch.api(`/v1/ports/${name}`, 'DELETE');
  }
  ok(!existsSync(scratch.path(names[0])), 'the socket of a removed port is gone');
}

/** Lets frames run, then receives those still on their way without sending them again. */
async function loadAndDrain(testpmd: Testpmd): Promise<PortStats[]> {
  await testpmd.start(BURSTS);
  await sleep(RUN_MS);
  await testpmd.stop();
  await testpmd.command('set fwd rxonly');
  await testpmd.start();
  await sleep(200);
  await testpmd.stop();
  return testpmd.stats();
}

/** Both sides count the same frames and bytes. */
function checkCounts(client: PortStats, port: PortStatus): void {
  equal(port.counters['rxFrames'], client.txPackets, 'what the client sent');
  equal(port.counters['rxBytes'], client.txBytes);
  equal(port.counters['txFrames'], client.rxPackets, 'what the client received');
  equal(port.counters['txBytes'], client.rxBytes);
  equal(client.rxErrors + client.txErrors + client.rxMissed, 0);
}

/** The port's status by the user's command, once its counters stand still. */
async function settledPort(name: string): Promise<PortStatus> {
  let last = '';
  return waitFor(`counters of ${name} to stand still`, 5000, async () => {
    const port = (await vswitch.portsByCommand()).find((candidate) => candidate.name === name);
    const text = JSON.stringify(port?.counters);
    const settled = text === last;
    last = text;
    return settled ? port : null;
  });
}

/** Drop counters that are not zero. */
function dropsOf(port: PortStatus): Record<string, number> {
  const entries = Object.entries(port.counters);
  return Object.fromEntries(entries.filter(([name, value]) => dropOf(name) !== null && value > 0));
}
