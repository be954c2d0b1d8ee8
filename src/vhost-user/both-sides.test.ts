/** Both sides of ours speak to each other: everything that no peer of a distribution speaks. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  createMemfd,
  drainEventfd,
  fdStat,
  openFdCount,
  signalEventfd,
  socketPair,
} from '../sys/index.ts';
import { PROTOCOL_FEATURE_NAMES, protocolFeatureNames } from '../wire/vhost-user.ts';
import { BackendSession } from './backend-session.ts';
import type { FrontendEvents } from './frontend-events.ts';
import { startVring } from './frontend-vring.ts';
import { VhostUserFrontend } from './frontend.ts';
import { SharedObjectRegistry } from './shared-objects.ts';
import { ConversationFds, region, ringAddr } from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';

const VERSION_1 = 1n << 32n;
/** All but guest-physical ring addresses. */
const ALL = ~(1n << 21n);

type Setup = {
  readonly frontend: VhostUserFrontend;
  readonly target: FakeTarget;
  readonly fds: ConversationFds;
};

async function between(
  events: FrontendEvents,
  body: (setup: Setup) => Promise<void>,
  refusals = 0,
): Promise<void> {
  const before = openFdCount();
  {
    using fds = new ConversationFds(3);
    const [a, b] = socketPair();
    const target = new FakeTarget();
    const session = new BackendSession(a, target);
    const options = { protocolFeatures: ALL, events };
    const frontend = await VhostUserFrontend.attach(b, 'ours', options);
    try {
      await body({ frontend, target, fds });
      assert.equal(session.state.refusals, refusals);
    } finally {
      await frontend.close();
      await session.closed;
    }
  }
  assert.equal(openFdCount(), before, 'every fd is closed again');
}

/** Waits until `done` says so: what is told without an answer arrives some time. */
async function eventually(done: () => boolean): Promise<void> {
  for (let i = 0; i < 2000 && !done(); i++) await new Promise((resolve) => setTimeout(resolve, 1));
  assert.ok(done());
}

const vring = (fds: ConversationFds) => {
  const { descUva, availUva, usedUva } = ringAddr(0);
  const [kick, call] = [fds.events[0]!.number, fds.events[1]!.number];
  return { size: 256, base: 0, descUva, availUva, usedUva, kick, call, err: null };
};

async function runRing(frontend: VhostUserFrontend, fds: ConversationFds): Promise<void> {
  await frontend.setFeatures(VERSION_1);
  await frontend.setMemTable([{ ...region(0), fd: fds.memory[0]!.number }]);
  await startVring(frontend, 0, vring(fds));
}

test('every protocol feature but that of Xen is negotiated', () =>
  between(
    {
      hostNotifier: () => true,
      vringCall: () => undefined,
      sharedObjects: new SharedObjectRegistry(),
      shmem: { map: () => true, unmap: () => undefined },
    },
    async ({ frontend }) => {
      const taken = protocolFeatureNames(frontend.protocolFeatures);
      const without = ['XEN_MMAP', 'GPA_ADDRESSES'];
      assert.deepEqual(
        taken,
        PROTOCOL_FEATURE_NAMES.filter((name) => !without.includes(name)),
      );
    },
  ));

test('device state, RARP, crypto sessions, reset, a GPU socket, memory slots', () =>
  between(
    {},
    async ({ frontend, target, fds }) => {
      const { migration, device, memory } = frontend;
      await frontend.setFeatures(VERSION_1);
      const state = await migration.saveState();
      assert.deepEqual(Buffer.from(state), Buffer.from(target.deviceState));
      await migration.loadState(Buffer.alloc(300_000, 7));
      assert.equal(target.deviceState.length, 300_000);
      await assert.rejects(migration.loadState(new Uint8Array(0)), {
        code: 'ERR_VRING_DEVICE_STATE',
      });
      const mac = Uint8Array.of(2, 0, 0, 0, 0, 5);
      await migration.sendRarp(mac);
      assert.deepEqual(target.rarps, [mac]);
      const session = await device.createCryptoSession(new Uint8Array(64));
      const id = Buffer.from(session).readBigUInt64LE(56);
      assert.ok(target.cryptoSessions.has(id));
      await device.closeCryptoSession(id);
      assert.equal(target.cryptoSessions.size, 0);
      const [ours, theirs] = socketPair();
      await device.setGpuSocket(theirs.number);
      theirs.close();
      ours.close();
      assert.equal(target.socket === null ? '' : fdStat(target.socket.number).kind, 'socket');
      const slots = fds.memory.map((fd, i) => ({ ...region(i), fd: fd.number }));
      await memory.setTable(slots.slice(0, 1));
      await startVring(frontend, 0, vring(fds));
      await memory.addRegion(slots[2]!);
      assert.equal(target.table?.regions.length, 2);
      await memory.removeRegion(slots[2]!);
      assert.ok(target.running.has(0), 'the ring runs again');
      await frontend.resetDevice();
      assert.ok(target.calls.includes('resetDevice'));
      assert.equal(target.running.size, 0);
    },
    1,
  ));

test('dirty log and inflight region reach the rings', () =>
  between({}, async ({ frontend, target, fds }) => {
    using log = createMemfd('log', 4096);
    await frontend.setFeatures(VERSION_1 | (1n << 26n));
    await frontend.setMemTable([{ ...region(0), fd: fds.memory[0]!.number }]);
    const inflight = await frontend.inflight.create(2, 256);
    await frontend.inflight.set(inflight);
    await frontend.migration.setLogBase(log.number, 4096);
    await startVring(frontend, 0, vring(fds));
    const started = target.running.get(0)!;
    assert.notEqual(started.log, null);
    assert.equal(started.log!.usedGpa, -1);
    assert.notEqual(started.inflight, null);
    const { descUva, availUva, usedUva } = ringAddr(0);
    await frontend.setVringAddr(0, { descUva, availUva, usedUva }, 0x4000n);
    assert.equal(target.running.get(0)!.log!.usedGpa, 0x4000);
    await frontend.setFeatures(VERSION_1);
    assert.equal(target.running.get(0)!.log, null, 'it stops with LOG_ALL');
    inflight.fd.close();
  }));

test('what a device asks of its front-end', async () => {
  const told: string[] = [];
  const registry = new SharedObjectRegistry();
  const events: FrontendEvents = {
    configChanged: () => void told.push('config'),
    hostNotifier: (index, area) => {
      told.push(`notifier ${index} ${area?.sizeBytes ?? 'gone'}`);
      return true;
    },
    sharedObjects: registry,
    shmem: {
      map: ({ shmId, shmOffset }) => {
        told.push(`map ${shmId} ${shmOffset}`);
        return true;
      },
      unmap: ({ shmOffset }) => void told.push(`unmap ${shmOffset}`),
    },
  };
  await between(events, async ({ target, frontend, fds }) => {
    const requests = target.requests!;
    await runRing(frontend, fds); // a suspended device sends nothing
    await requests.configChanged();
    const area = { fd: fds.memory[0]!.number, offset: 0, sizeBytes: 4096 };
    await requests.setHostNotifier(1, area);
    await requests.setHostNotifier(1, null);
    await requests.mapShmem(2, 0x1000, area, true);
    const refused = { code: 'ERR_VRING_REFUSED' };
    await assert.rejects(requests.mapShmem(2, 0x1800, area, true), refused);
    await assert.rejects(requests.mapShmem(0, 0xf800, area, true), refused);
    await requests.unmapShmem(2, 0x1000, 4096);
    const uuid = new Uint8Array(16).fill(3);
    target.objects.set(Buffer.from(uuid).toString('hex'), fds.memory[1]!);
    await requests.addSharedObject(uuid);
    await between({ sharedObjects: registry }, async (other) => {
      await runRing(other.frontend, other.fds);
      const object = await other.target.requests!.lookUpSharedObject(uuid);
      assert.notEqual(object, null);
      object!.close();
      const unknown = new Uint8Array(16);
      assert.equal(await other.target.requests!.lookUpSharedObject(unknown), null);
    });
    await requests.removeSharedObject(uuid);
    assert.equal(registry.size, 0);
  });
  assert.deepEqual(told, [
    'config',
    'notifier 1 4096',
    'notifier 1 gone',
    'map 2 4096',
    'unmap 4096',
  ]);
});

test('notifications in band', async () => {
  const called: number[] = [];
  await between({ vringCall: (index) => called.push(index) }, async (setup) => {
    const { frontend, target, fds } = setup;
    await frontend.setFeatures(VERSION_1);
    await frontend.setMemTable([{ ...region(0), fd: fds.memory[0]!.number }]);
    await startVring(frontend, 0, { ...vring(fds), kick: null, call: null });
    const ring = target.running.get(0)!;
    assert.notEqual(ring.kick, null, 'the session has an eventfd of its own for the target');
    await frontend.kickVring(0);
    assert.equal(drainEventfd(ring.kick!.number), 1);
    signalEventfd(ring.call?.number ?? target.calledWith.get('call 0')!);
    await eventually(() => called.length > 0);
    assert.deepEqual(called, [0]);
  });
});

test('an IOTLB miss is asked, answered and taken back', async () => {
  const missed: [bigint, boolean][] = [];
  const events: FrontendEvents = { iotlbMiss: (iova, write) => missed.push([iova, write]) };
  await between(events, async ({ frontend, target, fds }) => {
    Object.assign(target, { features: target.features | (1n << 33n) });
    await frontend.setFeatures(VERSION_1 | (1n << 33n));
    await frontend.setMemTable([{ ...region(0), fd: fds.memory[0]!.number }]);
    target.requests!.iotlbMiss(0x123456, true);
    await eventually(() => missed.length > 0);
    assert.deepEqual(missed, [[0x123000n, true]]);
    const { userAddr } = region(0);
    const entry = { iova: 0x123000n, sizeBytes: 4096n, userAddr, permissions: 3 };
    await frontend.iotlb.update(entry);
    await frontend.iotlb.invalidate(0n, 2n ** 64n - 1n);
    assert.ok(target.calls.includes(`updateIotlb ${0x123000} 4096 3`));
    assert.ok(target.calls.some((call) => call.startsWith('invalidateIotlb 0 ')));
  });
});
