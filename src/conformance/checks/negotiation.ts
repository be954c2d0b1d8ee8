/** Features, protocol features, session begin and end. */
import * as wire from '../../wire/vhost-user.ts';
import { featureSet, hasFeature } from '../../wire/virtio.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import { state } from '../context.ts';
import { u64 } from '../peer.ts';

const F30 = wire.VHOST_USER_F_PROTOCOL_FEATURES;
const bit = (n: number): bigint => 1n << BigInt(n);
const KNOWN_BITS = BigInt(wire.PROTOCOL_FEATURE_NAMES.length);

export const negotiationChecks: readonly Check[] = [
  check(
    'BE-NEG-001',
    'Protocol features are told before SET_FEATURES',
    'A back-end that offers bit 30 answers GET_PROTOCOL_FEATURES although nothing was acked yet.',
    'Front-end message types, GET_PROTOCOL_FEATURES',
    { needs: { virtio: [F30] } },
    async (t) => {
      const peer = await t.connect();
      await peer.askU64(REQUEST.GET_PROTOCOL_FEATURES);
    },
  ),
  check(
    'BE-NEG-002',
    'Protocol features can be set before SET_FEATURES',
    'SET_PROTOCOL_FEATURES takes effect at once; bit 30 need not be acked for it.',
    'Front-end message types, SET_PROTOCOL_FEATURES',
    { needs: { virtio: [F30], protocol: [wire.VHOST_USER_PROTOCOL_F_REPLY_ACK] } },
    async (t) => {
      const peer = await t.connect();
      await peer.askProtocolFeatures();
      const acked = featureSet(wire.VHOST_USER_PROTOCOL_F_REPLY_ACK);
      await peer.send(REQUEST.SET_PROTOCOL_FEATURES, u64(acked));
      peer.ackedProtocol = acked;
      await peer.tell(REQUEST.SET_OWNER); // acked, because REPLY_ACK is in effect
    },
  ),
  check(
    'BE-NEG-003',
    'Protocol features survive a SET_FEATURES without bit 30',
    'Bit 30 need not be acknowledged: what SET_PROTOCOL_FEATURES negotiated stays in effect.',
    'Front-end message types, SET_PROTOCOL_FEATURES',
    { needs: { virtio: [F30], protocol: [wire.VHOST_USER_PROTOCOL_F_REPLY_ACK] } },
    async (t) => {
      const peer = await t.negotiated({ without30: true });
      await peer.tell(REQUEST.SET_OWNER);
    },
  ),
  check(
    'BE-NEG-004',
    'A feature that was not offered is refused',
    'SET_FEATURES acks some of the features that were offered, and no other.',
    'Communication: incompatible features may close the connection',
    { severity: 'should', level: 'full' },
    async (t) => {
      const peer = await t.negotiated();
      const extra = [63, 62, 61, 60, 45, 44].find((n) => !hasFeature(peer.offered, n)) ?? 63;
      const bits = peer.acked | bit(extra);
      await peer.mustRefuse(`SET_FEATURES with bit ${extra}`, REQUEST.SET_FEATURES, u64(bits));
    },
  ),
  check(
    'BE-NEG-005',
    'A protocol feature that was not offered is refused',
    'SET_PROTOCOL_FEATURES acks some of the protocol features that were offered, and no other.',
    'Front-end message types, SET_PROTOCOL_FEATURES',
    { severity: 'should', level: 'full', needs: { virtio: [F30] } },
    async (t) => {
      const peer = await t.negotiated();
      const bits = peer.ackedProtocol | bit(60);
      const what = 'SET_PROTOCOL_FEATURES with bit 60';
      await peer.mustRefuse(what, REQUEST.SET_PROTOCOL_FEATURES, u64(bits));
    },
  ),
  check(
    'BE-NEG-006',
    'Offered protocol features fit together',
    'INBAND_NOTIFICATIONS needs BACKEND_REQ and REPLY_ACK, GET_VRING_BASE_INFLIGHT needs ' +
      'INFLIGHT_SHMFD, BACKEND_SEND_FD and HOST_NOTIFIER need BACKEND_REQ. An offer of SHMEM by ' +
      'its draft bits (20 and 21) shows here, too.',
    'In-band notifications; Protocol features',
    { needs: { virtio: [F30] } },
    async (t) => {
      const peer = await t.connect();
      const offered = await peer.askProtocolFeatures();
      const requires: [number, number][] = [
        [wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS, wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ],
        [wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS, wire.VHOST_USER_PROTOCOL_F_REPLY_ACK],
        [
          wire.VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
          wire.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
        ],
        [wire.VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD, wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ],
        [wire.VHOST_USER_PROTOCOL_F_HOST_NOTIFIER, wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ],
        [wire.VHOST_USER_PROTOCOL_F_SHMEM, wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ],
      ];
      for (const [has, needs] of requires) {
        if (!hasFeature(offered, has) || hasFeature(offered, needs)) continue;
        const [a, b] = wire.protocolFeatureNames(bit(has) | bit(needs)).toReversed();
        const names = has > needs ? [a, b] : [b, a];
        t.fail(`${names[0]} is offered without ${names[1]}`);
      }
    },
  ),
  check(
    'BE-NEG-007',
    'No unknown protocol feature is offered',
    'Bits that no version of the specification gives a meaning are clear.',
    'Protocol features',
    { severity: 'may', needs: { virtio: [F30] } },
    async (t) => {
      const peer = await t.connect();
      const unknown = (await peer.askProtocolFeatures()) >> KNOWN_BITS;
      if (unknown !== 0n) t.fail(`bits above ${KNOWN_BITS - 1n}: 0x${unknown.toString(16)}`);
    },
  ),
  check(
    'BE-NEG-008',
    'The offer of features is stable',
    'GET_FEATURES answers the same before and after the negotiation.',
    'Front-end message types, GET_FEATURES',
    { severity: 'should' },
    async (t) => {
      const peer = await t.negotiated();
      const again = await peer.askU64(REQUEST.GET_FEATURES);
      if (again === peer.offered) return;
      t.fail(`first 0x${peer.offered.toString(16)}, then 0x${again.toString(16)}`);
    },
  ),
  check(
    'BE-NEG-009',
    'SET_FEATURES may come again',
    'The same features can be set again, also while rings are set up: front-ends send them once ' +
      'for every queue pair.',
    'Front-end message types, SET_FEATURES',
    {},
    async (t) => {
      const { peer } = await t.start();
      await peer.tell(REQUEST.SET_FEATURES, u64(peer.acked));
      await peer.barrier('SET_FEATURES again');
    },
  ),
  check(
    'BE-NEG-010',
    'SET_VRING_ENABLE may come before SET_FEATURES',
    'Rings can be disabled before features are set, as QEMU does.',
    'Ring states; Front-end message types, SET_VRING_ENABLE',
    { needs: { virtio: [F30] } },
    async (t) => {
      const peer = await t.connect();
      await peer.askProtocolFeatures();
      const ack = featureSet(wire.VHOST_USER_PROTOCOL_F_REPLY_ACK) & peer.offeredProtocol;
      await peer.send(REQUEST.SET_PROTOCOL_FEATURES, u64(ack));
      peer.ackedProtocol = ack;
      await peer.tell(REQUEST.SET_OWNER);
      await peer.tell(REQUEST.SET_VRING_ENABLE, state(0, 0));
      await peer.tell(REQUEST.SET_FEATURES, u64(peer.offered & featureSet(F30, 32)));
      await peer.barrier('SET_VRING_ENABLE before SET_FEATURES');
    },
  ),
  check(
    'BE-NEG-011',
    'RESET_OWNER keeps the connection and what was negotiated',
    'The deprecated RESET_OWNER is ignored or disables the rings; it forgets nothing.',
    'Front-end message types, RESET_OWNER',
    { severity: 'should', level: 'full' },
    async (t) => {
      const peer = await t.negotiated();
      await peer.send(REQUEST.RESET_OWNER);
      await peer.barrier('after RESET_OWNER');
      await peer.tell(REQUEST.SET_OWNER); // an ack is due if REPLY_ACK was negotiated
      await peer.barrier('after RESET_OWNER');
    },
  ),
  check(
    'BE-NEG-012',
    'A new connection begins without anything negotiated',
    'What a front-end negotiated ends with its connection: need_reply means nothing to the ' +
      'next session before REPLY_ACK is acked again.',
    'Front-end message types, SET_OWNER; REPLY_ACK',
    { severity: 'should', needs: { protocol: [wire.VHOST_USER_PROTOCOL_F_REPLY_ACK] } },
    async (t) => {
      const before = await t.negotiated({ noAck: true });
      await before.send(REQUEST.SET_OWNER, undefined, { flags: 9 });
      await before.send(REQUEST.GET_FEATURES);
      const answer = await before.receive();
      if (typeof answer !== 'string' && answer.request !== REQUEST.GET_FEATURES.id) {
        t.notApplicable('the back-end always answers need_reply (BE-ACK-002)');
      }
      before.close();
      const first = await t.negotiated();
      first.close();
      const second = await t.connect();
      await second.send(REQUEST.SET_OWNER, undefined, { flags: 9 });
      await second.barrier('need_reply in a new session');
    },
  ),
  check(
    'BE-NEG-013',
    'GET_QUEUE_NUM says how many queues there are',
    'With MQ negotiated the answer is at least one, and at most what an index of eight bits ' +
      'reaches.',
    'Multiple queue support',
    { needs: { protocol: [wire.VHOST_USER_PROTOCOL_F_MQ] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [wire.VHOST_USER_PROTOCOL_F_MQ] });
      const count = await peer.askU64(REQUEST.GET_QUEUE_NUM);
      if (count < 1n || count > 32768n) t.fail(`${count} queues`);
    },
  ),
  check(
    'BE-NEG-014',
    'In-band notifications without their channel end the connection',
    'INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK is an error that only closing the ' +
      'connection can tell.',
    'In-band notifications',
    { level: 'full', needs: { protocol: [wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS] } },
    async (t) => {
      const peer = await t.connect();
      await peer.askProtocolFeatures();
      const bits = bit(wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
      await peer.send(REQUEST.SET_PROTOCOL_FEATURES, u64(bits));
      await peer.send(REQUEST.GET_FEATURES);
      const got = await peer.receive();
      if (got !== 'closed' && got !== 'partial') t.fail('the connection goes on');
    },
  ),
];
