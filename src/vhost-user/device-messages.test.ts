/** The messages that a device opts in to, or that only change how rings are read. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createMemfd, socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { offeredProtocolFeatures, OPT_IN_FEATURES } from './offered-features.ts';
import type { BackendTarget } from './target.ts';
import { ORDINARY_PROTOCOL_FEATURES, ringAddr, state, UVA_BASE } from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { u64 } from './testing/raw-peer.ts';
import { PLAIN_FEATURES, withFixture } from './testing/session-fixture.ts';

const bit = (n: number): bigint => 1n << BigInt(n);
const UUID = Uint8Array.from({ length: 16 }, (_, i) => 0xf0 + i);

test('what needs a method is offered with the method only', () => {
  const target = new FakeTarget();
  const bare: BackendTarget = Object.create(target, {
    ...Object.fromEntries(
      [
        'sendRarp',
        'resetDevice',
        'saveState',
        'loadState',
        'sharedObject',
        'createCryptoSession',
        'closeCryptoSession',
        'shmemRegions',
      ].map((name) => [name, { value: undefined }]),
    ),
    features: { value: 0n },
    protocolFeatures: { value: target.protocolFeatures },
  });
  const all = offeredProtocolFeatures(target, true);
  const some = offeredProtocolFeatures(bare, true);
  assert.deepEqual(wire.protocolFeatureNames(all & ~some), [
    'RARP',
    'CRYPTO_SESSION',
    'RESET_DEVICE',
    'SHARED_OBJECT',
    'DEVICE_STATE',
    'SHMEM',
  ]);
  assert.deepEqual(wire.protocolFeatureNames(all & ~offeredProtocolFeatures(target, false)), [
    'PAGEFAULT',
  ]);
  for (const feature of OPT_IN_FEATURES.keys()) {
    const without = Object.create(target, {
      protocolFeatures: { value: target.protocolFeatures & ~bit(feature) },
    }) as BackendTarget;
    assert.equal(offeredProtocolFeatures(without, true) & bit(feature), 0n, 'nor without the bit');
  }
});

test('SEND_RARP', () =>
  withFixture(async (f) => {
    await f.negotiate();
    await f.acked(wire.VHOST_USER_SEND_RARP, u64(0x9900_5544_3322_1100n));
    assert.deepEqual([...f.target.rarps[0]!], [0, 0x11, 0x22, 0x33, 0x44, 0x55]);
  }));

test('RESET_DEVICE stops and disables every ring, and keeps memory', () =>
  withFixture(async (f) => {
    await f.negotiate();
    await f.shareMemory();
    await f.startRing(0);
    await f.acked(wire.VHOST_USER_SET_VRING_ENABLE, state(0, 1));
    f.target.progress = 9;
    f.target.calls.length = 0;
    await f.acked(wire.VHOST_USER_RESET_DEVICE);
    assert.deepEqual(f.target.calls, ['stopVring 0', 'disable 0', 'resetDevice']);
    assert.equal(f.session.state.memory!.regions, 1);
    assert.deepEqual(f.session.state.vrings[0]!.missing, ['kick']);
    assert.equal(f.session.state.vrings[0]!.base, 0, 'positions begin anew');
  }));

test('GET_SHARED_OBJECT: the fd, or none', () =>
  withFixture(async (f) => {
    await f.negotiate();
    using object = createMemfd('object', 4096);
    f.target.objects.set(Buffer.from(UUID).toString('hex'), object);
    for (const [uuid, count] of [
      [UUID, 1],
      [new Uint8Array(16), 0],
    ] as const) {
      const payload = wire.SharedObject.encode({ uuid });
      await f.peer.send(wire.VHOST_USER_GET_SHARED_OBJECT, payload);
      const reply = (await f.peer.receive())!;
      assert.equal(reply.fds.length, count);
      assert.equal(reply.payload.length, 0);
      for (const fd of reply.fds) fd.close();
    }
  }));

test('GET_SHMEM_CONFIG: how many regions there are, and the size of each id', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const reply = await f.peer.ask(wire.VHOST_USER_GET_SHMEM_CONFIG);
    assert.equal(reply.length, 8 + 256 * 8);
    const view = new DataView(reply.buffer, reply.byteOffset);
    assert.equal(view.getUint32(0, true), 2);
    const sizes = Array.from({ length: 256 }, (_, i) => view.getBigUint64(8 + 8 * i, true));
    assert.deepEqual(sizes.slice(0, 4), [0x10000n, 0n, 0x200000n, 0n]);
  }));

test('crypto sessions are opened and closed by the device', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const reply = await f.peer.ask(wire.VHOST_USER_CREATE_CRYPTO_SESSION, new Uint8Array(64));
    assert.equal(reply.length, 64);
    assert.equal(reply[56], 1);
    await f.acked(wire.VHOST_USER_CLOSE_CRYPTO_SESSION, u64(1));
    const close = wire.VHOST_USER_CLOSE_CRYPTO_SESSION;
    await f.refused('ERR_VRING_DEVICE_REFUSED', close, u64(1), [], /no session 1/);
  }));

test('GPU_SET_SOCKET: a socket for a GPU, nothing for others', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const [ours, theirs] = socketPair();
    await f.acked(wire.VHOST_USER_GPU_SET_SOCKET, undefined, [theirs.number]);
    assert.notEqual(f.target.socket, null);
    const set = wire.VHOST_USER_GPU_SET_SOCKET;
    const event = [f.fds.events[0]!.number];
    await f.refused('ERR_VRING_MESSAGE_FDS', set, undefined, event, /a stream socket/);
    Object.defineProperty(f.target, 'setGpuSocket', { value: undefined });
    await f.refused('ERR_VRING_MESSAGE_UNSUPPORTED', set, undefined, [theirs.number], /no GPU/);
    ours.close();
    theirs.close();
  }));

test('SET_VRING_ENDIAN counts for legacy rings, and changes while they are stopped', () =>
  withFixture(async (f) => {
    await f.negotiate(1n << 30n);
    await f.shareMemory();
    await f.acked(wire.VHOST_USER_SET_VRING_ENDIAN, state(0, 1));
    await f.startRing(0);
    assert.equal(f.target.running.get(0)!.bigEndian, true);
    await f.acked(wire.VHOST_USER_SET_VRING_ENDIAN, state(0, 1));
    const set = wire.VHOST_USER_SET_VRING_ENDIAN;
    await f.refused('ERR_VRING_MESSAGE_STATE', set, state(0, 0), [], /vring-stopped/);
    await f.acked(wire.VHOST_USER_SET_FEATURES, u64(PLAIN_FEATURES));
    assert.equal(f.target.running.get(0)!.bigEndian, false, 'virtio 1.0 is little-endian');
  }));

test('GPA_ADDRESSES: ring addresses are guest-physical', () =>
  withFixture(async (f) => {
    const gpa = bit(wire.VHOST_USER_PROTOCOL_F_GPA_ADDRESSES);
    await f.negotiate(PLAIN_FEATURES, ORDINARY_PROTOCOL_FEATURES | gpa);
    await f.shareMemory();
    const { descUva, availUva, usedUva } = ringAddr(1);
    const addresses = {
      descUva: descUva - UVA_BASE,
      availUva: availUva - UVA_BASE,
      usedUva: usedUva - UVA_BASE,
    };
    await f.startRing(1, addresses);
    const ring = f.target.running.get(1)!;
    assert.equal(ring.descOffset, f.target.table!.regions[0]!.offset + 0x10000);
    await assert.rejects(f.startRing(2), /ERR|is not in shared memory/);
  }));

test('GET_VRING_BASE_INFLIGHT needs INFLIGHT_SHMFD, in-band notifications the channel', () =>
  withFixture(async (f) => {
    await f.peer.send(wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64(8n));
    const set = wire.VHOST_USER_SET_PROTOCOL_FEATURES;
    const without = bit(20) | 8n;
    await f.refused('ERR_VRING_MESSAGE_STATE', set, u64(without), [], /base-inflight-needs-region/);
    const inband = bit(14) | 8n;
    await f.refused('ERR_VRING_MESSAGE_STATE', set, u64(inband), [], /inband-needs-channel/);
    await f.acked(set, u64(bit(20) | bit(12) | 8n));
  }));
