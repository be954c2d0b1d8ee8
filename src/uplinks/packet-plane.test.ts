import { deepStrictEqual, ok, strictEqual, throws } from 'node:assert';
import { after, test } from 'node:test';
import { PrivateMemory } from '../memory/index.ts';
import { arena, CopyPlan } from '../sys/index.ts';
import { PACKET_ACCEPTS, PacketPlane, PacketSockets } from './index.ts';
import { PacketCursor, readBlock } from './packet.hot.ts';
import {
  enterVeth,
  indexOf,
  ip,
  makeFlows,
  makeFrame,
  newBatch,
  numbersOf,
  Sender,
  takeFrames,
} from './veth-fixture.ts';

const netns = `vring-packet-${process.pid}`;
const skip = enterVeth(netns, 9000);
if (skip !== false) console.log(`SKIPPED, AF_PACKET uplinks are not tested: ${skip}`);
after(() => {
  if (skip === false) ip('netns', 'del', netns);
});

function open(name: string, queues = 1, qdiscBypass = true) {
  const interfaceIndex = indexOf(name);
  const sockets = PacketSockets.open({ interfaceIndex, queues, qdiscBypass });
  const options = { queues: sockets.queues, mtu: 9000, linkUp: true, accepts: PACKET_ACCEPTS };
  const plane = new PacketPlane(options);
  return { plane, [Symbol.dispose]: () => (plane.close(), sockets.close()) };
}

test(
  'frames of all sizes arrive whole, in order, and again after the rings went round',
  { skip },
  () => {
    using near = open('va');
    using far = open('vb');
    const sender = new Sender();
    const batch = newBatch();
    for (const segments of [1, 3]) {
      for (let lap = 0; lap < 5; lap++) {
        const frames = Array.from({ length: 300 }, (_, i) => makeFrame(i, 14 + ((i * 29) % 8900)));
        strictEqual(sender.send(near.plane, frames, segments), 300);
        deepStrictEqual(takeFrames(far.plane, batch, 300), frames);
      }
    }
    for (const { counters } of [near.plane, far.plane]) {
      for (const [name, value] of Object.entries(counters)) strictEqual(value, 0, name);
    }
  },
);

test('tags that the kernel took out are put back', { skip }, () => {
  using near = open('va');
  using far = open('vb');
  const frames = [20, 40, 64, 1000].map((lenBytes, i) => {
    const frame = makeFrame(i, lenBytes + 4);
    frame.set([0x81, 0x00, 0x60 | i, 0x0a], 12); // priority 3, VLAN i * 256 + 10
    frame.set([0x88, 0xb5], 16);
    return frame;
  });
  new Sender().send(near.plane, frames);
  const batch = newBatch();
  deepStrictEqual(takeFrames(far.plane, batch, 4), frames);
  strictEqual(batch.longest, 1004);
});

test('several sockets share what arrives; a flow stays in order', { skip }, () => {
  using near = open('va');
  using far = open('vb', 3);
  strictEqual(far.plane.fds.length, 3);
  const frames = Array.from({ length: 600 }, (_, i) => makeFrame(i, 100));
  new Sender().send(near.plane, frames);
  const got = takeFrames(far.plane, newBatch(), 600);
  strictEqual(got.length, 600);
});

test(
  'several planes have the sockets of one interface: whole flows, and each sends',
  { skip },
  () => {
    using near = open('va');
    const interfaceIndex = indexOf('vb');
    const options = { interfaceIndex, queues: 2, qdiscBypass: true, rollover: false };
    const sockets = PacketSockets.open(options);
    const planes = sockets.queues.map((queue) => {
      return new PacketPlane({ queues: [queue], mtu: 9000, linkUp: true, accepts: PACKET_ACCEPTS });
    });
    const frames = makeFlows(32, 20);
    const wanted = Array.from({ length: 20 }, (_, i) => i);
    new Sender().send(near.plane, frames);
    const batch = newBatch();
    const parts = planes.map((plane) => takeFrames(plane, batch, frames.length, 100));
    strictEqual(parts[0].length + parts[1].length, frames.length);
    for (const part of parts) {
      const flows = numbersOf(part);
      ok(flows.size > 3, `${flows.size} of 32 flows`);
      for (const numbers of flows.values()) deepStrictEqual(numbers, wanted);
    }
    for (const plane of planes) {
      strictEqual(new Sender().send(plane, frames), frames.length);
      deepStrictEqual(takeFrames(near.plane, batch, frames.length), frames);
      for (const [name, value] of Object.entries(plane.counters)) strictEqual(value, 0, name);
      plane.close();
    }
    sockets.close();
  },
);

for (const queues of [1, 2]) {
  test(`${queues} socket(s) do not see what their host sends`, { skip }, () => {
    using near = open('va');
    using host = open('vb', 1, false); // past no discipline, where others are shown what is sent
    using far = open('vb', queues);
    strictEqual(new Sender().send(host.plane, makeFlows(8, 4)), 32);
    strictEqual(takeFrames(near.plane, newBatch(), 32).length, 32);
    new Sender().send(near.plane, makeFlows(2, 1));
    strictEqual(takeFrames(far.plane, newBatch(), 3, 100).length, 2);
  });
}

test(
  'what finds no room is counted; more than the slots hold goes out nevertheless',
  { skip },
  () => {
    using near = open('va');
    using far = open('vb');
    const sender = new Sender();
    const frames = Array.from({ length: 64 }, (_, i) => makeFrame(i, 9000));
    let sent = 0;
    for (let round = 0; round < 20; round++) {
      sent += near.plane.transmit(sender.fill(frames), Int32Array.from(frames.keys()), 64);
    }
    near.plane.flush();
    strictEqual(sent, 20 * 64, 'the ring of 240 slots was sent in between');
    const got = takeFrames(far.plane, newBatch(), sent).length;
    far.plane.readKernelCounters();
    ok(far.plane.counters.rxDropNoRoom > 0);
    strictEqual(got + far.plane.counters.rxDropNoRoom, sent);
  },
);

test('a link that is set down takes nothing and counts', { skip }, () => {
  using near = open('va');
  using far = open('vb');
  far.plane.linkUp = false;
  ok(!far.plane.ready);
  new Sender().send(near.plane, [makeFrame(1, 100), makeFrame(2, 100)]);
  strictEqual(takeFrames(far.plane, newBatch(), 1).length, 0);
  strictEqual(far.plane.counters.rxDropDisabled, 2);
  far.plane.linkUp = true;
  new Sender().send(near.plane, [makeFrame(3, 100)]);
  strictEqual(takeFrames(far.plane, newBatch(), 1).length, 1);
});

test('an interface that is down, or is not there', { skip }, () => {
  using near = open('va');
  ip('link', 'set', 'va', 'down');
  new Sender().send(near.plane, [makeFrame(1, 100)]);
  strictEqual(near.plane.counters.txDropDown, 1);
  const frames = Array.from({ length: 500 }, (_, i) => makeFrame(i, 60));
  new Sender().send(near.plane, frames);
  strictEqual(near.plane.counters.txDropDown, 501, 'each once, though there are 240 slots');
  ip('link', 'set', 'va', 'up');
  using far = open('vb');
  strictEqual(new Sender().send(near.plane, frames), 500);
  deepStrictEqual(takeFrames(far.plane, newBatch(), 500), frames, 'nothing of before');
  const gone = { interfaceIndex: 4711, queues: 1, qdiscBypass: true };
  throws(() => PacketSockets.open(gone), { errnoName: 'ENODEV' });
});

test('a block whose lengths make no sense is left out and counted', () => {
  const memory = PrivateMemory.allocate(8192);
  const { buffer } = arena();
  const words = new Int32Array(buffer, memory.offset, 2048);
  const halves = new Uint16Array(buffer, memory.offset, 4096);
  const plan = new CopyPlan(256);
  const read = (change: (word: number) => void) => {
    const cursor = new PacketCursor();
    Object.assign(cursor, { left: 2, nextAt: 48, endAt: 4096 });
    for (const at of [48, 1072]) {
      const word = at >> 2;
      words[word] = 1024; // tp_next_offset
      words[word + 3] = words[word + 4] = 100; // tp_snaplen, tp_len
      words[word + 5] = 1;
      words[word + 6] = 92; // tp_mac
    }
    change(12);
    const batch = newBatch();
    const got = readBlock(words, halves, memory.offset, cursor, batch, plan);
    strictEqual(cursor.left, 0);
    return [got, cursor.errors];
  };
  deepStrictEqual(
    read(() => undefined),
    [2, 0],
  );
  deepStrictEqual(
    read((word) => (words[word + 4] = 101)),
    [1, 1],
    'cut off',
  );
  deepStrictEqual(
    read((word) => (words[word + 3] = words[word + 4] = 13)),
    [1, 1],
    'too short',
  );
  deepStrictEqual(
    read((word) => (words[word + 3] = words[word + 4] = -1)),
    [1, 1],
  );
  deepStrictEqual(
    read((word) => (words[word + 3] = words[word + 4] = 65554)),
    [1, 1],
  );
  deepStrictEqual(
    read((word) => (words[word + 6] = 4000)),
    [1, 1],
    'beyond the block',
  );
  deepStrictEqual(
    read((word) => (words[word + 6] = 93)),
    [1, 1],
    'no Ethernet frame',
  );
  deepStrictEqual(
    read((word) => (words[word] = 1 << 20)),
    [1, 1],
    'the next one is nowhere',
  );
  deepStrictEqual(
    read((word) => (words[word] = -4096)),
    [1, 1],
  );
});
