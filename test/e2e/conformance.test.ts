/**
 * The conformance runner: our own back-end passes every check that applies, a back-end with one
 * flaw fails the check for it, and what other peers are known to do is what is found.
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import {
  BACK_END_CHECKS,
  type BackEndRun,
  type DeviceProfile,
  FRONT_END_RULES,
  htmlReport,
  junitReport,
  PROFILES,
  type Report,
  runBackEnd,
  runFrontEnd,
} from '../../src/conformance/index.ts';
import * as wire from '../../src/wire/vhost-user.ts';
import { U64Payload } from '../../src/wire/vhost-user.ts';
import { type Flaw, FlawedProxy } from '../peers/flawed-proxy.ts';
import { reserveHugePages } from '../peers/hugepages.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch } from '../peers/scratch.ts';
import { startSwitch } from '../peers/switch.ts';

const profile = (name: string): DeviceProfile => PROFILES[name] as DeviceProfile;
const BRIEF = { answerMs: 1000, quietMs: 60, connectMs: 3000 };

/** Checks that failed or could not be judged, with the reason. */
function bad(report: Report): string[] {
  return report.checks
    .filter(({ verdict }) => verdict === 'fail' || verdict === 'error')
    .map(
      ({ id, verdict, critical, detail }) => `${id} ${verdict}${critical ? '!' : ''}: ${detail}`,
    );
}

const failed = (report: Report): string[] =>
  bad(report).map((line) => line.split(' ')[0] as string);

test('the catalogue does not shrink, and ids are unique', () => {
  ok(BACK_END_CHECKS.length >= 357, `${BACK_END_CHECKS.length} checks of back-ends`);
  ok(FRONT_END_RULES.length >= 38, `${FRONT_END_RULES.length} rules of front-ends`);
  const ids = [...BACK_END_CHECKS, ...FRONT_END_RULES].map(({ id }) => id);
  equal(new Set(ids).size, ids.length);
});

test('our own back-end passes every check that applies', async () => {
  await using scratch = new Scratch();
  await startSwitch(scratch, { a: ',reflect,postcopy=on', b: ',iommu=on' });
  const report = await runBackEnd({
    socket: scratch.path('a'),
    profile: profile('net'),
    level: 'destructive',
    patience: { ...BRIEF, answerMs: 5000 },
  });
  deepEqual(bad(report), []);
  ok(report.counts.pass >= 312, `only ${report.counts.pass} checks applied`);
  const iommu = await runBackEnd({
    socket: scratch.path('b'),
    profile: profile('net'),
    only: ['BE-IOTLB'],
    patience: BRIEF,
  });
  deepEqual(bad(iommu), []);
  equal(iommu.counts.pass, 4);
  match(htmlReport(report), /<details class="pass">/);
  match(junitReport(report), /<testsuite name="back-end net BE-NEG" tests="14" failures="0"/);
});

const u64 = (value: bigint): Uint8Array => U64Payload.encode({ value });
const swallow = (...ids: number[]): Flaw => ({
  request: ({ request }) => (ids.includes(request) ? true : null),
});

/** Changes the answers to one request. */
function answer(id: number, change: (payload: Uint8Array) => Uint8Array): Flaw {
  return {
    reply: ({ request, flags, payload }) =>
      request === id ? [{ request, flags, payload: change(payload) }] : null,
  };
}

/** Each flaw with the check that must see it. */
const FLAWS: readonly (readonly [string, Flaw])[] = [
  ['BE-NEG-007', answer(wire.VHOST_USER_GET_PROTOCOL_FEATURES, (p) => u64(read(p) | (1n << 40n)))],
  ['BE-NEG-006', answer(wire.VHOST_USER_GET_PROTOCOL_FEATURES, (p) => u64(read(p) & ~(1n << 5n)))],
  ['BE-NEG-013', answer(wire.VHOST_USER_GET_QUEUE_NUM, () => u64(0n))],
  ['BE-REPLY-GET_STATUS', answer(wire.VHOST_USER_GET_STATUS, (p) => p.slice(0, 4))],
  [
    'BE-REPLY-GET_QUEUE_NUM',
    {
      reply: ({ request, payload }) =>
        request === wire.VHOST_USER_GET_QUEUE_NUM ? [{ request, flags: 1, payload }] : null,
    },
  ],
  [
    'BE-ONEREPLY-GET_STATUS',
    {
      reply: ({ request, flags, payload }) => {
        const one = { request, flags, payload };
        return request === wire.VHOST_USER_GET_STATUS ? [one, one] : null;
      },
    },
  ],
  ['BE-ACK-SET_OWNER', answer(wire.VHOST_USER_SET_OWNER, () => u64(1n))],
  [
    'BE-ACK-001',
    {
      request: ({ request, flags }) =>
        request === wire.VHOST_USER_SET_OWNER && flags === 1 ? u64(0n) : null,
    },
  ],
  ['BE-GATE-GET_STATUS', { request: ({ request }) => (request === 40 ? u64(0n) : null) }],
  ['BE-RING-001', swallow(wire.VHOST_USER_SET_VRING_KICK)],
  [
    'BE-RING-012',
    {
      request: ({ request, payload }) =>
        request === wire.VHOST_USER_GET_VRING_BASE ? payload.slice() : null,
    },
  ],
  [
    'BE-RING-013',
    answer(wire.VHOST_USER_GET_VRING_BASE, (p) =>
      Uint8Array.from(p, (b, i) => (i === 4 ? b + 1 : b)),
    ),
  ],
  ['BE-VQ-001', swallow(wire.VHOST_USER_SET_VRING_CALL)],
  [
    'BE-NET-011',
    {
      request: ({ request, payload }) =>
        request === wire.VHOST_USER_SET_VRING_ENABLE && payload[4] === 0 ? true : null,
    },
  ],
  ['BE-CONFIG-001', answer(wire.VHOST_USER_GET_CONFIG, (p) => p.slice(0, 12))],
  ['BE-CONFIG-002', { reply: emptyIsZeros }],
  ['BE-STATUS-001', answer(wire.VHOST_USER_GET_STATUS, () => u64(0n))],
  ['BE-NET-002', answer(wire.VHOST_USER_NET_SET_MTU, () => u64(0n))],
  ['BE-MEM-023', answer(wire.VHOST_USER_REM_MEM_REG, () => u64(0n))],
  [
    'BE-LOG-002', // a log that nobody writes
    {
      request: ({ request }) =>
        request === wire.VHOST_USER_SET_LOG_BASE ? new Uint8Array(0) : null,
    },
  ],
  ['BE-MALF-009', { diesOf: 0 }],
];

function read(payload: Uint8Array): bigint {
  return U64Payload.decode(payload).value;
}

function emptyIsZeros(message: { request: number; flags: number; payload: Uint8Array }) {
  const { request, flags, payload } = message;
  if (request !== wire.VHOST_USER_GET_CONFIG || payload.length > 0) return null;
  return [{ request, flags, payload: new Uint8Array(18) }];
}

test('a back-end with one flaw fails the check for it', async () => {
  await using scratch = new Scratch();
  await startSwitch(scratch, { a: ',reflect' });
  const proxy = scratch.own(new FlawedProxy(scratch.path('p'), scratch.path('a')));
  const run = (only: string[]): Promise<Report> =>
    runBackEnd({
      socket: proxy.path,
      profile: profile('net'),
      level: 'destructive',
      only,
      patience: { answerMs: 400, quietMs: 50, connectMs: 400 },
    });
  const ids = FLAWS.map(([id]) => id);
  deepEqual(bad(await run(ids)), [], 'without a flaw all of them pass');
  for (const [id, flaw] of FLAWS) {
    proxy.flaw = flaw;
    const [only] = (await run([id])).checks;
    equal(only?.verdict, 'fail', `${id}: ${only?.detail} ${only?.transcript.join('\n')}`);
  }
  const last = FLAWS.at(-1) as [string, Flaw];
  ok(last[1].diesOf !== undefined, 'the deadly flaw is the last one: nobody accepts after it');
});

/** Runs some checks against a program that is started for it. */
function runPeer(options: Omit<BackEndRun, 'patience'>): Promise<Report> {
  return runBackEnd({ ...options, patience: BRIEF });
}

test('qemu-storage-daemon: what is known is found', async (t) => {
  if (!requirePeer(t, 'qemu-storage-daemon')) return;
  await using scratch = new Scratch();
  writeFileSync(scratch.path('disk'), new Uint8Array(1 << 20));
  const socket = scratch.path('s');
  const report = await runPeer({
    socket,
    profile: profile('blk'),
    level: 'basic',
    respawn:
      `qemu-storage-daemon --blockdev driver=file,filename=${scratch.path('disk')},node-name=n ` +
      `--export type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=${socket},writable=on`,
  });
  // BE-RING-017 fails when GET_VRING_BASE comes while requests are in flight: they are not drained.
  const known = failed(report).filter((id) => id !== 'BE-RING-017');
  deepEqual(known.sort(), [
    'BE-ACK-002', // libvhost-user answers need_reply without REPLY_ACK
    'BE-LOG-004', // and logs the used ring whatever the flag says
    'BE-RING-006', // waits for a kick
    'BE-RING-008', // ignores SET_VRING_ENABLE
    'BE-RING-009',
    'BE-RING-011',
    'BE-RING-015', // keeps the addresses of stopped rings
    'BE-VQ-003', // "Error writing eventfd" without a call fd
    'BE-VQ-005',
    'BE-VQ-006', // does not poll
  ]);
  ok(report.counts.pass >= 80, `${report.counts.pass} pass`);
});

test('DPDK net_vhost: what is known is found', async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  reserveHugePages(64);
  const socket = scratch.path('s');
  const report = await runPeer({
    socket,
    profile: profile('net'),
    level: 'basic',
    only: ['BE-NEG', 'BE-ACK', 'BE-REPLY', 'BE-RING', 'BE-FRAME', 'BE-MEM'],
    respawn:
      'dpdk-testpmd --lcores 0@0,1@1 --in-memory --single-file-segments --no-pci -m 64 ' +
      `--no-telemetry --vdev net_vhost0,iface=${socket},queues=1 -- -i --auto-start ` +
      '--nb-cores=1 --forward-mode=io --port-topology=loop --total-num-mbufs=2048',
  });
  // BE-RING-002 fails whenever its poller has a core in time: it polls from SET_VRING_KICK on.
  const known = failed(report).filter((id) => id !== 'BE-RING-002');
  deepEqual(known.sort(), [
    'BE-ACK-002', // answers need_reply without REPLY_ACK
    'BE-FRAME-001', // wants a header in one piece
    'BE-RING-008', // leaves disabled transmit rings alone
    'BE-RING-009',
    'BE-RING-020', // forgets the size at GET_VRING_BASE
  ]);
});

test('DPDK virtio-user: every rule that has an occasion holds', async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  reserveHugePages(64);
  const socket = scratch.path('s');
  const report = await runFrontEnd({
    socket,
    device: 'net',
    seconds: 1,
    spawn:
      'dpdk-testpmd --lcores 0@0,1@1 --in-memory --single-file-segments --no-pci -m 64 ' +
      `--no-telemetry --vdev net_virtio_user0,path=${socket},queue_size=256 -- -i --auto-start ` +
      '--nb-cores=1 --forward-mode=txonly --total-num-mbufs=2048',
  });
  deepEqual(failed(report), ['FE-END-001'], 'a client of this version does not come back');
  ok(report.counts.pass >= 19, `${report.counts.pass} pass`);
});
