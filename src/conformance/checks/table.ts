/**
 * Checks that the message table itself gives: for every request that it is answered as the table
 * says, and refused when its feature, its payload or its fds are not as they must be.
 */
import { createEventfd } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { PROTOCOL_FEATURE_NAMES } from '../../wire/vhost-user.ts';
import { featureSet, hasFeature } from '../../wire/virtio.ts';
import { FRONT_END_MESSAGES, type MessageEntry, REQUEST } from '../../vhost-user/index.ts';
import { parsePayload } from '../../wire/vhost-user-parse.ts';
import { type Check, check, type Needs } from '../check.ts';
import type { CheckContext } from '../context.ts';
import { type BackendPeer, u64 } from '../peer.ts';
import { closeAll } from '../raw-socket.ts';
import { COMES_AFTER, hasSample, type Sample, sampleOf } from './samples.ts';

const ACK = wire.VHOST_USER_PROTOCOL_F_REPLY_ACK;
const ASK = wire.VHOST_USER_VERSION | wire.VHOST_USER_NEED_REPLY_MASK;

const shortName = (entry: MessageEntry): string => entry.name.replace('VHOST_USER_', '');

/** Requests whose effect a derived check must not cause, or that have checks of their own. */
const OWN_CHECKS: ReadonlySet<number> = new Set([
  REQUEST.SET_PROTOCOL_FEATURES.id,
  REQUEST.SET_VRING_ADDR.id,
  REQUEST.GPU_SET_SOCKET.id,
  REQUEST.CREATE_CRYPTO_SESSION.id,
  REQUEST.CLOSE_CRYPTO_SESSION.id,
]);

/** What a device may decline although the message is correct: any ack is right, or an end. */
const MAY_DECLINE: ReadonlySet<number> = new Set([
  REQUEST.SET_CONFIG.id,
  REQUEST.NET_SET_MTU.id,
  REQUEST.SEND_RARP.id,
  REQUEST.SET_INFLIGHT_FD.id,
]);

/** Whose reply or preparation needs a conversation, not a single message. */
const CONVERSATION: ReadonlySet<number> = new Set([
  REQUEST.POSTCOPY_LISTEN.id,
  REQUEST.POSTCOPY_END.id,
  REQUEST.IOTLB_MSG.id,
  REQUEST.CHECK_DEVICE_STATE.id,
]);

const entries = [...FRONT_END_MESSAGES.values()].filter(
  (entry) => hasSample(entry.id) && !OWN_CHECKS.has(entry.id),
);

function needsOf(entry: MessageEntry, ...more: number[]): Needs {
  const protocol = [...(entry.needs === null ? [] : [entry.needs]), ...more];
  const virtio = entry.needsVirtio === null ? [] : [entry.needsVirtio];
  if (entry.needs !== null || entry.id === REQUEST.GET_PROTOCOL_FEATURES.id) {
    virtio.push(wire.VHOST_USER_F_PROTOCOL_FEATURES);
  }
  return { protocol, virtio };
}

/** A session in which a sample of `entry` is correct, and the sample. */
async function ready(
  t: CheckContext,
  entry: MessageEntry,
): Promise<{ peer: BackendPeer; sample: Sample }> {
  const protocol = entry.needs === null ? [] : [entry.needs];
  if (entry.needs === wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) {
    protocol.push(wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ);
  }
  const virtio = entry.needsVirtio === null ? [] : [entry.needsVirtio];
  const peer = await t.negotiated({ protocol, virtio });
  const before = FRONT_END_MESSAGES.get(COMES_AFTER[entry.id] ?? 0);
  if (before !== undefined) {
    const { payload, fds } = sampleOf(before.id, t) as Sample;
    if (before.reply === 'ack') await peer.tell(before, payload, { fds });
    else await peer.ask(before, payload, { fds });
  }
  return { peer, sample: sampleOf(entry.id, t) as Sample };
}

function ackCheck(entry: MessageEntry): Check {
  const name = shortName(entry);
  return check(
    `BE-ACK-${name}`,
    `${name} with need_reply is acked`,
    'With REPLY_ACK negotiated, need_reply on a message without a reply of its own is answered ' +
      'by one u64: zero for success, anything else for failure.',
    'REPLY_ACK',
    { needs: needsOf(entry, ACK) },
    async (t) => {
      const { peer, sample } = await ready(t, entry);
      const { payload, fds } = sample;
      const value = await peer.askU64(entry, payload, { fds, flags: ASK });
      if (value !== 0n && !MAY_DECLINE.has(entry.id)) {
        t.fail(`${name} is correct and was refused with ${value}`);
      }
      if (!MAY_DECLINE.has(entry.id)) await peer.barrier(`after ${name}`);
    },
  );
}

function replyCheck(entry: MessageEntry): Check {
  const name = shortName(entry);
  const shape = entry.replyPayload?.shape ?? 'nothing';
  return check(
    `BE-REPLY-${name}`,
    `${name} is answered as specified`,
    `The reply has the request's id, version 1 and the reply flag, and carries: ${shape}.`,
    'Header; Communication',
    { needs: needsOf(entry) },
    async (t) => {
      const { peer, sample } = await ready(t, entry);
      await peer.send(entry, sample.payload, { fds: sample.fds });
      const reply = await peer.reply(entry);
      closeAll(reply.fds);
      const [least, most] = entry.replyFds;
      if (reply.fds.length < least || reply.fds.length > most) {
        t.fail(`${reply.fds.length} fds came with the reply, expected ${least} to ${most}`);
      }
      checkReplyPayload(t, entry, reply.payload);
      await peer.barrier(`after ${name}`);
    },
  );
}

function checkReplyPayload(t: CheckContext, entry: MessageEntry, payload: Uint8Array): void {
  // QEMU and libvhost-user answer SET_LOG_BASE with a u64; nobody reads it.
  if (entry.id === REQUEST.SET_LOG_BASE.id && payload.length <= 8) return;
  if (entry.replyPayload === null) return;
  try {
    parsePayload(entry.replyPayload, shortName(entry), payload);
  } catch (error) {
    t.fail(`the reply is not what it must be: ${(error as Error).message}`);
  }
}

function noEffectCheck(entry: MessageEntry): Check {
  const name = shortName(entry);
  return check(
    `BE-ONEREPLY-${name}`,
    `${name} with need_reply has one reply only`,
    'need_reply changes nothing for a message that has a reply of its own: that reply comes, and ' +
      'no ack besides it.',
    'REPLY_ACK',
    { needs: needsOf(entry, ACK) },
    async (t) => {
      const { peer, sample } = await ready(t, entry);
      await peer.send(entry, sample.payload, { fds: sample.fds, flags: ASK });
      closeAll((await peer.reply(entry)).fds);
      await peer.barrier(`after ${name} with need_reply`);
    },
  );
}

function gateCheck(entry: MessageEntry): Check {
  const name = shortName(entry);
  const feature = PROTOCOL_FEATURE_NAMES[entry.needs as number];
  return check(
    `BE-GATE-${name}`,
    `${name} needs ${feature}`,
    `${name} is part of ${feature}; where that was not negotiated the message is refused or the ` +
      'connection ends, and it has no effect. (The specification obliges the front-end; a ' +
      'back-end that goes along hides the mistake.)',
    'Communication: every extension is gated by a protocol feature bit',
    { severity: 'may', level: 'full', needs: { virtio: [wire.VHOST_USER_F_PROTOCOL_FEATURES] } },
    async (t) => {
      const peer = await t.negotiated();
      const sample = sampleOf(entry.id, t) as Sample;
      await peer.mustRefuse(`${name} without ${feature}`, entry, sample.payload, {
        fds: sample.fds,
      });
    },
  );
}

/** Payload sizes that no version of this message has. */
function sizeCheck(entry: MessageEntry, which: 'short' | 'long'): Check | null {
  const name = shortName(entry);
  const { minBytes, maxBytes } = entry.payload;
  if (which === 'short' && minBytes === 0) return null;
  return check(
    `BE-SIZE-${name}-${which.toUpperCase()}`,
    `${name} with a payload too ${which} is refused`,
    which === 'short'
      ? 'A payload that ends before its last field is not completed with whatever is in memory.'
      : 'Bytes behind the payload belong to no field: the sender means something else.',
    'Message Specification',
    {
      severity: which === 'short' ? 'should' : 'may',
      level: 'full',
      needs: needsOf(entry),
    },
    async (t) => {
      const { peer, sample } = await ready(t, entry);
      const { payload, fds } = sample;
      const bytes =
        which === 'short'
          ? payload.subarray(0, Math.min(payload.length, minBytes) - 1)
          : Buffer.concat([payload, new Uint8Array(maxBytes + 8 - payload.length)]);
      const what = `${name} with ${bytes.length} bytes of payload`;
      await peer.mustRefuse(what, entry, bytes, { fds });
    },
  );
}

function fdsCheck(entry: MessageEntry, which: 'missing' | 'extra'): Check | null {
  const name = shortName(entry);
  const [least, most] = entry.fds;
  if (which === 'missing' && least === 0 && entry.payload.fdCount === undefined) return null;
  const extra = which === 'extra';
  return check(
    `BE-FDS-${name}-${which.toUpperCase()}`,
    extra ? `${name} with a surplus fd is refused` : `${name} without its fd is refused`,
    extra
      ? 'An fd that the message has no use for is closed, and its sender is told: back-ends ' +
          'that keep such fds run out of them.'
      : 'A message that lives from its fd is worth nothing without it.',
    'Communication: messages with file descriptors in the ancillary data',
    { severity: 'should', level: 'full', needs: needsOf(entry) },
    async (t) => {
      const { peer, sample } = await ready(t, entry);
      const fds = extra
        ? [...sample.fds, ...surplus(t, most + 1 - sample.fds.length)]
        : sample.fds.slice(1);
      const what = `${name} with ${fds.length} fds`;
      await peer.mustRefuse(what, entry, sample.payload, { fds });
    },
  );
}

function surplus(t: CheckContext, count: number): ReturnType<typeof createEventfd>[] {
  return Array.from({ length: Math.max(count, 1) }, () => t.own(createEventfd('surplus')));
}

const present = (made: Check | null): made is Check => made !== null;
const single = entries.filter((entry) => !CONVERSATION.has(entry.id));

export const tableChecks: readonly Check[] = [
  ...single.filter((entry) => entry.reply === 'ack').map(ackCheck),
  ...single.filter((entry) => entry.reply === 'payload').map(replyCheck),
  ...single.filter((entry) => entry.reply === 'payload').map(noEffectCheck),
  ...entries.filter((entry) => entry.needs !== null).map(gateCheck),
  ...single.map((entry) => sizeCheck(entry, 'short')).filter(present),
  ...single.map((entry) => sizeCheck(entry, 'long')).filter(present),
  ...single.map((entry) => fdsCheck(entry, 'missing')).filter(present),
  ...single.map((entry) => fdsCheck(entry, 'extra')).filter(present),
  check(
    'BE-ACK-001',
    'Without need_reply there is no ack',
    'A message without a reply of its own is answered only if need_reply is set.',
    'REPLY_ACK',
    { needs: { protocol: [ACK] } },
    async (t) => {
      const peer = await t.negotiated();
      await peer.send(REQUEST.SET_OWNER);
      await peer.barrier('SET_OWNER without need_reply');
    },
  ),
  check(
    'BE-ACK-002',
    'need_reply means nothing before REPLY_ACK is negotiated',
    'A back-end answers need_reply only where REPLY_ACK was acked.',
    'REPLY_ACK',
    { severity: 'should' },
    async (t) => {
      const peer = await t.negotiated({ noAck: true });
      await peer.send(REQUEST.SET_OWNER, undefined, { flags: ASK });
      await peer.barrier('need_reply without REPLY_ACK');
    },
  ),
  check(
    'BE-ACK-003',
    'An unknown request is refused',
    'A request of a number without meaning is refused or ends the connection.',
    'Message Specification',
    { severity: 'should', level: 'full', needs: { protocol: [ACK] } },
    async (t) => {
      const peer = await t.negotiated();
      const unknown = { id: 4000, name: 'VHOST_USER_4000', reply: 'ack' };
      await peer.mustRefuse('request 4000', unknown, u64(0));
    },
  ),
  check(
    'BE-ACK-004',
    'Replies come in the order of their requests',
    'Requests that are sent without waiting are answered one by one, in order.',
    'Communication',
    { severity: 'should', needs: { virtio: [wire.VHOST_USER_F_PROTOCOL_FEATURES] } },
    async (t) => {
      const peer = await t.connect();
      const order = [
        REQUEST.GET_PROTOCOL_FEATURES,
        REQUEST.GET_FEATURES,
        REQUEST.GET_PROTOCOL_FEATURES,
      ];
      for (const entry of order) await peer.send(entry);
      for (const entry of order) closeAll((await peer.reply(entry)).fds);
    },
  ),
  check(
    'BE-ACK-005',
    'A refused message leaves the session usable, or ends it',
    'After a non-zero ack the next correct message is handled as always; the only other answer ' +
      'to a mistake is an end of the connection.',
    'REPLY_ACK',
    { severity: 'should', level: 'full', needs: { protocol: [ACK] } },
    async (t) => {
      const peer = await t.negotiated();
      const outcome = await peer.attempt(REQUEST.SET_VRING_NUM, u64(0xffff_ffffn));
      if (outcome === 'closed') return;
      const features = await peer.askU64(REQUEST.GET_FEATURES);
      if (features !== peer.offered) t.fail('GET_FEATURES answers something else afterwards');
      if (!hasFeature(features & featureSet(32), 32)) t.note('VERSION_1 is not offered');
    },
  ),
];
