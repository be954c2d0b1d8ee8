/** The backend channel as the front-end serves it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createMemfd, openFdCount, socketPair } from '../sys/index.ts';
import { IotlbMessage, ShmemMap, VringArea, VringState } from '../wire/vhost-user.ts';
import type { FrontendEvents } from './frontend-events.ts';
import { VhostUserFrontend } from './frontend.ts';
import { EVENT_MESSAGE, REQUEST } from './message-table.ts';
import { SharedObjectRegistry, uuidText } from './shared-objects.ts';
import { ScriptedBackend } from './testing/scripted-backend.ts';

type Body = (frontend: VhostUserFrontend, backend: ScriptedBackend) => Promise<void>;

async function withEvents(events: FrontendEvents, body: Body, offered?: bigint): Promise<void> {
  const before = openFdCount();
  await open(events, body, offered);
  assert.equal(openFdCount(), before, 'every fd is closed again');
}

async function open(events: FrontendEvents, body: Body, offered?: bigint): Promise<void> {
  const [a, b] = socketPair();
  const backend = new ScriptedBackend(a);
  if (offered !== undefined) backend.protocolFeatures = offered;
  backend.answers.set(REQUEST.GET_SHMEM_CONFIG.id, () => {
    const payload = new Uint8Array(8 + 8 * 256);
    const view = new DataView(payload.buffer);
    view.setUint32(0, 1, true);
    view.setBigUint64(8 + 8 * 2, 0x10000n, true);
    return { payload };
  });
  const options = { protocolFeatures: ~0n, events };
  const frontend = await VhostUserFrontend.attach(b, 'scripted', options);
  await frontend.setFeatures(1n << 33n);
  try {
    await body(frontend, backend);
  } finally {
    await frontend.close();
    backend.close();
    await backend.done;
  }
}

const iotlb = (type: number, permissions: number) =>
  IotlbMessage.encode({
    iova: 0x5000n,
    sizeBytes: 0n,
    userAddr: 0n,
    permissions,
    type,
    padding: new Uint8Array(6),
  });
const signal = (index: number) => VringState.encode({ index, num: 0 });
const done = { value: 0n, fds: 0 };
const refused = { value: 1n, fds: 0 };

test('events reach their handlers and are acknowledged', async () => {
  const told: unknown[] = [];
  const events: FrontendEvents = {
    iotlbMiss: (iova, write) => told.push(['miss', iova, write]),
    iotlbAccessFailed: (iova, write) => told.push(['failed', iova, write]),
    configChanged: () => told.push('config'),
    hostNotifier: (index, notifier) => {
      told.push(['notifier', index, notifier?.sizeBytes ?? null]);
      return index === 1;
    },
    vringCall: (index) => told.push(['call', index]),
    vringErr: (index) => told.push(['err', index]),
  };
  await withEvents(events, async (frontend, backend) => {
    using file = createMemfd('doorbell', 4096);
    assert.deepEqual(await backend.event(EVENT_MESSAGE.IOTLB_MSG.id, iotlb(1, 2)), done);
    assert.deepEqual(await backend.event(EVENT_MESSAGE.IOTLB_MSG.id, iotlb(4, 1)), done);
    assert.deepEqual(
      await backend.event(EVENT_MESSAGE.CONFIG_CHANGE_MSG.id, new Uint8Array(0)),
      done,
    );
    await backend.event(EVENT_MESSAGE.VRING_CALL.id, signal(3), [], false);
    assert.deepEqual(await backend.event(EVENT_MESSAGE.VRING_ERR.id, signal(4)), done);
    const notifier = EVENT_MESSAGE.VRING_HOST_NOTIFIER_MSG.id;
    const area = (index: bigint) =>
      VringArea.encode({ indexAndFlags: index, sizeBytes: 4096n, fdOffset: 0n });
    assert.deepEqual(await backend.event(notifier, area(1n), [file.number]), done);
    assert.deepEqual(await backend.event(notifier, area(0n), [file.number]), refused);
    assert.deepEqual(await backend.event(notifier, area(0x101n)), done);
    assert.equal(frontend.refusedEvents?.count, 1);
  });
  assert.deepEqual(told, [
    ['miss', 0x5000n, true],
    ['failed', 0x5000n, false],
    'config',
    ['call', 3],
    ['err', 4],
    ['notifier', 1, 4096],
    ['notifier', 0, 4096],
    ['notifier', 1, null],
  ]);
});

const wrong: [string, number, Uint8Array, number, string][] = [
  ['an unknown request', 11, new Uint8Array(0), 0, 'ERR_VRING_MESSAGE_UNKNOWN'],
  ['a short payload', 4, new Uint8Array(3), 0, 'ERR_VRING_MESSAGE_SIZE'],
  ['a reserved number', 4, VringState.encode({ index: 0, num: 7 }), 0, 'ERR_VRING_MESSAGE_VALUE'],
  ['an fd too many', 4, signal(0), 1, 'ERR_VRING_MESSAGE_FDS'],
  ['what was not negotiated', 9, new Uint8Array(40), 1, 'ERR_VRING_NOT_NEGOTIATED'],
];
for (const [what, id, payload, fds, code] of wrong) {
  test(`${what} ends the session with its reason`, () =>
    withEvents({ vringCall: () => undefined }, async (frontend, backend) => {
      using file = createMemfd('stray', 4096);
      await backend.event(id, payload, fds === 1 ? [file.number] : [], false);
      assert.equal(((await frontend.closed) as { code?: string } | null)?.code, code);
      await assert.rejects(frontend.getFeatures(), { code });
    }));
}

test('IOTLB messages without ACCESS_PLATFORM end the session', () =>
  withEvents({}, async (frontend, backend) => {
    await frontend.setFeatures(0n);
    await backend.event(EVENT_MESSAGE.IOTLB_MSG.id, iotlb(1, 1), [], false);
    const reason = (await frontend.closed) as Error;
    assert.match(reason.message, /virtio feature bit 33 was not acked/);
  }));

test('without REPLY_ACK only what has a reply of its own is answered', async () => {
  const told: string[] = [];
  const noAck = (1n << 23n) - 1n - 8n;
  const events = {
    configChanged: () => void told.push('config'),
    sharedObjects: new SharedObjectRegistry(),
  };
  await withEvents(
    events,
    async (frontend, backend) => {
      await frontend.getFeatures(); // until then the channel may be on its way
      const { CONFIG_CHANGE_MSG, SHARED_OBJECT_LOOKUP } = EVENT_MESSAGE;
      await backend.event(CONFIG_CHANGE_MSG.id, new Uint8Array(0), [], false);
      assert.deepEqual(await backend.event(SHARED_OBJECT_LOOKUP.id, new Uint8Array(16)), refused);
    },
    noAck,
  );
  assert.deepEqual(told, ['config']);
});

test('shared memory: inside its region, without overlap, gone after a reset', async () => {
  const maps: string[] = [];
  const shmem = {
    map: ({ shmId, shmOffset, sizeBytes, writable }: Record<string, unknown>) => {
      maps.push(`${shmId}:${shmOffset}+${sizeBytes}${writable ? 'w' : ''}`);
      return true;
    },
    unmap: ({ shmOffset }: { shmOffset: number }) => void maps.push(`-${shmOffset}`),
  } as never;
  const { SHMEM_MAP, SHMEM_UNMAP } = EVENT_MESSAGE;
  const at = (shmId: number, shmOffset: bigint, sizeBytes: bigint, flags = 0n) =>
    ShmemMap.encode({
      shmId,
      padding: new Uint8Array(7),
      fdOffset: 0n,
      shmOffset,
      sizeBytes,
      flags,
    });
  await withEvents({ shmem }, async (frontend, backend) => {
    using file = createMemfd('shared', 0x10000);
    const map = (payload: Uint8Array) => backend.event(SHMEM_MAP.id, payload, [file.number]);
    assert.deepEqual(await map(at(2, 0n, 0x1000n, 1n)), done);
    assert.deepEqual(await map(at(2, 0x2000n, 0x1000n)), done);
    for (const [id, offset, size] of [
      [2, 0xfffn, 1n],
      [2, 0xfffn, 0x2000n],
      [2, 0xf001n, 0x1000n],
      [3, 0n, 1n],
    ] as const) {
      assert.deepEqual(await map(at(id, offset, size)), refused);
    }
    assert.deepEqual(await backend.event(SHMEM_UNMAP.id, at(2, 0n, 0x800n)), refused);
    assert.deepEqual(await backend.event(SHMEM_UNMAP.id, at(2, 0n, 0x1000n)), done);
    assert.deepEqual(await map(at(2, 0x800n, 0x1000n)), done);
    await frontend.resetDevice();
    assert.deepEqual(await map(at(2, 0n, 0x10000n)), done);
  });
  assert.deepEqual(maps, [
    '2:0+4096w',
    '2:8192+4096',
    '-0',
    '2:2048+4096',
    '-8192',
    '-2048',
    '2:0+65536',
    '-0',
  ]);
});

test('shared objects go from one back-end to the other', async () => {
  const before = openFdCount();
  const registry = new SharedObjectRegistry();
  const uuid = Uint8Array.from({ length: 16 }, (_, i) => i);
  assert.equal(uuidText(uuid), '00010203-0405-0607-0809-0a0b0c0d0e0f');
  const { SHARED_OBJECT_ADD, SHARED_OBJECT_LOOKUP, SHARED_OBJECT_REMOVE } = EVENT_MESSAGE;
  await open({ sharedObjects: registry }, async (_one, exporter) => {
    exporter.answers.set(REQUEST.GET_SHARED_OBJECT.id, () => ({
      payload: new Uint8Array(0),
      fds: [createMemfd('object', 4096)],
    }));
    await open({ sharedObjects: registry }, async (_two, importer) => {
      const lookUp = () => importer.event(SHARED_OBJECT_LOOKUP.id, uuid);
      assert.deepEqual(await lookUp(), refused);
      assert.deepEqual(await exporter.event(SHARED_OBJECT_ADD.id, uuid), done);
      assert.deepEqual(await importer.event(SHARED_OBJECT_ADD.id, uuid), refused);
      assert.deepEqual(await lookUp(), { value: 0n, fds: 1 });
      assert.deepEqual(await exporter.event(SHARED_OBJECT_LOOKUP.id, uuid), refused, 'its own');
      assert.deepEqual(await importer.event(SHARED_OBJECT_REMOVE.id, uuid), refused);
      assert.equal(registry.size, 1);
      assert.deepEqual(await exporter.event(SHARED_OBJECT_REMOVE.id, uuid), done);
      assert.deepEqual(await lookUp(), refused);
      assert.deepEqual(await exporter.event(SHARED_OBJECT_ADD.id, uuid), done);
    });
  });
  assert.equal(registry.size, 0, 'the end of a session takes its objects away');
  assert.equal(openFdCount(), before);
});
