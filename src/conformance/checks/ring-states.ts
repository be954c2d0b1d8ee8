/** Started and stopped, enabled and disabled: when a ring is processed, and when it is not. */
import { createEventfd, signalEventfd } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import { type CheckContext, type Session, state } from '../context.ts';
import { u64 } from '../peer.ts';

const F30 = wire.VHOST_USER_F_PROTOCOL_FEATURES;
const STATES = 'Ring states';

const enable = (session: Session, on: boolean, ring = session.ring): Promise<void> =>
  session.peer.tell(REQUEST.SET_VRING_ENABLE, state(ring.index, on ? 1 : 0));

/** A disabled ring of this device, with a request in it and a kick. */
async function expectDisabled(t: CheckContext, session: Session): Promise<void> {
  t.post(session);
  t.kick(session.ring);
  if (t.offer.profile.disabled === 'waits') await t.idle(session, 'its ring is disabled');
  else await t.completed(session, 1);
}

export const ringStateChecks: readonly Check[] = [
  check(
    'BE-RING-001',
    'A kicked ring is processed',
    'A ring that is set up, enabled and kicked has its requests completed.',
    STATES,
    { needs: { traffic: true } },
    async (t) => {
      await t.work(await t.start());
    },
  ),
  check(
    'BE-RING-002',
    'SET_VRING_KICK does not start a ring',
    'A ring is started by the first kick. One that was empty when it was set up and enabled, and ' +
      'that nobody kicked, is stopped: what is made available in it is not processed.',
    STATES,
    { severity: 'should', needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.sleep(20);
      t.post(session);
      await t.idle(session, 'nobody kicked its ring');
    },
  ),
  check(
    'BE-RING-003',
    'A kick before the ring is enabled is not lost',
    'Enabling a started ring is enough for what has become available in it meanwhile.',
    STATES,
    { needs: { traffic: true, virtio: [F30], devices: ['blk', 'scsi', 'fs'] } },
    async (t) => {
      const session = await t.start({ enable: false });
      t.post(session);
      t.kick(session.ring);
      await t.sleep(t.patience.quietMs);
      await enable(session, true);
      await t.completed(session, 1);
    },
  ),
  check(
    'BE-RING-004',
    'A kick fd that is signalled already starts the ring',
    'Detecting that the kick fd is readable is the kick, also when it was signalled before it ' +
      'was sent.',
    STATES,
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start({ kick: 'never' });
      t.post(session);
      t.kick(session.ring);
      await t.notifiers(session.peer, session.ring, { call: 'fd' });
      for (const ring of session.rig.rings) {
        if (ring !== session.ring) await t.notifiers(session.peer, ring);
      }
      await t.completed(session, 1);
    },
  ),
  check(
    'BE-RING-005',
    'A new kick fd is taken while the ring runs',
    'SET_VRING_KICK replaces the fd of a running ring: kicks on the new one are seen.',
    `${STATES}: configuration may change on the fly`,
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.work(session);
      const fresh = t.own(createEventfd('second kick'));
      const payload = u64(session.ring.index);
      await session.peer.tell(REQUEST.SET_VRING_KICK, payload, { fds: [fresh] });
      await session.peer.barrier('SET_VRING_KICK again');
      t.post(session);
      t.saw('kicked through the new fd');
      signalEventfd(fresh.number);
      await t.completed(session, 1);
    },
  ),
  check(
    'BE-RING-006',
    'A kick that was lost before the session is made up for',
    'A ring that already holds requests when it is set up (its back-end was restarted, the ' +
      'driver has kicked long ago) is processed although no kick comes.',
    'Inflight I/O tracking; QEMU before 11.1 does not kick again after a reconnect',
    { severity: 'may', needs: { traffic: true } },
    async (t) => {
      const peer = await t.negotiated();
      const rig = t.guest({ base: 7 });
      const session = { peer, rig, ring: rig.ring(t.offer.profile.workRing) };
      t.post(session);
      await t.shareMemory(peer, rig);
      for (const ring of rig.rings) await t.setUpRing(peer, ring);
      await t.completed(session, 1);
    },
  ),
  check(
    'BE-RING-007',
    'Without bit 30 rings are enabled from the start',
    'If SET_FEATURES did not ack bit 30 the rings need no SET_VRING_ENABLE.',
    STATES,
    { needs: { traffic: true } },
    async (t) => {
      await t.work(await t.start({ without30: true }));
    },
  ),
  check(
    'BE-RING-008',
    'With bit 30 rings are disabled until SET_VRING_ENABLE',
    'A started ring that was not enabled has no side effects: a block or file system device does ' +
      'nothing, a network device discards what is transmitted, completing it.',
    STATES,
    { needs: { traffic: true, virtio: [F30] } },
    async (t) => {
      await expectDisabled(t, await t.start({ enable: false }));
    },
  ),
  check(
    'BE-RING-009',
    'A ring that is disabled while it runs stops having effects',
    'SET_VRING_ENABLE 0 takes a running ring into the disabled state, and 1 back again, without ' +
      'a new kick.',
    STATES,
    { needs: { traffic: true, virtio: [F30] } },
    async (t) => {
      const session = await t.start();
      await t.work(session);
      await enable(session, false);
      await session.peer.barrier('SET_VRING_ENABLE 0');
      await expectDisabled(t, session);
      await enable(session, true);
      if (t.offer.profile.disabled === 'waits') await t.completed(session, 1);
      await t.work(session);
    },
  ),
  check(
    'BE-RING-010',
    'SET_FEATURES never disables a ring',
    'Setting the features again leaves enabled rings enabled.',
    STATES,
    { needs: { traffic: true, virtio: [F30] } },
    async (t) => {
      const session = await t.start();
      await t.work(session);
      await session.peer.tell(REQUEST.SET_FEATURES, u64(session.peer.acked));
      await session.peer.barrier('SET_FEATURES again');
      await t.work(session);
    },
  ),
  check(
    'BE-RING-011',
    'SET_VRING_KICK leaves the enabled state alone',
    'A ring that was not enabled stays disabled when its kick fd is set again.',
    STATES,
    { needs: { traffic: true, virtio: [F30], devices: ['blk', 'scsi', 'fs'] } },
    async (t) => {
      const session = await t.start({ enable: false });
      await t.notifiers(session.peer, session.ring);
      await expectDisabled(t, session);
    },
  ),
  check(
    'BE-RING-012',
    'GET_VRING_BASE stops the ring',
    'After the reply nothing of the ring is processed, kicked or not.',
    `${STATES}; Front-end message types, GET_VRING_BASE`,
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.work(session);
      await t.stop(session);
      t.post(session);
      t.kick(session.ring);
      await t.idle(session, 'its ring was stopped by GET_VRING_BASE');
    },
  ),
  check(
    'BE-RING-013',
    'GET_VRING_BASE says where the ring was left',
    'The reply is the index of the next available entry that the device would take: the number ' +
      'of requests, from a ring that began at zero.',
    'Front-end message types, GET_VRING_BASE',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.work(session, 3);
      const base = await t.stop(session);
      if (base !== 3) t.fail(`base ${base} after three completed requests, expected 3`);
    },
  ),
  check(
    'BE-RING-014',
    'A stopped device goes on where it was',
    'Rings that are all stopped, set up again with the bases of GET_VRING_BASE and kicked go on; ' +
      'the used index goes on, too.',
    STATES,
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.work(session, 2);
      await t.restart(session);
      await t.work(session, 2);
      if (session.ring.usedIndex !== 4) t.fail(`used.idx is ${session.ring.usedIndex}, expected 4`);
    },
  ),
  check(
    'BE-RING-020',
    'GET_VRING_BASE leaves the rest of the ring as it was',
    'Size, addresses, features and the enabled state outlive GET_VRING_BASE: SET_VRING_BASE and ' +
      'new fds are enough to go on.',
    STATES,
    { severity: 'should', needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.work(session, 2);
      const base = await t.stop(session);
      const { ring, peer } = session;
      await peer.tell(REQUEST.SET_VRING_BASE, state(ring.index, base));
      await t.notifiers(peer, ring);
      await t.work(session, 2);
    },
  ),
  check(
    'BE-RING-015',
    'A ring is set up anew within a session',
    'After GET_VRING_BASE on all rings, other addresses, sizes and memory can be set, as when a ' +
      'guest reboots, and the ring begins at zero.',
    STATES,
    { severity: 'should', needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.work(session);
      for (const ring of session.rig.rings) await t.stop(session, ring);
      const { peer } = session;
      const rig = t.guest({ size: 32 });
      await t.shareMemory(peer, rig);
      for (const ring of rig.rings) await t.setUpRing(peer, ring);
      await t.work({ peer, rig, ring: rig.ring(t.offer.profile.workRing) }, 2);
    },
  ),
  check(
    'BE-RING-016',
    'The base of a ring that never ran is the one that was set',
    'GET_VRING_BASE of a ring that was not started answers what SET_VRING_BASE said.',
    'Front-end message types, GET_VRING_BASE',
    { severity: 'should' },
    async (t) => {
      const peer = await t.negotiated();
      const index = t.offer.profile.workRing;
      await peer.tell(REQUEST.SET_VRING_NUM, state(index, 16));
      await peer.tell(REQUEST.SET_VRING_BASE, state(index, 5));
      const answer = await peer.ask(REQUEST.GET_VRING_BASE, state(index, 0));
      if (answer.length !== 8) t.fail(`a reply of ${answer.length} bytes, expected 8`);
      const { num } = wire.VringState.decode(answer);
      if (num !== 5) t.fail(`base ${num}, expected 5`);
    },
  ),
  check(
    'BE-RING-017',
    'GET_VRING_BASE waits for what is in flight',
    'Requests that were taken are completed before the reply (GET_VRING_BASE_INFLIGHT is not ' +
      'negotiated): the base and the used index agree.',
    'Suspended device state',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start({ size: 64 });
      for (let n = 0; n < 16; n++) t.post(session);
      t.kick(session.ring);
      const base = await t.stop(session);
      const used = session.ring.usedIndex;
      if (base !== used) t.fail(`base ${base}, but used.idx ${used}: ${base - used} requests lost`);
      await t.sleep(t.patience.quietMs);
      if (session.ring.usedIndex !== used) t.fail('the used index moved after the reply');
    },
  ),
  check(
    'BE-RING-018',
    'A suspended device does not touch guest memory',
    'Once all rings are stopped, guest memory stays as it is and nobody is notified.',
    'Suspended device state',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.work(session, 2);
      for (const ring of session.rig.rings) await t.stop(session, ring);
      for (const ring of session.rig.rings) ring.calls();
      t.post(session);
      const { rig } = session;
      const before = Buffer.from(rig.read(rig.memory.baseGpa, rig.memory.sizeBytes));
      for (const ring of rig.rings) t.kick(ring);
      await t.sleep(t.patience.quietMs);
      if (!before.equals(rig.read(rig.memory.baseGpa, rig.memory.sizeBytes))) {
        t.fail('guest memory changed after all rings were stopped');
      }
      const calls = rig.rings.reduce((sum, ring) => sum + ring.calls(), 0);
      if (calls > 0) t.fail(`${calls} calls after all rings were stopped`);
    },
  ),
  check(
    'BE-RING-019',
    'Rings stay stopped for the next session',
    'Nothing of a session is left when its connection ends: a new one sets up its own rings and ' +
      'memory, and the old ones are not touched any more.',
    STATES,
    { needs: { traffic: true } },
    async (t) => {
      const old = await t.start();
      await t.work(old);
      old.peer.close();
      const session = await t.start();
      await t.work(session, 2);
      t.post(old);
      t.kick(old.ring);
      await t.idle(old, 'its session is over');
    },
  ),
];
