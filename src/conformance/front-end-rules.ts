/** What a front-end must do, as sentences; front-end-watch.ts is where they are held against it. */
import { STATE_RULES } from '../vhost-user/index.ts';
import type { Check, Severity } from './check.ts';

/** A check without steps of its own: it is judged while the front-end acts. */
export type FrontEndRule = Omit<Check, 'run' | 'level' | 'needs'> & {
  /** What the front-end did not do, where the rule had no occasion. */
  readonly occasion: string;
};

function rule(
  id: string,
  title: string,
  text: string,
  section: string,
  occasion: string,
  severity: Severity = 'must',
): FrontEndRule {
  return { id, title, rule: text, section, severity, occasion };
}

const HEADER = 'Header';
const NEGOTIATION = 'Front-end message types; Communication';
const RINGS = 'Ring states';
const MEMORY = 'Memory regions description';

export const FRONT_END_RULES: readonly FrontEndRule[] = [
  rule(
    'FE-FRAME-001',
    'Headers have version 1 and no reserved flag',
    'Flags are the version, 1, and need_reply; the reply flag belongs to replies.',
    HEADER,
    'it sent nothing',
  ),
  rule(
    'FE-FRAME-002',
    'need_reply needs REPLY_ACK',
    'need_reply is set only after REPLY_ACK was negotiated.',
    'REPLY_ACK',
    'it never set need_reply',
  ),
  rule(
    'FE-FRAME-003',
    'Every request has a meaning',
    'Request numbers are those of the specification.',
    'Front-end message types',
    'it sent nothing',
  ),
  rule(
    'FE-MSG-001',
    'Payloads have their size and no reserved bit',
    'The payload of each message is what the specification says, field by field.',
    'Message Specification',
    'it sent nothing',
  ),
  rule(
    'FE-MSG-002',
    'Fds come with the messages that have a use for them',
    'As many fds as the message has a use for; none where bit 8 says that there is none.',
    'Communication',
    'it sent nothing',
  ),
  rule(
    'FE-MSG-003',
    'Messages of an extension come after its negotiation',
    'A message that belongs to a protocol feature (or a virtio feature) is sent only if that was ' +
      'negotiated.',
    'Communication',
    'it sent no message of an extension',
  ),
  rule(
    'FE-NEG-001',
    'Only offered features are acked',
    'SET_FEATURES holds a subset of what GET_FEATURES answered.',
    NEGOTIATION,
    'it never sent SET_FEATURES',
  ),
  rule(
    'FE-NEG-002',
    'Only offered protocol features are acked',
    'SET_PROTOCOL_FEATURES holds a subset of what GET_PROTOCOL_FEATURES answered.',
    NEGOTIATION,
    'it never sent SET_PROTOCOL_FEATURES',
  ),
  rule(
    'FE-NEG-003',
    'Features are asked for before they are acked',
    'GET_FEATURES comes before SET_FEATURES, GET_PROTOCOL_FEATURES before SET_PROTOCOL_FEATURES.',
    NEGOTIATION,
    'it acked nothing',
  ),
  rule(
    'FE-NEG-004',
    'The session begins with SET_OWNER',
    'SET_OWNER marks the front-end as owner before it sets up memory and rings.',
    'Front-end message types, SET_OWNER',
    'it set up nothing',
    'should',
  ),
  rule(
    'FE-NEG-005',
    'Features are acked before rings start',
    'SET_FEATURES comes before the first ring is kicked: the format depends on it.',
    NEGOTIATION,
    'no ring was kicked',
  ),
  rule(
    'FE-NEG-006',
    'Rings are enabled only with bit 30',
    'SET_VRING_ENABLE is for sessions that negotiated VHOST_USER_F_PROTOCOL_FEATURES.',
    'Front-end message types, SET_VRING_ENABLE',
    'it never sent SET_VRING_ENABLE',
    'should',
  ),
  rule(
    'FE-MEM-001',
    'Regions do not overlap',
    'A guest address, and a user address, belongs to one region; a region is added once.',
    MEMORY,
    'it shared no memory',
  ),
  rule(
    'FE-MEM-002',
    'Regions lie inside their files',
    'Offset plus size of a region is not beyond the end of the file that its fd opens.',
    MEMORY,
    'it shared no memory',
  ),
  rule(
    'FE-MEM-003',
    'REM_MEM_REG comes without fd, for a region that is there',
    'A region is removed by its guest address, user address and size; no fd is sent.',
    'Front-end message types, REM_MEM_REG',
    'it removed no region',
    'should',
  ),
  rule(
    'FE-RING-001',
    'Ring indices are those of the device',
    'No message names a ring beyond the number of queues that the back-end told.',
    'Multiple queue support',
    'it set up no ring',
  ),
  rule(
    'FE-RING-002',
    'Ring sizes are possible',
    'The size of a split ring is a power of two, at most 32768.',
    'virtio 1.2, 2.7',
    'no ring was kicked',
  ),
  rule(
    'FE-RING-003',
    'Ring areas are aligned and lie in shared memory',
    'Descriptor table, available and used ring are aligned, and inside the memory table when the ' +
      'ring is kicked.',
    'virtio 1.2, 2.7; Memory access',
    'no ring was kicked',
  ),
  rule(
    'FE-RING-004',
    'A ring is complete before it is kicked',
    'Size, base, addresses and memory are sent before the first kick.',
    RINGS,
    'no ring was kicked',
  ),
  rule(
    'FE-RING-005',
    'Kick, call and err are things to be signalled',
    'The fds of SET_VRING_KICK, CALL and ERR are eventfds or pipes.',
    'Front-end message types, SET_VRING_KICK',
    'it sent no such fd',
  ),
  rule(
    'FE-RING-006',
    'The driver keeps its rings in order',
    'What the driver makes available is inside the ring and inside memory.',
    'virtio 1.2, 2.7 and 2.8',
    'nothing became available',
  ),
  rule(
    'FE-RING-007',
    'Rings are stopped before the end',
    'A front-end that ends in order stops every started ring by GET_VRING_BASE.',
    RINGS,
    'its session did not end in order',
    'should',
  ),
  rule(
    'FE-RING-008',
    'A ring goes on where it was stopped',
    'SET_VRING_BASE after GET_VRING_BASE has the base that was answered, or that of a new ring.',
    RINGS,
    'no ring was stopped and set up again',
  ),
  rule(
    'FE-RING-009',
    'Rings of a session are enabled',
    'With bit 30 acked, a ring that is kicked is enabled by SET_VRING_ENABLE sooner or later.',
    RINGS,
    'no ring was kicked',
    'should',
  ),
  rule(
    'FE-CHAN-001',
    'Who acks BACKEND_REQ opens the channel',
    'SET_BACKEND_REQ_FD follows the negotiation of BACKEND_REQ.',
    'Back-end communication',
    'it did not ack BACKEND_REQ',
    'should',
  ),
  rule(
    'FE-CHAN-002',
    'Requests of the back-end are answered',
    'CONFIG_CHANGE_MSG with need_reply is acked with zero.',
    'Back-end message types; REPLY_ACK',
    'there was no channel, or CONFIG was not acked',
  ),
  rule(
    'FE-CONFIG-001',
    'Configuration is asked for within its 256 bytes',
    'GET_CONFIG and SET_CONFIG stay inside the largest configuration space.',
    'Virtio device config space',
    'it did not ask for configuration',
  ),
  rule(
    'FE-INFLIGHT-001',
    'The inflight region is handed back as it was made',
    'SET_INFLIGHT_FD describes what GET_INFLIGHT_FD answered.',
    'Inflight I/O tracking',
    'it did not use an inflight region',
  ),
  rule(
    'FE-LOG-001',
    'VHOST_VRING_F_LOG needs LOG_ALL',
    'Rings are logged only after LOG_ALL was acked.',
    'Migration',
    'it did not log',
    'should',
  ),
  rule(
    'FE-NACK-001',
    'A refused message is heard',
    'A front-end whose memory was refused does not go on as if it had been taken: ' +
      'it kicks no ring.',
    'REPLY_ACK',
    'it sends memory without need_reply, or was not asked (--spawn)',
    'should',
  ),
  rule(
    'FE-END-001',
    'It comes back',
    'After the back-end has gone, the front-end connects again (or accepts a new connection).',
    'Communication: an optional reconnection mechanism',
    'it was not left alone (--spawn)',
    'may',
  ),
  rule(
    'FE-END-002',
    'A new connection begins anew',
    'The first messages of a new connection negotiate; nothing of the old one is relied on.',
    'Front-end message types, SET_OWNER',
    'it did not come back',
  ),
  ...STATE_RULES.map(({ id, says, section }) =>
    rule(`FE-STATE-${id.toUpperCase()}`, says, `${says}.`, section, 'it sent no such message'),
  ),
];
