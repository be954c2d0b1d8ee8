/** The worker's half of the switch, without a worker: attaching, starting, sleeping, breaking. */
import assert from 'node:assert/strict';
import { readdirSync, readlinkSync } from 'node:fs';
import { afterEach, beforeEach, test } from 'node:test';
import { EMPTY_ADDRESS_MAP, PrivateMemory } from '../../memory/index.ts';
import type {
  PlaneDriverState,
  PlaneEvent,
  ResumedVring,
  VringAttach,
} from '../../runtime/data-plane.ts';
import { COUNTERS_BYTES, MacTable, SWITCH_SCRATCH_BYTES } from '../../switch/index.ts';
import { arena, regionFaults } from '../../sys/arena.ts';
import { createEventfd, drainEventfd } from '../../sys/eventfd.ts';
import type { Fd } from '../../sys/fd.ts';
import {
  addChains,
  DriverBatch,
  DriverQueue,
  needsKick,
  publish,
  reapUsed,
  ringLayout,
  UsedBatch,
} from '../../virtqueue/driver/index.ts';
import { FAULT_HEAD } from '../../virtqueue/faults.ts';
import { SHARED_RING_WORDS } from '../../virtqueue/shared-ring.hot.ts';
import * as net from '../../wire/virtio-net.ts';
import { VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1 } from '../../wire/virtio.ts';
import { PACKED_BASE_FRESH, VIRTIO_RING_F_EVENT_IDX, featureSet } from '../../wire/virtio.ts';
import { CALL_HOLD_MS } from './call-hold.ts';
import { type NetPlane, createPlane } from './net-plane.ts';
import type { NetPlaneState } from './net-state.ts';
import { PARKED_FRAMES_BYTES } from './parked-frames.ts';
import type { PortPolicy } from './port-policy.ts';
import { REST_TOKEN } from './rest-timer.ts';

const SPIN_MS = 1;
const RING_SIZE = 64;
const RECEIVEQ = 0;
const TRANSMITQ = 1;
const CONTROLQ = 2;

let plane: NetPlane;
let events: PlaneEvent[];
let watched: Map<number, number>;
let memory: PrivateMemory;
let kicks: Fd[];
let calls: Fd[];

beforeEach(() => {
  memory = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES + 2 ** 20);
  makePlane(1);
  kicks = [createEventfd('kick'), createEventfd('kick'), createEventfd('kick')];
  calls = [createEventfd('call'), createEventfd('call'), createEventfd('call')];
});

/** The plane of one of so many workers, with one port. */
function makePlane(workers: number): void {
  events = [];
  watched = new Map();
  plane = createPlane({
    watch: (fd, token) => void watched.set(fd, token),
    unwatch: (fd) => assert.ok(watched.delete(fd), `${fd} is watched`),
    emit: (event) => void events.push(event),
    spinMs: SPIN_MS,
    options: {
      macTable: MacTable.create().memory,
      counters: new SharedArrayBuffer(COUNTERS_BYTES),
      scratchAt: memory.offset,
      workers,
    },
  }) as NetPlane;
  const settings = { vlan: { mode: 'access', vid: 1 }, macLimit: 16, reflect: true } as const;
  const port = { port: 0, settings, queuePairs: 1, mtu: 1500, mac: null, linkUp: true };
  plane.command('addNetPort', port);
}

afterEach(() => {
  plane.close();
  for (const fd of [...kicks, ...calls]) fd.close();
  memory.close();
});

function ring(index: number, bits: number[]): { queue: DriverQueue; attach: VringAttach } {
  const packed = bits.includes(VIRTIO_F_RING_PACKED);
  const layout = ringLayout(RING_SIZE, packed);
  const at = memory.offset + SWITCH_SCRATCH_BYTES + index * 65536;
  const config = {
    size: RING_SIZE,
    packed,
    eventIdx: bits.includes(VIRTIO_RING_F_EVENT_IDX),
    indirect: false,
    inOrder: false,
    descOffset: at,
    availOffset: at + layout.availAt,
    usedOffset: at + layout.usedAt,
  };
  const end = memory.offset + memory.sizeBytes;
  const attach: VringAttach = {
    device: 0,
    index,
    config: { ...config, base: packed ? PACKED_BASE_FRESH : 0 },
    map: {
      count: 1,
      start: Float64Array.of(memory.offset),
      end: Float64Array.of(end),
      delta: Float64Array.of(0),
    },
    regions: [],
    features: featureSet(VIRTIO_F_VERSION_1, ...bits),
    kickFd: kicks[index].number,
    callFd: calls[index].number,
    injectedQueue: -1,
    errFd: -1,
    enabled: true,
    iotlb: false,
    log: null,
    inflight: null,
    drain: true,
  };
  return { queue: new DriverQueue(config, arena().buffer), attach };
}

/** Adds one buffer; whether the driver would kick for it. */
function add(queue: DriverQueue, index: number, bytes: number): boolean {
  const batch = new DriverBatch();
  const gpa = memory.offset + SWITCH_SCRATCH_BYTES + 2 ** 18 + index * 65536;
  const buffer = [{ gpa, len: bytes }];
  batch.addChain(index === TRANSMITQ ? buffer : [], index === TRANSMITQ ? [] : buffer);
  assert.equal(addChains(queue, batch, 0, 1), 1);
  publish(queue);
  return needsKick(queue);
}

/** Rounds until nothing is awake, at most so many. */
function settle(): void {
  for (let round = 0; round < 50 && plane.awake > 0; round++) plane.poll(round * SPIN_MS);
}

const FORMS: [string, number[]][] = [
  ['split', []],
  ['split, event idx', [VIRTIO_RING_F_EVENT_IDX]],
  ['packed', [VIRTIO_F_RING_PACKED]],
  ['packed, event idx', [VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX]],
];

for (const [name, bits] of FORMS) {
  test(`${name}: a chain added right after the ring was attached is found or kicked for`, () => {
    const { queue, attach } = ring(TRANSMITQ, bits);
    plane.attachVring(attach);
    const kicked = add(queue, TRANSMITQ, 100);
    if (kicked) plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
    settle();
    assert.equal(plane.awake, 0, 'the worker can sleep');
    const status = plane.command('portStatus', { port: 0 }) as { vrings: { started: boolean }[] };
    assert.equal(status.vrings[0].started, true);
    assert.ok(queue.outstanding > 0);
  });

  test(`${name}: a receive queue that was empty when it was attached again gets its kick`, () => {
    const { queue, attach } = ring(RECEIVEQ, bits);
    plane.attachVring(attach);
    if (add(queue, RECEIVEQ, 2048)) plane.ready(watched.get(kicks[0].number) as number, 0);
    // Now it runs and wants no kicks. The front-end changes its memory table: off and on again,
    // with the ring drained in between.
    const base = plane.detachVring(0, RECEIVEQ);
    const drained = queue.packed === 0 ? base + 1 : base + 0x1_0001;
    const again = { ...attach, config: { ...attach.config, base: drained } };
    plane.attachVring(again);
    if (add(queue, RECEIVEQ, 2048)) plane.ready(watched.get(kicks[0].number) as number, 0);
    const status = plane.command('portStatus', { port: 0 }) as { vrings: { started: boolean }[] };
    assert.equal(status.vrings[0].started, true);
  });
}

test('a call descriptor that comes late is signalled', () => {
  const { attach } = ring(RECEIVEQ, []);
  plane.attachVring({ ...attach, callFd: -1 });
  plane.setCallFd(0, RECEIVEQ, calls[0].number);
  assert.equal(drainEventfd(calls[0].number), 1);
});

test('a broken queue tells the front-end once, and the worker sleeps', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  const err = createEventfd('err');
  plane.attachVring({ ...attach, errFd: err.number });
  add(queue, TRANSMITQ, 5); // shorter than the virtio-net header
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
  settle();
  assert.equal(events.length, 1);
  assert.equal(drainEventfd(err.number), 1);
  assert.equal(plane.awake, 0);
  err.close();
});

test('a ring that is broken stays so: another worker does not get it', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  plane.attachVring(attach);
  add(queue, TRANSMITQ, 5);
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
  settle();
  assert.equal(events.length, 1);
  assert.equal(plane.command('releaseVring', { device: 0, index: TRANSMITQ }), null);
  assert.equal(plane.detachVring(0, TRANSMITQ), 1, 'it is still attached');
});

test('what was attached is detached, and nothing stays watched', () => {
  plane.attachVring(ring(RECEIVEQ, []).attach);
  plane.attachVring(ring(TRANSMITQ, []).attach);
  assert.equal(watched.size, 2);
  plane.detachVring(0, RECEIVEQ);
  plane.detachVring(0, TRANSMITQ);
  assert.equal(watched.size, 0);
  assert.equal(plane.awake, 0);
  plane.command('removePort', { port: 0 });
  assert.throws(() => plane.attachVring(ring(RECEIVEQ, []).attach), { code: 'ERR_VRING_WORKER' });
});

type DriverState = PlaneDriverState & { readonly state: NetPlaneState };

test('other workers are told what the driver set last, one message at a time', () => {
  plane.close();
  makePlane(2);
  const { queue, attach } = ring(CONTROLQ, []);
  plane.attachVring(attach);
  const at = memory.offset + SWITCH_SCRATCH_BYTES + 2 ** 19;
  const setPromiscuous = (on: boolean): void => {
    const { VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC } = net;
    arena().bytes.set([VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, on ? 1 : 0], at);
    const batch = new DriverBatch();
    batch.addChain([{ gpa: at, len: 3 }], [{ gpa: at + 64, len: 1 }]);
    assert.equal(addChains(queue, batch, 0, 1), 1);
    publish(queue);
    plane.ready(watched.get(kicks[CONTROLQ].number) as number, 0);
    plane.poll(0);
    assert.equal(arena().bytes[at + 64], net.VIRTIO_NET_OK);
  };
  const told = (): boolean[] =>
    events.splice(0).map((event) => (event as DriverState).state.filter.promiscuous);
  setPromiscuous(false);
  assert.deepEqual(told(), [false]);
  plane.command('driverHeard', { port: 0 });
  setPromiscuous(true);
  for (let n = 0; n < 20; n++) setPromiscuous(n % 2 === 0);
  assert.deepEqual(told(), [true]);
  plane.command('driverHeard', { port: 0 });
  assert.deepEqual(told(), [false]);
  setPromiscuous(true);
  plane.detachVring(0, CONTROLQ);
  assert.deepEqual(told(), [true], 'before another worker has the queue');
  plane.command('driverHeard', { port: 0 });
  plane.command('driverHeard', { port: 0 });
  assert.deepEqual(told(), []);
});

/** Pages of the test's memory as a driver behind an IOMMU calls them. */
const IOVA = 2 ** 40;

function behindIommu(index: number): ReturnType<typeof ring> {
  const { queue, attach } = ring(index, []);
  return { queue, attach: { ...attach, iotlb: true, map: EMPTY_ADDRESS_MAP } };
}

function translation(iova: number): Parameters<NetPlane['updateIotlb']>[1] {
  const page = Math.floor((iova - IOVA) / 4096) * 4096;
  const offset = memory.offset + SWITCH_SCRATCH_BYTES + 2 ** 18 + page;
  return { iova: IOVA + page, sizeBytes: 4096, offset, permissions: 3 };
}

function addIova(queue: DriverQueue, index: number, iova: number, len: number): void {
  const batch = new DriverBatch();
  const buffer = [{ gpa: iova, len }];
  batch.addChain(index === TRANSMITQ ? buffer : [], index === TRANSMITQ ? [] : buffer);
  assert.equal(addChains(queue, batch, 0, 1), 1);
  publish(queue);
}

test('a transmit queue that misses sleeps until the translation comes, and asks once', () => {
  const { queue, attach } = behindIommu(TRANSMITQ);
  plane.attachVring(attach);
  addIova(queue, TRANSMITQ, IOVA + 100, 5000);
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
  settle();
  const miss = (iova: number) => ({ kind: 'iotlb-miss', device: 0, index: 1, iova, write: false });
  assert.deepEqual(events, [miss(IOVA + 100)]);
  assert.equal(plane.awake, 0, 'it costs nothing to wait');
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
  settle();
  assert.equal(events.length, 1, 'a kick asks nothing again');
  plane.updateIotlb(0, translation(IOVA));
  assert.equal(plane.awake, 1);
  settle();
  assert.deepEqual(events.slice(1), [miss(IOVA + 4096)]);
  assert.equal(reapUsed(queue, new UsedBatch(), 8), 0);
  plane.updateIotlb(0, translation(IOVA + 4096));
  settle();
  assert.equal(reapUsed(queue, new UsedBatch(), 8), 1);
  assert.equal(events.length, 2);
  assert.equal(plane.awake, 0);
});

test('what was invalidated is asked for again, and other pages are not', () => {
  const { queue, attach } = behindIommu(TRANSMITQ);
  plane.attachVring(attach);
  plane.updateIotlb(0, translation(IOVA));
  plane.updateIotlb(0, translation(IOVA + 4096));
  for (const iova of [IOVA, IOVA + 4096]) addIova(queue, TRANSMITQ, iova, 100);
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
  settle();
  assert.equal(events.length, 0);
  plane.invalidateIotlb(0, IOVA + 4096, 4096);
  for (const iova of [IOVA, IOVA + 4096]) addIova(queue, TRANSMITQ, iova, 100);
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
  settle();
  assert.deepEqual(
    events.map((event) => event.kind === 'iotlb-miss' && event.iova),
    [IOVA + 4096],
  );
  assert.equal(reapUsed(queue, new UsedBatch(), 8), 3);
});

test('a receive queue asks for its buffers before there are frames', () => {
  const { queue, attach } = behindIommu(RECEIVEQ);
  for (let n = 0; n < 3; n++) addIova(queue, RECEIVEQ, IOVA + 8192 * n, 2048);
  plane.attachVring(attach);
  plane.ready(watched.get(kicks[RECEIVEQ].number) as number, 0);
  const asked = () => events.map((event) => event.kind === 'iotlb-miss' && event.iova);
  for (let n = 0; n < 3; n++) {
    assert.equal(asked().at(-1), IOVA + 8192 * n);
    plane.updateIotlb(0, translation(IOVA + 8192 * n));
  }
  assert.equal(events.length, 3);
  const sender = ring(TRANSMITQ, []);
  plane.attachVring(sender.attach);
  add(sender.queue, TRANSMITQ, 100);
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
  settle();
  assert.equal(reapUsed(queue, new UsedBatch(), 8), 1, 'the first frame is not lost');
});

test('frames that waited for a translation are delivered when it comes, before the next round', () => {
  const parked = PrivateMemory.allocate(PARKED_FRAMES_BYTES);
  plane.command('removePort', { port: 0 });
  const settings = { vlan: { mode: 'access', vid: 1 }, macLimit: 16, reflect: true } as const;
  const parkedAt = parked.offset;
  const port = { port: 0, settings, queuePairs: 1, mtu: 1500, mac: null, linkUp: true, parkedAt };
  plane.command('addNetPort', port);
  const { queue, attach } = behindIommu(RECEIVEQ);
  addIova(queue, RECEIVEQ, IOVA, 2048);
  plane.attachVring(attach);
  plane.ready(watched.get(kicks[RECEIVEQ].number) as number, 0);
  const sender = ring(TRANSMITQ, []);
  plane.attachVring(sender.attach);
  send(sender.queue, 0);
  settle();
  assert.equal(reapUsed(queue, new UsedBatch(), 8), 0);
  plane.updateIotlb(0, translation(IOVA));
  assert.equal(reapUsed(queue, new UsedBatch(), 8), 1);
  parked.close();
});

test('a ring of several workers that is found broken ahead of time is told of, too', () => {
  const { queue, attach } = behindIommu(RECEIVEQ);
  addIova(queue, RECEIVEQ, IOVA, 2048);
  const { availOffset } = attach.config;
  arena().view.setUint16(availOffset + 4, RING_SIZE, true); // no such head
  const shared = new Int32Array(new SharedArrayBuffer(SHARED_RING_WORDS * 4));
  plane.attachVring({ ...attach, shared });
  plane.ready(watched.get(kicks[RECEIVEQ].number) as number, 0);
  assert.equal(events.length, 0);
  const sender = ring(TRANSMITQ, []);
  plane.attachVring(sender.attach);
  send(sender.queue, 0);
  settle();
  assert.deepEqual(
    events.map((event) => event.kind === 'fault' && event.code),
    [FAULT_HEAD],
  );
  assert.equal(status().counters['faults'], 1);
});

test('a ring that is attached again has what the session knows, and no more', () => {
  const { attach } = behindIommu(TRANSMITQ);
  plane.attachVring(attach);
  plane.updateIotlb(0, translation(IOVA));
  plane.detachVring(0, TRANSMITQ);
  const { iova, sizeBytes, offset } = translation(IOVA + 4096);
  const map = {
    count: 1,
    start: Float64Array.of(iova),
    end: Float64Array.of(iova + sizeBytes),
    delta: Float64Array.of(offset - iova),
    permission: Uint8Array.of(3),
  };
  const { queue, attach: again } = behindIommu(TRANSMITQ);
  plane.attachVring({ ...again, map });
  for (const at of [IOVA + 4096, IOVA]) addIova(queue, TRANSMITQ, at, 100);
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
  settle();
  assert.equal(reapUsed(queue, new UsedBatch(), 8), 1);
  assert.deepEqual(
    events.map((event) => event.kind === 'iotlb-miss' && event.iova),
    [IOVA],
  );
});

test('a driver that changes what it made available is asked for once, too', () => {
  const { queue, attach } = behindIommu(TRANSMITQ);
  plane.attachVring(attach);
  addIova(queue, TRANSMITQ, IOVA, 100);
  const asked = () => events.map((event) => event.kind === 'iotlb-miss' && event.iova);
  for (let n = 0; n < 50; n++) {
    arena().view.setBigUint64(attach.config.descOffset, BigInt(IOVA + 4096 * n), true);
    plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
    settle();
  }
  assert.deepEqual(asked(), [IOVA]);
  plane.invalidateIotlb(0, IOVA + 4096 * 49, 4096);
  assert.equal(events.length, 1, 'not what it asked for');
  plane.invalidateIotlb(0, IOVA, 4096);
  assert.deepEqual(asked(), [IOVA, IOVA + 4096 * 49], 'what it lacks by now');
  plane.updateIotlb(0, translation(IOVA + 4096 * 49));
  settle();
  assert.equal(reapUsed(queue, new UsedBatch(), 8), 1);
});

test('a queue that waits asks again when the session has given up on its page', () => {
  const { queue, attach } = behindIommu(TRANSMITQ);
  plane.attachVring(attach);
  addIova(queue, TRANSMITQ, IOVA, 100);
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, 0);
  settle();
  assert.equal(events.length, 1);
  plane.invalidateIotlb(0, IOVA + 8192, 4096);
  assert.equal(events.length, 1, 'another page');
  plane.invalidateIotlb(0, IOVA, 4096);
  assert.equal(events.length, 2);
  for (let ms = 0; ms < 10; ms++) plane.poll(performance.now() + ms * SPIN_MS);
  assert.equal(events.length, 2);
  assert.equal(plane.awake, 0);
});

/** From now on the port has that policy. */
function setPolicy(policy: PortPolicy): void {
  const settings = { vlan: { mode: 'access', vid: 1 }, macLimit: 16, reflect: true, policy };
  plane.command('updatePort', { port: 0, settings });
}

/** The driver sends one frame, whatever the ring asks for. */
function send(queue: DriverQueue, nowMs: number): void {
  add(queue, TRANSMITQ, 100);
  plane.ready(watched.get(kicks[TRANSMITQ].number) as number, nowMs);
}

function called(): number {
  return drainEventfd(calls[TRANSMITQ].number);
}

type Status = { counters: Record<string, number>; vrings: { counters: Record<string, number> }[] };
const status = (): Status => plane.command('portStatus', { port: 0 }) as Status;

for (const [name, bits] of FORMS) {
  test(`${name}: a call that waits comes when its time is over, and the worker is awake`, () => {
    const { queue, attach } = ring(TRANSMITQ, bits);
    plane.attachVring(attach);
    setPolicy('throughput');
    send(queue, 0);
    plane.poll(0);
    assert.equal(called(), 0);
    assert.ok(plane.awake > 0);
    send(queue, 0.01);
    plane.poll(0.01);
    plane.poll(0.02);
    assert.equal(called(), 0);
    plane.poll(CALL_HOLD_MS);
    assert.equal(called(), 1);
    const { callsHeld, callsCoalesced } = status().vrings[0].counters;
    assert.deepEqual({ callsHeld, callsCoalesced }, { callsHeld: 1, callsCoalesced: 1 });
    settle();
    assert.equal(called(), 0);
  });
}

test('counters of a ring go on at the worker that has it next', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  plane.attachVring(attach);
  setPolicy('throughput');
  for (const nowMs of [0, 0.01]) {
    send(queue, nowMs);
    plane.poll(nowMs);
  }
  const released = plane.command('releaseVring', { device: 0, index: TRANSMITQ });
  const { base, ...before } = released as ResumedVring;
  plane.attachVring({
    ...attach,
    config: { ...attach.config, base },
    resumed: { base, ...before },
  });
  const { counters } = status().vrings[0];
  assert.deepEqual(counters, { ...before.counters, calls: 1 }, 'one is made when it is let go of');
  assert.equal(before.counters['callsCoalesced'], 1);
});

const ENDS: [string, () => void][] = [
  ['the ring is detached', () => plane.detachVring(0, TRANSMITQ)],
  ['the plane is suspended', () => plane.command('suspend', undefined)],
  ['the policy changes', () => setPolicy('balanced')],
];

for (const [when, end] of ENDS) {
  test(`a call that waits comes when ${when}`, () => {
    const { queue, attach } = ring(TRANSMITQ, []);
    plane.attachVring(attach);
    setPolicy('throughput');
    send(queue, 0);
    plane.poll(0);
    assert.equal(called(), 0);
    end();
    assert.equal(called(), 1);
    plane.command('resume', undefined);
    plane.poll(1);
    assert.equal(called(), 0);
  });
}

test('a call that waits is forgotten with the memory of its ring', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  plane.attachVring({ ...attach, regions: [memory.handle] });
  setPolicy('throughput');
  send(queue, 0);
  plane.poll(0);
  assert.equal(plane.awake, 2, 'source and call');
  regionFaults()[memory.handle] = 1; // as after a SIGBUS
  plane.detachVring(0, TRANSMITQ);
  regionFaults()[memory.handle] = 0; // another region has the number now
  plane.poll(CALL_HOLD_MS);
  assert.equal(called(), 0, 'nobody looks at the ring');
  assert.equal(plane.awake, 0);
  assert.equal(events.length, 1);
  assert.equal(status().counters['faults'], 1);
});

test('memory that is gone is told of once, whenever in a round that is found', () => {
  const receiver = ring(RECEIVEQ, []);
  const sender = ring(TRANSMITQ, []);
  const regions = [memory.handle];
  plane.attachVring({ ...receiver.attach, regions });
  plane.attachVring({ ...sender.attach, regions });
  setPolicy('latency');
  if (add(receiver.queue, RECEIVEQ, 2048)) plane.ready(watched.get(kicks[0].number) as number, 0);
  send(sender.queue, 0);
  regionFaults()[memory.handle] = 1; // as after a SIGBUS
  settle();
  assert.equal(events.length, 1);
  assert.equal(status().counters['faults'], 1);
  assert.equal(plane.awake, 0);
  regionFaults()[memory.handle] = 0;
});

test('memory that is gone is told of by one of the workers that find it', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  const first = plane;
  makePlane(2);
  send(queue, 0);
  regionFaults()[memory.handle] = 1; // as after a SIGBUS
  const counts = [first, plane].map((each) => {
    each.attachVring({ ...attach, regions: [memory.handle] });
    each.poll(0);
    assert.equal(each.command('releaseVring', { device: 0, index: TRANSMITQ }), null, 'broken');
    return (each.command('portStatus', { port: 0 }) as Status).counters['faults'];
  });
  assert.deepEqual(counts, [1, 0]);
  assert.equal(events.length, 1);
  regionFaults()[memory.handle] = 0;
  first.close();
});

/** The timer of the plane's rests is over. */
const restOver = (nowMs: number): void => plane.ready(REST_TOKEN, nowMs);
const restTimer = (): number | undefined =>
  [...watched].find(([, token]) => token === REST_TOKEN)?.[0];

test('a port that saves power does not spin: it rests, then sleeps; its calls come before', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  plane.attachVring(attach);
  setPolicy('power');
  send(queue, 0);
  plane.poll(0);
  plane.poll(0); // rounds share a reading of the clock
  assert.equal(called(), 1);
  assert.equal(plane.awake, 0);
  assert.equal(add(queue, TRANSMITQ, 100), false, 'no kick is asked for');
  add(queue, TRANSMITQ, 100);
  restOver(0.1);
  plane.poll(0.1);
  plane.poll(0.101);
  assert.equal(called(), 1, 'for both');
  restOver(0.2);
  plane.poll(0.201);
  assert.equal(plane.awake, 0);
  assert.equal(add(queue, TRANSMITQ, 100), true, 'a kick is asked for');
  const { sleeps, rests, spinsRewarded, spinsUnrewarded } = status().counters;
  assert.deepEqual({ sleeps, rests }, { sleeps: 1, rests: 2 });
  assert.deepEqual({ spinsRewarded, spinsUnrewarded }, { spinsRewarded: 0, spinsUnrewarded: 0 });
});

test('a ring that is detached while it rests is not touched after that', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  plane.attachVring(attach);
  setPolicy('power');
  send(queue, 0);
  plane.poll(0);
  plane.poll(0.001);
  assert.equal(plane.awake, 0);
  plane.detachVring(0, TRANSMITQ);
  restOver(0.1);
  assert.equal(plane.awake, 0);
});

test('the timer of rests is made once, and closed with the plane', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  plane.attachVring(attach);
  setPolicy('throughput');
  assert.equal(restTimer(), undefined);
  setPolicy('power');
  const fd = restTimer() as number;
  send(queue, 0);
  plane.poll(0);
  plane.poll(0.001);
  assert.equal(plane.awake, 0);
  assert.equal(restTimer(), fd);
  assert.match(readlinkSync(`/proc/self/fd/${fd}`), /timerfd/);
  plane.close();
  plane.close();
  assert.throws(() => readlinkSync(`/proc/self/fd/${fd}`), { code: 'ENOENT' });
});

test('without a descriptor for the timer the policy is refused, and the plane goes on', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  plane.attachVring(attach);
  const descriptors = readdirSync('/proc/self/fd').length;
  watched.set = () => {
    throw new Error('ENOSPC'); // as epoll_ctl does
  };
  assert.throws(() => setPolicy('power'), /ENOSPC/);
  assert.equal(readdirSync('/proc/self/fd').length, descriptors);
  send(queue, 0);
  plane.poll(0);
  assert.equal(called(), 1);
  plane.poll(2 * SPIN_MS);
  assert.equal(status().counters['sleeps'], 1, 'it has the policy that it had');
});

test('a ring whose kicks nobody can watch is not attached, and can be later', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  watched.set = () => {
    throw new Error('ENOSPC'); // as epoll_ctl does
  };
  assert.throws(() => plane.attachVring(attach), /ENOSPC/);
  assert.deepEqual(status().vrings, []);
  assert.equal(plane.awake, 0);
  watched = new Map();
  plane.attachVring(attach);
  send(queue, 0);
  plane.poll(0);
  assert.equal(called(), 1);
});

test('a port without a policy spins as the worker is told to, and then sleeps', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  plane.attachVring(attach);
  send(queue, 0);
  plane.poll(0);
  plane.poll(SPIN_MS / 2);
  assert.equal(called(), 1);
  assert.equal(plane.awake, 1);
  add(queue, TRANSMITQ, 100);
  plane.poll(SPIN_MS);
  assert.equal(status().counters['spinsRewarded'], 1);
  for (const nowMs of [10, 20, 30]) {
    const before = status().counters['spinsUnrewarded']!;
    for (let i = 0; i < 5; i++) add(queue, TRANSMITQ, 100);
    send(queue, nowMs);
    plane.poll(nowMs);
    plane.poll(nowMs + SPIN_MS / 2);
    assert.equal(plane.awake, 1, 'it spins');
    plane.poll(nowMs + 2 * SPIN_MS);
    assert.equal(plane.awake, 0);
    assert.equal(status().counters['spinsUnrewarded'], before + 1);
  }
});

test('a port without a policy does not spin while its frames are farther apart than that', () => {
  const { queue, attach } = ring(TRANSMITQ, []);
  plane.attachVring(attach);
  const frameAt = (nowMs: number): number => {
    send(queue, nowMs);
    plane.poll(nowMs);
    plane.poll(nowMs + SPIN_MS / 2);
    const { awake } = plane;
    plane.poll(nowMs + 1.5 * SPIN_MS);
    assert.equal(plane.awake, 0);
    return awake;
  };
  for (let i = 1; i <= 4; i++) frameAt(10 * i);
  const before = status().counters['spinsUnrewarded']!;
  for (let i = 5; i <= 9; i++) assert.equal(frameAt(10 * i), 0, 'to sleep at once');
  assert.equal(status().counters['spinsUnrewarded'], before);
  assert.equal(status().counters['sleeps'], 9);
  for (let burst = 10; burst <= 16; burst++) {
    for (let i = 1; i <= 5; i++) add(queue, TRANSMITQ, 100);
    frameAt(10 * burst);
  }
  assert.equal(frameAt(170), 1, 'bursts make it spin again');
});

test('a port that is tuned for latency calls before its round ends', () => {
  const receiver = ring(RECEIVEQ, []);
  const sender = ring(TRANSMITQ, []);
  plane.attachVring(receiver.attach);
  plane.attachVring(sender.attach);
  setPolicy('latency');
  if (add(receiver.queue, RECEIVEQ, 2048)) plane.ready(watched.get(kicks[0].number) as number, 0);
  send(sender.queue, 0);
  plane.poll(0);
  assert.equal(drainEventfd(calls[RECEIVEQ].number), 1);
  assert.equal(called(), 1);
});
