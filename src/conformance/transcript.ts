/** What a check sent and what came back, decoded by the message table. */
import type { AnyStruct } from '../wire/struct.ts';
import {
  protocolFeatureNames,
  VHOST_USER_NEED_REPLY_MASK,
  VHOST_USER_REPLY_MASK,
  VHOST_USER_VERSION_MASK,
} from '../wire/vhost-user.ts';
import { featureNames } from '../wire/virtio.ts';
import {
  BACK_END_MESSAGES,
  FRONT_END_MESSAGES,
  type MessageEntry,
  REQUEST,
} from '../vhost-user/index.ts';

/** `>` went to the peer, `<` came from it, `*` happened in memory or to an fd, `-` is a remark. */
export type RecordKind = '>' | '<' | '*' | '-';

export type TranscriptRecord = {
  readonly kind: RecordKind;
  /** Milliseconds since the check began. */
  readonly at: number;
  readonly text: string;
};

/** Records of one check; more than this are counted and dropped. */
const MAX_RECORDS = 300;
/** Bytes of a payload that are shown in hexadecimal. */
const MAX_HEX_BYTES = 48;

export class Transcript {
  readonly records: TranscriptRecord[] = [];
  dropped = 0;
  readonly #start = performance.now();
  readonly #limit: number;

  constructor(limit = MAX_RECORDS) {
    this.#limit = limit;
  }

  add(kind: RecordKind, text: string): void {
    if (this.records.length >= this.#limit) this.dropped++;
    else {
      const at = Math.round((performance.now() - this.#start) * 10) / 10;
      this.records.push({ kind, at, text });
    }
  }

  lines(): string[] {
    const lines = this.records.map(({ kind, at, text }) => `${at.toFixed(1)} ms ${kind} ${text}`);
    if (this.dropped > 0) lines.push(`... and ${this.dropped} more`);
    return lines;
  }
}

/** Which table and which of its payloads a message belongs to. */
export type Channel = 'front-end' | 'back-end';

export type Shown = {
  readonly request: number;
  readonly flags: number;
  readonly size: number;
  readonly payload: Uint8Array;
  readonly fdCount: number;
};

/** One message as a line: `SET_VRING_NUM need_reply index=0 num=256`. */
export function describeMessage(message: Shown, channel: Channel = 'front-end'): string {
  const { request, flags, size, payload, fdCount } = message;
  const table = channel === 'front-end' ? FRONT_END_MESSAGES : BACK_END_MESSAGES;
  const entry = table.get(request);
  const isReply = (flags & VHOST_USER_REPLY_MASK) !== 0;
  const words = [entry?.name.replace('VHOST_USER_', '') ?? `request ${request}`];
  if (isReply) words.push('reply');
  if (flags & VHOST_USER_NEED_REPLY_MASK) words.push('need_reply');
  const odd = flags & ~(VHOST_USER_VERSION_MASK | VHOST_USER_REPLY_MASK);
  if ((flags & VHOST_USER_VERSION_MASK) !== 1 || odd & ~VHOST_USER_NEED_REPLY_MASK) {
    words.push(`flags=0x${(flags >>> 0).toString(16)}`);
  }
  if (size !== payload.length) words.push(`size=${size} (${payload.length} bytes follow)`);
  words.push(...payloadWords(entry, payload, isReply, channel));
  if (fdCount > 0) words.push(`+${fdCount} fd${fdCount === 1 ? '' : 's'}`);
  return words.join(' ');
}

const VIRTIO_FEATURES = new Set([REQUEST.GET_FEATURES.id, REQUEST.SET_FEATURES.id]);
const PROTOCOL_FEATURES = new Set([
  REQUEST.GET_PROTOCOL_FEATURES.id,
  REQUEST.SET_PROTOCOL_FEATURES.id,
]);

function payloadWords(
  entry: MessageEntry | undefined,
  payload: Uint8Array,
  isReply: boolean,
  channel: Channel,
): string[] {
  if (payload.length === 0) return isReply ? ['(empty)'] : [];
  const own = isReply ? entry?.replyPayload : entry?.payload;
  if (isReply && own == null && payload.length === 8) {
    const value = readU64(payload);
    return [`ack ${value === 0n ? '0 (success)' : `${value} (failure)`}`];
  }
  if (own == null) return [`payload ${hex(payload)}`];
  const { head, each, tail } = own.layout;
  if (head !== undefined && payload.length < head.size) return [`payload ${hex(payload)}`];
  const words: string[] = [];
  let at = 0;
  if (head !== undefined) {
    words.push(...fieldWords(head, payload, 0, channel === 'front-end' ? (entry?.id ?? 0) : 0));
    at = head.size;
  }
  if (each !== undefined) {
    for (let n = 0; at + each.size <= payload.length && n < 8; n++, at += each.size) {
      words.push(`[${fieldWords(each, payload, at, 0).join(' ')}]`);
    }
  }
  if (at < payload.length && each === undefined) {
    words.push(`${tail ?? 'rest'} ${hex(payload.subarray(at))}`);
  }
  return words;
}

function fieldWords(shape: AnyStruct, payload: Uint8Array, at: number, request: number): string[] {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const words: string[] = [];
  for (const [name, field] of Object.entries(shape.fields)) {
    const value = field.get(view, at);
    if (name.startsWith('padding')) continue;
    if (value instanceof Uint8Array) words.push(`${name}=${hex(value)}`);
    else if (typeof value === 'number') words.push(`${name}=${value}`);
    else words.push(`${name === 'value' ? '' : `${name}=`}0x${value.toString(16)}`);
    if (typeof value !== 'bigint') continue;
    if (PROTOCOL_FEATURES.has(request)) words.push(`(${protocolFeatureNames(value).join(' ')})`);
    if (VIRTIO_FEATURES.has(request)) words.push(`(${featureNames(value, 0).join(' ')})`);
  }
  return words;
}

export function readU64(payload: Uint8Array): bigint {
  return new DataView(payload.buffer, payload.byteOffset, 8).getBigUint64(0, true);
}

function hex(bytes: Uint8Array): string {
  const shown = Buffer.from(bytes.subarray(0, MAX_HEX_BYTES)).toString('hex');
  return bytes.length > MAX_HEX_BYTES ? `${shown}... (${bytes.length} bytes)` : shown;
}
