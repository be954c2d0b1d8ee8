/**
 * Our software guest as front-end of DPDK's `net_vhost`: a back-end that others wrote judges the
 * guest's negotiation, rings and headers. One testpmd serves all forms of a mode one after the
 * other, so every form is a reconnect, too.
 */
import { deepEqual, equal, ok } from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import {
  NetStack,
  connectNetGuest,
  parseFeatureChoice,
  parseIp,
  parsePrefix,
  runTraffic,
  type GenerateOptions,
  type NetGuestOptions,
} from '../../src/guest/index.ts';
import { Testpmd, vhostVdev } from '../peers/dpdk.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';

type Form = { readonly name: string; readonly options: NetGuestOptions };

const features = (text: string) => ({ features: parseFeatureChoice(text, '--features') });

const FORMS: readonly Form[] = [
  { name: 'split', options: {} },
  { name: 'packed', options: { packed: true } },
  { name: 'split, in order', options: features('+in_order') },
  { name: 'packed, in order', options: { packed: true, ...features('+in_order') } },
  { name: 'split, whole buffers', options: features('-mrg') },
  // Without TSO, so that a buffer is one descriptor: on packed rings DPDK's batched enqueue
  // (virtio_dev_rx_sync_batch_check) looks neither at NEXT nor at INDIRECT, and writes short frames
  // into the pieces of one buffer, or into the indirect table itself.
  { name: 'packed, whole buffers', options: { packed: true, ...features('-mrg,-tso') } },
  { name: 'split, whole buffers in chains', options: features('-mrg,-indirect,-event_idx') },
  {
    name: 'packed, neither indirect nor event index',
    options: { packed: true, ...features('-indirect,-event_idx') },
  },
  { name: 'split, header apart', options: { headerApart: true } },
  {
    name: 'packed, header apart, no indirect',
    options: { packed: true, headerApart: true, ...features('-indirect') },
  },
];

const CLI = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));

test('ping through DPDK net_vhost', { timeout: 120_000 }, async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const socket = scratch.path('vhost.sock');
  const testpmd = scratch.own(
    await Testpmd.start({ vdevs: [vhostVdev(0, socket)], forwardMode: 'icmpecho' }),
  );
  await testpmd.start();
  await waitFor('the socket of net_vhost', 10_000, () => existsSync(socket));

  const polled: Form = { name: 'polled', options: { notify: 'poll' } };
  for (const { name, options } of [...FORMS, polled]) {
    await t.test(name, async () => {
      const guest = await connectNetGuest({ socket, ...options });
      const stack = new NetStack({ link: guest, ip: parsePrefix('10.0.0.1/24', 4, 'ip') });
      try {
        for (const [i, payloadBytes] of [0, 56, 1400].entries()) {
          const request = { identifier: 7, sequence: i + 1, timeoutMs: 5000, payloadBytes };
          const answer = await stack.ping(parseIp('10.0.0.2')!, request);
          ok(answer !== null && answer.intact, `an echo of ${payloadBytes} bytes`);
        }
        equal(stack.counters.rxBadChecksum + stack.counters.rxBadIpChecksum, 0);
      } finally {
        stack.close();
        await guest.close();
      }
      equal(guest.failure, null);
    });
  }

  await t.test('the command line says the same', async () => {
    const guest = ['guest', 'net', '--socket', socket, '--ip', '10.0.0.1/24', '--json'];
    const args = [CLI, ...guest, 'ping', '10.0.0.2', '-c', '2', '-i', '0.1', '-W', '5'];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    const result = JSON.parse(stdout) as { sent: number; received: number };
    equal(result.received, 2);
    equal(result.sent, 2);
  });
});

test('numbered frames in circles through DPDK net_vhost', { timeout: 180_000 }, async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const socket = scratch.path('vhost.sock');
  const testpmd = scratch.own(
    await Testpmd.start({ vdevs: [vhostVdev(0, socket, 2)], queues: 2, forwardMode: 'io' }),
  );
  await testpmd.start();
  await waitFor('the socket of net_vhost', 10_000, () => existsSync(socket));

  const loop = async (options: NetGuestOptions, generate: Partial<GenerateOptions>) => {
    const sizeBytes = generate.sizeBytes ?? 64;
    const guest = await connectNetGuest({
      socket,
      notify: 'manual',
      ringSize: 1024,
      ...options,
      maxTxFrameBytes: sizeBytes,
    });
    await sleep(200); // testpmd looks for new queues now and then
    try {
      const report = await runTraffic({
        guest,
        seconds: 10,
        verifyEvery: 1,
        // A window: DPDK drops what finds no buffer, and this thread may lose its core for long.
        generate: {
          targetMac: '02:00:00:00:00:fe',
          frames: 5000,
          window: 48,
          ...generate,
          sizeBytes,
        },
      });
      const { stale: _stale, ...records } = report.records;
      deepEqual(records, {
        sent: 5000,
        good: 5000,
        lost: 0,
        reordered: 0,
        repeated: 0,
        corrupt: 0,
        foreign: 0,
        verified: 5000,
      });
    } finally {
      await guest.close();
    }
  };

  for (const { name, options } of FORMS) {
    await t.test(`${name}, 64 and 1500 bytes`, async () => {
      await loop(options, {});
      await loop(options, { sizeBytes: 1500 });
    });
  }
  for (const packed of [false, true]) {
    await t.test(`two queue pairs, ${packed ? 'packed' : 'split'}`, async () => {
      await loop({ queuePairs: 2, packed }, { flows: 8 });
    });
  }

  await t.test('mac mode: DPDK writes other addresses', async () => {
    await testpmd.stop();
    await testpmd.command('set fwd mac');
    await testpmd.start();
    await loop({}, { sizeBytes: 200 });
  });
});

test('DPDK connects to us, and goes away', { timeout: 60_000 }, async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const socket = scratch.path('front.sock');
  const connecting = connectNetGuest({ socket, server: true });
  const testpmd = scratch.own(
    await Testpmd.start({ vdevs: [vhostVdev(0, socket, 1, true)], forwardMode: 'icmpecho' }),
  );
  await testpmd.start();
  const guest = scratch.own(await connecting);
  const stack = scratch.own(new NetStack({ link: guest, ip: parsePrefix('10.0.0.1/24', 4, 'ip') }));
  const request = { identifier: 7, sequence: 1, timeoutMs: 5000, payloadBytes: 56 };
  ok(await stack.ping(parseIp('10.0.0.2')!, request));
  await testpmd.kill();
  const reason = await Promise.race([guest.closed, once(AbortSignal.timeout(5000), 'abort')]);
  equal((reason as { code?: string }).code, 'ERR_VRING_GUEST_BACKEND_GONE');
});
