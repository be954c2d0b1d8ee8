import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { socketPair } from '../sys/index.ts';
import { iotlbPayload, parsePayload } from '../wire/vhost-user-parse.ts';
import * as wire from '../wire/vhost-user.ts';
import { IotlbControl } from './iotlb-control.ts';
import { IOTLB_MISS_TRIES, MAX_IOTLB_MISSES } from './limits.ts';
import { region, REGION_BYTES, singleRegion, state, UVA_BASE } from './testing/conversation.ts';
import { RawPeer } from './testing/raw-peer.ts';
import { PLAIN_FEATURES, type SessionFixture, withFixture } from './testing/session-fixture.ts';

const PLATFORM = PLAIN_FEATURES | (1n << 33n);
const IOVA = 0x10_0000_0000n;

function message(
  type: number,
  iova: bigint,
  sizeBytes: bigint,
  userAddr = 0n,
  permissions = 3,
): Uint8Array {
  const padding = new Uint8Array(6);
  return wire.IotlbMessage.encode({ iova, sizeBytes, userAddr, permissions, type, padding });
}

const update = (f: SessionFixture, iova: bigint, bytes: bigint, uva: bigint, perm = 3) =>
  f.acked(wire.VHOST_USER_IOTLB_MSG, message(2, iova, bytes, uva, perm));
const invalidate = (f: SessionFixture, iova: bigint, bytes: bigint) =>
  f.acked(wire.VHOST_USER_IOTLB_MSG, message(3, iova, bytes, 0n, 0));

/** Ring 0 in I/O virtual addresses. */
const addr = {
  descUva: IOVA,
  availUva: IOVA + 0x2000n,
  usedUva: IOVA + 0x4000n,
};

/** The far end of a backend channel, and the misses that came over it. */
class Channel {
  readonly peer: RawPeer;
  readonly misses: [iova: number, permissions: number][] = [];

  static async open(f: SessionFixture): Promise<Channel> {
    const [ours, theirs] = socketPair();
    const channel = new Channel(theirs);
    await f.acked(wire.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [ours.number]);
    ours.close();
    return channel;
  }

  constructor(socket: ReturnType<typeof socketPair>[1]) {
    this.peer = new RawPeer(socket, 'requests');
    void this.#listen();
  }

  async #listen(): Promise<void> {
    for (;;) {
      const got = await this.peer.reply();
      if (got === null) return;
      const miss = parsePayload(iotlbPayload, 'miss', got.payload);
      assert.equal(miss.type, 1);
      this.misses.push([Number(miss.iova), miss.permissions]);
    }
  }

  async next(count: number): Promise<void> {
    for (let i = 0; this.misses.length < count && i < 1000; i++) await nextTurn();
    assert.equal(this.misses.length, count);
  }
}

test('a ring waits for its areas, misses them once, starts when they come', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM);
    await f.shareMemory();
    const channel = await Channel.open(f);
    await f.startRing(0, addr);
    assert.equal(f.target.running.size, 0);
    assert.equal(f.session.state.vrings[0]!.state, 'waiting');
    assert.deepEqual(f.session.state.vrings[0]!.missing, ['translations']);
    const at = Number(IOVA);
    await channel.next(3);
    assert.deepEqual(channel.misses, [
      [at, 1],
      [at + 0x2000, 1],
      [at + 0x4000, 2],
    ]);
    await update(f, IOVA, 0x3000n, UVA_BASE, 1);
    assert.equal(f.target.running.size, 0);
    await update(f, IOVA + 0x4000n, 0x1000n, UVA_BASE + 0x4000n);
    const ring = f.target.running.get(0)!;
    assert.equal(ring.iotlb, true);
    assert.equal(ring.descOffset, f.target.table!.regions[0]!.offset);
    assert.equal(ring.usedOffset - ring.descOffset, 0x4000);
    assert.equal(ring.map.count, 2);
    assert.equal(channel.misses.length, 3);
    assert.equal(f.session.state.iotlb!.entries, 2);
    channel.peer.close();
  }));

test('an invalidation stops the rings that it hits, before it is acked; they miss again', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM);
    await f.shareMemory();
    const channel = await Channel.open(f);
    await update(f, IOVA, BigInt(REGION_BYTES), UVA_BASE);
    await f.startRing(0, addr);
    await f.startRing(1, {
      descUva: IOVA + 0x10000n,
      availUva: IOVA + 0x12000n,
      usedUva: IOVA + 0x14000n,
    });
    assert.equal(f.target.running.size, 2);
    f.target.progress = 4;
    f.target.calls.length = 0;
    await invalidate(f, IOVA + 0x4000n, 0x1000n);
    assert.deepEqual(f.target.calls, [
      'stopVring 0',
      `invalidateIotlb ${Number(IOVA) + 0x4000} 4096`,
    ]);
    await channel.next(1);
    assert.deepEqual(channel.misses[0], [Number(IOVA) + 0x4000, 2]);
    await update(f, IOVA + 0x4000n, 0x1000n, UVA_BASE + 0x4000n);
    assert.equal(f.target.running.get(0)!.base, 4);
    f.target.calls.length = 0;
    await invalidate(f, IOVA + 0x8000n, 0x1000n);
    assert.equal(f.target.running.size, 2, "buffers are the data plane's");
    await invalidate(f, 0n, 2n ** 64n - 1n);
    assert.equal(f.target.running.size, 0);
    assert.equal(f.session.state.iotlb!.entries, 0);
    channel.peer.close();
  }));

test('an update that moves a ring restarts it where it is now', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM);
    await f.shareMemory();
    await update(f, IOVA, 0x10000n, UVA_BASE);
    await f.startRing(0, addr);
    const before = f.target.running.get(0)!.usedOffset;
    f.target.calls.length = 0;
    await update(f, IOVA + 0x4000n, 0x1000n, UVA_BASE + 0x4000n);
    assert.equal(f.target.calls.length, 1, 'the same again disturbs no ring');
    await update(f, IOVA + 0x4000n, 0x1000n, UVA_BASE + 0x8000n);
    assert.equal(f.target.running.get(0)!.usedOffset, before + 0x4000);
  }));

test('GET_VRING_BASE of a ring that waits: it does not start when translations come', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM);
    await f.shareMemory();
    await f.startRing(0, addr);
    const base = await f.peer.ask(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    assert.deepEqual(wire.VringState.decode(base), { index: 0, num: 0 });
    await update(f, IOVA, 0x10000n, UVA_BASE);
    assert.equal(f.target.running.size, 0);
    assert.deepEqual(f.session.state.vrings[0]!.missing, ['kick']);
  }));

test('when the last ring stops, translations are forgotten: nobody tells what is unmapped', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM);
    await f.shareMemory();
    await update(f, IOVA, 0x10000n, UVA_BASE);
    await f.startRing(0, addr);
    await f.startRing(1, addr);
    assert.equal(f.target.running.size, 2);
    await f.peer.ask(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    assert.equal(f.session.state.iotlb!.entries, 1);
    await f.peer.ask(wire.VHOST_USER_GET_VRING_BASE, state(1, 0));
    assert.equal(f.session.state.iotlb!.entries, 0);
  }));

test('the used ring is logged where it is, not where the front-end says', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM | (1n << 26n));
    await f.shareMemory();
    const log = wire.LogDescription.encode({ sizeBytes: 4096n, fdOffset: 0n });
    await f.peer.ask(wire.VHOST_USER_SET_LOG_BASE, log, [f.fds.memory[1]!.number]);
    await update(f, IOVA, 0x10000n, UVA_BASE + 0x20000n);
    await f.startRing(0, { ...addr, flags: 1, logGpa: addr.usedUva });
    assert.equal(f.target.running.get(0)!.log!.usedGpa, 0x24000);
  }));

test('packed: descriptors are written too, so they must be writable', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM | (1n << 34n));
    await f.shareMemory();
    await update(f, IOVA, 0x10000n, UVA_BASE, 1);
    await f.startRing(0, addr);
    assert.equal(f.target.running.size, 0);
    await update(f, IOVA, 0x10000n, UVA_BASE, 3);
    assert.equal(f.target.running.size, 1);
  }));

test('pages of a ring that are apart: it waits, and says for what', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM);
    await f.shareMemory();
    await update(f, IOVA, 0x1000n, UVA_BASE);
    await update(f, IOVA + 0x1000n, 0x1000n, UVA_BASE + 0x8000n);
    await update(f, IOVA + 0x2000n, 0x8000n, UVA_BASE + 0x10000n);
    await f.startRing(0, addr, 512); // descriptors have two pages
    assert.deepEqual(f.session.state.vrings[0]!.missing, ['contiguous translations']);
    await update(f, IOVA + 0x1000n, 0x1000n, UVA_BASE + 0x1000n);
    assert.equal(f.target.running.size, 1);
  }));

test('memory that leaves takes its translations along', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM);
    await f.shareMemory(2);
    await update(f, IOVA, 0x10000n, UVA_BASE);
    await f.startRing(0, addr);
    await f.acked(wire.VHOST_USER_REM_MEM_REG, singleRegion(region(1)));
    assert.equal(f.session.state.iotlb!.entries, 0);
    assert.equal(f.session.state.vrings[0]!.state, 'waiting');
    await update(f, IOVA, 0x10000n, UVA_BASE);
    assert.equal(f.target.running.size, 1);
    const one = [f.fds.memory[1]!.number];
    await f.acked(wire.VHOST_USER_ADD_MEM_REG, singleRegion(region(1)), one);
    assert.equal(f.session.state.iotlb!.entries, 1, 'what comes takes nothing');
    await f.shareMemory();
    assert.equal(f.target.running.size, 0);
  }));

test('misses of the data plane: one message a page, until it is answered', () =>
  withFixture(async (f) => {
    await f.negotiate(PLATFORM);
    await f.shareMemory();
    f.target.requests!.iotlbMiss(0x1000, false); // no channel yet: nothing to do
    const channel = await Channel.open(f);
    const { requests } = f.target;
    requests!.iotlbMiss(0x5010, false);
    requests!.iotlbMiss(0x5020, false);
    requests!.iotlbMiss(0x5ff0, true);
    requests!.iotlbMiss(-1, true);
    requests!.iotlbMiss(2 ** 60, true);
    await channel.next(2);
    assert.deepEqual(channel.misses, [
      [0x5000, 1],
      [0x5000, 3],
    ]);
    await update(f, 0x5000n, 0x1000n, UVA_BASE);
    const told = (): number =>
      f.target.calls.filter((call) => call === 'updateIotlb 20480 4096 3').length;
    assert.equal(told(), 1);
    requests!.iotlbMiss(0x5000, true); // it had asked before it heard: told again, by us
    assert.equal(told(), 2);
    requests!.iotlbMiss(0x9000, true);
    await channel.next(3);
    // Both are somebody else's now: what is missed from here on is asked for.
    await invalidate(f, 0n, 0x10000n);
    requests!.iotlbMiss(0x5000, true);
    requests!.iotlbMiss(0x9000, true);
    await channel.next(5);
    assert.deepEqual(channel.misses.slice(2), [
      [0x9000, 2],
      [0x5000, 2],
      [0x9000, 2],
    ]);
    channel.peer.close();
  }));

test('what is wrong is answered by an ack, always', () =>
  withFixture(async (f) => {
    await f.peer.send(wire.VHOST_USER_IOTLB_MSG, message(2, 0n, 4096n, UVA_BASE));
    const reply = (await f.peer.reply())!;
    assert.notEqual(wire.U64Payload.decode(reply.payload).value, 0n);
    assert.equal(f.session.state.lastRefusal!.code, 'ERR_VRING_NOT_NEGOTIATED');
    await f.negotiate(PLATFORM);
    const ask = wire.VHOST_USER_IOTLB_MSG;
    const far = UVA_BASE + BigInt(REGION_BYTES);
    await f.refused('ERR_VRING_IOTLB', ask, message(2, 0n, 4096n, UVA_BASE), [], /not in shared/);
    await f.shareMemory();
    await f.refused('ERR_VRING_IOTLB', ask, message(2, 0n, 4096n, far), [], /iotlb.uaddr/);
    await f.refused('ERR_VRING_IOTLB', ask, message(2, 0n, 8192n, far - 4096n));
    await f.refused('ERR_VRING_MESSAGE_VALUE', ask, message(1, 0n, 4096n), [], /iotlb.type/);
    await f.refused('ERR_VRING_MESSAGE_VALUE', ask, message(4, 0n, 4096n));
    await f.refused('ERR_VRING_MESSAGE_VALUE', ask, message(2, 0n, 0n, UVA_BASE));
    await f.refused('ERR_VRING_MESSAGE_VALUE', ask, message(2, 2n ** 63n, 4096n, UVA_BASE));
    await invalidate(f, 2n ** 63n, 4096n);
    assert.equal(f.session.state.iotlb!.entries, 0);
  }));

test('a miss that nothing answers is said again, and then forgotten', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const sent: number[] = [];
  const control = new IotlbControl((iova) => sent.push(iova) > 0);
  const forgotten: number[] = [];
  control.onForgotten = (page) => void forgotten.push(page);
  control.miss(0x3000, 1);
  for (let i = 0; i < 20; i++) t.mock.timers.tick(1000);
  assert.equal(sent.length, IOTLB_MISS_TRIES);
  assert.equal(control.snapshot().missing, 0);
  assert.deepEqual(forgotten, [0x3000], 'who still waits is told to say so again');
  let retries = 0;
  control.onRetry = () => void retries++;
  control.miss(0x3000, 1);
  control.close();
  t.mock.timers.tick(5000);
  assert.equal(retries, 0, 'closed: no timer is left');
});

test('misses are bounded: the oldest makes room', () => {
  const sent: number[] = [];
  const control = new IotlbControl((iova) => sent.push(iova) > 0);
  for (let i = 0; i < MAX_IOTLB_MISSES + 10; i++) control.miss(i * 4096, 1);
  assert.equal(control.snapshot().missing, MAX_IOTLB_MISSES);
  assert.equal(sent.length, MAX_IOTLB_MISSES + 10);
  control.miss(0, 1); // forgotten, so it is said again
  assert.equal(sent.length, MAX_IOTLB_MISSES + 11);
  control.close();
});
