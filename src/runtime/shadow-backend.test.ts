/**
 * A shadow ring between the software guest and a back-end that knows nothing of it: every frame
 * arrives as it was sent, every page that was written is marked, rings stop where they are.
 */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { DirtyPages, PAGE_BYTES } from '../guest/dirty-pages.ts';
import { NO_OFFLOAD } from '../guest/link.ts';
import { migrateGuest } from '../guest/migrate.ts';
import { NetGuest, type NetGuestOptions } from '../guest/net-driver.ts';
import { packetOf, TEST_FEATURES, TestBackend } from '../guest/testing.ts';
import { arena, openFdCount, signalEventfd, socketPair } from '../sys/index.ts';
import { BackendSession, VhostUserFrontend } from '../vhost-user/index.ts';
import { FAULT_DESC_ADDRESS, FAULT_MEMORY_GONE } from '../virtqueue/index.ts';
import { VHOST_F_LOG_ALL } from '../wire/vhost-user.ts';
import { NetHeader } from '../wire/virtio-net.ts';
import { featureSet, hasFeature } from '../wire/virtio.ts';
import { parseFeatureChoice } from '../guest/features.ts';
import { ShadowBackend } from './shadow-backend.ts';

const LOG_ALL = featureSet(VHOST_F_LOG_ALL);

type Shadowed = {
  readonly guest: NetGuest;
  readonly shadow: ShadowBackend;
  readonly backend: TestBackend;
  readonly received: Uint8Array[];
  close(): Promise<void>;
};

const open: Shadowed[] = [];
afterEach(async () => {
  for (const one of open.splice(0)) await one.close();
});

/** A back-end that sends every frame back, when `reflect` is set. */
async function start(
  options: NetGuestOptions = {},
  reflect = true,
  features = TEST_FEATURES,
): Promise<Shadowed> {
  const backend: TestBackend = new TestBackend({
    features,
    onFrame: (packet) => {
      if (reflect) backend.deliver(packetOf(packet.subarray(NetHeader.size)));
    },
  });
  const [ours, theirs] = socketPair();
  const session = new BackendSession(theirs, backend, {});
  const frontend = await VhostUserFrontend.attach(ours, 'vhost-user:test', { vringsPerQueue: 2 });
  const shadow = new ShadowBackend(frontend);
  const guest = await NetGuest.start(shadow, options);
  const received: Uint8Array[] = [];
  guest.onFrame = (frame) => void received.push(frame.slice());
  const one: Shadowed = {
    guest,
    shadow,
    backend,
    received,
    async close() {
      await guest.close();
      await session.closed;
    },
  };
  open.push(one);
  return one;
}

function frameOf(number: number): Uint8Array {
  const frame = new Uint8Array(60 + ((number * 97) % 1400));
  new DataView(frame.buffer).setUint32(14, number);
  for (let i = 18; i < frame.length; i++) frame[i] = (i * 31 + number) & 0xff;
  return frame;
}

async function until(what: string, condition: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    assert.ok(performance.now() < end, `${what} within 10 s`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Without MRG_RXBUF a ring of 256 has 15 buffers: more on their way would be dropped. */
const WINDOW = 12;

/** Sends `count` frames from number `first` on, and compares what comes back. */
async function roundTrip(
  { guest, received }: Shadowed,
  first: number,
  count: number,
  window = WINDOW,
): Promise<void> {
  received.length = 0;
  for (let i = 0; i < count; i++) {
    await until('an answer', () => i - received.length < window);
    await until('room', () => guest.send(frameOf(first + i), NO_OFFLOAD));
  }
  await until(`${count} frames`, () => received.length >= count);
  assert.equal(received.length, count);
  for (const [i, frame] of received.entries()) {
    assert.deepEqual(Buffer.from(frame), Buffer.from(frameOf(first + i)), `frame ${i}`);
  }
}

const FORMATS: readonly (readonly [string, NetGuestOptions])[] = [
  ['split', {}],
  ['packed', { packed: true }],
  ['split, small ring', { ringSize: 16 }],
  ['packed, small ring', { packed: true, ringSize: 16 }],
  ['split, IN_ORDER', { features: parseFeatureChoice('+in_order', 'test') }],
  ['packed, IN_ORDER', { packed: true, features: parseFeatureChoice('+in_order', 'test') }],
  ['split, plain', { features: parseFeatureChoice('-event_idx,-indirect,-mrg', 'test') }],
  ['split, header apart', { headerApart: true }],
];

for (const [name, options] of FORMATS) {
  test(`frames pass a shadow ring whole and in order: ${name}`, async () => {
    const one = await start(options);
    await roundTrip(one, 0, 1000);
    const { taken, fault } = one.shadow.counters(1);
    assert.ok(taken >= 1000, `${taken} chains went through the shadow ring`);
    assert.equal(fault, 0);
  });

  test(`rings stop and go on where they were: ${name}`, async () => {
    const one = await start(options);
    for (let round = 0; round < 5; round++) {
      await roundTrip(one, 1000 * round, 50 + 37 * round);
      await one.guest.stop();
      assert.equal(one.shadow.counters(0).outstanding, 0);
      await one.guest.resume();
    }
  });
}

for (const packed of [false, true]) {
  test(`no notification is lost: one frame at a time, ${packed ? 'packed' : 'split'}`, async () => {
    const one = await start({ packed });
    await roundTrip(one, 0, 400, 1);
  });

  test(`every page that was written is marked, ${packed ? 'packed' : 'split'}`, async () => {
    const one = await start({ packed });
    const { guest, shadow } = one;
    assert.ok(hasFeature(await shadow.getFeatures(), VHOST_F_LOG_ALL));
    await roundTrip(one, 0, 100); // from now on only what changes is to be marked
    const { memory } = guest;
    using log = closing(new DirtyPages(memory));
    await shadow.dirtyLog.setLogBase(log.fd.number, log.sizeBytes);
    await shadow.setFeatures(guest.features | LOG_ALL);
    for (const queue of guest.queues) {
      const { descUva, availUva, usedUva } = queue.vring(0);
      const usedGpa = BigInt(queue.usedGpa);
      await shadow.setVringAddr(queue.index, { descUva, availUva, usedUva }, usedGpa);
    }
    // What the driver itself writes is no business of the log: it sends nothing meanwhile.
    const before = arena().bytes.slice(memory.offset, memory.offset + memory.sizeBytes);
    const mask = ignoredPages(guest);
    for (let i = 0; i < 700; i++) {
      await until('a buffer', () => one.backend.deliver(packetOf(frameOf(i))));
    }
    await until('frames', () => one.received.length >= 800);
    const marked = new Set(log.take());
    const missing = changedPages(before, memory.offset).filter((page) => !marked.has(page));
    assert.deepEqual(
      missing.filter((page) => !mask.has(page)),
      [],
      'pages that changed are marked',
    );
    assert.ok(marked.size > 50, `${marked.size} pages are marked`);

    await shadow.setFeatures(guest.features);
    await roundTrip(one, 0, 200);
    assert.deepEqual(log.take(), [], 'nothing is marked when logging is off');
  });
}

for (const packed of [false, true]) {
  test(`a guest moves away from behind a shadow ring, ${packed ? 'packed' : 'split'}`, async () => {
    const one = await start({ packed });
    const other: TestBackend = new TestBackend({
      features: TEST_FEATURES,
      onFrame: (packet) => void other.deliver(packetOf(packet.subarray(NetHeader.size))),
    });
    await roundTrip(one, 0, 100);
    const sessions: BackendSession[] = [];
    const report = await migrateGuest(one.guest, {
      verify: true,
      connect: () => {
        const [ours, theirs] = socketPair();
        sessions.push(new BackendSession(theirs, other, {}));
        return VhostUserFrontend.attach(ours, 'vhost-user:other', { vringsPerQueue: 2 });
      },
    });
    assert.equal(report.unlogged, 0);
    assert.equal(one.guest.backend.description, 'vhost-user:other');
    await until('its announcement', () => one.received.length === 101);
    await roundTrip(one, 5000, 200);
    await open.pop()!.close();
    for (const session of sessions) await session.closed;
  });
}

test('a driver that breaks its ring ends that ring only', async () => {
  const one = await start({}, false);
  const { guest, shadow } = one;
  await until('buffers', () => shadow.counters(0).outstanding > 0);
  // The receive ring gets a descriptor beyond all memory.
  const rx = guest.rx[0];
  const view = arena().view;
  const desc = rx.ring.desc.byteOffset;
  for (let i = 0; i < rx.plan.size; i++) view.setBigUint64(desc + 16 * i, 0x7fff_0000_0000n, true);
  const avail = rx.ring.avail;
  Atomics.store(avail, 1, (avail[1]! + 1) & 0xffff);
  signalEventfd(rx.kick.number);
  await until('the fault', () => shadow.counters(0).fault !== 0);
  assert.equal(shadow.counters(0).fault, FAULT_DESC_ADDRESS);
  assert.equal(shadow.counters(1).fault, 0);
  assert.ok(guest.send(frameOf(1), NO_OFFLOAD));
  await until('a frame sent', () => shadow.counters(1).taken === 1);
});

test('a device that breaks virtio ends the back-end, with the reason', async () => {
  const [ours, theirs] = socketPair();
  const backend = new TestBackend({
    features: TEST_FEATURES,
    sabotage: (queue) => {
      const cells = queue.usedCells;
      Atomics.store(cells, 1, (cells[1]! + 300) & 0xffff);
    },
  });
  const session = new BackendSession(theirs, backend, {});
  const frontend = await VhostUserFrontend.attach(ours, 'vhost-user:test', { vringsPerQueue: 2 });
  const shadow = new ShadowBackend(frontend);
  const guest = await NetGuest.start(shadow);
  guest.send(frameOf(1), NO_OFFLOAD);
  const reason = await shadow.closed;
  assert.equal((reason as { code?: string }).code, 'ERR_VRING_SHADOW_DEVICE');
  assert.match(String(reason), /shadow of vring 1: USED_IDX/);
  await guest.close();
  await session.closed;
});

test('memory cut short by its owner ends the ring', async () => {
  const one = await start({}, false);
  const { truncate } = await import('../sys/index.ts');
  truncate(one.guest.memory.fd.number, 0);
  one.guest.send(frameOf(1), NO_OFFLOAD);
  signalEventfd(one.guest.tx[0].kick.number);
  await until('the fault', () => one.shadow.counters(1).fault !== 0);
  assert.equal(one.shadow.counters(1).fault, FAULT_MEMORY_GONE);
});

test('what a running ring does not let be changed is refused by name', async () => {
  const { shadow, guest } = await start();
  await assert.rejects(shadow.setVringNum(0, 128), { code: 'ERR_VRING_SHADOW_RUNNING' });
  await assert.rejects(shadow.setVringBase(0, 3), { code: 'ERR_VRING_SHADOW_RUNNING' });
  await assert.rejects(shadow.setMemTable([]), { code: 'ERR_VRING_SHADOW_MEMORY' });
  const { availUva, usedUva } = guest.rx[0].vring(0);
  await assert.rejects(shadow.setVringAddr(0, { descUva: 0n, availUva, usedUva }), {
    code: 'ERR_VRING_SHADOW_RUNNING',
  });
  await assert.rejects(shadow.setVringKick(7, null), { code: 'ERR_VRING_RING_ADDRESS' });
});

test('nothing is left behind', async () => {
  const first = await start();
  await roundTrip(first, 0, 10);
  await open.pop()!.close();
  const before = openFdCount();
  for (let i = 0; i < 3; i++) {
    const one = await start();
    await roundTrip(one, 0, 10);
    await open.pop()!.close();
  }
  assert.equal(openFdCount(), before);
});

function closing<T extends { close(): void }>(value: T): T & Disposable {
  return Object.assign(value, { [Symbol.dispose]: () => value.close() });
}

/** Pages whose content is not what it was. */
function changedPages(before: Uint8Array, offset: number): number[] {
  const pages: number[] = [];
  for (let at = 0; at < before.length; at += PAGE_BYTES) {
    const now = arena().bytes.subarray(offset + at, offset + at + PAGE_BYTES);
    if (Buffer.compare(now, before.subarray(at, at + PAGE_BYTES)) !== 0)
      pages.push(at / PAGE_BYTES);
  }
  return pages;
}

/** Pages that only the driver writes: descriptors and avail of the split format, tables. */
function ignoredPages(guest: NetGuest): Set<number> {
  const pages = new Set<number>();
  for (const queue of guest.queues) {
    const [start] = queue.driverBytes;
    const { ring } = queue;
    if (ring.packed !== 0) continue; // one page may hold both: all of it has to be marked
    const used = ring.used.byteOffset - guest.memory.offset;
    for (let at = start; at + PAGE_BYTES <= used; at += PAGE_BYTES) pages.add(at / PAGE_BYTES);
  }
  return pages;
}
