import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseIp, parsePrefix, prefixHas, type IpAddress } from './ip-address.ts';
import { linkPair, type FrameLink, type LinkPairOptions } from './link.ts';
import { NetStack } from './stack.ts';

const address = (text: string): IpAddress => parseIp(text)!;

function stackPair(
  options: LinkPairOptions = {},
  vlans: [number | null, number | null] = [null, null],
) {
  const links = linkPair(options);
  const make = (link: FrameLink, n: 1 | 2): NetStack =>
    new NetStack({
      link,
      ip: parsePrefix(`10.0.0.${n}/24`, 4, '--ip'),
      ip6: parsePrefix(`fd00::${n}/64`, 6, '--ip6'),
      vlan: vlans[n - 1],
      resolveRetryMs: 10,
    });
  const a = make(links[0], 1);
  const b = make(links[1], 2);
  return { a, b, links, [Symbol.dispose]: () => (a.close(), b.close()) };
}

const echo = { identifier: 7, sequence: 1, timeoutMs: 200, payloadBytes: 56 };

test('addresses are parsed and printed canonically', () => {
  assert.equal(address('FD00:0:0::0001').text, 'fd00::1');
  assert.equal(address('2001:db8:0:1:0:0:0:1').text, '2001:db8:0:1::1');
  assert.equal(address('::').text, '::');
  assert.equal(address('::ffff:10.0.0.1').bytes.at(-1), 1);
  assert.equal(address('1:2:3:4:5:6:7:8').text, '1:2:3:4:5:6:7:8');
  assert.equal(parseIp('10.0.0.256'), null);
  assert.equal(parseIp('fe80::1%eth0'), null);
  assert.throws(() => parsePrefix('10.0.0.1/33', 4, '--ip'), { code: 'ERR_VRING_CONFIG' });
  assert.throws(() => parsePrefix('10.0.0.1/24/1', 4, '--ip'), { code: 'ERR_VRING_CONFIG' });
  const net = parsePrefix('10.0.0.1/22', 4, '--ip');
  assert.ok(prefixHas(net, address('10.0.3.255')));
  assert.ok(!prefixHas(net, address('10.0.4.0')));
});

test('ping over IPv4 and IPv6, through ARP and neighbour discovery', async () => {
  using pair = stackPair();
  for (const to of ['10.0.0.2', 'fd00::2']) {
    const result = await pair.a.ping(address(to), echo);
    assert.ok(result !== null && result.intact, to);
  }
  assert.equal(pair.b.counters.echoRequestsIn, 2);
  assert.ok(pair.b.counters.arpRequestsIn >= 1);
  assert.ok(pair.b.counters.solicitationsIn >= 1);
  assert.equal(pair.a.counters.rxBadChecksum + pair.b.counters.rxBadChecksum, 0);
});

test('the largest ping fits the MTU, a larger one is refused', async () => {
  using pair = stackPair();
  assert.ok(await pair.a.ping(address('10.0.0.2'), { ...echo, payloadBytes: 1472 }));
  assert.ok(await pair.a.ping(address('fd00::2'), { ...echo, payloadBytes: 1452 }));
  await assert.rejects(pair.a.ping(address('10.0.0.2'), { ...echo, payloadBytes: 1473 }), {
    code: 'ERR_VRING_GUEST_TOO_LONG',
  });
});

test('who is not there is unreachable, who is off-link has no route', async () => {
  using pair = stackPair();
  await assert.rejects(pair.a.ping(address('10.0.0.9'), echo), {
    code: 'ERR_VRING_GUEST_UNREACHABLE',
  });
  await assert.rejects(pair.a.ping(address('10.1.0.9'), echo), {
    code: 'ERR_VRING_GUEST_NO_ROUTE',
  });
});

test('VLAN: the same id speaks, others and untagged frames are dropped', async () => {
  using same = stackPair({}, [10, 10]);
  assert.ok(await same.a.ping(address('10.0.0.2'), echo));
  for (const vlans of [
    [10, 11],
    [10, null],
    [null, 10],
  ] as [number | null, number | null][]) {
    using other = stackPair({}, vlans);
    await assert.rejects(other.a.ping(address('10.0.0.2'), echo), {
      code: 'ERR_VRING_GUEST_UNREACHABLE',
    });
    assert.ok(other.b.counters.rxOtherVlan > 0);
  }
});

test('a changed byte is caught: by the checksum, or by the compare of the payload', async () => {
  let position = 60;
  const damage = (frame: Uint8Array, from: 0 | 1): boolean => {
    if (from === 1 && frame.length > 90) frame[position] ^= 0x10;
    return true;
  };
  using pair = stackPair({ filter: damage });
  assert.equal(await pair.a.ping(address('10.0.0.2'), echo), null);
  assert.equal(pair.a.counters.rxBadChecksum, 1);
  position = 22; // time to live
  assert.equal(await pair.a.ping(address('10.0.0.2'), { ...echo, sequence: 2 }), null);
  assert.equal(pair.a.counters.rxBadIpChecksum, 1);
});

for (const offloads of [
  { csum: false, uso: false },
  { csum: true, uso: true },
]) {
  test(`UDP both ways, checksum by ${offloads.csum ? 'the link' : 'software'}`, async () => {
    using pair = stackPair({ offloads });
    const texts: string[] = [];
    pair.b.udp.bindOther((payload, from, fromPort, toPort) => {
      pair.b.udp.send(from, fromPort, toPort, payload);
    });
    const port = pair.a.udp.bind(0, (payload) => void texts.push(Buffer.from(payload).toString()));
    for (const to of ['10.0.0.2', 'fd00::2'].map(address)) {
      assert.equal(pair.a.udp.send(to, 9, port, Buffer.from('early')), false);
      await pair.a.resolve(to);
      for (const text of ['', 'odd', 'even']) {
        assert.ok(pair.a.udp.send(to, 9, port, Buffer.from(text)));
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual(texts, ['', 'odd', 'even', '', 'odd', 'even']);
    assert.equal(pair.b.counters.rxBadChecksum, 0);
  });
}

test('USO: one frame, several datagrams', async () => {
  using pair = stackPair({ offloads: { csum: true, uso: true } });
  const sizes: number[] = [];
  pair.b.udp.bind(9, (payload) => void sizes.push(payload.length));
  await pair.a.resolve(address('10.0.0.2'));
  assert.ok(pair.a.udp.send(address('10.0.0.2'), 9, 9, new Uint8Array(2500), 1000));
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(sizes, [1000, 1000, 500]);
});

test('a datagram with a made-up source does not hurt who answers it', async () => {
  using pair = stackPair({
    filter: (frame, from) => {
      if (from === 0 && frame[23] === 17) frame.set([192, 168, 7, 7], 26); // IPv4 source
      return true;
    },
    offloads: { csum: true, uso: false },
  });
  let answers: boolean | null = null;
  pair.b.udp.bindOther((payload, from, fromPort, toPort) => {
    answers = pair.b.udp.send(from, fromPort, toPort, payload);
  });
  await pair.a.resolve(address('10.0.0.2'));
  pair.a.udp.send(address('10.0.0.2'), 9, 9, new Uint8Array(10));
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(answers, null, 'the IP header checksum does not fit any more');
  assert.equal(pair.b.counters.rxBadIpChecksum, 1);
  assert.equal(pair.b.udp.send(address('192.168.7.7'), 9, 9, new Uint8Array(10)), false);
});

test('tables are bounded', async () => {
  using pair = stackPair();
  for (let i = 1; i <= 64; i++) pair.a.udp.bind(i, () => {});
  assert.throws(() => pair.a.udp.bind(0, () => {}), { code: 'ERR_VRING_GUEST_BUSY' });
  for (let i = 0; i < 1000; i++) {
    pair.a.neighbours.learn(address(`10.0.${i >> 8}.${i & 255}`), new Uint8Array(6), true);
  }
  assert.equal(pair.a.neighbours.size, 256);
  const waiting = Array.from({ length: 80 }, (_, i) =>
    pair.a.resolve(address(`10.0.0.${100 + i}`)).catch((error: unknown) => error),
  );
  const codes = (await Promise.all(waiting)).map((error) => (error as { code: string }).code);
  assert.ok(codes.includes('ERR_VRING_GUEST_BUSY'));
  assert.ok(codes.includes('ERR_VRING_GUEST_UNREACHABLE'));
});

test('garbage never throws', () => {
  using pair = stackPair();
  let seed = 1;
  const random = (): number => (seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) >>> 8;
  const offload = {
    needsCsum: true,
    dataValid: false,
    csumStart: 1,
    csumOffset: 2,
    gsoType: 5,
    gsoSize: 1,
    headerBytes: 0,
  };
  for (let i = 0; i < 20_000; i++) {
    const frame = new Uint8Array(random() % 120).map(() => random());
    frame.set(pair.a.mac.subarray(0, Math.min(6, frame.length)));
    if (frame.length > 15) {
      frame.set(
        [
          [0x08, 0x00],
          [0x08, 0x06],
          [0x86, 0xdd],
          [0x81, 0x00],
        ][random() & 3],
        12,
      );
      frame[14] = [0x45, 0x46, 0x60, 0x4f][random() & 3];
    }
    pair.links[0].onFrame?.(frame, offload);
  }
  assert.equal(pair.a.counters.rxFrames, 20_000);
});
