/** Ports that share a scratch put copies off: whatever comes in between, each gets its frames. */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { type PortVlan, SWITCH_SCRATCH_BYTES, Switch } from '../../switch/index.ts';
import { arena } from '../../sys/arena.ts';
import { FAULT_CHAIN_DIRECTION } from '../../virtqueue/faults.ts';
import { VIRTIO_NET_F_CSUM, VIRTIO_NET_F_MRG_RXBUF } from '../../wire/virtio-net.ts';
import { VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED } from '../../wire/virtio.ts';
import { type FixtureOptions, PortFixture } from './port-fixture.ts';
import { PortScratch } from './port-scratch.ts';

const HEADER = 12;
const NEEDS_CSUM = 1; // VIRTIO_NET_HDR_F_NEEDS_CSUM
const CSUM_START = 34;
const ACCESS = { mode: 'access', vid: 1 } as const;
const TRUNK = { mode: 'trunk', allowed: 'all', native: null } as const;
const GROUP = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

const open: { close(): void }[] = [];
afterEach(() => {
  for (const one of open.splice(0)) one.close();
});

type Setup = { vlan?: PortVlan; fixture?: FixtureOptions; buffers?: number; bufferBytes?: number };

/** A switch over ports that each have buffers posted. */
function world(setups: readonly Setup[]): {
  sw: Switch;
  ports: PortFixture[];
  shared: PortScratch;
} {
  const memory = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES);
  open.push(memory);
  const shared = new PortScratch(true);
  const sw = new Switch({
    view: arena().view,
    bytes: arena().bytes,
    scratchAt: memory.offset,
    settle: () => shared.settle(),
  });
  const ports = setups.map(({ vlan = ACCESS, fixture = {}, buffers = 128, bufferBytes }, i) => {
    const features = [VIRTIO_NET_F_MRG_RXBUF];
    const port = new PortFixture({ features, ...fixture, scratch: shared });
    open.push(port);
    sw.addPort(i, port.port, { vlan, macLimit: 64, reflect: false });
    for (let n = 0; n < buffers; n++) {
      port.rings[0]!.add([], [[port.buffer(n), bufferBytes ?? port.bufferBytes]]);
    }
    sw.macTable.learn(`02:00:00:00:00:0${i}`, 1, i, 64);
    return port;
  });
  return { sw, ports, shared };
}

function to(port: number): number[] {
  return [2, 0, 0, 0, 0, port];
}

/** Sends frames from port 0; the last byte of each is its number, the first its `flags`. */
function send(
  { sw, ports }: ReturnType<typeof world>,
  targets: number[][],
  bytes = 100,
  flags: readonly number[] = [],
): void {
  const [source] = ports as [PortFixture];
  for (const [n, target] of targets.entries()) {
    const frame = new Uint8Array(HEADER + bytes).fill(n + 1, HEADER + 14);
    frame.set([...target, 2, 0, 0, 0, 0, 0, 8, 0], HEADER);
    if (flags[n] === NEEDS_CSUM) frame.set([NEEDS_CSUM, 0, 0, 0, 0, 0, CSUM_START, 0, 6, 0]);
    source.write(source.buffer(256 + n), frame);
    source.rings[1]!.add([[source.buffer(256 + n), frame.length]], []);
  }
  assert.equal(sw.forward(0), targets.length);
  sw.flush();
  assert.equal(source.rings[1]!.reap().length, targets.length, 'all came back');
}

/** Frames that a port got, one buffer each. */
function received(port: PortFixture): Uint8Array[] {
  return port.rings[0]!.reap().map(([, len], n) => port.bytes(port.buffer(n), len).slice(HEADER));
}

const numbers = (frames: readonly Uint8Array[]): number[] => frames.map((frame) => frame.at(-1)!);

const FORMS: [string, number[]][] = [
  ['split', []],
  ['packed', [VIRTIO_F_RING_PACKED]],
  ['split, in order', [VIRTIO_F_IN_ORDER]],
  ['packed, in order', [VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER]],
];

for (const [name, bits] of FORMS) {
  test(`${name}: each of several ports gets its frames, in order`, () => {
    const fixture = { features: [VIRTIO_NET_F_MRG_RXBUF, ...bits] };
    const all = world([{ fixture }, { fixture }, { fixture }, { fixture }]);
    send(all, [to(1), to(2), to(1), to(3), to(2), to(1)]);
    assert.equal(all.shared.waitingCount, 0);
    const [, ...receivers] = all.ports.map(received);
    assert.deepEqual(receivers.map(numbers), [[1, 3, 6], [2, 5], [4]]);
    assert.ok(receivers.flat().every((frame) => frame.length === 100 && frame[12] === 8));
  });
}

test('a tag for one port does not reach the port before it', () => {
  const all = world([{}, {}, { vlan: TRUNK }, {}, { vlan: TRUNK }]);
  send(all, [GROUP, to(1), GROUP]);
  const [, first, trunk, second, other] = all.ports.map(received) as Uint8Array[][];
  const source = [2, 0, 0, 0, 0, 0];
  for (const plain of [first!, second!]) {
    assert.ok(plain.every((frame) => frame.length === 100));
    const starts = plain.map((frame) => [...frame.subarray(0, 14)]);
    const targets = plain.length === 3 ? [GROUP, to(1), GROUP] : [GROUP, GROUP];
    assert.deepEqual(
      starts,
      targets.map((target) => [...target, ...source, 8, 0]),
    );
  }
  for (const tagged of [trunk!, other!]) {
    assert.deepEqual(numbers(tagged), [1, 3]);
    const tags = tagged.map((frame) => [...frame.subarray(12, 18)]);
    assert.deepEqual(tags, [
      [0x81, 0, 0, 1, 8, 0],
      [0x81, 0, 0, 1, 8, 0],
    ]);
  }
  assert.deepEqual(
    [first, second].map((frames) => numbers(frames!)),
    [
      [1, 2, 3],
      [1, 3],
    ],
  );
});

test('a port whose buffers are of another shape is served in between', () => {
  const all = world([{}, {}, { bufferBytes: 64 }, {}]);
  send(all, [to(1), to(2), to(3), to(2), to(1)]);
  const [, first, , third] = all.ports.map((port, i) => (i === 2 ? [] : received(port)));
  assert.deepEqual(
    [first, third].map((frames) => numbers(frames!)),
    [[1, 5], [3]],
  );
  // 112 bytes into buffers of 64: two each.
  const [, , small] = all.ports as PortFixture[];
  assert.deepEqual(
    small!.rings[0]!.reap().map(([, len]) => len),
    [64, 48, 64, 48],
  );
  const halves = [1, 3].map((n) => small!.bytes(small!.buffer(n) + 47, 1)[0]);
  assert.deepEqual(halves, [2, 4]);
});

test('without enough buffers what there is room for arrives, and the rest is counted', () => {
  const all = world([{}, { buffers: 2 }, {}]);
  send(all, [to(1), to(2), to(1), to(1), to(2)]);
  const [, first, second] = all.ports.map(received);
  assert.deepEqual(
    [first, second].map((frames) => numbers(frames!)),
    [
      [1, 3],
      [2, 5],
    ],
  );
  assert.equal(all.ports[1]!.port.counters.txDropNoBuffer, 1);
});

test('more chains than can wait at once', () => {
  const all = world(Array.from({ length: 10 }, () => ({})));
  const targets = Array.from({ length: 32 }, () => GROUP);
  send(all, targets);
  const expected = targets.map((_, n) => n + 1);
  const [, ...receivers] = all.ports.map(received);
  for (const frames of receivers) assert.deepEqual(numbers(frames), expected);
});

test('a frame that the switch finished is not changed by the next one that it finishes', () => {
  const all = world([{ fixture: { features: [VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_CSUM] } }, {}]);
  const flags = [NEEDS_CSUM, 0, NEEDS_CSUM, 0, NEEDS_CSUM];
  const targets = flags.map(() => to(1));
  send(all, targets, 200, flags);
  const frames = received(all.ports[1]!);
  assert.deepEqual(numbers(frames), [1, 2, 3, 4, 5]);
  const checksums = frames.map((frame) => frame[CSUM_START + 6]! * 256 + frame[CSUM_START + 7]!);
  const finished = checksums.map((sum, n) => sum !== (n + 1) * 0x101);
  assert.deepEqual(finished, [true, false, true, false, true]);
});

test('a port that is tuned for latency does not wait for the others', () => {
  const all = world([{}, {}, {}]);
  const [, balanced, latency] = all.ports as [PortFixture, PortFixture, PortFixture];
  latency.port.callsAtOnce = true;
  for (const { port } of [balanced, latency]) port.flush = () => undefined; // the round's end
  send(all, [to(1), to(2)]);
  const touched = [balanced, latency].map(({ rings }) => rings[0]!.vring.touched);
  assert.deepEqual(touched, [true, false], 'called or asked already');
  assert.deepEqual(numbers(received(latency)), [2]);
});

test('frames in front of a chain that breaks the ring are not copied later', () => {
  const all = world([{}, {}, {}]);
  const [source, , other] = all.ports as [PortFixture, PortFixture, PortFixture];
  const [, transmitq] = source.rings as [unknown, PortFixture['rings'][number]];
  const at = source.buffer(300);
  const frame = new Uint8Array(HEADER + 100).fill(0xbb);
  frame.fill(0, 0, HEADER);
  source.write(at, frame);
  // In the general way, in one batch; the direct ways hand over what is in front.
  (transmitq.vring as { direct: number }).direct = 0;
  transmitq.add([[at, frame.length]], []);
  transmitq.add([], [[at, frame.length]]);
  assert.equal(all.sw.forward(0), 0);
  assert.deepEqual(source.events.map(({ code }) => code), [FAULT_CHAIN_DIRECTION]); // prettier-ignore
  received(other);
  all.sw.announce(1, Uint8Array.from([2, 0, 0, 0, 0, 1]));
  const [announced] = received(other);
  assert.deepEqual([...announced!.subarray(0, 14)], [...GROUP, 2, 0, 0, 0, 0, 1, 0x80, 0x35]);
});
