import { deepStrictEqual, ok, rejects, strictEqual } from 'node:assert';
import { after, test } from 'node:test';
import { availableParallelism } from 'node:os';
import { PrivateMemory } from '../memory/index.ts';
import { arena, CopyPlan, interfaceQueues, pinThread } from '../sys/index.ts';
import { PACKET_ACCEPTS, PacketPlane, PacketSockets, XdpPlane, XdpSockets } from './index.ts';
import { giveUp } from '../../test/peers/require-peer.ts';
import { enterVeth, indexOf, ip, makeFrame, newBatch, Sender, takeFrames } from './veth-fixture.ts';
import { readDescriptors, XdpReceiver, type XdpRing } from './xdp.hot.ts';
import type { XdpAttachMode } from './xdp-sockets.ts';

/** Before a test binds this thread to one of them. */
const PROCESSORS = availableParallelism();
const netns = `vring-xdp-${process.pid}`;
const skip = enterVeth(netns, 9000);
if (skip !== false) console.log(`SKIPPED, AF_XDP uplinks are not tested: ${skip}`);
after(() => {
  if (skip === false) ip('netns', 'del', netns);
});

/** Both interfaces carry so much: their driver takes a program for less, too, or refuses it. */
function setMtu(mtu: number): void {
  for (const name of ['va', 'vb']) ip('link', 'set', name, 'mtu', String(mtu));
}

function openOptions(name: string, attach: XdpAttachMode, mtu: number) {
  return { interfaceIndex: indexOf(name), queues: 1, copyMode: 'auto' as const, attach, mtu };
}

async function open(name: string, attach: XdpAttachMode, mtu: number) {
  setMtu(mtu);
  const sockets = await XdpSockets.open(openOptions(name, attach, mtu));
  const plane = new XdpPlane({ queues: sockets.queues, mtu, linkUp: true });
  return { plane, sockets, [Symbol.dispose]: () => (plane.close(), sockets.close()) };
}

function openPeer(name: string) {
  const interfaceIndex = indexOf(name);
  const sockets = PacketSockets.open({ interfaceIndex, queues: 1, qdiscBypass: true });
  const options = { queues: sockets.queues, mtu: 9000, linkUp: true, accepts: PACKET_ACCEPTS };
  const plane = new PacketPlane(options);
  return { plane, [Symbol.dispose]: () => (plane.close(), sockets.close()) };
}

for (const attach of ['native', 'generic'] as const) {
  for (const mtu of [1500, 3000, 9000]) {
    test(
      `${attach}, MTU ${mtu}: frames of all sizes arrive whole, both ways`,
      { skip },
      async () => {
        using near = await open('va', attach, mtu);
        using far = openPeer('vb');
        strictEqual(near.sockets.attached, attach);
        strictEqual(near.sockets.zeroCopy, false);
        const sender = new Sender();
        const batch = newBatch();
        // 30 laps of 200 frames: every ring and every chunk is used again.
        for (let lap = 0; lap < 30; lap++) {
          const frames = Array.from({ length: 200 }, (_, i) =>
            makeFrame(i + lap, 14 + ((i * 53 + lap * 7) % mtu)),
          );
          strictEqual(sender.send(near.plane, frames, 1 + (lap % 3)), 200);
          deepStrictEqual(takeFrames(far.plane, batch, 200), frames);
          strictEqual(sender.send(far.plane, frames, 1 + (lap % 3)), 200);
          deepStrictEqual(takeFrames(near.plane, batch, 200), frames);
        }
        near.plane.readKernelCounters();
        for (const [name, value] of Object.entries(near.plane.counters))
          strictEqual(value, 0, name);
      },
    );
  }
}

test('what finds no room is counted, and the rings go on afterwards', { skip }, async () => {
  using near = await open('va', 'native', 1500);
  using far = openPeer('vb');
  const frames = Array.from({ length: 3000 }, (_, i) => makeFrame(i, 60));
  const sender = new Sender();
  sender.send(far.plane, frames);
  const got = takeFrames(near.plane, newBatch(), 3000);
  near.plane.readKernelCounters();
  ok(near.plane.counters.rxDropNoRoom > 0);
  strictEqual(got.length + near.plane.counters.rxDropNoRoom, 3000);
  sender.send(far.plane, frames.slice(0, 500));
  deepStrictEqual(takeFrames(near.plane, newBatch(), 500), frames.slice(0, 500));
});

/** `vc` and `vd`, with two queues each. */
function makeQueues(): void {
  const queues = ['numtxqueues', '2', 'numrxqueues', '2'];
  ip('link', 'add', 'vc', ...queues, 'type', 'veth', 'peer', 'name', 'vd', ...queues);
  for (const name of ['vc', 'vd']) ip('link', 'set', name, 'up');
}

test('a port has all queues of its interface', { skip }, async (t) => {
  if (PROCESSORS < 2) return void giveUp(t, 'needs two processors');
  makeQueues();
  using scratch = PrivateMemory.allocate(4096);
  strictEqual(interfaceQueues('vc', scratch.offset), 2);
  const sockets = await XdpSockets.open({ ...openOptions('vc', 'native', 1500), queues: 2 });
  const plane = new XdpPlane({ queues: sockets.queues, mtu: 1500, linkUp: true });
  using far = openPeer('vd');
  const frames = Array.from({ length: 256 }, (_, i) => makeFrame(i, 60 + i));
  for (const [cpu, part] of [frames.slice(0, 128), frames.slice(128)].entries()) {
    pinThread(cpu); // a packet socket sends by the queue of its processor
    new Sender().send(far.plane, part);
  }
  const got = takeFrames(plane, newBatch(), 256);
  deepStrictEqual(new Set(got.map(String)), new Set(frames.map(String)));
  const perQueue = sockets.queues.map(({ rx }) => {
    const words = new Int32Array(arena().buffer, rx.offset, rx.sizeBytes >> 2);
    return words[rx.layout.producerAt >> 2];
  });
  deepStrictEqual(perQueue, [128, 128]);
  plane.close();
  sockets.close();
});

for (const queues of [1, 2]) {
  test(`two planes with a socket each, ${queues} of which receive`, { skip }, async (t) => {
    if (PROCESSORS < 2) return void giveUp(t, 'needs two processors');
    makeQueues();
    const options = { ...openOptions('vc', 'native', 1500), queues, sockets: 2 };
    const sockets = await XdpSockets.open(options);
    const planes = sockets.queues.map((queue) => {
      return new XdpPlane({ queues: [queue], mtu: 1500, linkUp: true });
    });
    strictEqual(planes.length, 2);
    using far = openPeer('vd');
    const frames = Array.from({ length: 600 }, (_, i) => makeFrame(i, 60 + i));
    for (const [cpu, plane] of planes.entries()) {
      pinThread(cpu);
      new Sender().send(far.plane, frames);
      const got = takeFrames(plane, newBatch(), frames.length, 100);
      deepStrictEqual(got, cpu < queues ? frames : [], 'the rest is for the stack');
    }
    for (let lap = 0; lap < 4; lap++) {
      for (const plane of planes) {
        strictEqual(new Sender().send(plane, frames), frames.length);
        deepStrictEqual(takeFrames(far.plane, newBatch(), frames.length), frames);
      }
    }
    for (const plane of planes) {
      plane.readKernelCounters();
      for (const [name, value] of Object.entries(plane.counters)) strictEqual(value, 0, name);
      plane.close();
    }
    sockets.close();
  });
}

test('detached and attached again, it counts on', { skip }, async () => {
  const far = openPeer('vb');
  const first = await open('va', 'auto', 1500);
  const frames = [makeFrame(1, 60)];
  new Sender().send(far.plane, frames);
  strictEqual(takeFrames(first.plane, newBatch(), 1).length, 1);
  first.plane.detach();
  first.sockets.close();
  ok(!first.plane.ready);
  strictEqual(first.plane.receive(newBatch()), 0);
  first.plane.flush();
  const sockets = await XdpSockets.open(openOptions('va', 'auto', 1500));
  first.plane.attach(sockets.queues);
  new Sender().send(far.plane, frames);
  deepStrictEqual(takeFrames(first.plane, newBatch(), 1), frames);
  first.plane.close();
  sockets.close();
  far[Symbol.dispose]();
});

test('an interface that goes down for a while sends again', { skip }, async () => {
  using near = await open('va', 'native', 1500);
  ip('link', 'set', 'va', 'down');
  const before = Array.from({ length: 2000 }, (_, i) => makeFrame(i, 60));
  const kept = new Sender().send(near.plane, before);
  ip('link', 'set', 'va', 'up');
  using far = openPeer('vb');
  const after = Array.from({ length: 100 }, (_, i) => makeFrame(i, 70));
  strictEqual(new Sender().send(near.plane, after), 100);
  const frames = [...before.slice(0, kept), ...after];
  deepStrictEqual(takeFrames(far.plane, newBatch(), frames.length), frames);
  strictEqual(near.plane.counters.txDropBusy, 2000 - kept, 'what found no chunk');
  strictEqual(near.plane.counters.txDropDown, 0, 'what did was sent');
  ip('link', 'set', 'va', 'down');
  new Sender().send(near.plane, after);
  near.plane.detach();
  strictEqual(near.plane.counters.txDropDown, 100, 'what no call will send any more');
  ip('link', 'set', 'va', 'up');
});

test('what cannot be had is said by name, and leaves nothing behind', { skip }, async () => {
  setMtu(1500);
  const options = openOptions('va', 'auto', 1500);
  const zeroCopy = XdpSockets.open({ ...options, copyMode: 'zero-copy' });
  await rejects(zeroCopy, {
    code: 'ERR_VRING_XDP',
    message: /queue 0: the driver has no zero copy/,
  });
  await rejects(XdpSockets.open({ ...options, queues: 2 }), /queue 1: the interface has no such/);
  using near = await open('va', 'auto', 1500);
  ok(near.plane.ready);
  await rejects(XdpSockets.open(options), /has an XDP program of somebody else/);
  await rejects(XdpSockets.open({ ...options, interfaceIndex: 4711 }), /takes no XDP program/);
});

test('descriptors that make no sense are left out and counted', () => {
  const memory = PrivateMemory.allocate(65536);
  const words = new Int32Array(16 * 4);
  const ring: XdpRing = { words, producerAt: 0, consumerAt: 0, flagsAt: 0, descAt: 0, mask: 15 };
  const read = (...descriptors: [address: number, lenBytes: number, options: number][]) => {
    for (const [d, [address, lenBytes, options]] of descriptors.entries()) {
      words.set([address, 0, lenBytes, options], d * 4);
    }
    const receiver = new XdpReceiver(memory.offset, 2048, 0);
    const batch = newBatch();
    readDescriptors(ring, receiver, descriptors.length, batch, new CopyPlan(256));
    return [batch.count, receiver.errors, receiver.taken];
  };
  deepStrictEqual(read([256, 60, 0], [2048 + 256, 1500, 0]), [2, 0, 2]);
  deepStrictEqual(read([256, 1793, 0], [256, 60, 0]), [1, 1, 2], 'beyond its chunk');
  deepStrictEqual(read([-256, 60, 0], [256, -60, 0], [256, 13, 0]), [0, 3, 3]);
  deepStrictEqual(read([256, 1792, 1], [2304, 100, 0]), [1, 0, 2], 'of two chunks');
  deepStrictEqual(read([256, 1792, 1], [2304, 1792, 1]), [0, 0, 0], 'its end is not there yet');
  deepStrictEqual(read([256, 10, 1], [2304, 1792, 0]), [0, 1, 2], 'a header in two chunks');
  deepStrictEqual(read([256, 1792, 1], [2304, 4000, 0], [256, 60, 0]), [1, 1, 3]);
});
