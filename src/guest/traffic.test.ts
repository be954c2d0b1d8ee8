import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseFeatureChoice } from './features.ts';
import type { NetGuestOptions } from './net-driver.ts';
import { startGuestPair } from './testing.ts';
import { runTraffic, type GenerateOptions } from './traffic.ts';

const features = (text: string) => ({ features: parseFeatureChoice(text, '--features') });

/** One guest generates, the other one returns everything. */
async function circle(options: NetGuestOptions, generate: Partial<GenerateOptions> = {}) {
  const pair = await startGuestPair({ notify: 'manual', ...options });
  const [a, b] = pair.guests.map(({ guest }) => guest);
  const stop = new AbortController();
  try {
    const echoing = runTraffic({ guest: b, echo: true, signal: stop.signal });
    const report = await runTraffic({
      guest: a,
      seconds: 10,
      verifyEvery: 1,
      generate: { sizeBytes: 64, targetMac: b.mac, frames: 320, window: 16, ...generate },
    });
    stop.abort();
    const echoed = await echoing;
    return { report, echoed };
  } finally {
    stop.abort();
    await pair.close();
  }
}

const VARIANTS: readonly [string, NetGuestOptions, Partial<GenerateOptions>][] = [
  ['split', {}, {}],
  ['packed', { packed: true }, {}],
  ['1500 bytes', {}, { sizeBytes: 1500 }],
  ['mergeable jumbo frames', { mtu: 9000, packed: true }, { sizeBytes: 9000 }],
  ['whole jumbo frames', { mtu: 9000, ...features('-mrg') }, { sizeBytes: 9000 }],
  ['USO', {}, { gso: 'udp4', sizeBytes: 60_000, window: 4 }],
  ['TSO', { packed: true }, { gso: 'tcp6', sizeBytes: 60_000, window: 4 }],
  ['a tag', {}, { vlan: 5, sizeBytes: 100 }],
  ['two pairs, eight flows', { queuePairs: 2 }, { flows: 8 }],
  [
    'two pairs, packed, in order',
    { queuePairs: 2, packed: true, ...features('+in_order') },
    { flows: 3 },
  ],
  ['header apart', { headerApart: true, ...features('-indirect') }, {}],
];

for (const [name, options, generate] of VARIANTS) {
  test(`frames go round: ${name}`, { timeout: 20_000 }, async () => {
    const { report, echoed } = await circle(options, generate);
    const { records } = report;
    assert.equal(report.sent.frames, 320);
    assert.equal(records.good, records.sent);
    assert.equal(records.verified, records.sent);
    assert.equal(records.lost + records.corrupt + records.repeated + records.reordered, 0);
    assert.equal(echoed.sent.frames, report.sent.frames);
    assert.ok(report.latency !== null && report.latency.averageUs < 1e6);
  });
}

test('a rate is kept', async () => {
  const pair = await startGuestPair({ notify: 'manual' });
  try {
    const report = await runTraffic({
      guest: pair.guests[0].guest,
      seconds: 0.5,
      generate: { sizeBytes: 64, targetMac: '02:00:00:00:00:02', rate: 2000 },
    });
    assert.ok(Math.abs(report.sent.frames - 1000) < 100, `${report.sent.frames} frames`);
  } finally {
    await pair.close();
  }
});

test('what cannot be sent is refused', async () => {
  const pair = await startGuestPair({ notify: 'manual', ...features('-uso,-tso') });
  const run = (generate: Partial<GenerateOptions>) =>
    runTraffic({
      guest: pair.guests[0].guest,
      seconds: 1,
      generate: { sizeBytes: 64, targetMac: '02:00:00:00:00:02', ...generate },
    });
  try {
    await assert.rejects(run({ sizeBytes: 9000 }), { code: 'ERR_VRING_GUEST_FRAME_SIZE' });
    await assert.rejects(run({ gso: 'udp4' }), { code: 'ERR_VRING_GUEST_FEATURE' });
  } finally {
    await pair.close();
  }
});

test('an idle sink sleeps', async () => {
  const pair = await startGuestPair({ notify: 'manual' });
  try {
    const sinking = runTraffic({ guest: pair.guests[1].guest, seconds: 1.2 });
    const before = process.cpuUsage();
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const used = process.cpuUsage(before);
    assert.ok(used.user + used.system < 400_000, `${used.user + used.system} us of CPU in 1 s`);
    await sinking;
  } finally {
    await pair.close();
  }
});

test('traffic ends with its guest', { timeout: 10_000 }, async () => {
  const pair = await startGuestPair({ notify: 'manual' });
  const [a, b] = pair.guests.map(({ guest }) => guest);
  const sinking = runTraffic({ guest: b });
  const sending = runTraffic({ guest: a, generate: { sizeBytes: 64, targetMac: b.mac } });
  await new Promise((resolve) => setTimeout(resolve, 500)); // the sink sleeps by then, or works
  await pair.close();
  assert.ok((await sending).sent.frames > 0);
  assert.ok((await sinking).received.frames > 0);
});
