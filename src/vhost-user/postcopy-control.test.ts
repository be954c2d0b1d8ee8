import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { SharedRegion } from '../memory/index.ts';
import { arenaHostAddress, createMemfd, fdTarget } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { POSTCOPY_STALL_MS } from './limits.ts';
import { postcopyAvailable, PostcopyControl } from './postcopy-control.ts';
import { memTable, region, singleRegion, state } from './testing/conversation.ts';
import { u64 } from './testing/raw-peer.ts';
import { type SessionFixture, withFixture } from './testing/session-fixture.ts';

const skip = postcopyAvailable()
  ? false
  : 'no userfaultfd here: be root, or set sysctl vm.unprivileged_userfaultfd=1';

/** ADVISE and LISTEN; closes the userfaultfd that came. */
async function listen(f: SessionFixture): Promise<void> {
  await f.peer.send(wire.VHOST_USER_POSTCOPY_ADVISE);
  const reply = (await f.peer.receive())!;
  assert.equal(reply.payload.length, 0);
  assert.equal(reply.fds.length, 1);
  assert.equal(fdTarget(reply.fds[0]!.number), 'anon_inode:[userfaultfd]');
  reply.fds[0]!.close();
  assert.equal(f.session.state.postcopy, 'advised');
  await f.acked(wire.VHOST_USER_POSTCOPY_LISTEN);
}

const end = async (f: SessionFixture): Promise<bigint> =>
  wire.U64Payload.decode(await f.peer.ask(wire.VHOST_USER_POSTCOPY_END)).value;

test('SET_MEM_TABLE is told back, rings wait for the ack, END ends it', { skip }, () =>
  withFixture(async (f) => {
    await f.negotiate();
    await listen(f);
    const regions = [region(0), region(1)];
    const fds = f.fds.memory.slice(0, 2).map((fd) => fd.number);
    const told = await f.peer.ask(wire.VHOST_USER_SET_MEM_TABLE, memTable(regions), fds);
    assert.equal(told.length, 8 + 2 * 32);
    const mapped = f.target.table!.regions;
    for (const i of [0, 1]) {
      const back = wire.MemoryRegion.decode(told, 8 + 32 * i);
      const address = arenaHostAddress() + BigInt(mapped[i]!.offset);
      assert.deepEqual(back, { ...regions[i]!, userAddr: address });
    }
    await f.startRing(0);
    assert.equal(f.target.running.size, 0);
    assert.match(f.session.state.vrings[0]!.missing.join(), /page faults/);
    await f.peer.send(wire.VHOST_USER_SET_MEM_TABLE, u64(0)); // nobody asked for an answer
    await f.acked(wire.VHOST_USER_SET_STATUS, u64(1));
    assert.equal(f.target.running.size, 1);
    assert.equal(await end(f), 0n);
    assert.equal(f.session.state.postcopy, 'none');
    assert.equal(f.target.running.size, 1);
  }),
);

test('ADD_MEM_REG: each is told back, one ack for all', { skip }, () =>
  withFixture(async (f) => {
    await f.negotiate();
    await listen(f);
    for (const i of [0, 1]) {
      const fd = [f.fds.memory[i]!.number];
      const add = singleRegion(region(i));
      const told = await f.peer.ask(wire.VHOST_USER_ADD_MEM_REG, add, fd, 9);
      const back = wire.SingleMemoryRegion.decode(told);
      const { offset } = f.target.table!.regions[i]!;
      assert.equal(back.userAddr, arenaHostAddress() + BigInt(offset));
    }
    await f.startRing(0);
    assert.equal(f.target.running.size, 0);
    await f.acked(wire.VHOST_USER_ADD_MEM_REG, u64(0));
    assert.equal(f.target.running.size, 1);
  }),
);

test('the end of the session in the middle of it leaves nothing', { skip }, () =>
  withFixture(async (f) => {
    await f.negotiate();
    await listen(f);
    const fds = [f.fds.memory[0]!.number];
    await f.peer.ask(wire.VHOST_USER_SET_MEM_TABLE, memTable([region(0)]), fds);
  }),
);

test('END without the ack lets rings go as well', { skip }, () =>
  withFixture(async (f) => {
    await f.negotiate();
    await listen(f);
    const fds = [f.fds.memory[0]!.number];
    await f.peer.ask(wire.VHOST_USER_SET_MEM_TABLE, memTable([region(0)]), fds);
    await f.startRing(0);
    await end(f);
    assert.equal(f.target.running.size, 1);
  }),
);

test('a message that waits for a page which nobody brings ends the session', { skip }, (t) =>
  withFixture(async (f) => {
    await f.negotiate();
    await listen(f);
    const fds = [f.fds.memory[0]!.number];
    await f.peer.ask(wire.VHOST_USER_SET_MEM_TABLE, memTable([region(0)]), fds);
    await f.startRing(0);
    await f.acked(wire.VHOST_USER_SET_MEM_TABLE, u64(0));
    let wake = (): void => undefined;
    f.target.stopGate = new Promise((resolve) => (wake = resolve));
    t.mock.timers.enable({ apis: ['setTimeout'] });
    await f.peer.send(wire.VHOST_USER_GET_VRING_BASE, state(0, 0));
    for (let i = 0; i < 20; i++) await nextTurn();
    t.mock.timers.tick(POSTCOPY_STALL_MS);
    assert.equal(f.session.state.postcopy, 'none', 'who sleeps in a fault wakes');
    wake();
    assert.equal(((await f.session.closed) as { code?: string }).code, 'ERR_VRING_POSTCOPY');
  }),
);

test('so does a worker that sleeps between two messages', { skip }, (t) =>
  withFixture(async (f) => {
    await f.negotiate();
    t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
    await listen(f);
    const fds = [f.fds.memory[0]!.number];
    await f.peer.ask(wire.VHOST_USER_SET_MEM_TABLE, memTable([region(0)]), fds);
    await f.startRing(0);
    await f.acked(wire.VHOST_USER_SET_MEM_TABLE, u64(0));
    f.target.calls.length = 0;
    for (let n = 0; n < 4; n++) {
      t.mock.timers.tick(POSTCOPY_STALL_MS / 2);
      await nextTurn();
    }
    assert.deepEqual(f.target.calls, Array(4).fill('setVringErr 0 none'), 'it answers');
    let wake = (): void => undefined;
    f.target.setVringErr = () => new Promise((resolve) => (wake = resolve));
    t.mock.timers.tick(POSTCOPY_STALL_MS / 2); // asked
    await nextTurn();
    assert.equal(f.session.state.postcopy, 'listening');
    t.mock.timers.tick(POSTCOPY_STALL_MS);
    assert.equal(f.session.state.postcopy, 'none', 'who sleeps in a fault wakes');
    wake();
    assert.equal(((await f.session.closed) as { code?: string }).code, 'ERR_VRING_POSTCOPY');
  }),
);

test('zeros are an ack while postcopy listens, else an empty memory table', { skip }, () =>
  withFixture(async (f) => {
    await f.negotiate();
    const set = wire.VHOST_USER_SET_MEM_TABLE;
    await f.refused('ERR_VRING_MESSAGE_VALUE', set, u64(0), [], /0 regions/);
    await listen(f);
    await f.refused('ERR_VRING_MESSAGE_VALUE', set, u64(1n << 32n), [], /0 regions/);
    await f.acked(set, u64(0));
  }),
);

test('not before ADVISE, and nothing is handed over meanwhile', { skip }, () =>
  withFixture(async (f) => {
    await f.negotiate();
    const code = 'ERR_VRING_MESSAGE_STATE';
    await f.refused(code, wire.VHOST_USER_POSTCOPY_LISTEN, undefined, [], /postcopy-advised/);
    await listen(f);
    assert.throws(() => f.session.prepare(), { code: 'ERR_VRING_BUSY' });
    await assert.rejects(f.session.suspend(), { code: 'ERR_VRING_BUSY' });
    await f.acked(wire.VHOST_USER_SET_STATUS, u64(1));
    await end(f);
    await f.peer.send(wire.VHOST_USER_POSTCOPY_END);
    assert.match(`${await f.session.closed}`, /postcopy-advised/);
  }),
);

test('the end of one postcopy leaves addresses alone that are another session’s', { skip }, () => {
  using fd = createMemfd('memory', 2 ** 21);
  const size = { sizeBytes: 2n ** 21n, fdOffset: 0n };
  const map = (): SharedRegion =>
    SharedRegion.map(fd.number, { guestPhysAddr: 0n, userAddr: 0n, ...size });
  const control = (): PostcopyControl => {
    const made = new PostcopyControl();
    made.advise('VHOST_USER_POSTCOPY_ADVISE');
    made.listen();
    return made;
  };
  const [one, other, third] = [control(), control(), control()];
  const gone = map();
  one.register('test', gone, fd);
  gone.close(); // REM_MEM_REG
  using region = map();
  assert.equal(region.offset, gone.offset);
  other.register('test', region, fd);
  one.end();
  assert.throws(() => third.register('test', region, fd), /EBUSY/, 'it is still registered');
  other.end();
  third.register('test', region, fd);
  third.end();
});
