import assert from 'node:assert/strict';
import { test } from 'node:test';
import { reservedRanges } from '../memory/index.ts';
import { createMemfd, type Fd, fdStat } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { inflightStrideBytes } from './inflight-region.ts';
import { u64 } from './testing/raw-peer.ts';
import { PLAIN_FEATURES, type SessionFixture, withFixture } from './testing/session-fixture.ts';

const PACKED = 1n << 34n;

const describe = (queueCount: number, queueSize: number, mapBytes = 0): Uint8Array =>
  wire.InflightDescription.encode({
    mapBytes: BigInt(mapBytes),
    fdOffset: 0n,
    queueCount,
    queueSize,
    padding: 0,
  });

/** GET_INFLIGHT_FD: the reply and its fd. */
async function get(
  f: SessionFixture,
  queueCount: number,
  queueSize: number,
): Promise<{ value: wire.InflightDescription; payload: Uint8Array; fd: Fd }> {
  await f.peer.send(wire.VHOST_USER_GET_INFLIGHT_FD, describe(queueCount, queueSize));
  const message = (await f.peer.receive())!;
  assert.equal(message.fds.length, 1);
  const value = wire.InflightDescription.decode(message.payload);
  return { value, payload: message.payload, fd: message.fds[0]! };
}

test('strides are those of the two layouts, in units of 64 bytes', () => {
  assert.equal(inflightStrideBytes(1, false), 64);
  assert.equal(inflightStrideBytes(3, false), 64);
  assert.equal(inflightStrideBytes(4, false), 128);
  assert.equal(inflightStrideBytes(256, false), 16 + 16 * 256 + 48);
  assert.equal(inflightStrideBytes(1, true), 64);
  assert.equal(inflightStrideBytes(256, true), 32 + 32 * 256 + 32);
});

for (const [what, features, packed] of [
  ['split', PLAIN_FEATURES, false],
  ['packed', PLAIN_FEATURES | PACKED, true],
] as const) {
  test(`${what}: made, handed back, and each ring gets its part`, () =>
    withFixture(async (f) => {
      await f.negotiate(features);
      const { value, payload, fd } = await get(f, 4, 256);
      const stride = inflightStrideBytes(256, packed);
      assert.equal(value.mapBytes, BigInt(4 * stride));
      assert.deepEqual([value.queueCount, value.queueSize], [4, 256]);
      assert.equal(fdStat(fd.number).sizeBytes, 4 * stride);
      await f.acked(wire.VHOST_USER_SET_INFLIGHT_FD, payload, [fd.number]);
      fd.close();
      await f.shareMemory();
      await f.startRing(1);
      const { inflight } = f.target.running.get(1)!;
      assert.equal(inflight!.sizeBytes, stride);
      assert.equal(inflight!.offset % 64, 0);
      assert.deepEqual(f.session.state.inflight, { queues: 4, queueSize: 256 });
    }));
}

test('20 bytes without the padding of C do as well', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const { payload, fd } = await get(f, 1, 128);
    await f.acked(wire.VHOST_USER_SET_INFLIGHT_FD, payload.subarray(0, 20), [fd.number]);
    fd.close();
    await f.shareMemory();
    await f.startRing(2);
    assert.equal(f.target.running.get(2)!.inflight, null, 'the region has one queue');
  }));

test('what does not fit the device is refused, and the old region stays', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const { payload, fd } = await get(f, 2, 64);
    await f.acked(wire.VHOST_USER_SET_INFLIGHT_FD, payload, [fd.number]);
    const set = wire.VHOST_USER_SET_INFLIGHT_FD;
    const bytes = 2 * inflightStrideBytes(64, false);
    const code = 'ERR_VRING_INFLIGHT';
    await f.refused(code, set, describe(5, 64, bytes), [fd.number], /5, this device has 4 vrings/);
    await f.refused(code, set, describe(0, 64, bytes), [fd.number], /num queues/);
    await f.refused(code, set, describe(2, 0, bytes), [fd.number], /queue size/);
    await f.refused(code, set, describe(2, 64, bytes - 1), [fd.number], /mmap size/);
    const long = describe(2, 64, bytes + 1);
    await f.refused('ERR_VRING_MEMORY_FD', set, long, [fd.number], /past the end of its fd/);
    const event = [f.fds.events[0]!.number];
    await f.refused('ERR_VRING_MEMORY_FD', set, describe(2, 64, bytes), event, /expected a memfd/);
    fd.close();
    assert.deepEqual(f.session.state.inflight, { queues: 2, queueSize: 64 });
    await f.shareMemory();
    const kick = [f.fds.events[0]!.number];
    await assert.rejects(f.startRing(0), /64, vring 0 has 256 descriptors/);
    await f.acked(wire.VHOST_USER_SET_VRING_NUM, wire.VringState.encode({ index: 0, num: 64 }));
    await f.acked(wire.VHOST_USER_SET_VRING_KICK, u64(0), kick);
    assert.ok(f.target.running.get(0)!.inflight);
    await f.refused('ERR_VRING_MESSAGE_STATE', set, describe(2, 64, bytes), kick, /all-vrings/);
  }));

test('a region for packed rings that was made before their format was known', () =>
  withFixture(async (f) => {
    await f.peer.send(wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64((1n << 12n) | (1n << 3n)));
    const { value, payload, fd } = await get(f, 1, 256);
    assert.equal(value.mapBytes, BigInt(inflightStrideBytes(256, true)));
    await f.acked(wire.VHOST_USER_SET_INFLIGHT_FD, payload, [fd.number]);
    fd.close();
    await f.acked(wire.VHOST_USER_SET_FEATURES, u64(PLAIN_FEATURES | PACKED));
    await f.shareMemory();
    await f.startRing(0);
    assert.equal(f.target.running.get(0)!.inflight!.sizeBytes, Number(value.mapBytes));
  }));

test('of a region that is too large as much is mapped as rings can use', () =>
  withFixture(async (f) => {
    await f.negotiate();
    const before = reservedRanges();
    using fd = createMemfd('inflight', 2 ** 44); // sparse, as large as the arena
    const payload = describe(1, 256, 2 ** 44);
    await f.acked(wire.VHOST_USER_SET_INFLIGHT_FD, payload, [fd.number]);
    assert.equal(reservedRanges(), before + 1);
    await f.shareMemory();
    await f.startRing(0);
    assert.equal(f.target.running.get(0)!.inflight!.sizeBytes, inflightStrideBytes(256, false));
  }));

test('a region too small for packed rings is found when they start', () =>
  withFixture(async (f) => {
    const both = (1n << 12n) | (1n << 3n);
    await f.peer.send(wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64(both));
    const bytes = inflightStrideBytes(256, false);
    using fd = createMemfd('inflight', bytes);
    await f.acked(wire.VHOST_USER_SET_INFLIGHT_FD, describe(1, 256, bytes), [fd.number]);
    await f.acked(wire.VHOST_USER_SET_FEATURES, u64(PLAIN_FEATURES | PACKED));
    await f.shareMemory();
    await assert.rejects(f.startRing(0), /expected at least 8256 with the acked features/);
    assert.equal(f.target.running.size, 0);
  }));
