import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { receiveBulk } from './bulk-receiver.ts';
import { sendBulk } from './bulk-sender.ts';
import { patternSource } from './bulk-source.ts';
import { parseIp, parsePrefix } from './ip-address.ts';
import { linkPair, type LinkPairOptions } from './link.ts';
import { NetStack } from './stack.ts';

function stackPair(options: LinkPairOptions = {}) {
  const [a, b] = linkPair(options).map(
    (link, i) => new NetStack({ link, ip: parsePrefix(`10.0.0.${i + 1}/24`, 4, '--ip') }),
  );
  return { a, b, [Symbol.dispose]: () => (a.close(), b.close()) };
}

const to = parseIp('10.0.0.2')!;

/** Sends `bytes` over the pair, and compares what was written, too. */
async function transfer(options: LinkPairOptions, bytes: number, minRtoMs = 20) {
  using pair = stackPair(options);
  const written = createHash('sha256');
  const [received, sent] = await Promise.all([
    receiveBulk(pair.b, { write: (chunk) => void written.update(chunk), waitMs: 2000 }),
    sendBulk(pair.a, { to, source: patternSource(bytes), minRtoMs }),
  ]);
  assert.equal(sent.matches && received.matches, true);
  assert.equal(received.bytes, bytes);
  assert.equal(sent.sha256, written.digest('hex'));
  return { sent, received };
}

test('a transfer over a good wire repeats nothing', async () => {
  // Both ends are in this thread, which a busy machine may hold up for longer than 20 ms.
  const { sent } = await transfer({}, 1_000_001, 1000);
  assert.equal(sent.repeated, 0);
});

test('nothing at all is a transfer, too', async () => void (await transfer({}, 0)));

test('segmentation by the link: many chunks in one frame', async () => {
  let longest = 0;
  const filter = (frame: Uint8Array): boolean => {
    longest = Math.max(longest, frame.length);
    return true;
  };
  await transfer({ offloads: { csum: true, uso: true }, filter }, 1_000_001);
  assert.ok(longest > 30_000, `longest frame: ${longest} bytes`);
});

test('lost, damaged and repeated frames delay, but change nothing', async () => {
  let count = 0;
  const filter = (frame: Uint8Array): boolean => {
    // Scattered: losses at a fixed distance can meet the same frame at every repetition.
    const dice = Math.imul(++count, 0x9e3779b1) >>> 0;
    if (dice % 17 === 0) return false;
    if (dice % 23 === 0) frame[frame.length - 1] ^= 1;
    return true;
  };
  const { sent } = await transfer({ filter }, 500_000);
  assert.ok(sent.repeated > 0);
});

test('nobody receives: a named error', async () => {
  using pair = stackPair();
  await assert.rejects(sendBulk(pair.a, { to, source: patternSource(10), stallMs: 100 }), {
    code: 'ERR_VRING_GUEST_BULK_REFUSED',
  });
  await assert.rejects(receiveBulk(pair.b, { waitMs: 50 }), {
    code: 'ERR_VRING_GUEST_BULK_NOBODY',
  });
});

test('a wire that is cut in the middle stalls the transfer on both sides', async () => {
  let frames = 0;
  using pair = stackPair({ filter: () => ++frames < 100 });
  const results = await Promise.allSettled([
    sendBulk(pair.a, { to, source: patternSource(1_000_000), stallMs: 100 }),
    receiveBulk(pair.b, { stallMs: 100 }),
  ]);
  for (const result of results) {
    assert.equal(
      result.status === 'rejected' && result.reason.code,
      'ERR_VRING_GUEST_BULK_STALLED',
    );
  }
});
