/**
 * The protocol as one table: every message with its sender, payload, fds, reply, what it needs
 * and when it is legal. Pure: the back-end session, the front-end, the recorder, the fuzzer, the
 * conformance runner and docs/protocol.md all read it, and none of them knows a message by
 * itself. Sections are those of the specification, QEMU's docs/interop/vhost-user.rst.
 */
import * as parse from '../wire/vhost-user-parse.ts';
import type { PayloadRule } from '../wire/vhost-user-parse.ts';
import * as wire from '../wire/vhost-user.ts';
import * as rule from './state-rules.ts';
import type { StateRule } from './state-rules.ts';

const ACCESS_PLATFORM = 33; // VIRTIO_F_ACCESS_PLATFORM, once IOMMU_PLATFORM

/** How a message is answered. */
export type ReplyKind =
  | 'ack' //      only if need_reply is set and REPLY_ACK negotiated: u64, zero is success
  | 'payload' //  always, with a payload of its own; need_reply changes nothing
  | 'both'; //    always, but the payload is an ack (IOTLB_MSG)

/** Least and most fds. The payload may say more exactly, see `PayloadRule.fdCount`. */
export type FdRange = readonly [min: number, max: number];

export type MessageEntry<T = unknown, R = unknown> = {
  readonly id: number;
  /** As the specification spells it. */
  readonly name: string;
  readonly sender: 'front-end' | 'back-end';
  /** What it does, in a few words. */
  readonly does: string;
  readonly payload: PayloadRule<T>;
  readonly fds: FdRange;
  /** What the fds are; empty without any. */
  readonly fdsAre: string;
  readonly reply: ReplyKind;
  /** Of a reply of the message's own; null for acks. */
  readonly replyPayload: PayloadRule<R> | null;
  readonly replyFds: FdRange;
  /** Protocol feature bit that must be negotiated, or null. */
  readonly needs: number | null;
  /** Virtio feature bit that must be acked, or null. */
  readonly needsVirtio: number | null;
  /** All must hold when it arrives. */
  readonly legal: readonly StateRule<T>[];
  /** Sections of the specification that speak of it. */
  readonly sections: readonly string[];
};

type Options<T, R> = {
  fds?: FdRange;
  fdsAre?: string;
  /** Makes the reply kind `payload`. */
  answers?: PayloadRule<R>;
  replyFds?: FdRange;
  reply?: ReplyKind;
  needs?: number;
  needsVirtio?: number;
  legal?: readonly StateRule<NoInfer<T>>[];
  /** A section that neither its feature nor its rules name. */
  section?: string;
};

/** Where the specification explains what a protocol feature is for. */
const FEATURE_SECTIONS: ReadonlyMap<number, string> = new Map([
  [wire.VHOST_USER_PROTOCOL_F_MQ, 'Multiple queue support'],
  [wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD, 'Migration'],
  [wire.VHOST_USER_PROTOCOL_F_RARP, 'Migration'],
  [wire.VHOST_USER_PROTOCOL_F_PAGEFAULT, 'Migration'],
  [wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ, 'Back-end communication'],
  [wire.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD, 'Inflight I/O tracking'],
  [wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS, 'In-band notifications'],
  [wire.VHOST_USER_PROTOCOL_F_DEVICE_STATE, 'Migrating back-end state'],
]);

function sectionsOf<T, R>(sender: MessageEntry['sender'], options: Options<T, R>): string[] {
  const sections = [sender === 'front-end' ? 'Front-end message types' : 'Back-end message types'];
  const feature = FEATURE_SECTIONS.get(options.needs ?? -1);
  if (feature !== undefined) sections.push(feature);
  if (options.needsVirtio === ACCESS_PLATFORM) sections.push('IOMMU support');
  if (options.section !== undefined) sections.push(options.section);
  for (const { section } of options.legal ?? []) sections.push(section);
  return [...new Set(sections)];
}

function make<T, R>(
  sender: MessageEntry['sender'],
  id: number,
  name: string,
  does: string,
  payload: PayloadRule<T>,
  options: Options<T, R>,
): MessageEntry<T, R> {
  const { answers = null } = options;
  return {
    id,
    name: `VHOST_USER_${name}`,
    sender,
    does,
    payload,
    fds: options.fds ?? [0, 0],
    fdsAre: options.fdsAre ?? '',
    reply: options.reply ?? (answers === null ? 'ack' : 'payload'),
    replyPayload: answers,
    replyFds: options.replyFds ?? [0, 0],
    needs: options.needs ?? null,
    needsVirtio: options.needsVirtio ?? null,
    legal: options.legal ?? [],
    sections: sectionsOf(sender, options),
  };
}

/** A request of the front-end. */
function request<T, R = never>(
  id: number,
  name: string,
  does: string,
  payload: PayloadRule<T>,
  options: Options<T, R> = {},
): MessageEntry<T, R> {
  return make('front-end', id, name, does, payload, options);
}

/** A request of the back-end, over the backend channel. */
function event<T, R = never>(
  id: number,
  name: string,
  does: string,
  payload: PayloadRule<T>,
  options: Options<T, R> = {},
): MessageEntry<T, R> {
  return make('back-end', id, `BACKEND_${name}`, does, payload, options);
}

const nothing = parse.noPayload;
const u64 = parse.u64Payload;
const state = parse.vringStatePayload;
const one: FdRange = [1, 1];
const perhaps: FdRange = [0, 1];
const EVENT = 'an eventfd, unless bit 8 is set';

const MQ = wire.VHOST_USER_PROTOCOL_F_MQ;
const LOG_SHMFD = wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD;
const BACKEND_REQ = wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ;
const CONFIG = wire.VHOST_USER_PROTOCOL_F_CONFIG;
const CRYPTO = wire.VHOST_USER_PROTOCOL_F_CRYPTO_SESSION;
const PAGEFAULT = wire.VHOST_USER_PROTOCOL_F_PAGEFAULT;
const INFLIGHT = wire.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD;
const INBAND = wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS;
const SLOTS = wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;
const STATUS = wire.VHOST_USER_PROTOCOL_F_STATUS;
const OBJECT = wire.VHOST_USER_PROTOCOL_F_SHARED_OBJECT;
const DEVICE_STATE = wire.VHOST_USER_PROTOCOL_F_DEVICE_STATE;
const SHMEM = wire.VHOST_USER_PROTOCOL_F_SHMEM;

/** Front-end → back-end. Bit 30 is always offered, so GET/SET_PROTOCOL_FEATURES need nothing. */
export const REQUEST = {
  GET_FEATURES: request(1, 'GET_FEATURES', 'which virtio features are offered', nothing, {
    answers: u64,
  }),
  SET_FEATURES: request(2, 'SET_FEATURES', 'acks virtio features', u64),
  SET_OWNER: request(3, 'SET_OWNER', 'begins the session', nothing),
  RESET_OWNER: request(4, 'RESET_OWNER', 'deprecated; disables all vrings', nothing),
  SET_MEM_TABLE: request(5, 'SET_MEM_TABLE', 'shares guest memory', parse.memoryTablePayload, {
    fds: [0, wire.VHOST_MEMORY_BASELINE_NREGIONS],
    fdsAre: 'one for each region',
    section: 'Memory access',
  }),
  SET_LOG_BASE: request(6, 'SET_LOG_BASE', 'shares the log of dirty pages', parse.logPayload, {
    fds: one,
    fdsAre: 'the log',
    answers: nothing,
    needs: LOG_SHMFD,
  }),
  SET_LOG_FD: request(7, 'SET_LOG_FD', 'told when the log changed', parse.paddedFdPayload, {
    fds: one,
    fdsAre: 'an eventfd',
    section: 'Migration',
  }),
  SET_VRING_NUM: request(8, 'SET_VRING_NUM', 'size of a vring', parse.vringNumPayload, {
    legal: [rule.sizeWhileStopped],
  }),
  SET_VRING_ADDR: request(9, 'SET_VRING_ADDR', 'where a vring lies', parse.vringAddrPayload),
  SET_VRING_BASE: request(10, 'SET_VRING_BASE', 'where a vring begins', state, {
    legal: [rule.baseWhileStopped],
  }),
  GET_VRING_BASE: request(11, 'GET_VRING_BASE', 'stops a vring', state, {
    answers: state,
    section: 'Ring states',
  }),
  SET_VRING_KICK: request(12, 'SET_VRING_KICK', 'driver → device', parse.vringFdPayload, {
    fds: perhaps,
    fdsAre: EVENT,
    section: 'Ring states',
  }),
  SET_VRING_CALL: request(13, 'SET_VRING_CALL', 'device → driver', parse.vringFdPayload, {
    fds: perhaps,
    fdsAre: EVENT,
  }),
  SET_VRING_ERR: request(14, 'SET_VRING_ERR', 'told of faults', parse.vringFdPayload, {
    fds: perhaps,
    fdsAre: EVENT,
  }),
  GET_PROTOCOL_FEATURES: request(
    15,
    'GET_PROTOCOL_FEATURES',
    'which protocol features are offered',
    nothing,
    { answers: u64 },
  ),
  SET_PROTOCOL_FEATURES: request(16, 'SET_PROTOCOL_FEATURES', 'acks protocol features', u64, {
    legal: [rule.inbandNeedsChannel, rule.baseInflightNeedsRegion],
  }),
  GET_QUEUE_NUM: request(17, 'GET_QUEUE_NUM', 'how many queues there are', nothing, {
    answers: u64,
    needs: MQ,
  }),
  SET_VRING_ENABLE: request(
    18,
    'SET_VRING_ENABLE',
    'enables or disables a vring',
    parse.vringEnablePayload,
    { section: 'Ring states' },
  ),
  SEND_RARP: request(19, 'SEND_RARP', 'announces a guest that moved', parse.macPayload, {
    needs: wire.VHOST_USER_PROTOCOL_F_RARP,
  }),
  NET_SET_MTU: request(20, 'NET_SET_MTU', 'lowers the MTU', parse.mtuPayload, {
    needs: wire.VHOST_USER_PROTOCOL_F_MTU,
  }),
  SET_BACKEND_REQ_FD: request(
    21,
    'SET_BACKEND_REQ_FD',
    'opens the backend channel',
    parse.paddedFdPayload,
    { fds: one, fdsAre: 'a stream socket', needs: BACKEND_REQ },
  ),
  IOTLB_MSG: request(22, 'IOTLB_MSG', 'updates or invalidates the IOTLB', parse.iotlbPayload, {
    reply: 'both',
    needsVirtio: ACCESS_PLATFORM,
  }),
  SET_VRING_ENDIAN: request(
    23,
    'SET_VRING_ENDIAN',
    'byte order of a legacy vring',
    parse.vringEndianPayload,
    { needs: wire.VHOST_USER_PROTOCOL_F_CROSS_ENDIAN, legal: [rule.endianWhileStopped] },
  ),
  GET_CONFIG: request(24, 'GET_CONFIG', 'reads configuration space', parse.configPayload, {
    answers: parse.configPayload,
    needs: CONFIG,
  }),
  SET_CONFIG: request(25, 'SET_CONFIG', 'writes configuration space', parse.configPayload, {
    needs: CONFIG,
  }),
  CREATE_CRYPTO_SESSION: request(
    26,
    'CREATE_CRYPTO_SESSION',
    'opens a session of a crypto device',
    parse.cryptoSessionPayload,
    { answers: parse.cryptoSessionPayload, needs: CRYPTO },
  ),
  CLOSE_CRYPTO_SESSION: request(27, 'CLOSE_CRYPTO_SESSION', 'closes it', u64, { needs: CRYPTO }),
  POSTCOPY_ADVISE: request(28, 'POSTCOPY_ADVISE', 'postcopy may follow', nothing, {
    answers: parse.paddedFdPayload,
    replyFds: one,
    needs: PAGEFAULT,
  }),
  POSTCOPY_LISTEN: request(29, 'POSTCOPY_LISTEN', 'postcopy begins', nothing, {
    needs: PAGEFAULT,
    legal: [rule.postcopyAdvised],
  }),
  POSTCOPY_END: request(30, 'POSTCOPY_END', 'postcopy is over', nothing, {
    answers: u64,
    needs: PAGEFAULT,
    legal: [rule.postcopyAdvised],
  }),
  GET_INFLIGHT_FD: request(
    31,
    'GET_INFLIGHT_FD',
    'makes an inflight region',
    parse.inflightPayload,
    {
      answers: parse.inflightPayload,
      replyFds: one,
      needs: INFLIGHT,
    },
  ),
  SET_INFLIGHT_FD: request(32, 'SET_INFLIGHT_FD', 'hands it back', parse.inflightPayload, {
    fds: one,
    fdsAre: 'the inflight region',
    needs: INFLIGHT,
    legal: [rule.allVringsStopped],
  }),
  GPU_SET_SOCKET: request(33, 'GPU_SET_SOCKET', 'socket of vhost-user-gpu', parse.paddedFdPayload, {
    fds: one,
    fdsAre: 'a stream socket',
  }),
  RESET_DEVICE: request(34, 'RESET_DEVICE', 'disables all vrings, forgets the driver', nothing, {
    needs: wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  }),
  VRING_KICK: request(35, 'VRING_KICK', 'a kick without eventfd', parse.vringSignalPayload, {
    needs: INBAND,
    section: 'Ring states',
  }),
  GET_MAX_MEM_SLOTS: request(36, 'GET_MAX_MEM_SLOTS', 'how many regions fit', nothing, {
    answers: u64,
    needs: SLOTS,
    section: 'Memory access',
  }),
  ADD_MEM_REG: request(37, 'ADD_MEM_REG', 'shares one region', parse.memoryRegionPayload, {
    fds: one,
    fdsAre: 'the region',
    needs: SLOTS,
    section: 'Memory access',
  }),
  // One stray fd is tolerated and closed: QEMU sent it for years, the specification allows it.
  REM_MEM_REG: request(38, 'REM_MEM_REG', 'takes it back', parse.memoryRegionPayload, {
    fds: perhaps,
    fdsAre: 'a mistake, closed unused',
    needs: SLOTS,
    section: 'Memory access',
  }),
  SET_STATUS: request(39, 'SET_STATUS', 'virtio device status', parse.statusPayload, {
    needs: STATUS,
  }),
  GET_STATUS: request(40, 'GET_STATUS', 'the same', nothing, { answers: u64, needs: STATUS }),
  GET_SHARED_OBJECT: request(41, 'GET_SHARED_OBJECT', 'looks an object up', parse.uuidPayload, {
    answers: parse.paddedFdPayload,
    replyFds: perhaps,
    needs: OBJECT,
  }),
  SET_DEVICE_STATE_FD: request(
    42,
    'SET_DEVICE_STATE_FD',
    'begins to save or load device state',
    parse.deviceStatePayload,
    {
      fds: one,
      fdsAre: 'one end of a pipe',
      answers: u64,
      replyFds: perhaps,
      needs: DEVICE_STATE,
      legal: [rule.allVringsStopped],
    },
  ),
  CHECK_DEVICE_STATE: request(43, 'CHECK_DEVICE_STATE', 'did that work', nothing, {
    answers: u64,
    needs: DEVICE_STATE,
    legal: [rule.stateTransferBegun],
  }),
  GET_SHMEM_CONFIG: request(44, 'GET_SHMEM_CONFIG', 'shared memory regions', nothing, {
    answers: parse.shmemConfigPayload,
    needs: SHMEM,
  }),
} as const;

/** Back-end → front-end, over the backend channel. */
export const EVENT_MESSAGE = {
  IOTLB_MSG: event(1, 'IOTLB_MSG', 'IOTLB miss or access failure', parse.iotlbPayload, {
    needs: BACKEND_REQ,
    needsVirtio: ACCESS_PLATFORM,
  }),
  CONFIG_CHANGE_MSG: event(2, 'CONFIG_CHANGE_MSG', 'configuration space changed', nothing, {
    needs: CONFIG,
  }),
  VRING_HOST_NOTIFIER_MSG: event(
    3,
    'VRING_HOST_NOTIFIER_MSG',
    'maps a doorbell into the guest',
    parse.vringAreaPayload,
    {
      fds: perhaps,
      fdsAre: 'the doorbell, unless bit 8 is set',
      needs: wire.VHOST_USER_PROTOCOL_F_HOST_NOTIFIER,
    },
  ),
  VRING_CALL: event(4, 'VRING_CALL', 'a call without eventfd', parse.vringSignalPayload, {
    needs: INBAND,
  }),
  VRING_ERR: event(5, 'VRING_ERR', 'a fault without eventfd', parse.vringSignalPayload, {
    needs: INBAND,
  }),
  SHARED_OBJECT_ADD: event(6, 'SHARED_OBJECT_ADD', 'offers an object', parse.uuidPayload, {
    needs: OBJECT,
  }),
  SHARED_OBJECT_REMOVE: event(7, 'SHARED_OBJECT_REMOVE', 'takes it back', parse.uuidPayload, {
    needs: OBJECT,
  }),
  SHARED_OBJECT_LOOKUP: event(8, 'SHARED_OBJECT_LOOKUP', 'asks for one', parse.uuidPayload, {
    answers: u64,
    replyFds: perhaps,
    needs: OBJECT,
  }),
  SHMEM_MAP: event(9, 'SHMEM_MAP', 'maps an fd into a shared memory region', parse.shmemPayload, {
    fds: one,
    fdsAre: 'what is mapped',
    needs: SHMEM,
  }),
  SHMEM_UNMAP: event(10, 'SHMEM_UNMAP', 'unmaps it', parse.shmemPayload, { needs: SHMEM }),
} as const;

type Entries = Readonly<Record<string, MessageEntry<never, never>>>;

function byId(entries: Entries): ReadonlyMap<number, MessageEntry> {
  return new Map(Object.values(entries).map((each) => [each.id, each as unknown as MessageEntry]));
}

export const FRONT_END_MESSAGES = byId(REQUEST as unknown as Entries);
export const BACK_END_MESSAGES = byId(EVENT_MESSAGE as unknown as Entries);

/** Name of a front-end request; `VHOST_USER_<id>` if there is none of that id. */
export function requestName(id: number): string {
  return FRONT_END_MESSAGES.get(id)?.name ?? `VHOST_USER_${id}`;
}

/** Name of a request of the back-end; `VHOST_USER_BACKEND_<id>` if there is none of that id. */
export function backEndRequestName(id: number): string {
  return BACK_END_MESSAGES.get(id)?.name ?? `VHOST_USER_BACKEND_${id}`;
}
