/**
 * Every message of the protocol, one entry each: what it looks like, who answers it how, what it
 * needs. The session dispatches by these tables and knows no message by itself.
 *
 * An entry without a handler is laid out, not implemented: the features that gate it are never
 * offered, and a front-end that sends it anyway is refused by name.
 */
import * as parse from '../wire/vhost-user-parse.ts';
import type { PayloadRule } from '../wire/vhost-user-parse.ts';
import * as wire from '../wire/vhost-user.ts';
import * as handle from './backend-handlers.ts';
import type { Handler } from './backend-handlers.ts';

/** How a message is answered. */
export type ReplyKind =
  | 'ack' //      only if need_reply is set and REPLY_ACK negotiated: u64, zero is success
  | 'payload' //  always, with a payload of its own; need_reply changes nothing
  | 'both'; //    always, but the payload is an ack (IOTLB_MSG)

export type MessageEntry<T = unknown> = {
  readonly id: number;
  /** As the specification spells it. */
  readonly name: string;
  readonly payload: PayloadRule<T>;
  /** Fewest and most fds. The payload may say more exactly, see `PayloadRule.fdCount`. */
  readonly fds: readonly [min: number, max: number];
  readonly reply: ReplyKind;
  /** Protocol feature bit that must be negotiated, or null. */
  readonly needs: number | null;
  readonly handler: Handler<T> | null;
};

type Options<T> = {
  fds?: readonly [number, number];
  reply?: ReplyKind;
  needs?: number;
  handler?: Handler<T>;
};

function entry<T>(
  id: number,
  name: string,
  payload: PayloadRule<T>,
  options: Options<T> = {},
): MessageEntry {
  const { fds = [0, 0], reply = 'ack', needs = null, handler = null } = options;
  return { id, name: `VHOST_USER_${name}`, payload, fds, reply, needs, handler } as MessageEntry;
}

const nothing = parse.noPayload;
const u64 = parse.u64Payload;
const state = parse.vringStatePayload;
const inflight = parse.opaquePayload('inflight description', 20, 24);
const uuid = parse.opaquePayload('UUID', wire.SharedObject.size);

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

/** Front-end → back-end. Bit 30 is always offered, so GET/SET_PROTOCOL_FEATURES need nothing. */
const frontEndMessages: readonly MessageEntry[] = [
  entry(1, 'GET_FEATURES', nothing, { reply: 'payload', handler: handle.getFeatures }),
  entry(2, 'SET_FEATURES', u64, { handler: handle.setFeatures }),
  entry(3, 'SET_OWNER', nothing, { handler: handle.setOwner }),
  entry(4, 'RESET_OWNER', nothing, { handler: handle.resetOwner }),
  entry(5, 'SET_MEM_TABLE', parse.memoryTablePayload, {
    fds: [0, wire.VHOST_MEMORY_BASELINE_NREGIONS],
    handler: handle.setMemTable,
  }),
  entry(6, 'SET_LOG_BASE', parse.opaquePayload('log description', 8, wire.LogDescription.size), {
    fds: [0, 1],
    reply: 'payload',
    needs: LOG_SHMFD,
  }),
  entry(7, 'SET_LOG_FD', parse.opaquePayload('nothing', 0, 8), { fds: [1, 1] }),
  entry(8, 'SET_VRING_NUM', parse.vringNumPayload, { handler: handle.setVringNum }),
  entry(9, 'SET_VRING_ADDR', parse.vringAddrPayload, { handler: handle.setVringAddr }),
  entry(10, 'SET_VRING_BASE', state, { handler: handle.setVringBase }),
  entry(11, 'GET_VRING_BASE', state, { reply: 'payload', handler: handle.getVringBase }),
  entry(12, 'SET_VRING_KICK', parse.vringFdPayload, {
    fds: [0, 1],
    handler: handle.setVringKick,
  }),
  entry(13, 'SET_VRING_CALL', parse.vringFdPayload, {
    fds: [0, 1],
    handler: handle.setVringCall,
  }),
  entry(14, 'SET_VRING_ERR', parse.vringFdPayload, { fds: [0, 1], handler: handle.setVringErr }),
  entry(15, 'GET_PROTOCOL_FEATURES', nothing, {
    reply: 'payload',
    handler: handle.getProtocolFeatures,
  }),
  entry(16, 'SET_PROTOCOL_FEATURES', u64, { handler: handle.setProtocolFeatures }),
  entry(17, 'GET_QUEUE_NUM', nothing, {
    reply: 'payload',
    needs: MQ,
    handler: handle.getQueueNum,
  }),
  entry(18, 'SET_VRING_ENABLE', parse.vringEnablePayload, { handler: handle.setVringEnable }),
  entry(19, 'SEND_RARP', u64, { needs: wire.VHOST_USER_PROTOCOL_F_RARP }),
  entry(20, 'NET_SET_MTU', parse.mtuPayload, {
    needs: wire.VHOST_USER_PROTOCOL_F_MTU,
    handler: handle.netSetMtu,
  }),
  entry(21, 'SET_BACKEND_REQ_FD', parse.opaquePayload('nothing', 0, 8), {
    fds: [1, 1],
    needs: BACKEND_REQ,
  }),
  entry(22, 'IOTLB_MSG', parse.opaquePayload('struct vhost_iotlb_msg', wire.IotlbMessage.size), {
    reply: 'both',
    needs: BACKEND_REQ,
  }),
  entry(23, 'SET_VRING_ENDIAN', state, { needs: wire.VHOST_USER_PROTOCOL_F_CROSS_ENDIAN }),
  entry(24, 'GET_CONFIG', parse.configPayload, {
    reply: 'payload',
    needs: CONFIG,
    handler: handle.getConfig,
  }),
  entry(25, 'SET_CONFIG', parse.configPayload, { needs: CONFIG, handler: handle.setConfig }),
  entry(26, 'CREATE_CRYPTO_SESSION', parse.opaquePayload('session parameters', 8, 2048), {
    reply: 'payload',
    needs: CRYPTO,
  }),
  entry(27, 'CLOSE_CRYPTO_SESSION', u64, { needs: CRYPTO }),
  entry(28, 'POSTCOPY_ADVISE', nothing, { reply: 'payload', needs: PAGEFAULT }),
  entry(29, 'POSTCOPY_LISTEN', nothing, { needs: PAGEFAULT }),
  entry(30, 'POSTCOPY_END', nothing, { reply: 'payload', needs: PAGEFAULT }),
  entry(31, 'GET_INFLIGHT_FD', inflight, { reply: 'payload', needs: INFLIGHT }),
  entry(32, 'SET_INFLIGHT_FD', inflight, { fds: [1, 1], needs: INFLIGHT }),
  entry(33, 'GPU_SET_SOCKET', nothing, { fds: [1, 1] }),
  entry(34, 'RESET_DEVICE', nothing, { needs: wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE }),
  entry(35, 'VRING_KICK', state, { needs: INBAND }),
  entry(36, 'GET_MAX_MEM_SLOTS', nothing, {
    reply: 'payload',
    needs: SLOTS,
    handler: handle.getMaxMemSlots,
  }),
  entry(37, 'ADD_MEM_REG', parse.memoryRegionPayload, {
    fds: [1, 1],
    needs: SLOTS,
    handler: handle.addMemReg,
  }),
  // One stray fd is tolerated and closed: QEMU sent it for years, the specification allows it.
  entry(38, 'REM_MEM_REG', parse.memoryRegionPayload, {
    fds: [0, 1],
    needs: SLOTS,
    handler: handle.remMemReg,
  }),
  entry(39, 'SET_STATUS', parse.statusPayload, { needs: STATUS, handler: handle.setStatus }),
  entry(40, 'GET_STATUS', nothing, {
    reply: 'payload',
    needs: STATUS,
    handler: handle.getStatus,
  }),
  entry(41, 'GET_SHARED_OBJECT', uuid, { reply: 'payload', needs: OBJECT }),
  entry(42, 'SET_DEVICE_STATE_FD', parse.opaquePayload('direction, phase', 8), {
    fds: [1, 1],
    reply: 'payload',
    needs: DEVICE_STATE,
  }),
  entry(43, 'CHECK_DEVICE_STATE', nothing, { reply: 'payload', needs: DEVICE_STATE }),
  entry(44, 'GET_SHMEM_CONFIG', nothing, {
    reply: 'payload',
    needs: wire.VHOST_USER_PROTOCOL_F_SHMEM,
  }),
];

const shmemMap = parse.opaquePayload('VhostUserMMap', wire.ShmemMap.size);

/** Back-end → front-end, over the backend channel (BACKEND_REQ), which is not offered yet. */
const backEndMessages: readonly MessageEntry[] = [
  entry(1, 'BACKEND_IOTLB_MSG', parse.opaquePayload('struct vhost_iotlb_msg', 32), {
    needs: BACKEND_REQ,
  }),
  entry(2, 'BACKEND_CONFIG_CHANGE_MSG', nothing, { needs: CONFIG }),
  entry(3, 'BACKEND_VRING_HOST_NOTIFIER_MSG', parse.opaquePayload('vring area', 24), {
    fds: [0, 1],
    needs: wire.VHOST_USER_PROTOCOL_F_HOST_NOTIFIER,
  }),
  entry(4, 'BACKEND_VRING_CALL', state, { needs: INBAND }),
  entry(5, 'BACKEND_VRING_ERR', state, { needs: INBAND }),
  entry(6, 'BACKEND_SHARED_OBJECT_ADD', uuid, { needs: OBJECT }),
  entry(7, 'BACKEND_SHARED_OBJECT_REMOVE', uuid, { needs: OBJECT }),
  entry(8, 'BACKEND_SHARED_OBJECT_LOOKUP', uuid, { reply: 'payload', needs: OBJECT }),
  entry(9, 'BACKEND_SHMEM_MAP', shmemMap, {
    fds: [1, 1],
    needs: wire.VHOST_USER_PROTOCOL_F_SHMEM,
  }),
  entry(10, 'BACKEND_SHMEM_UNMAP', shmemMap, { needs: wire.VHOST_USER_PROTOCOL_F_SHMEM }),
];

function byId(entries: readonly MessageEntry[]): ReadonlyMap<number, MessageEntry> {
  return new Map(entries.map((each) => [each.id, each]));
}

export const FRONT_END_MESSAGES = byId(frontEndMessages);
export const BACK_END_MESSAGES = byId(backEndMessages);

/** Name of a front-end request; `VHOST_USER_<id>` if there is none of that id. */
export function requestName(id: number): string {
  return FRONT_END_MESSAGES.get(id)?.name ?? `VHOST_USER_${id}`;
}
