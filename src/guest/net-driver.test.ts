import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openFdCount } from '../sys/index.ts';
import { receiveBulk } from './bulk-receiver.ts';
import { sendBulk } from './bulk-sender.ts';
import { patternSource } from './bulk-source.ts';
import { parseFeatureChoice } from './features.ts';
import { parseIp } from './ip-address.ts';
import { NO_OFFLOAD } from './link.ts';
import type { NetGuestOptions } from './net-driver.ts';
import {
  TEST_CONTROL_FEATURES,
  TEST_FEATURES,
  TestBackend,
  packetOf,
  startGuestPair,
  startTestGuest,
} from './testing.ts';

const features = (text: string) => parseFeatureChoice(text, '--features');
const echo = { identifier: 1, sequence: 1, timeoutMs: 2000, payloadBytes: 56 };
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

const VARIANTS: readonly [string, NetGuestOptions][] = [
  ['split', {}],
  ['packed', { packed: true }],
  ['split, in order', { features: features('+in_order') }],
  ['packed, in order', { packed: true, features: features('+in_order') }],
  ['split, no event index', { features: features('-event_idx') }],
  ['packed, no event index', { packed: true, features: features('-event_idx') }],
  ['split, whole buffers', { features: features('-mrg') }],
  ['packed, whole buffers', { packed: true, features: features('-mrg') }],
  ['split, whole buffers, chains', { features: features('-mrg,-indirect') }],
  ['packed, no indirect', { packed: true, features: features('-indirect') }],
  ['split, header apart', { headerApart: true }],
  ['packed, header apart, polled', { packed: true, headerApart: true, notify: 'poll' }],
  ['split, no offloads', { features: features('-csum,-guest_csum') }],
  ['packed ring of 100', { packed: true, ringSize: 100 }],
  ['split ring of 4', { ringSize: 4, features: features('-mrg,-tso,-uso') }],
];

for (const [name, options] of VARIANTS) {
  test(`two guests ping and send bulk data: ${name}`, async () => {
    const pair = await startGuestPair(options);
    try {
      for (const text of ['10.0.0.2', 'fd00::2']) {
        const result = await pair.stacks[0].ping(parseIp(text)!, echo);
        assert.ok(result !== null && result.intact, text);
      }
      const [received, sent] = await Promise.all([
        receiveBulk(pair.stacks[1], { waitMs: 2000 }),
        sendBulk(pair.stacks[0], { to: parseIp('10.0.0.2')!, source: patternSource(300_000) }),
      ]);
      assert.ok(sent.matches && received.matches);
      assert.equal(pair.stacks[0].counters.rxBadChecksum, 0);
      const segmented = pair.stacks[1].counters.rxUdpSegmented > 0;
      assert.equal(segmented, pair.guests[0].guest.offloads.uso, 'USO is used where it is offered');
    } finally {
      await pair.close();
    }
    for (const { guest } of pair.guests) assert.equal(guest.failure, null);
  });
}

test('everything is released at the end', async () => {
  await (await startGuestPair()).close();
  const before = openFdCount();
  await (await startGuestPair({ queuePairs: 2 })).close();
  await (await startGuestPair({ packed: true })).close();
  assert.equal(openFdCount(), before);
});

test('the configuration is read and used', async () => {
  const backend = new TestBackend({ features: TEST_FEATURES, config: { mtu: 9000 } });
  const { guest, close } = await startTestGuest(backend);
  assert.equal(guest.mac, '02:00:00:00:00:42');
  assert.equal(guest.mtu, 9000);
  assert.equal(guest.config?.linkUp, true);
  await close();
});

test('stop and resume: the rings go on where they were', async () => {
  for (const packed of [false, true]) {
    const pair = await startGuestPair({ packed });
    const to = parseIp('10.0.0.2')!;
    assert.ok(await pair.stacks[0].ping(to, echo));
    for (const { guest } of pair.guests) {
      const bases = await guest.stop();
      assert.equal(bases.length, 2);
      await guest.resume();
    }
    assert.ok(await pair.stacks[0].ping(to, { ...echo, sequence: 2 }));
    await pair.close();
  }
});

test('the control queue: commands are answered, refusals are errors', async () => {
  const seen: string[] = [];
  const backend = new TestBackend({
    features: TEST_CONTROL_FEATURES,
    queuePairs: 2,
    onControl: (commandClass, command, data) => {
      seen.push(`${commandClass}.${command}:${Buffer.from(data).toString('hex')}`);
      return commandClass === 2 ? 1 : 0;
    },
  });
  for (const packed of [false, true]) {
    seen.length = 0;
    const choice = features('+ctrl_vq');
    const { guest, close } = await startTestGuest(backend, {
      queuePairs: 2,
      packed,
      features: choice,
    });
    assert.ok(guest.control !== null);
    await guest.control.setMac('02:00:00:00:00:99');
    await guest.control.setRxMode(0, true);
    await guest.control.setMacTable(['02:00:00:00:00:99'], []);
    await guest.control.acknowledgeAnnounce();
    await assert.rejects(guest.control.setVlan(5, true), {
      code: 'ERR_VRING_GUEST_CONTROL_REFUSED',
    });
    assert.deepEqual(seen, [
      '4.0:0200',
      '1.1:020000000099',
      '0.0:01',
      '1.0:0100000002000000009900000000',
      '3.0:',
      '2.0:0500',
    ]);
    await close();
  }
});

test('features: forced, missing, contradicting', async () => {
  const start = (offered: bigint, text: string, options: NetGuestOptions = {}) =>
    startTestGuest(new TestBackend({ features: offered }), {
      ...options,
      features: features(text),
    });
  const few = (1n << 32n) | 1n;
  await assert.rejects(start(few, '+mrg'), /does not offer MRG_RXBUF/);
  await assert.rejects(start(1n, '-csum'), /does not offer VERSION_1/);
  await assert.rejects(start(few, '-csum', { packed: true }), { code: 'ERR_VRING_GUEST_FEATURE' });
  await assert.rejects(start(TEST_FEATURES, '+host_tso4,-csum'), /requires/);
  await assert.rejects(start(TEST_FEATURES, '-csum', { queuePairs: 4 }), {
    code: 'ERR_VRING_GUEST_QUEUES',
  });
  assert.throws(() => features('+nonsense'), { code: 'ERR_VRING_CONFIG' });
  assert.throws(() => features('mrg'), { code: 'ERR_VRING_CONFIG' });
  const { guest, close } = await start(TEST_FEATURES, '-guest_csum');
  assert.equal(guest.features & 0b110000010n, 0n, 'GUEST_TSO goes with GUEST_CSUM');
  await close();
});

test('hostile back-ends end as named errors', async () => {
  const cases: [string, boolean, (used: Int32Array, cells: Uint16Array) => void][] = [
    ['ERR_VRING_GUEST_USED_IDX', false, (_used, cells) => void (cells[1] += 300)],
    ['ERR_VRING_GUEST_USED_ID', false, (used) => void (used[1] = 9999)],
    ['ERR_VRING_GUEST_USED_ID', true, (desc) => void (desc[3] |= 0x7fff)],
    ['ERR_VRING_GUEST_USED_LENGTH', false, (used) => void (used[2] = 0x7fff_ffff)],
    ['ERR_VRING_GUEST_USED_LENGTH', true, (desc) => void (desc[2] = 0x7fff_ffff)],
    ['ERR_VRING_GUEST_USED_LENGTH', false, (used) => void (used[2] = 3)],
  ];
  for (const [code, packed, damage] of cases) {
    const backend = new TestBackend({
      features: TEST_FEATURES,
      sabotage: (queue, index) => {
        if (index === 0) damage(packed ? queue.desc : queue.used, queue.usedCells);
      },
    });
    const { guest, close } = await startTestGuest(backend, { packed });
    backend.deliver(packetOf(new Uint8Array(60)));
    const reason = await guest.closed;
    assert.equal((reason as { code?: string } | null)?.code, code);
    assert.equal(guest.send(new Uint8Array(60), NO_OFFLOAD), false);
    await close();
  }
});

test('a mergeable frame that never ends is refused', async () => {
  const backend = new TestBackend({ features: TEST_FEATURES });
  const { guest, close } = await startTestGuest(backend);
  const lying = packetOf(new Uint8Array(60));
  backend.deliver(lying);
  await pause(5);
  assert.equal(guest.counters.rxFrames, 1);
  const slot = guest.rx[0].slotOffset;
  const original = backend.deliver.bind(backend);
  assert.ok(original(lying));
  for (const at of slot) guest.rx[0].arena.setUint16(at + 10, 999, true);
  assert.equal(
    ((await guest.closed) as { code?: string } | null)?.code,
    'ERR_VRING_GUEST_DEVICE_HEADER',
  );
  await close();
});

test('a back-end that goes away is noticed', async () => {
  const backend = new TestBackend({ features: TEST_FEATURES });
  const { guest, session, close } = await startTestGuest(backend);
  await session.close();
  const reason = await guest.closed;
  assert.equal((reason as { code?: string } | null)?.code, 'ERR_VRING_GUEST_BACKEND_GONE');
  await close();
});
