/** A session between a front-end that says anything and a target that records everything. */
import assert from 'node:assert/strict';
import { reservedRanges } from '../../memory/index.ts';
import { openFdCount, socketPair } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { BackendSession } from '../backend-session.ts';
import {
  ConversationFds,
  memTable,
  ORDINARY_PROTOCOL_FEATURES,
  region,
  ringAddr,
  state,
} from './conversation.ts';
import { FakeTarget } from './fake-target.ts';
import { RawPeer, u64 } from './raw-peer.ts';

export const NEED_REPLY = 9;
/** VIRTIO_F_VERSION_1 and bit 30. */
export const PLAIN_FEATURES = (1n << 32n) | (1n << 30n);

export class SessionFixture {
  readonly fds = new ConversationFds(12);
  readonly target: FakeTarget;
  readonly session: BackendSession;
  readonly peer: RawPeer;

  constructor(target: FakeTarget) {
    const [ours, theirs] = socketPair();
    this.target = target;
    this.session = new BackendSession(ours, target);
    this.peer = new RawPeer(theirs);
  }

  /** Asks, with need_reply where the message has no reply of its own. */
  async answer(request: number, payload?: Uint8Array, fds: number[] = []): Promise<bigint> {
    const reply = await this.peer.ask(request, payload, fds, NEED_REPLY);
    assert.equal(reply.length, 8, `request ${request} is answered by a u64`);
    return wire.U64Payload.decode(reply).value;
  }

  async acked(request: number, payload?: Uint8Array, fds: number[] = []): Promise<void> {
    const value = await this.answer(request, payload, fds);
    const why = this.session.state.lastRefusal?.message;
    assert.equal(value, 0n, `request ${request} is acked; last refusal: ${why}`);
  }

  async refused(
    code: string,
    request: number,
    payload?: Uint8Array,
    fds: number[] = [],
    text = /./,
  ): Promise<void> {
    assert.notEqual(await this.answer(request, payload, fds), 0n, `request ${request} is refused`);
    assert.equal(this.session.state.lastRefusal?.code, code);
    assert.match(this.session.state.lastRefusal!.message, text);
  }

  async negotiate(features = PLAIN_FEATURES, protocol = ORDINARY_PROTOCOL_FEATURES): Promise<void> {
    await this.acked(wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64(protocol));
    await this.acked(wire.VHOST_USER_SET_FEATURES, u64(features));
  }

  async shareMemory(count = 1): Promise<void> {
    const regions = Array.from({ length: count }, (_, i) => region(i));
    const numbers = this.fds.memory.slice(0, count).map((fd) => fd.number);
    await this.acked(wire.VHOST_USER_SET_MEM_TABLE, memTable(regions), numbers);
  }

  async startRing(index: number, addr: Partial<wire.VringAddr> = {}, size = 256): Promise<void> {
    await this.acked(wire.VHOST_USER_SET_VRING_NUM, state(index, size));
    await this.acked(wire.VHOST_USER_SET_VRING_BASE, state(index, 0));
    const all = wire.VringAddr.encode({ ...ringAddr(index), ...addr });
    await this.acked(wire.VHOST_USER_SET_VRING_ADDR, all);
    const kick = this.fds.events[0]!.number;
    await this.acked(wire.VHOST_USER_SET_VRING_KICK, u64(index), [kick]);
  }
}

/** Runs `body` and demands that no fd and no mapping is left. */
export async function withFixture(
  body: (fixture: SessionFixture) => Promise<void>,
  target = new FakeTarget(),
): Promise<void> {
  const before = openFdCount();
  const ranges = reservedRanges();
  const fixture = new SessionFixture(target);
  try {
    await body(fixture);
  } finally {
    fixture.peer.close();
    await fixture.session.resume().catch(() => undefined); // a suspended one does not see the end
    await fixture.session.closed;
    fixture.fds[Symbol.dispose]();
  }
  assert.equal(openFdCount(), before, 'every fd is closed again');
  assert.equal(reservedRanges(), ranges, 'every mapping is gone');
}
