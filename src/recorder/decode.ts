/** A message in words: the table's names, the fields of the payload's layout, the flags. */
import { messageOf } from '../base/errors.ts';
import {
  BACK_END_MESSAGES,
  backEndRequestName,
  FRONT_END_MESSAGES,
  type MessageEntry,
  requestName,
} from '../vhost-user/index.ts';
import { type PayloadLayout, parsePayload, u64Payload } from '../wire/vhost-user-parse.ts';
import {
  protocolFeatureNames,
  VHOST_USER_FLAGS_MASK,
  VHOST_USER_GET_PROTOCOL_FEATURES,
  VHOST_USER_NEED_REPLY_MASK,
  VHOST_USER_REPLY_MASK,
  VHOST_USER_SET_PROTOCOL_FEATURES,
  VHOST_USER_VERSION_MASK,
  VhostUserHeader,
} from '../wire/vhost-user.ts';
import type { AnyStruct } from '../wire/struct.ts';
import type { ChannelName, FlagsDescription, Json } from './recorded-event.ts';

export type DecodedMessage = {
  readonly id: number;
  readonly name: string;
  /** Null for an id that the table does not have. */
  readonly entry: MessageEntry | null;
  readonly kind: 'request' | 'reply';
  readonly flags: FlagsDescription;
  readonly payload: { readonly [field: string]: Json } | null;
  readonly problem: string | null;
};

/** `bytes` are header and payload of one message. */
export function decodeMessage(channel: ChannelName, bytes: Uint8Array): DecodedMessage {
  const { request: id, flags: raw } = VhostUserHeader.decode(bytes);
  const table = channel === 'control' ? FRONT_END_MESSAGES : BACK_END_MESSAGES;
  const name = channel === 'control' ? requestName(id) : backEndRequestName(id);
  const entry = table.get(id) ?? null;
  const flags = describeFlags(raw);
  const body = bytes.subarray(VhostUserHeader.size);
  const kind = flags.reply ? 'reply' : 'request';
  if (entry === null) {
    const problem = `${id} is not a request of this protocol`;
    return { id, name, entry, kind, flags, payload: null, problem };
  }
  const rule = flags.reply ? replyRule(entry, body) : entry.payload;
  let problem: string | null = null;
  try {
    parsePayload(rule, name, body);
  } catch (error) {
    problem = messageOf(error);
  }
  const payload = decodeLayout(rule.layout, body);
  const isProtocolFeatures =
    channel === 'control' &&
    [VHOST_USER_GET_PROTOCOL_FEATURES, VHOST_USER_SET_PROTOCOL_FEATURES].includes(id);
  if (isProtocolFeatures && typeof payload?.['value'] === 'string') {
    const names = protocolFeatureNames(BigInt(payload['value']));
    return { id, name, entry, kind, flags, payload: { ...payload, names }, problem };
  }
  return { id, name, entry, kind, flags, payload, problem };
}

/** What a reply consists of: its own payload, an ack, or in postcopy the request once more. */
function replyRule(entry: MessageEntry, body: Uint8Array): MessageEntry['payload'] {
  if (entry.replyPayload !== null) return entry.replyPayload;
  const isAck = body.length === u64Payload.maxBytes || entry.payload.minBytes === 0;
  return isAck ? u64Payload : entry.payload;
}

export function describeFlags(raw: number): FlagsDescription {
  const reserved = (raw & ~VHOST_USER_FLAGS_MASK) >>> 0;
  return {
    raw,
    version: raw & VHOST_USER_VERSION_MASK,
    reply: (raw & VHOST_USER_REPLY_MASK) !== 0,
    needReply: (raw & VHOST_USER_NEED_REPLY_MASK) !== 0,
    ...(reserved === 0 ? {} : { reserved: `0x${reserved.toString(16)}` }),
  };
}

/** Null when there are too few bytes for the layout. Bytes behind it are `rest`. */
function decodeLayout(
  layout: PayloadLayout,
  body: Uint8Array,
): { readonly [field: string]: Json } | null {
  const { head, each, tail } = layout;
  const value: Record<string, Json> = {};
  let at = 0;
  if (head !== undefined) {
    // InflightDescription is seen with and without its padding: what is there is shown.
    Object.assign(value, decodeStruct(head, body, 0));
    if (Object.keys(value).length === 0) return null;
    at = Math.min(head.size, body.length);
  }
  if (each !== undefined) {
    const entries: Json[] = [];
    for (; at + each.size <= body.length; at += each.size) {
      entries.push(decodeStruct(each, body, at));
    }
    value['entries'] = entries;
  }
  const rest = body.subarray(at);
  if (tail !== undefined) value['data'] = hexOf(rest);
  else if (rest.length > 0) value['rest'] = hexOf(rest);
  return value;
}

/** The fields that are there as a whole. */
function decodeStruct(shape: AnyStruct, body: Uint8Array, at: number): Record<string, Json> {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const value: Record<string, Json> = {};
  for (const [name, field] of Object.entries(shape.fields)) {
    if (at + field.at + field.bytes > body.length) break;
    const got = field.get(view, at);
    if (typeof got === 'bigint') value[name] = `0x${got.toString(16)}`;
    else value[name] = typeof got === 'number' ? got : hexOf(got);
  }
  return value;
}

export function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex');
}
