import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import {
  FAULT_CHAIN_DIRECTION,
  FAULT_CHAIN_SHORT,
  FAULT_DESC_ADDRESS,
} from '../../virtqueue/faults.ts';
import * as net from '../../wire/virtio-net.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
} from '../../wire/virtio.ts';
import { type FixtureOptions, PortFixture, frameBatch } from './port-fixture.ts';

const RECEIVEQ = 0;
const TRANSMITQ = 1;
const HEADER = 12;

const open: PortFixture[] = [];
function fixture(options: FixtureOptions = {}): PortFixture {
  const made = new PortFixture(options);
  open.push(made);
  return made;
}
afterEach(() => {
  for (const made of open.splice(0)) made.close();
});

/** An Ethernet frame with a pattern behind its addresses. */
function frame(len: number, seed = 1): Uint8Array {
  const bytes = Uint8Array.from({ length: len }, (_, i) => (i * 7 + seed) & 0xff);
  bytes.set([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5].slice(0, len));
  return bytes;
}

/** The frame as the driver puts it: virtio-net header in front. */
function withHeader(bytes: Uint8Array, header: number[] = []): Uint8Array {
  const out = new Uint8Array(HEADER + bytes.length);
  out.set(header);
  out.set(bytes, HEADER);
  return out;
}

function send(f: PortFixture, bytes: Uint8Array, cuts: number[] = []): void {
  const at = f.buffer(100);
  f.write(at, bytes);
  const edges = [0, ...cuts, bytes.length];
  const segments = edges.slice(1).map((end, i) => [at + edges[i], end - edges[i]] as const);
  f.rings[TRANSMITQ].add(segments, []);
}

const FORMATS: [string, number[]][] = [
  ['split', []],
  ['split, event idx', [VIRTIO_RING_F_EVENT_IDX]],
  ['split, in order', [VIRTIO_F_IN_ORDER]],
  ['packed', [VIRTIO_F_RING_PACKED]],
  [
    'packed, event idx, in order',
    [VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_F_IN_ORDER],
  ],
];

for (const [name, bits] of FORMATS) {
  test(`${name}: a frame goes out of one guest and into another with its bytes`, () => {
    const from = fixture({ features: [...bits, net.VIRTIO_NET_F_MRG_RXBUF] });
    const to = fixture({ features: [...bits, net.VIRTIO_NET_F_MRG_RXBUF] });
    const batch = frameBatch();
    for (const len of [14, 60, 64, 65, 76, 77, 500, 1514, 1518]) {
      const bytes = frame(len, len);
      send(from, withHeader(bytes));
      assert.equal(from.port.receive(batch), 1, `${len}`);
      const id = to.rings[RECEIVEQ].add([], [[to.buffer(0), 2048]]);
      assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 1);
      from.port.release();
      to.port.flush();
      assert.deepEqual(to.rings[RECEIVEQ].reap(), [[id, HEADER + len]]);
      assert.deepEqual(to.bytes(to.buffer(0) + HEADER, len), bytes);
      const header = to.bytes(to.buffer(0), HEADER);
      assert.deepEqual([...header], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
      assert.equal(from.rings[TRANSMITQ].reap().length, 1);
    }
  });
}

test('a frame may be cut anywhere in its chain', () => {
  const from = fixture();
  const to = fixture();
  const batch = frameBatch();
  const bytes = frame(200);
  for (const cuts of [[12], [1], [11, 13], [12, 26], [75], [76], [77], [5, 12, 20, 76, 100, 150]]) {
    send(from, withHeader(bytes), cuts);
    assert.equal(from.port.receive(batch), 1);
    to.rings[RECEIVEQ].add([], [[to.buffer(0), 2048]]);
    assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 1);
    from.port.release();
    assert.deepEqual(to.bytes(to.buffer(0) + HEADER, 200), bytes, `cut at ${cuts}`);
    to.rings[RECEIVEQ].reap();
    from.rings[TRANSMITQ].reap();
  }
});

test('a buffer of the driver may be cut anywhere, too', () => {
  const from = fixture();
  const to = fixture();
  const batch = frameBatch();
  const bytes = frame(200);
  for (const cuts of [[12], [1], [11, 13], [76], [12, 76], [3, 80, 211]]) {
    send(from, withHeader(bytes), [30, 90]);
    from.port.receive(batch);
    const at = to.buffer(0);
    const edges = [0, ...cuts, 1000];
    to.rings[RECEIVEQ].add(
      [],
      edges.slice(1).map((end, i) => [at + edges[i], end - edges[i]] as const),
    );
    assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 1);
    from.port.release();
    assert.deepEqual(to.bytes(at + HEADER, 200), bytes, `cut at ${cuts}`);
    to.rings[RECEIVEQ].reap();
    from.rings[TRANSMITQ].reap();
  }
});

test('a long frame fills several mergeable buffers and says how many', () => {
  const from = fixture({ features: [net.VIRTIO_NET_F_MRG_RXBUF], bufferBytes: 16384, mtu: 9000 });
  const to = fixture({ features: [net.VIRTIO_NET_F_MRG_RXBUF], mtu: 9000 });
  const batch = frameBatch();
  const bytes = frame(9000);
  send(from, withHeader(bytes));
  from.port.receive(batch);
  for (let n = 0; n < 8; n++) to.rings[RECEIVEQ].add([], [[to.buffer(n), 2048]]);
  assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 1);
  const used = to.rings[RECEIVEQ].reap();
  assert.deepEqual(
    used.map(([, len]) => len),
    [2048, 2048, 2048, 2048, 9012 - 4 * 2048],
  );
  assert.equal(to.bytes(to.buffer(0), HEADER)[10], 5);
  const got = Buffer.concat(used.map(([, len], n) => to.bytes(to.buffer(n), len))).subarray(HEADER);
  assert.deepEqual(new Uint8Array(got), bytes);
});

test('mergeable buffers that are not enough stay with the driver', () => {
  const from = fixture({ features: [net.VIRTIO_NET_F_MRG_RXBUF], bufferBytes: 16384, mtu: 9000 });
  const to = fixture({ features: [net.VIRTIO_NET_F_MRG_RXBUF], mtu: 9000 });
  const batch = frameBatch();
  send(from, withHeader(frame(9000)));
  from.port.receive(batch);
  for (let n = 0; n < 3; n++) to.rings[RECEIVEQ].add([], [[to.buffer(n), 2048]]);
  assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 0);
  assert.equal(to.port.counters.txDropNoBuffer, 1);
  from.port.release();
  from.rings[TRANSMITQ].reap();
  send(from, withHeader(frame(100)));
  from.port.receive(batch);
  assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 1, 'the next one fits');
  assert.equal(to.rings[RECEIVEQ].reap().length, 1);
});

test('without mergeable buffers a frame that is too long is dropped, its successors are not', () => {
  const from = fixture();
  const to = fixture({ mtu: 9000 });
  const batch = frameBatch();
  send(from, withHeader(frame(1500)));
  send(from, withHeader(frame(100, 9)));
  assert.equal(from.port.receive(batch), 2);
  from.write(from.buffer(100), withHeader(frame(100, 9)));
  to.rings[RECEIVEQ].add([], [[to.buffer(0), 512]]);
  assert.equal(to.port.transmit(batch, Int32Array.of(0, 1), 2), 1);
  assert.equal(to.port.counters.txDropBufferTooShort, 1);
  assert.deepEqual(
    to.rings[RECEIVEQ].reap().map(([, len]) => len),
    [112],
  );
});

test('frames without a buffer are dropped and counted', () => {
  const from = fixture();
  const to = fixture();
  const batch = frameBatch();
  for (let n = 0; n < 5; n++) send(from, withHeader(frame(100)));
  assert.equal(from.port.receive(batch), 5);
  for (let n = 0; n < 2; n++) to.rings[RECEIVEQ].add([], [[to.buffer(n), 2048]]);
  assert.equal(to.port.transmit(batch, Int32Array.of(0, 1, 2, 3, 4), 5), 2);
  assert.equal(to.port.counters.txDropNoBuffer, 3);
});

test('offload fields pass between guests that negotiated them', () => {
  const features = [
    net.VIRTIO_NET_F_CSUM,
    net.VIRTIO_NET_F_GUEST_CSUM,
    net.VIRTIO_NET_F_HOST_TSO4,
    net.VIRTIO_NET_F_GUEST_TSO4,
    net.VIRTIO_NET_F_MRG_RXBUF,
  ];
  const from = fixture({ features, bufferBytes: 8192 });
  const to = fixture({ features });
  const batch = frameBatch();
  // flags NEEDS_CSUM, gso TCPV4, hdr_len 54, gso_size 1448, csum_start 34, csum_offset 16
  const header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
  send(from, withHeader(frame(4000), header));
  assert.equal(from.port.receive(batch), 1);
  for (let n = 0; n < 4; n++) to.rings[RECEIVEQ].add([], [[to.buffer(n), 2048]]);
  assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 1);
  const got = [...to.bytes(to.buffer(0), HEADER)];
  assert.deepEqual(got, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 2, 0]);
});

test('an offload that was not negotiated is dropped, the queue goes on', () => {
  const from = fixture();
  const batch = frameBatch();
  send(from, withHeader(frame(100), [1, 0, 0, 0, 0, 0, 34, 0, 16, 0]));
  send(from, withHeader(frame(100), [0, 5, 0, 0, 100, 0, 34, 0, 6, 0]));
  assert.equal(from.port.receive(batch), 0);
  assert.equal(from.port.counters.rxDropBadHeader, 2);
  assert.equal(from.rings[TRANSMITQ].reap().length, 2, 'the driver gets its buffers back');
  send(from, withHeader(frame(100)));
  assert.equal(from.port.receive(batch), 1);
});

test('writable buffers in a transmit queue break it, by name, and nothing else', () => {
  const from = fixture();
  const batch = frameBatch();
  from.rings[TRANSMITQ].add([], [[from.buffer(0), 100]]);
  assert.equal(from.port.receive(batch), 0);
  assert.deepEqual(from.events, [
    { kind: 'fault', device: 0, index: 1, code: FAULT_CHAIN_DIRECTION },
  ]);
  assert.equal(from.port.receive(batch), 0);
  assert.equal(from.events.length, 1, 'said once');
  assert.ok(from.port.ready, 'the receive queue still works');
});

test('a batch of the wrong direction breaks a queue, whatever its rows held before', () => {
  const from = fixture();
  const to = fixture();
  const batch = frameBatch();
  // Chains of two segments make both take their rows the long way, and leave them filled.
  to.rings[RECEIVEQ].add([], [[to.buffer(0), 50], [to.buffer(1), 2000]]); // prettier-ignore
  send(from, withHeader(frame(100)), [20]);
  assert.equal(from.port.receive(batch), 1);
  assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 1);
  from.port.release();
  to.rings[RECEIVEQ].add([[to.buffer(2), 2048]], []);
  send(from, withHeader(frame(100)));
  assert.equal(from.port.receive(batch), 1);
  assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 0);
  assert.equal(to.events[0].code, FAULT_CHAIN_DIRECTION);
  from.port.release();
  from.rings[TRANSMITQ].add([], [[from.buffer(0), 100]]);
  assert.equal(from.port.receive(batch), 0);
  assert.equal(from.events[0].code, FAULT_CHAIN_DIRECTION);
});

test('a chain shorter than the header breaks the queue', () => {
  const from = fixture();
  send(from, new Uint8Array(11));
  assert.equal(from.port.receive(frameBatch()), 0);
  assert.equal(from.events[0].code, FAULT_CHAIN_SHORT);
});

test('a readable buffer in a receive queue breaks it', () => {
  const from = fixture();
  const to = fixture();
  const batch = frameBatch();
  send(from, withHeader(frame(100)));
  from.port.receive(batch);
  to.rings[RECEIVEQ].add([[to.buffer(0), 2048]], []);
  assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 0);
  assert.deepEqual(to.events, [
    { kind: 'fault', device: 0, index: 0, code: FAULT_CHAIN_DIRECTION },
  ]);
  assert.equal(to.port.ready, false);
  assert.equal(to.port.counters.txDropBroken, 1);
});

test('an address outside of the guest breaks the queue', () => {
  const from = fixture();
  from.rings[TRANSMITQ].add([[from.memory.offset - 4096, 100]], []);
  assert.equal(from.port.receive(frameBatch()), 0);
  assert.equal(from.events[0].code, FAULT_DESC_ADDRESS);
});

test('the header that was judged is the header that is delivered', () => {
  const from = fixture();
  const to = fixture();
  const batch = frameBatch();
  const bytes = frame(1000);
  send(from, withHeader(bytes));
  from.port.receive(batch);
  // The guest changes the frame between the decision and the delivery.
  from.write(from.buffer(100) + HEADER, new Uint8Array(64).fill(0xff));
  to.rings[RECEIVEQ].add([], [[to.buffer(0), 2048]]);
  to.port.transmit(batch, Int32Array.of(0), 1);
  assert.deepEqual(to.bytes(to.buffer(0) + HEADER, 1000), bytes);
});

test('a disabled queue, or a link that is down, discards what the driver sends', () => {
  const from = fixture();
  const batch = frameBatch();
  const transmitq = from.rings[TRANSMITQ].vring;
  transmitq.enabled = false;
  from.port.changed(transmitq, false);
  send(from, withHeader(frame(100)));
  assert.equal(from.port.receive(batch), 0);
  assert.equal(from.rings[TRANSMITQ].reap().length, 1);
  transmitq.enabled = true;
  from.port.changed(transmitq, false);
  from.port.linkUp = false;
  assert.equal(from.port.ready, false);
  send(from, withHeader(frame(100)));
  assert.equal(from.port.receive(batch), 0);
  assert.equal(from.port.counters.rxDropDisabled, 2);
  from.port.linkUp = true;
  send(from, withHeader(frame(100)));
  assert.equal(from.port.receive(batch), 1);
});

test('a disabled receive queue gets nothing', () => {
  const to = fixture();
  const receiveq = to.rings[RECEIVEQ].vring;
  receiveq.enabled = false;
  to.port.changed(receiveq, false);
  assert.equal(to.port.ready, false);
});

test('flows are spread over receive queues and stay in theirs', () => {
  const features = [net.VIRTIO_NET_F_MQ];
  const from = fixture({ features, queuePairs: 4, bufferBytes: 512 });
  const to = fixture({ features, queuePairs: 4, bufferBytes: 512 });
  const batch = frameBatch();
  const queueOf = (flow: number, swap: boolean): number => {
    const bytes = frame(100);
    const addresses = [10, 0, 0, 1, 10, 0, 0, flow & 0xff];
    bytes.set([8, 0, 0x45], 12);
    bytes.set([0, 0], 20);
    bytes[23] = 17;
    bytes.set(swap ? [...addresses.slice(4), ...addresses.slice(0, 4)] : addresses, 26);
    bytes.set(swap ? [0, 80, 4, flow & 0xff] : [4, flow & 0xff, 0, 80], 34);
    send(from, withHeader(bytes));
    from.port.selected = 0;
    assert.equal(from.port.receive(batch), 1);
    for (let pair = 0; pair < 4; pair++) to.rings[2 * pair].add([], [[to.buffer(pair), 512]]);
    assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 1);
    from.port.release();
    from.rings[TRANSMITQ].reap();
    const used = [0, 1, 2, 3].filter((pair) => to.rings[2 * pair].reap().length > 0);
    assert.equal(used.length, 1);
    return used[0];
  };
  const seen = new Set<number>();
  for (let flow = 1; flow <= 40; flow++) {
    const queue = queueOf(flow, false);
    assert.equal(queueOf(flow, false), queue, 'the same flow, the same queue');
    assert.equal(queueOf(flow, true), queue, 'the other direction, the same queue');
    seen.add(queue);
  }
  assert.equal(seen.size, 4, 'all queues are used');
});

test('detaching returns where a successor continues', () => {
  const from = fixture();
  const batch = frameBatch();
  for (let n = 0; n < 3; n++) send(from, withHeader(frame(100)));
  from.port.receive(batch);
  from.port.release();
  assert.equal(from.port.detach(TRANSMITQ), 3);
  assert.equal(from.port.vring(TRANSMITQ), null);
});

test('a fault behind good buffers publishes those, and leaves no copies for later', () => {
  const from = fixture();
  const to = fixture();
  const batch = frameBatch();
  send(from, withHeader(frame(100)));
  send(from, withHeader(frame(100)));
  assert.equal(from.port.receive(batch), 2);
  to.rings[RECEIVEQ].add([], [[to.buffer(0), 2048]]);
  to.rings[RECEIVEQ].add([[to.buffer(1), 2048]], []); // readable: breaks the queue
  assert.equal(to.port.transmit(batch, Int32Array.of(0, 1), 2), 1);
  assert.equal(to.events[0].code, FAULT_CHAIN_DIRECTION);
  assert.deepEqual(
    to.rings[RECEIVEQ].reap().map(([, len]) => len),
    [112],
  );
  from.port.release();
  // A stale copy would write into the old buffer when the port sends again.
  to.write(to.buffer(0), new Uint8Array(200));
  to.port.detach(RECEIVEQ);
  to.port.reset();
  to.port.receive(batch);
  assert.deepEqual(to.bytes(to.buffer(0), 200), new Uint8Array(200));
});

test('the queue behind the only pair is the control queue, not a receive queue', () => {
  const to = fixture({ queuePairs: 2, features: [net.VIRTIO_NET_F_CTRL_VQ] });
  const from = fixture();
  const batch = frameBatch();
  for (let n = 0; n < 8; n++) {
    const bytes = frame(100);
    bytes.set([8, 0, 0x45], 12);
    bytes[23] = 17;
    bytes.set([10, 0, 0, n, 10, 0, 0, 1], 26);
    send(from, withHeader(bytes));
    from.port.receive(batch);
    to.rings[RECEIVEQ].add([], [[to.buffer(n), 2048]]);
    assert.equal(to.port.transmit(batch, Int32Array.of(0), 1), 1);
    from.port.release();
    from.rings[TRANSMITQ].reap();
  }
  assert.deepEqual(to.events, []);
});

test('a queue that breaks while flows are spread takes only its own frames along', () => {
  const features = [net.VIRTIO_NET_F_MQ];
  const from = fixture({ features, queuePairs: 4, bufferBytes: 512 });
  const to = fixture({ features, queuePairs: 4, bufferBytes: 512 });
  const batch = frameBatch();
  for (let flow = 0; flow < 32; flow++) {
    const bytes = frame(100);
    bytes.set([8, 0, 0x45], 12);
    bytes[23] = 17;
    bytes.set([10, 0, 0, flow, 10, 0, 0, 200], 26);
    from.write(from.buffer(100 + flow), withHeader(bytes));
    from.rings[TRANSMITQ].add([[from.buffer(100 + flow), HEADER + 100]], []);
  }
  assert.equal(from.port.receive(batch), 32);
  to.rings[0].add([[to.buffer(0), 512]], []); // readable: breaks receiveq1
  for (let pair = 1; pair < 4; pair++) {
    for (let n = 0; n < 32; n++) to.rings[2 * pair].add([], [[to.buffer(32 * pair + n), 512]]);
  }
  const list = Int32Array.from({ length: 32 }, (_, i) => i);
  const delivered = to.port.transmit(batch, list, 32);
  assert.equal(to.events.length, 1);
  const { txDropBroken, txDropNoBuffer } = to.port.counters;
  assert.ok(txDropBroken > 0 && delivered > 0);
  assert.equal(delivered + txDropBroken + txDropNoBuffer, 32, 'every frame is accounted for');
  const arrived = [1, 2, 3].map((pair) => to.rings[2 * pair].reap().length);
  assert.ok(arrived.every((count) => count > 0));
  assert.equal(arrived[0] + arrived[1] + arrived[2], delivered);
});
