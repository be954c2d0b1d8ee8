import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ProtocolError } from '../base/errors.ts';
import { MAX_LOG_BYTES } from '../base/limits.ts';
import { createMemfd } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { region, REGION_BYTES, ringAddr, singleRegion } from './testing/conversation.ts';
import { u64 } from './testing/raw-peer.ts';
import { PLAIN_FEATURES, type SessionFixture, withFixture } from './testing/session-fixture.ts';

const LOG_ALL = 1n << BigInt(wire.VHOST_F_LOG_ALL);
/** One bit for each page of the first region. */
const LOG_BYTES = REGION_BYTES / 4096 / 8;

const logOf = (sizeBytes: number, fdOffset = 0): Uint8Array =>
  wire.LogDescription.encode({ sizeBytes: BigInt(sizeBytes), fdOffset: BigInt(fdOffset) });

async function setLog(f: SessionFixture, sizeBytes: number, fdOffset = 0): Promise<void> {
  using fd = createMemfd('log', 0x10000);
  const payload = logOf(sizeBytes, fdOffset);
  const reply = await f.peer.ask(wire.VHOST_USER_SET_LOG_BASE, payload, [fd.number]);
  assert.equal(reply.length, 0);
}

async function running(f: SessionFixture): Promise<void> {
  await f.negotiate();
  await f.shareMemory();
  await f.startRing(0);
}

test('rings log while LOG_ALL is acked, and keep their base when that changes', () =>
  withFixture(async (f) => {
    await running(f);
    await setLog(f, LOG_BYTES, 4);
    assert.deepEqual(f.session.state.log, { bytes: LOG_BYTES, active: false });
    assert.equal(f.target.running.get(0)!.log, null);
    f.target.progress = 7;
    f.target.calls.length = 0;

    await f.acked(wire.VHOST_USER_SET_FEATURES, u64(PLAIN_FEATURES | LOG_ALL));
    assert.deepEqual(f.target.calls, ['stopVring 0', 'startVring 0']); // no setFeatures
    let ring = f.target.running.get(0)!;
    assert.equal(ring.base, 7);
    assert.equal(ring.features & LOG_ALL, 0n, "the bit is not the device's");
    assert.equal(ring.log!.sizeBytes, LOG_BYTES);
    assert.equal(ring.log!.offset % 4096, 4);
    assert.equal(ring.log!.usedGpa, -1);
    assert.deepEqual(ring.log!.gpa, ring.map);

    const logged = { ...ringAddr(0), flags: 1, logGpa: 0x4000n };
    const addr = wire.VringAddr.encode(logged);
    await f.acked(wire.VHOST_USER_SET_VRING_ADDR, addr);
    ring = f.target.running.get(0)!;
    assert.equal(ring.log!.usedGpa, 0x4000);
    assert.equal(ring.base, 14);
    f.target.calls.length = 0;
    await f.acked(wire.VHOST_USER_SET_VRING_ADDR, addr);
    assert.deepEqual(f.target.calls, [], 'the same again disturbs nothing');

    await f.acked(wire.VHOST_USER_SET_FEATURES, u64(PLAIN_FEATURES));
    assert.equal(f.target.running.get(0)!.log, null, 'it stops');
    assert.equal(f.session.state.log!.active, false);
  }));

test('a larger log comes while rings log', () =>
  withFixture(async (f) => {
    await running(f);
    await setLog(f, LOG_BYTES);
    await f.acked(wire.VHOST_USER_SET_FEATURES, u64(PLAIN_FEATURES | LOG_ALL));
    const old = f.target.running.get(0)!.log!;
    // Memory that the log has no bits for: rings stop rather than lose what they write.
    const more = [f.fds.memory[1]!.number];
    await f.acked(wire.VHOST_USER_ADD_MEM_REG, singleRegion(region(1)), more);
    assert.equal(f.target.running.size, 0);
    await setLog(f, 2 * LOG_BYTES);
    const now = f.target.running.get(0)!.log!;
    assert.equal(now.sizeBytes, 2 * LOG_BYTES);
    assert.notEqual(now.handle, old.handle);
  }));

test('without a log base nothing is logged; SET_LOG_FD is kept and closed', () =>
  withFixture(async (f) => {
    await running(f);
    await f.acked(wire.VHOST_USER_SET_FEATURES, u64(PLAIN_FEATURES | LOG_ALL));
    assert.equal(f.target.running.get(0)!.log, null);
    const event = [f.fds.events[1]!.number];
    await f.acked(wire.VHOST_USER_SET_LOG_FD, undefined, event);
    await f.acked(wire.VHOST_USER_SET_LOG_FD, u64(0), event);
    const memory = [f.fds.memory[0]!.number];
    await f.refused('ERR_VRING_MESSAGE_FDS', wire.VHOST_USER_SET_LOG_FD, undefined, memory);
  }));

test('a used ring outside of the log is refused', () =>
  withFixture(async (f) => {
    await running(f);
    await setLog(f, LOG_BYTES);
    await f.acked(wire.VHOST_USER_SET_FEATURES, u64(PLAIN_FEATURES | LOG_ALL));
    for (const logGpa of [BigInt(REGION_BYTES) - 8n, 2n ** 64n - 4n]) {
      const addr = wire.VringAddr.encode({ ...ringAddr(0), flags: 1, logGpa });
      const text = /the used ring of vring 0 ends at/;
      await f.refused('ERR_VRING_LOG_SIZE', wire.VHOST_USER_SET_VRING_ADDR, addr, [], text);
      assert.equal(f.target.running.size, 0);
    }
  }));

test('a log for all addresses there are is mapped only as far as pages are logged', () =>
  withFixture(async (f) => {
    await running(f);
    using fd = createMemfd('log', 2 ** 44); // sparse, as large as the arena
    await f.peer.ask(wire.VHOST_USER_SET_LOG_BASE, logOf(2 ** 44), [fd.number]);
    assert.equal(f.session.state.log!.bytes, MAX_LOG_BYTES);
  }));

for (const [what, code, field, sizeBytes, fdOffset] of [
  ['one byte too small', 'ERR_VRING_LOG_SIZE', 'log.size', LOG_BYTES - 1, 0],
  ['behind its fd', 'ERR_VRING_MEMORY_FD', 'log.mmap_offset', LOG_BYTES, 0x10000],
  ['longer than its fd', 'ERR_VRING_MEMORY_FD', 'log.mmap_offset', 0x10001, 0],
  ['empty', 'ERR_VRING_MESSAGE_VALUE', 'log.size', 0, 0],
] as const) {
  test(`a log that is ${what} ends the session, which has no other answer`, () =>
    withFixture(async (f) => {
      await running(f);
      using fd = createMemfd('log', 0x10000);
      const payload = logOf(sizeBytes, fdOffset);
      await f.peer.send(wire.VHOST_USER_SET_LOG_BASE, payload, [fd.number]);
      const reason = (await f.session.closed) as ProtocolError;
      assert.equal(reason.code, code, reason.message);
      assert.equal(reason.field, field);
    }));
}
