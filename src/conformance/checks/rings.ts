/** Ring formats, positions, notifications and what SET_VRING_* must not accept. */
import * as wire from '../../wire/vhost-user.ts';
import {
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../wire/virtio.ts';
import { encodePackedBase } from '../../virtqueue/index.ts';
import { disableCalls } from '../../virtqueue/driver/index.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import { type CheckContext, type Session, state } from '../context.ts';
import { u64 } from '../peer.ts';

const PACKED = { traffic: true, virtio: [VIRTIO_F_RING_PACKED] } as const;
const EVENT = { traffic: true, virtio: [VIRTIO_RING_F_EVENT_IDX] } as const;

/** Calls that arrive within the time for "nothing happens". */
async function callsAfter(t: CheckContext, session: Session): Promise<number> {
  await t.sleep(t.patience.quietMs);
  const calls = session.ring.calls();
  t.saw(`ring ${session.ring.index}: ${calls} calls`);
  return calls;
}

/** A ring whose set-up is impossible must be refused, or at the least never be processed. */
async function impossible(
  t: CheckContext,
  what: string,
  change: (session: Session) => Promise<'accepted' | 'refused' | 'closed' | 'silent' | 'unknown'>,
): Promise<void> {
  const session = await t.start({ kick: 'never' });
  const outcome = await change(session);
  if (outcome === 'refused' || outcome === 'closed') return;
  // A ring's addresses only mean something with its size: some judge when the ring starts.
  const { peer, ring } = session;
  const kicked = await peer.attempt(REQUEST.SET_VRING_KICK, u64(ring.index), { fds: [ring.kick] });
  if (kicked === 'refused' || kicked === 'closed') return;
  ring.signal();
  await t.sleep(t.patience.quietMs);
  await peer.barrier(`after ${what}`);
  t.fail(`${what} is accepted, and so is the ring's start`);
}

export const ringChecks: readonly Check[] = [
  check(
    'BE-VQ-001',
    'A call follows completion',
    'When a request was completed and the driver did not ask for silence, the call fd is ' +
      'signalled.',
    'virtio 1.2, 2.7.7',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      session.ring.calls();
      await t.work(session);
      if ((await callsAfter(t, session)) === 0) t.fail('no call after a completed request');
    },
  ),
  check(
    'BE-VQ-002',
    'NO_INTERRUPT is heard',
    'Without EVENT_IDX a driver that sets VIRTQ_AVAIL_F_NO_INTERRUPT is not called.',
    'virtio 1.2, 2.7.7.2',
    { severity: 'should', needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.work(session);
      await t.sleep(20);
      session.ring.calls();
      disableCalls(session.ring.queue);
      await t.work(session);
      const calls = await callsAfter(t, session);
      if (calls > 0) t.fail(`${calls} calls although the driver asked for none`);
    },
  ),
  check(
    'BE-VQ-003',
    'Call fd may be absent',
    'SET_VRING_CALL with bit 8 says that the driver polls: the ring is processed all the same.',
    'Front-end message types, SET_VRING_CALL',
    { needs: { traffic: true } },
    async (t) => {
      await t.work(await t.start({ call: 'none' }), 2);
    },
  ),
  check(
    'BE-VQ-004',
    'A ring without any SET_VRING_CALL is processed',
    'A driver that never wants to be called need not say so.',
    'Front-end message types, SET_VRING_CALL',
    { severity: 'may', needs: { traffic: true } },
    async (t) => {
      await t.work(await t.start({ call: 'never' }));
    },
  ),
  check(
    'BE-VQ-005',
    'The call fd can be replaced while the ring runs',
    'SET_VRING_CALL on a running ring takes effect for the next call.',
    'Ring states: configuration may change on the fly',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start({ call: 'none' });
      await t.work(session);
      await t.notifiers(session.peer, session.ring, { kick: 'never' });
      await session.peer.barrier('SET_VRING_CALL');
      session.ring.calls();
      await t.work(session);
      if ((await callsAfter(t, session)) === 0) t.fail('no call through the new fd');
    },
  ),
  check(
    'BE-VQ-006',
    'A ring without kick fd is polled',
    'SET_VRING_KICK with bit 8 asks for polling: what is made available is found without a kick.',
    'Front-end message types, SET_VRING_KICK',
    { severity: 'should', needs: { traffic: true } },
    async (t) => {
      const session = await t.start({ kick: 'poll' });
      t.post(session);
      await t.completed(session, 1);
    },
  ),
  check(
    'BE-VQ-010',
    'The used index is read from the ring',
    'A ring that starts with a base and a used index in memory goes on from both; the used index ' +
      'is not guessed from the base.',
    'Ring states; virtio 1.2, 2.7.8',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start({ base: 7 });
      await t.work(session, 2);
      if (session.ring.usedIndex !== 9) t.fail(`used.idx is ${session.ring.usedIndex}, expected 9`);
      const base = await t.stop(session);
      if (base !== 9) t.fail(`base ${base}, expected 9`);
    },
  ),
  check(
    'BE-VQ-011',
    'The used index may lag behind the base',
    'Requests that a predecessor took and never completed leave a gap between used index and ' +
      'base. The next completion goes to the used index that is in memory; the old requests are ' +
      'completed again or left alone.',
    'Ring states; virtio 1.2, 2.7.8',
    { severity: 'should', needs: { traffic: true } },
    async (t) => {
      const peer = await t.negotiated();
      const rig = t.guest({ base: 5 });
      const ring = rig.ring(t.offer.profile.workRing);
      const session = { peer, rig, ring };
      t.post(session);
      t.post(session);
      await t.shareMemory(peer, rig);
      for (const each of rig.rings) {
        await t.setUpRing(peer, each, { base: each === ring ? 7 : 5 });
      }
      t.post(session);
      t.kick(ring);
      const used = await rig.collect(ring, 1, t.patience.answerMs);
      if (used.length === 0) t.fail('no request was completed');
      await t.sleep(t.patience.quietMs);
      const { usedIndex } = ring;
      if (usedIndex !== 6 && usedIndex !== 8) t.fail(`used.idx is ${usedIndex}, expected 6 or 8`);
      rig.reap(ring);
    },
  ),
  check(
    'BE-VQ-012',
    'Indices wrap at 65536',
    'A ring at index 65534 goes on through zero.',
    'virtio 1.2, 2.7.6 and 2.7.8',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start({ base: 65534 });
      await t.work(session, 5);
      if (session.ring.usedIndex !== 3) t.fail(`used.idx is ${session.ring.usedIndex}, expected 3`);
      const base = await t.stop(session);
      if (base !== 3) t.fail(`base ${base}, expected 3`);
    },
  ),
  check(
    'BE-VQ-013',
    'Many requests of one kick are all completed',
    'One kick stands for everything that is available.',
    'virtio 1.2, 2.7.13.4.1',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start({ size: 128 });
      await t.work(session, 30);
      await t.work(session, 30);
    },
  ),
  check(
    'BE-VQ-014',
    'A ring is used up and used again',
    'More requests than the ring has descriptors pass through it, one after the other.',
    'virtio 1.2, 2.7.13',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start({ size: 16 });
      for (let n = 0; n < 40; n++) await t.work(session);
    },
  ),
  check(
    'BE-VQ-020',
    'EVENT_IDX: the driver is called when used_event is reached',
    'With EVENT_IDX the call comes when the entry that used_event names was written, not before.',
    'virtio 1.2, 2.7.7.2',
    { needs: EVENT },
    async (t) => {
      const session = await t.start({ eventIdx: true });
      const { queue } = session.ring;
      const usedEvent = 2 + queue.size;
      Atomics.store(queue.avail, usedEvent, 0);
      await t.work(session); // the first answer of a device that was just started may be a call
      await t.sleep(20);
      session.ring.calls();
      Atomics.store(queue.avail, usedEvent, 3); // after the fourth completion
      await t.work(session);
      const early = await callsAfter(t, session);
      await t.work(session);
      await t.work(session);
      const due = await callsAfter(t, session);
      if (due === 0) t.fail('no call when the entry of used_event was written');
      if (early > 0) t.fail(`${early} calls before the entry of used_event was written`);
    },
  ),
  check(
    'BE-VQ-021',
    'EVENT_IDX is in force when features are acked',
    'A device that negotiated EVENT_IDX keeps avail_event up to date: the driver learns when to ' +
      'kick. (A ring that kicks only when asked makes progress.)',
    'virtio 1.2, 2.7.10',
    { needs: EVENT },
    async (t) => {
      const session = await t.start({ eventIdx: true });
      await t.work(session);
      await t.sleep(t.patience.quietMs);
      const { queue } = session.ring;
      const event = Atomics.load(queue.usedCells, 2 + 4 * queue.size);
      t.saw(`avail_event is ${event} after one request`);
      // Asleep, the device names the next entry; while it polls, any entry it has passed.
      t.post(session);
      if (((queue.nextAvail - event - 1) & 0xffff) < 1) t.kick(session.ring);
      await t.completed(session, 1);
    },
  ),
  check(
    'BE-VQ-022',
    'Indirect descriptors are followed',
    'With INDIRECT_DESC a request may lie in a table of its own.',
    'virtio 1.2, 2.7.5.3',
    {
      needs: {
        traffic: true,
        virtio: [VIRTIO_RING_F_INDIRECT_DESC],
        devices: ['blk', 'scsi', 'fs'],
      },
    },
    async (t) => {
      const session = await t.start({ indirect: true });
      await t.work(session, 1, true);
      await t.work(session, 3, true);
    },
  ),
  check(
    'BE-VQ-030',
    'Packed rings are processed',
    'With RING_PACKED negotiated the ring has the packed format.',
    'virtio 1.2, 2.8',
    { needs: PACKED },
    async (t) => {
      const session = await t.start({ packed: true });
      await t.work(session);
      await t.work(session, 2);
    },
  ),
  check(
    'BE-VQ-031',
    'The base of a packed ring has two positions and two wrap counters',
    'GET_VRING_BASE of a packed ring: bits 0-14 available index, 15 its wrap counter, 16-30 used ' +
      'index, 31 its wrap counter.',
    'Front-end message types, GET_VRING_BASE',
    { needs: PACKED },
    async (t) => {
      const session = await t.start({ packed: true, size: 16 });
      await t.work(session);
      const { nextAvail, availWrap, nextUsed, usedWrap } = session.ring.queue;
      const due = encodePackedBase(nextAvail, availWrap, nextUsed, usedWrap);
      const base = await t.stop(session);
      if (base !== due) t.fail(`base 0x${base.toString(16)}, expected 0x${due.toString(16)}`);
    },
  ),
  check(
    'BE-VQ-032',
    'Wrap counters of a packed ring turn over',
    'Requests beyond the end of the ring are processed, and the base has both wrap counters ' +
      'inverted then; the ring goes on from it.',
    'virtio 1.2, 2.8.1; GET_VRING_BASE',
    { needs: PACKED },
    async (t) => {
      const session = await t.start({ packed: true, size: 32 });
      for (let n = 0; session.ring.queue.availWrap === 1 && n < 32; n++) await t.work(session);
      const { nextAvail, availWrap, nextUsed, usedWrap } = session.ring.queue;
      const due = encodePackedBase(nextAvail, availWrap, nextUsed, usedWrap);
      const base = await t.stop(session);
      if (base !== due) t.fail(`base 0x${base.toString(16)}, expected 0x${due.toString(16)}`);
      await t.restart(session, new Map([[session.ring, base]]));
      await t.work(session);
    },
  ),
  check(
    'BE-VQ-033',
    'Packed rings of any size',
    'The size of a packed ring need not be a power of two.',
    'virtio 1.2, 2.8.10.1',
    { severity: 'should', level: 'full', needs: PACKED },
    async (t) => {
      const session = await t.start({ packed: true, size: 12 });
      for (let n = 0; n < 14; n++) await t.work(session);
    },
  ),
  check(
    'BE-VQ-040',
    'Rings above the first need no MQ',
    'Devices with a fixed number of rings use all of them without MQ being negotiated.',
    'Multiple queue support',
    { needs: { rings: 2 } },
    async (t) => {
      const { peer, rig } = await t.start();
      const addr = wire.VringAddr.encode(rig.ring(1).addr());
      await peer.tell(REQUEST.SET_VRING_ADDR, addr);
      await peer.barrier('SET_VRING_ADDR of ring 1 without MQ');
    },
  ),
  check(
    'BE-VQ-041',
    'A ring index that no device has is refused',
    'Messages for ring 250 name nothing.',
    'Multiple queue support',
    { severity: 'should', level: 'full' },
    async (t) => {
      const peer = await t.negotiated();
      await peer.mustRefuse('SET_VRING_BASE 250', REQUEST.SET_VRING_BASE, state(250, 0));
    },
  ),
  check(
    'BE-VQ-042',
    'A ring index beyond eight bits is refused',
    'The index of SET_VRING_NUM has 32 bits; 0x80000001 must not be taken for 1 or a ' +
      'negative number.',
    'Multiple queue support',
    { severity: 'should', level: 'full' },
    async (t) => {
      const peer = await t.negotiated();
      const payload = state(0x8000_0001, 16);
      await peer.mustRefuse('SET_VRING_NUM 0x80000001', REQUEST.SET_VRING_NUM, payload);
    },
  ),
  ...(
    [
      ['BE-VQ-050', 'zero', 0],
      ['BE-VQ-051', 'not a power of two', 17],
      ['BE-VQ-052', 'above 32768', 65536],
    ] as const
  ).map(([id, what, size]) =>
    check(
      id,
      `A split ring of a size that is ${what} is refused`,
      'The size of a split ring is a power of two, at most 32768.',
      'virtio 1.2, 2.7',
      { severity: 'should', level: 'full', needs: { traffic: true } },
      (t) =>
        impossible(t, `a size of ${size}`, ({ peer, ring }) =>
          peer.attempt(REQUEST.SET_VRING_NUM, state(ring.index, size)),
        ),
    ),
  ),
  ...(
    [
      ['BE-VQ-053', 'descriptor table that is not 16-byte aligned', { descUva: 8n }],
      ['BE-VQ-054', 'used ring that is not 4-byte aligned', { usedUva: 2n }],
      ['BE-VQ-055', 'descriptor table outside shared memory', { descUva: 0x4000_0000n }],
      ['BE-VQ-056', 'used ring that ends outside shared memory', { usedUva: 0x7f_f000n }],
    ] as const
  ).map(([id, what, change]) =>
    check(
      id,
      `A ${what} is refused`,
      'Ring areas are aligned and lie in memory that was shared.',
      'virtio 1.2, 2.7; Memory access',
      { severity: 'should', level: 'full', needs: { traffic: true } },
      (t) =>
        impossible(t, `a ${what}`, ({ peer, rig, ring }) => {
          const addr = ring.addr();
          const extra = Object.entries(change) as ['descUva' | 'usedUva', bigint][];
          for (const [field, by] of extra) {
            addr[field] = by < 64n ? addr[field] + by : BigInt(rig.memory.baseUva) + by;
          }
          if (id === 'BE-VQ-056') addr.usedUva = BigInt(rig.memory.baseUva) + 0x7f_fff0n;
          return peer.attempt(REQUEST.SET_VRING_ADDR, wire.VringAddr.encode(addr));
        }),
    ),
  ),
  check(
    'BE-VQ-057',
    'Reserved flags of SET_VRING_ADDR are refused',
    'Bit 0 is VHOST_VRING_F_LOG; no other flag has a meaning.',
    'A vring address description',
    { severity: 'may', level: 'full' },
    async (t) => {
      const { peer, ring } = await t.start({ kick: 'never' });
      const addr = wire.VringAddr.encode({ ...ring.addr(), flags: 0x80 });
      await peer.mustRefuse('SET_VRING_ADDR with flags 0x80', REQUEST.SET_VRING_ADDR, addr);
    },
  ),
  check(
    'BE-VQ-058',
    'Reserved bits of SET_VRING_CALL are refused',
    'Bits 0-7 are the ring and bit 8 says that there is no fd; the others are reserved.',
    'Front-end message types, SET_VRING_CALL',
    { severity: 'may', level: 'full' },
    async (t) => {
      const peer = await t.negotiated();
      const payload = u64(0x1_0000_0100n);
      await peer.mustRefuse('SET_VRING_CALL with bit 32', REQUEST.SET_VRING_CALL, payload);
    },
  ),
];
