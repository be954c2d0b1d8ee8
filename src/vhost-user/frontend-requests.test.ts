/** Every request of the table as the front-end sends it, and what it makes of the answers. */
import assert from 'node:assert/strict';
import { readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { createEventfd, createMemfd, openFdCount, socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import type { FrontendEvents } from './frontend-events.ts';
import { type FrontendOptions, VhostUserFrontend } from './frontend.ts';
import { FRONT_END_MESSAGES, REQUEST, requestName } from './message-table.ts';
import { SharedObjectRegistry } from './shared-objects.ts';
import { region, ringAddr } from './testing/conversation.ts';
import { ScriptedBackend, u64Answer } from './testing/scripted-backend.ts';

const ALL = ~0n;
const EVENTS: FrontendEvents = {
  hostNotifier: () => true,
  vringCall: () => undefined,
  sharedObjects: new SharedObjectRegistry(),
  shmem: { map: () => true, unmap: () => undefined },
};

type Body = (frontend: VhostUserFrontend, backend: ScriptedBackend) => Promise<void>;

async function withScript(
  body: Body,
  options: FrontendOptions = { protocolFeatures: ALL, events: EVENTS },
  prepare: (backend: ScriptedBackend) => void = () => undefined,
): Promise<void> {
  const before = openFdCount();
  const [a, b] = socketPair();
  const backend = new ScriptedBackend(a);
  prepare(backend);
  const frontend = await VhostUserFrontend.attach(b, 'scripted', options);
  try {
    await body(frontend, backend);
  } finally {
    await frontend.close();
    backend.close();
    await backend.done;
  }
  assert.equal(openFdCount(), before, 'every fd is closed again');
}

test('every request of the table is sent by some method, as the table has it', () =>
  withScript(async (frontend, backend) => {
    using memory = createMemfd('memory', 1 << 20);
    using event = createEventfd('event');
    const seen = new Map<number, unknown>();
    const expectSent = async (work: Promise<unknown>, ...entries: { id: number }[]) => {
      await work;
      const sent = backend.take();
      for (const { id, value } of sent) seen.set(id, value);
      assert.deepEqual(
        sent.map(({ id }) => requestName(id)),
        entries.map(({ id }) => requestName(id)),
      );
      return sent.map(({ value }) => value);
    };
    const { migration, iotlb, inflight, device } = frontend;
    for (const { id, value } of backend.take()) seen.set(id, value);
    const one = { ...region(0), fd: memory.number };
    const { descUva, availUva, usedUva } = ringAddr(0);
    const addresses = { descUva, availUva, usedUva };

    await expectSent(frontend.getFeatures(), REQUEST.GET_FEATURES);
    await expectSent(frontend.setFeatures((1n << 33n) | (1n << 26n)), REQUEST.SET_FEATURES);
    await expectSent(frontend.setOwner(), REQUEST.SET_OWNER);
    await expectSent(frontend.resetOwner(), REQUEST.RESET_OWNER);
    await expectSent(frontend.getQueueNum(), REQUEST.GET_QUEUE_NUM);
    await expectSent(frontend.setMemTable([one]), REQUEST.SET_MEM_TABLE);
    await expectSent(frontend.memory.addRegion(one), REQUEST.ADD_MEM_REG);
    await expectSent(frontend.memory.removeRegion(one), REQUEST.REM_MEM_REG);
    await expectSent(frontend.memory.maxSlots(), REQUEST.GET_MAX_MEM_SLOTS);
    await expectSent(frontend.setVringNum(1, 8), REQUEST.SET_VRING_NUM);
    const [addr] = await expectSent(
      frontend.setVringAddr(1, addresses, 0x1234n),
      REQUEST.SET_VRING_ADDR,
    );
    assert.deepEqual(addr, { index: 1, flags: 1, ...addresses, logGpa: 0x1234n });
    await expectSent(frontend.setVringBase(1, 3), REQUEST.SET_VRING_BASE);
    await expectSent(frontend.getVringBase(0), REQUEST.GET_VRING_BASE);
    await expectSent(frontend.setVringKick(0, event.number), REQUEST.SET_VRING_KICK);
    await expectSent(frontend.setVringCall(0, null), REQUEST.SET_VRING_CALL);
    await expectSent(frontend.setVringErr(0, event.number), REQUEST.SET_VRING_ERR);
    await expectSent(frontend.setVringEnable(0, true), REQUEST.SET_VRING_ENABLE);
    const [endian] = await expectSent(frontend.setVringEndian(1, true), REQUEST.SET_VRING_ENDIAN);
    assert.deepEqual(endian, { index: 1, bigEndian: true });
    assert.deepEqual(await expectSent(frontend.kickVring(1), REQUEST.VRING_KICK), [1]);
    await expectSent(frontend.setConfig(0, Uint8Array.of(1)), REQUEST.SET_CONFIG);
    backend.answers.set(REQUEST.GET_CONFIG.id, ({ payload }) => ({ payload }));
    await expectSent(frontend.getConfig(0, 4), REQUEST.GET_CONFIG);
    await expectSent(frontend.setStatus(7), REQUEST.SET_STATUS);
    await expectSent(frontend.getStatus(), REQUEST.GET_STATUS);
    await expectSent(frontend.setMtu(1500), REQUEST.NET_SET_MTU);
    await expectSent(frontend.resetDevice(), REQUEST.RESET_DEVICE);

    const [log] = await expectSent(
      migration.setLogBase(memory.number, 4096, 8192),
      REQUEST.SET_LOG_BASE,
    );
    assert.deepEqual(log, { sizeBytes: 4096n, fdOffset: 8192n });
    await expectSent(migration.setLogFd(event.number), REQUEST.SET_LOG_FD);
    const mac = Uint8Array.of(2, 0, 0, 0, 0, 9);
    const [rarp] = await expectSent(migration.sendRarp(mac), REQUEST.SEND_RARP);
    assert.deepEqual(rarp, mac);
    const entry = { iova: 0x1000n, sizeBytes: 4096n, userAddr: 0x2000n, permissions: 3 };
    const [update] = await expectSent(iotlb.update(entry), REQUEST.IOTLB_MSG);
    assert.deepEqual(update, { ...entry, type: 2 });
    const [invalidate] = await expectSent(iotlb.invalidate(0n, 2n ** 64n - 1n), REQUEST.IOTLB_MSG);
    assert.deepEqual(invalidate, {
      iova: 0n,
      sizeBytes: 2n ** 64n - 1n,
      userAddr: 0n,
      permissions: 0,
      type: 3,
    });

    const params = new Uint8Array(64).fill(5);
    backend.answers.set(REQUEST.CREATE_CRYPTO_SESSION.id, ({ payload }) => ({ payload }));
    const creating = device.createCryptoSession(params);
    await expectSent(creating, REQUEST.CREATE_CRYPTO_SESSION);
    assert.deepEqual([...(await creating)], [...params]);
    await expectSent(device.closeCryptoSession(9n), REQUEST.CLOSE_CRYPTO_SESSION);
    await expectSent(device.getSharedObject(new Uint8Array(16)), REQUEST.GET_SHARED_OBJECT);
    await expectSent(device.getShmemConfig(), REQUEST.GET_SHMEM_CONFIG);
    await expectSent(device.setGpuSocket(event.number), REQUEST.GPU_SET_SOCKET);

    backend.answers.set(REQUEST.GET_INFLIGHT_FD.id, ({ payload }) => {
      const asked = wire.InflightDescription.decode(payload);
      const answer = { ...asked, mapBytes: 4096n, fdOffset: 64n };
      return { payload: wire.InflightDescription.encode(answer), fds: [createMemfd('i', 8192)] };
    });
    const inflightRegion = await inflight.create(2, 256);
    await expectSent(Promise.resolve(), REQUEST.GET_INFLIGHT_FD);
    const [handed] = await expectSent(inflight.set(inflightRegion), REQUEST.SET_INFLIGHT_FD);
    const { fd: _fd, ...described } = inflightRegion;
    assert.deepEqual(handed, { ...described, padding: 0 });
    inflightRegion.fd.close();

    (await migration.advisePostcopy()).close();
    await expectSent(migration.listenPostcopy(), REQUEST.POSTCOPY_ADVISE, REQUEST.POSTCOPY_LISTEN);
    backend.answers.set(REQUEST.SET_MEM_TABLE.id, ({ payload }) => {
      const answer = payload.slice();
      new DataView(answer.buffer).setBigUint64(8 + 16, 0x7777000n, true);
      return { payload: answer };
    });
    const bases: bigint[] = [];
    await frontend.memory.setTableForPostcopy([one], (mapped) => {
      bases.push(...mapped.map((each) => each.backendAddr));
      // Its answer to the acknowledgement would be one too many.
      backend.answers.delete(REQUEST.SET_MEM_TABLE.id);
    });
    assert.deepEqual(bases, [0x7777000n]);
    await expectSent(
      migration.endPostcopy(),
      REQUEST.SET_MEM_TABLE,
      REQUEST.SET_MEM_TABLE,
      REQUEST.POSTCOPY_END,
    );

    backend.answers.set(REQUEST.SET_DEVICE_STATE_FD.id, (message) => {
      const [pipe] = backend.keep(message);
      writeSync(pipe!.number, 'state of a device');
      pipe!.close();
      return u64Answer(0x100n);
    });
    const state = await migration.saveState();
    assert.equal(Buffer.from(state).toString(), 'state of a device');
    await expectSent(Promise.resolve(), REQUEST.SET_DEVICE_STATE_FD, REQUEST.CHECK_DEVICE_STATE);
    for (const { id } of backend.take()) seen.set(id, null);
    const missing = [...FRONT_END_MESSAGES.values()].filter(({ id }) => !seen.has(id));
    assert.deepEqual(
      missing.map(({ name }) => name),
      [],
    );
  }));

test('device state goes in and comes out, errors are told', () =>
  withScript(async ({ migration }, backend) => {
    const begin = REQUEST.SET_DEVICE_STATE_FD.id;
    let pipe = -1;
    backend.answers.set(begin, (message) => {
      pipe = backend.keep(message)[0]!.number;
      return u64Answer(0x100n);
    });
    let loaded = '';
    backend.answers.set(REQUEST.CHECK_DEVICE_STATE.id, () => {
      const bytes = Buffer.alloc(100);
      loaded = bytes.subarray(0, readSync(pipe, bytes)).toString();
      assert.equal(readSync(pipe, bytes), 0, 'the end of the file');
      return u64Answer(0n);
    });
    await migration.loadState(Buffer.from('learned'));
    assert.equal(loaded, 'learned');

    const failed = { code: 'ERR_VRING_DEVICE_STATE' };
    backend.answers.set(REQUEST.CHECK_DEVICE_STATE.id, () => u64Answer(3n));
    await assert.rejects(migration.loadState(Buffer.from('x')), {
      ...failed,
      message: /could not load its state \(3\)/,
    });
    backend.answers.set(begin, () => u64Answer(1n));
    await assert.rejects(migration.saveState(), { ...failed, message: /refused the transfer/ });
    // A back-end that prefers an fd of its own.
    backend.answers.set(REQUEST.CHECK_DEVICE_STATE.id, () => u64Answer(0n));
    backend.answers.set(begin, () => {
      const [theirs, sent] = socketPair();
      writeSync(theirs.number, 'its own pipe');
      theirs.close();
      return { ...u64Answer(0n), fds: [sent] };
    });
    assert.equal(Buffer.from(await migration.saveState()).toString(), 'its own pipe');
  }));

test('what was not negotiated is refused here and names the feature', async () => {
  const refused = (message: RegExp) => ({ code: 'ERR_VRING_NOT_NEGOTIATED', message });
  await withScript(
    async (frontend, backend) => {
      backend.take();
      const { migration, inflight, iotlb, device } = frontend;
      const calls: [Promise<unknown>, RegExp][] = [
        [migration.setLogBase(0, 4096), /F_LOG_SHMFD is not offered/],
        [migration.sendRarp(new Uint8Array(6)), /F_RARP is not offered/],
        [migration.advisePostcopy(), /F_PAGEFAULT is not offered/],
        [migration.saveState(), /F_DEVICE_STATE is not offered/],
        [inflight.create(1, 8), /F_INFLIGHT_SHMFD is not offered/],
        [frontend.kickVring(0), /F_INBAND_NOTIFICATIONS is not offered/],
        [frontend.setVringEndian(0, true), /F_CROSS_ENDIAN is not offered/],
        [frontend.resetDevice(), /F_RESET_DEVICE is not offered/],
        [device.createCryptoSession(new Uint8Array(8)), /F_CRYPTO_SESSION is not offered/],
        [device.getSharedObject(new Uint8Array(16)), /F_SHARED_OBJECT is not offered/],
        [device.getShmemConfig(), /F_SHMEM is not offered/],
        [frontend.memory.addRegion({ ...region(0), fd: 0 }), /F_CONFIGURE_MEM_SLOTS is not/],
        [iotlb.invalidate(0n, 1n), /virtio feature bit 33 was not acked/],
      ];
      for (const [call, message] of calls) await assert.rejects(call, refused(message));
      assert.deepEqual(backend.take(), [], 'nothing is sent');
    },
    { protocolFeatures: ALL, events: EVENTS },
    (backend) => (backend.protocolFeatures = 8n),
  );
  await withScript(async (frontend) => {
    await assert.rejects(frontend.kickVring(0), refused(/F_INBAND_NOTIFICATIONS was not taken/));
  }, {});
});

test('features are taken when somebody handles what they bring', async () => {
  const names = async (options: FrontendOptions, offered = (1n << 23n) - 1n) => {
    let taken: string[] = [];
    await withScript(
      async (frontend) => {
        taken = wire.protocolFeatureNames(frontend.protocolFeatures);
      },
      options,
      (backend) => (backend.protocolFeatures = offered),
    );
    return taken;
  };
  const all = wire.PROTOCOL_FEATURE_NAMES.filter((name) => name !== 'XEN_MMAP');
  assert.deepEqual(await names({ protocolFeatures: ALL, events: EVENTS }), all);
  const brought = ['BACKEND_SEND_FD', 'HOST_NOTIFIER', 'SHARED_OBJECT', 'SHMEM'];
  const meanings = ['INBAND_NOTIFICATIONS', 'GET_VRING_BASE_INFLIGHT', 'GPA_ADDRESSES'];
  const without = (...gone: string[]) => all.filter((name) => !gone.includes(name));
  assert.deepEqual(await names({}), without('BACKEND_REQ', ...brought, ...meanings));
  assert.deepEqual(await names({ events: {} }), without(...brought, ...meanings));
  assert.deepEqual(await names({ events: EVENTS }), without(...meanings));
  const noAck = (1n << 23n) - 1n - 8n;
  assert.deepEqual(
    await names({ protocolFeatures: ALL, events: EVENTS }, noAck),
    without('REPLY_ACK', 'INBAND_NOTIFICATIONS'),
    'in-band notifications need acks',
  );
});
