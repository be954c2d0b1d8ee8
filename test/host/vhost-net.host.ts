/**
 * /dev/vhost-net with a TAP behind it, driven by the software guest. What went over is compared
 * with what tcpdump sees on the TAP.
 */
// @test-host time-limit=300
import { deepEqual, equal, match, ok, rejects, throws } from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { release } from 'node:os';
import { test } from 'node:test';
import { DirtyPages, PAGE_BYTES } from '../../src/guest/dirty-pages.ts';
import { type NetGuest, parseIp } from '../../src/guest/index.ts';
import { sendSlots } from '../../src/guest/net-driver.hot.ts';
import { arena, createEventfd, drainEventfd, openFdCount, openTap } from '../../src/sys/index.ts';
import { VhostNetBackend } from '../../src/vhost-kernel/index.ts';
import { VHOST_F_LOG_ALL } from '../../src/wire/vhost-user.ts';
import {
  NetHeader,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../../src/wire/virtio-net.ts';
import {
  featureSet,
  hasFeature,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../../src/wire/virtio.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import {
  Capture,
  HostSocket,
  ip,
  loadModules,
  payloads,
  TapGuest,
  vhostThreads,
} from './tap-guest.ts';

loadModules('tun', 'vhost_net');
const SIZES = [18, 64, 255, 1024, 1400];
const [major, minor] = release().split('.').map(Number);
const newerThan = (wantMajor: number, wantMinor: number): boolean =>
  major > wantMajor || (major === wantMajor && minor >= wantMinor);

test('frames both ways, as tcpdump on the TAP has them', async () => {
  await using scratch = new Scratch();
  const tap = scratch.own(await TapGuest.start({ tap: 'tap0', net: 1 }));
  ok(vhostThreads().length === 1, `threads: ${vhostThreads()}`);
  const capture = await Capture.start(scratch, 'tap0', 'udp');
  const host = scratch.own(new HostSocket());
  tap.echo(7);
  const sent = payloads(100, SIZES);
  const repeated = await host.echoes(sent, 7, '10.77.1.2');
  equal(repeated, 0, 'nothing is lost on a quiet TAP');
  const frames = await waitFor('all frames', 5000, () => {
    const seen = capture.frames();
    return seen.length >= 200 && seen;
  });
  equal(frames.length, 200);
  const expected = sent.flatMap((payload) => [42 + payload.length, 42 + payload.length]);
  deepEqual(
    frames.map(({ lenBytes }) => lenBytes),
    expected,
  );
  frames.forEach(({ bytes }, i) => ok(bytes.subarray(42).equals(sent[i >> 1]), `frame ${i}`));
  const { rxUdp, txUdp, rxBadChecksum, rxMalformed } = tap.stack.counters;
  deepEqual([rxUdp, txUdp, rxBadChecksum, rxMalformed], [100, 100, 0, 0]);
});

test('without mergeable buffers, offloads, indirect tables and event index', async () => {
  await using scratch = new Scratch();
  const off = [0, 1, 7, 8, 11, 12, 15, 28, 29];
  const tap = scratch.own(
    await TapGuest.start({ tap: 'tap0', net: 1, guest: { features: { on: [], off } } }),
  );
  equal(hasFeature(tap.guest.features, VIRTIO_NET_F_MRG_RXBUF), false);
  const host = scratch.own(new HostSocket());
  tap.echo(7);
  equal(await host.echoes(payloads(30, SIZES), 7, '10.77.1.2'), 0);
  equal(tap.stack.counters.rxBadChecksum, 0);
});

test('close leaves no thread of the kernel, no fd and no interface', async () => {
  const before = openFdCount();
  for (let i = 0; i < 3; i++) {
    const tap = await TapGuest.start({ tap: 'tap0', net: 1, guest: { queuePairs: 2 } });
    equal(vhostThreads().length, 2, 'one for each pair');
    const closed = tap.backend.closed;
    await tap.close();
    await tap.backend.close(); // once more
    equal(await closed, null);
    deepEqual(vhostThreads(), []);
    equal(openFdCount(), before);
    await rejects(ip('link', 'show', 'tap0'));
  }
});

test('features: what is offered, refused, and needed', async () => {
  await using scratch = new Scratch();
  const backend = scratch.own(VhostNetBackend.open({ tap: 'tap0' }));
  const offered = await backend.getFeatures();
  const both = [VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM, VHOST_F_LOG_ALL];
  for (const bit of [...both, VIRTIO_NET_F_HOST_TSO4]) ok(hasFeature(offered, bit), `bit ${bit}`);
  equal(hasFeature(offered, 27), false, 'VHOST_NET_F_VIRTIO_NET_HDR stays unmentioned');
  equal(hasFeature(offered, VIRTIO_NET_F_MQ), false);
  equal(hasFeature(offered, 56), newerThan(6, 2), 'USO is known since Linux 6.2');
  const version1 = featureSet(VIRTIO_F_VERSION_1);
  const packed = version1 | featureSet(VIRTIO_F_RING_PACKED);
  await rejects(backend.setFeatures(packed), {
    code: 'ERR_VRING_FEATURES',
    message:
      "vhost-net:tap0 does not offer RING_PACKED; the kernel's vhost-net has split rings only",
  });
  await rejects(backend.setFeatures(0n), { code: 'ERR_VRING_FEATURES', message: /VERSION_1/ });
  await rejects(backend.setFeatures(version1 | featureSet(VHOST_F_LOG_ALL)), {
    code: 'ERR_VRING_LOG_SIZE',
  });
  await rejects(backend.getConfig(), { code: 'ERR_VRING_NOT_NEGOTIATED' });
  await rejects(backend.iotlb.invalidate(0n, 1n), { code: 'ERR_VRING_NOT_NEGOTIATED' });
  await rejects(backend.setVringKick(0, null), { code: 'ERR_VRING_KERNEL_LACKS' });
  await rejects(backend.setVringNum(2, 256), { code: 'ERR_VRING_RING_INDEX' });
  await rejects(
    TapGuest.start({ tap: 'tap1', net: 1, guest: { packed: true } }),
    /does not offer RING_PACKED/,
  );
});

test('owner: one, once, and everything else before it is refused', async () => {
  await using scratch = new Scratch();
  const backend = scratch.own(VhostNetBackend.open({ tap: 'tap0' }));
  await rejects(backend.setVringNum(0, 256), { errnoName: 'EPERM' });
  await backend.setOwner();
  await rejects(backend.setOwner(), { code: 'ERR_VRING_DEVICE_BUSY', message: /owner already/ });
  equal(vhostThreads().length, 1);
  await backend.resetOwner();
  deepEqual(vhostThreads(), []);
  await backend.setOwner();
  equal(vhostThreads().length, 1);
  throws(() => VhostNetBackend.open({ tap: 'tap0' }), {
    code: 'ERR_VRING_INTERFACE_BUSY',
    message: /tap0: another process has this interface open/,
  });
});

test('two queue pairs: frames in and out of both', async () => {
  await using scratch = new Scratch();
  const tap = scratch.own(await TapGuest.start({ tap: 'tap0', net: 1, guest: { queuePairs: 2 } }));
  ok(hasFeature(tap.guest.features, VIRTIO_NET_F_MQ));
  tap.echo(7);
  // The TAP spreads flows over its queues by their hash: many sockets, some in each.
  for (let i = 0; i < 24; i++) {
    const host = new HostSocket();
    await host.echoes(payloads(1, [64]), 7, '10.77.1.2');
    host.close();
  }
  const chains = tap.guest.rx.map((queue) => queue.ring.nextUsed);
  ok(
    chains.every((count) => count > 0),
    `received by pair: ${chains}`,
  );
  const capture = await Capture.start(scratch, 'tap0', 'ether proto 0x88b5');
  const sent = sendRaw(tap.guest, 1);
  const frames = await waitFor('the frame', 5000, () => {
    const seen = capture.frames();
    return seen.length > 0 && seen;
  });
  ok(frames[0].bytes.equals(sent), 'what the second pair sent');
});

/** Sends a broadcast of an experimental type (IEEE 802) out of the transmit ring of one pair. */
function sendRaw(guest: NetGuest, pair: number): Buffer {
  const queue = guest.tx[pair];
  const frame = Buffer.alloc(80, 0x5a).fill(0xff, 0, 6);
  frame.writeUInt16BE(0x88b5, 12);
  const offset = queue.slotOffset[queue.freeSlots[queue.freeCount - 1]];
  const slot = new Uint8Array(queue.arena.buffer, offset, NetHeader.size + frame.length);
  slot.fill(0, 0, NetHeader.size);
  slot.set(frame, NetHeader.size);
  equal(sendSlots(queue, 1, slot.length, false), 1);
  guest.kickIfWanted(queue);
  return frame;
}

test('stop and resume: nothing is lost that waits in the TAP or in the ring', async () => {
  await using scratch = new Scratch();
  const tap = scratch.own(await TapGuest.start({ tap: 'tap0', net: 1 }));
  const host = scratch.own(new HostSocket());
  tap.echo(7);
  equal(await host.echoes(payloads(5, SIZES), 7, '10.77.1.2'), 0);
  for (let round = 0; round < 3; round++) {
    const bases = await tap.guest.stop();
    deepEqual(bases, [bases[0], tap.guest.tx[0].ring.nextAvail], 'all that was sent is taken');
    const before = host.received.length;
    for (const payload of payloads(10, SIZES)) await host.send(payload, 7, '10.77.1.2');
    await sleep(100);
    equal(host.received.length, before);
    await tap.guest.resume();
    await waitFor('the echoes', 5000, () => host.received.length === before + 10);
  }
});

test('the memory table replaced while rings run', async () => {
  await using scratch = new Scratch();
  const tap = scratch.own(await TapGuest.start({ tap: 'tap0', net: 1 }));
  const host = scratch.own(new HostSocket());
  tap.echo(7);
  for (let i = 0; i < 3; i++) {
    await tap.backend.setMemTable([tap.guest.memory.backendRegion()]);
    equal(await host.echoes(payloads(10, SIZES), 7, '10.77.1.2'), 0);
  }
});

for (const mode of ['offset', 'scatter'] as const) {
  test(`behind an IOMMU, ${mode}: the kernel asks, and forgets what is taken back`, async () => {
    await using scratch = new Scratch();
    const tap = scratch.own(await TapGuest.start({ tap: 'tap0', net: 1, iommu: mode }));
    const iommu = tap.iommu!;
    const host = scratch.own(new HostSocket());
    tap.echo(7);
    equal(await host.echoes(payloads(20, SIZES), 7, '10.77.1.2'), 0);
    ok(iommu.counters.misses > 0);
    const before = { ...iommu.counters };
    await iommu.invalidateAll();
    await host.echoes(payloads(20, SIZES), 7, '10.77.1.2');
    ok(iommu.counters.updates > before.updates, 'asked again after it had to forget');
    await tap.backend.setMemTable([tap.guest.memory.backendRegion()]);
    await host.echoes(payloads(5, SIZES), 7, '10.77.1.2');
    await tap.guest.stop();
    await tap.guest.resume();
    await host.echoes(payloads(5, SIZES), 7, '10.77.1.2');
    equal(iommu.counters.faults, 0);
    equal(tap.stack.counters.rxBadChecksum, 0);
    // An address that is in no region is refused before the kernel sees it.
    const nowhere = { iova: 0n, sizeBytes: 4096n, userAddr: 1n, permissions: 3 };
    await rejects(tap.backend.iotlb.update(nowhere), { code: 'ERR_VRING_MEMORY_ADDRESS' });
  });
}

test('the dirty log has every page that the kernel wrote', async () => {
  await using scratch = new Scratch();
  const tap = scratch.own(await TapGuest.start({ tap: 'tap0', net: 1 }));
  const { backend, guest } = tap;
  const host = scratch.own(new HostSocket());
  tap.echo(7);
  equal(await host.echoes(payloads(5, SIZES), 7, '10.77.1.2'), 0);

  const log = scratch.own(new DirtyPages(guest.memory));
  await rejects(backend.dirtyLog.setLogBase(log.fd.number, 4096), {
    code: 'ERR_VRING_LOG_SIZE',
    message: /the dirty log has 4096 bytes; region 0 ends at .* and needs/,
  });
  await backend.dirtyLog.setLogBase(log.fd.number, log.sizeBytes);
  const signal = scratch.own(createEventfd('log'));
  backend.setLogFd(signal.number);
  const { offset, sizeBytes, baseGpa } = guest.memory;
  await backend.setFeatures(guest.features | featureSet(VHOST_F_LOG_ALL));
  for (const queue of guest.queues) {
    const { descUva, availUva, usedUva } = queue.vring(0);
    const addresses = { descUva, availUva, usedUva };
    await backend.setVringAddr(queue.index, addresses, BigInt(queue.usedGpa));
  }
  const before = arena().bytes.slice(offset, offset + sizeBytes);
  equal(await host.echoes(payloads(40, SIZES), 7, '10.77.1.2'), 0);
  await guest.stop();
  ok(drainEventfd(signal.number) > 0, 'the log fd was signalled');

  const marked = new Set(log.take());
  const written = devicePages(tap, before);
  ok(written.size > 20, `${written.size} pages were written`);
  deepEqual(
    [...written].filter((page) => !marked.has(page)),
    [],
  );
  // Marks are for pages that the device may write, and not for all of them.
  const transmit = guest.tx[0];
  const slot = Math.floor((transmit.slotGpa[0] - baseGpa) / PAGE_BYTES) + 1;
  equal(marked.has(slot), false, 'what is sent is only read');
  ok(marked.size < sizeBytes / PAGE_BYTES / 2, `${marked.size} marks`);

  await backend.setFeatures(guest.features);
  await guest.resume();
  equal(await host.echoes(payloads(5, SIZES), 7, '10.77.1.2'), 0);
  deepEqual(log.take(), [], 'nothing is marked any more');
});

/** Pages that changed in what the device writes: receive buffers and used rings. */
function devicePages(tap: TapGuest, before: Uint8Array): Set<number> {
  const { offset, baseGpa } = tap.guest.memory;
  const now = arena().bytes;
  const pages = new Set<number>();
  const look = (fromGpa: number, bytes: number): void => {
    for (let at = fromGpa - baseGpa; at < fromGpa - baseGpa + bytes; at++) {
      if (now[offset + at] !== before[at]) pages.add(Math.floor(at / PAGE_BYTES));
    }
  };
  for (const queue of tap.guest.rx) {
    for (const gpa of queue.slotGpa) look(gpa, queue.slotBytes);
  }
  for (const queue of tap.guest.queues) look(queue.usedGpa, 6 + 8 * queue.plan.size);
  return pages;
}

test(
  'a TCP stream of the kernel through two guests, offloads on',
  { timeout: 60_000 },
  async () => {
    await using scratch = new Scratch();
    const a = scratch.own(await TapGuest.start({ tap: 'tap0', net: 1 }));
    const b = scratch.own(await TapGuest.start({ tap: 'tap1', net: null }));
    await ip('netns', 'add', 'far');
    scratch.own({ close: () => ip('netns', 'delete', 'far') });
    await ip('link', 'set', 'tap1', 'netns', 'far');
    await ip('-n', 'far', 'address', 'add', '10.77.1.9/24', 'dev', 'tap1');
    await ip('-n', 'far', 'link', 'set', 'tap1', 'up');
    // The two guests are a wire between the TAPs: header and frame go over as they came.
    const seen = { needsCsum: 0, gso: 0, dropped: 0 };
    for (const [from, to] of [
      [a.guest, b.guest],
      [b.guest, a.guest],
    ]) {
      from.onFrame = (frame, offload) => {
        if (offload.needsCsum) seen.needsCsum++;
        if (offload.gsoType !== 0) seen.gso++;
        if (!to.send(frame, offload)) seen.dropped++;
      };
    }
    const bytes = 4_000_000;
    const sums = await tcpBothWays(bytes);
    equal(sums.there, sums.source);
    equal(sums.back, sums.source);
    ok(seen.needsCsum > 100, `${seen.needsCsum} frames without their checksum`);
    ok(seen.gso > 50, `${seen.gso} frames longer than the MTU`);
  },
);

/** A process in the namespace sends back what it gets, with the sum of it at the end. */
async function tcpBothWays(bytes: number) {
  const { createHash } = await import('node:crypto');
  const { connect } = await import('node:net');
  const { spawn } = await import('node:child_process');
  const server = `
    const { createServer } = require('net'); const { createHash } = require('crypto');
    createServer((socket) => {
      const hash = createHash('sha256'); let got = 0;
      socket.on('data', (chunk) => {
        hash.update(chunk); got += chunk.length; socket.write(chunk);
        if (got >= ${bytes}) { socket.end(); console.log('SUM ' + hash.digest('hex')); }
      });
    }).listen(7000, () => console.log('LISTENS'));`;
  const args = ['netns', 'exec', 'far', process.execPath, '-e', server];
  const child = spawn('ip', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    let output = '';
    child.stdout.on('data', (chunk) => (output += chunk));
    await waitFor('the server', 20_000, () => output.includes('LISTENS'));
    const source = createHash('sha256');
    const back = createHash('sha256');
    const socket = connect(7000, '10.77.1.9');
    const ended = new Promise((resolve, reject) => {
      socket.on('end', resolve);
      socket.on('error', reject);
    });
    socket.on('data', (chunk) => back.update(chunk));
    for (let at = 0; at < bytes; at += 100_000) {
      const chunk = Buffer.alloc(100_000, at / 100_000);
      source.update(chunk);
      if (!socket.write(chunk)) await new Promise((resolve) => socket.once('drain', resolve));
    }
    await ended;
    const there = await waitFor('the sum', 5000, () => /SUM (\w+)/.exec(output)?.[1]);
    return { source: source.digest('hex'), there, back: back.digest('hex') };
  } finally {
    child.kill();
  }
}

test('the interface deleted while in use', async () => {
  await using scratch = new Scratch();
  const tap = await TapGuest.start({ tap: 'tap0', net: 1 });
  scratch.own(tap);
  const begin = performance.now();
  await ip('link', 'delete', 'tap0');
  const reason = (await tap.backend.closed) as Error & { code: string };
  ok(performance.now() - begin < 2000);
  equal(reason.code, 'ERR_VRING_INTERFACE_GONE');
  match(reason.message, /vhost-net:tap0: the interface was deleted while in use/);
  equal(
    ((await tap.guest.closed) as Error & { code: string }).code,
    'ERR_VRING_GUEST_BACKEND_GONE',
  );
  deepEqual(vhostThreads(), []);
});

test('open queues of a TAP, taken over', async () => {
  await using scratch = new Scratch();
  const fd = openTap('tap0', { vnetHdrBytes: 12 }).fd;
  const tap = scratch.own(await TapGuest.start({ tap: 'tap0', net: 1, backend: { tap: [fd] } }));
  const host = scratch.own(new HostSocket());
  tap.echo(7);
  equal(await host.echoes(payloads(5, SIZES), 7, '10.77.1.2'), 0);
  await tap.close();
  equal(fd.closed, true);
  const no = openTap('tap0', { vnetHdrBytes: 12 }).fd;
  throws(() => VhostNetBackend.open({ tap: [no], queuePairs: 2 }), { code: 'ERR_VRING_INTERFACE' });
  equal(no.closed, true);
});

test('a multi-queue interface that is there, opened for one pair', async () => {
  await using scratch = new Scratch();
  await ip('tuntap', 'add', 'tapm', 'mode', 'tap', 'multi_queue', 'vnet_hdr');
  scratch.own({ close: () => ip('link', 'delete', 'tapm') });
  const tap = scratch.own(await TapGuest.start({ tap: 'tapm', net: 1 }));
  ok(
    await tap.stack.ping(parseIp('10.77.1.1')!, {
      payloadBytes: 56,
      timeoutMs: 3000,
      sequence: 1,
      identifier: 1,
    }),
  );
  await ip('tuntap', 'add', 'taps', 'mode', 'tap', 'vnet_hdr');
  scratch.own({ close: () => ip('link', 'delete', 'taps') });
  throws(() => VhostNetBackend.open({ tap: 'taps', queuePairs: 2 }), {
    code: 'ERR_VRING_INTERFACE',
    message: /taps: it is a TAP of one queue/,
  });
});

test('what depends on the kernel: workers, byte order, busy loop', async () => {
  await using scratch = new Scratch();
  const backend = scratch.own(VhostNetBackend.open({ tap: 'tap0', busyLoopMicroseconds: 50 }));
  await backend.setOwner();
  const [device] = backend.devices;
  equal(device.getBusyLoop(1), 50);
  throws(() => device.setVringEndian(0, true), {
    code: 'ERR_VRING_KERNEL_LACKS',
    message: /CONFIG_VHOST_CROSS_ENDIAN_LEGACY/,
  });
  if (newerThan(6, 5)) {
    const worker = device.newWorker();
    device.attachVringWorker(1, worker);
    equal(device.getVringWorker(1), worker);
  } else {
    throws(() => device.newWorker(), {
      code: 'ERR_VRING_KERNEL_LACKS',
      message: /this kernel has no VHOST_NEW_WORKER \(Linux 6.5 or newer has it\)/,
    });
    throws(() => device.freeWorker(0), { code: 'ERR_VRING_KERNEL_LACKS' });
    throws(() => device.attachVringWorker(0, 0), { code: 'ERR_VRING_KERNEL_LACKS' });
    throws(() => device.getVringWorker(0), { code: 'ERR_VRING_KERNEL_LACKS' });
  }
});

test('no permission, and no module', () => {
  const { fd } = openTap('tap0', { vnetHdrBytes: 12 });
  process.seteuid!(65534);
  try {
    throws(() => VhostNetBackend.open({ tap: [fd], up: false }), {
      code: 'ERR_VRING_DEVICE_PERMISSION',
      message: /\/dev\/vhost-net: no permission/,
    });
    throws(() => VhostNetBackend.open({ tap: 'tap0' }), {
      code: 'ERR_VRING_INTERFACE_PERMISSION',
    });
  } finally {
    process.seteuid!(0);
  }
  execFileSync('modprobe', ['-r', 'vhost_net']);
  loadModules('tun'); // it went along
  try {
    throws(() => VhostNetBackend.open({ tap: 'tap0' }), {
      code: 'ERR_VRING_DEVICE_MISSING',
      message: '/dev/vhost-net does not exist; load its module: modprobe vhost_net',
    });
  } finally {
    loadModules('vhost_net');
  }
});
