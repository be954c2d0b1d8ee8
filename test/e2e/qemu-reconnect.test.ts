/**
 * Guests of QEMU outlive their switch: it is killed (SIGKILL) and started again, six times in a row,
 * while they talk. Nobody keeps inflight regions here, QEMU has none for network cards.
 */
import { equal, ok } from 'node:assert/strict';
import { test } from 'node:test';
import { restartUnderTraffic, type ReconnectPlan } from '../peers/qemu-reconnect.ts';
import { requirePeer } from '../peers/require-peer.ts';

/** Fifty: `npm run reconnect`. */
const TIMES = 6;

const SPLIT = { packed: false, queuePairs: 1 } as const;
const PACKED = { packed: true, queuePairs: 1 } as const;

const PLANS: Readonly<Record<string, ReconnectPlan['rings']>> = {
  'split where QEMU connects, packed where it listens': [SPLIT, PACKED],
  'packed where QEMU connects, split with two queue pairs where it listens': [
    PACKED,
    { ...SPLIT, queuePairs: 2 },
  ],
};

for (const [title, rings] of Object.entries(PLANS)) {
  test(`six times kill -9 under traffic: ${title}`, async (t) => {
    if (!requirePeer(t, 'qemu-system-x86_64', 'linux kernel', 'busybox')) return;
    const result = await restartUnderTraffic({ times: TIMES, rings });
    equal(result.restarts.length, TIMES);
    ok(result.streamBytes > 2 ** 20, `the stream had ${result.streamBytes} bytes`);
    const outages = result.restarts.map((restart) => restart.trafficMs);
    t.diagnostic(`traffic again after ${outages.join(', ')} ms`);
  });
}
