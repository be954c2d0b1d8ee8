/**
 * How the front-end's requests are sent: by their entries in the message table, which say what
 * must be negotiated, how the answer looks and what fds it carries. The nouns of the front-end
 * (memory, migration, IOTLB, ...) share one of these.
 */
import { VringError } from '../base/errors.ts';
import { type Fd } from '../sys/index.ts';
import { parsePayload } from '../wire/vhost-user-parse.ts';
import {
  U64Payload,
  VHOST_USER_NEED_REPLY_MASK,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_VERSION,
  VringState,
} from '../wire/vhost-user.ts';
import { closeFds, type Message } from './connection.ts';
import { protocolFeatureName } from './frontend-features.ts';
import type { FrontendChannel } from './frontend-channel.ts';
import type { MessageEntry } from './message-table.ts';

const NOTHING = new Uint8Array(0);

/** A reply of a message's own: what it says, and its fd, which is the caller's. */
export type Answer<R> = { readonly value: R; readonly fd: Fd | null };

/** The parts of an entry that sending needs; a request of any type has them. */
type Sendable = Pick<MessageEntry<never>, 'id' | 'name' | 'needs' | 'needsVirtio'>;
type Answering<R> = Sendable & Pick<MessageEntry<never, R>, 'replyPayload' | 'replyFds'>;

export class FrontendCalls {
  readonly channel: FrontendChannel;
  /** Of the back-end, for errors. */
  readonly description: string;
  /** Offered and taken protocol features; 0 for a back-end without bit 30. */
  offeredProtocolFeatures = 0n;
  protocolFeatures = 0n;
  /** Acked virtio features, without bit 30. */
  features = 0n;

  constructor(channel: FrontendChannel, description: string) {
    this.channel = channel;
    this.description = description;
  }

  /** Whether a protocol feature was negotiated. */
  has(feature: number): boolean {
    return ((this.protocolFeatures >> BigInt(feature)) & 1n) === 1n;
  }

  /** @throws VringError ERR_VRING_NOT_NEGOTIATED, naming the feature that the request needs. */
  demand(entry: Sendable): void {
    const { needs, needsVirtio } = entry;
    if (needs !== null && !this.has(needs)) {
      const offered = ((this.offeredProtocolFeatures >> BigInt(needs)) & 1n) === 1n;
      const why = offered ? 'was not taken (see FrontendOptions)' : 'is not offered';
      throw this.notNegotiated(entry.name, `${protocolFeatureName(needs)} ${why}`);
    }
    if (needsVirtio !== null && ((this.features >> BigInt(needsVirtio)) & 1n) === 0n) {
      throw this.notNegotiated(entry.name, `virtio feature bit ${needsVirtio} was not acked`);
    }
  }

  notNegotiated(request: string, problem: string): VringError {
    const text = `${request}: ${this.description}: ${problem}`;
    return new VringError('ERR_VRING_NOT_NEGOTIATED', text);
  }

  /**
   * Sends a request without a reply of its own. Where REPLY_ACK was negotiated the answer is
   * waited for, so that a refusal is an error of this call.
   * @throws VringError ERR_VRING_NOT_NEGOTIATED; ProtocolError ERR_VRING_REFUSED.
   */
  async tell(
    entry: Sendable,
    payload: Uint8Array = NOTHING,
    fds: readonly number[] = [],
  ): Promise<void> {
    this.demand(entry);
    const ack = this.has(VHOST_USER_PROTOCOL_F_REPLY_ACK);
    await this.channel.tell(entry.id, payload, fds, ack);
  }

  tellU64(entry: Sendable, value: bigint): Promise<void> {
    return this.tell(entry, U64Payload.encode({ value }));
  }

  tellState(entry: Sendable, index: number, num: number): Promise<void> {
    return this.tell(entry, VringState.encode({ index, num }));
  }

  /** Sends something that is never answered, not even with REPLY_ACK. */
  async send(entry: Sendable, payload: Uint8Array): Promise<void> {
    await this.channel.tell(entry.id, payload, [], false);
  }

  /** A request that is always answered by an ack. */
  async askAck(entry: Sendable, payload: Uint8Array): Promise<void> {
    this.demand(entry);
    const flags = VHOST_USER_VERSION | VHOST_USER_NEED_REPLY_MASK;
    const reply = await this.channel.ask(entry.id, payload, [], flags);
    closeFds(reply.fds);
    this.channel.checkAck(entry.id, reply.payload);
  }

  /** The reply as it came; its fds are the caller's. */
  async askRaw(
    entry: Sendable,
    payload: Uint8Array = NOTHING,
    fds: readonly number[] = [],
  ): Promise<Message> {
    this.demand(entry);
    return this.channel.ask(entry.id, payload, fds);
  }

  /**
   * Sends a request that has a reply of its own and parses that by the table.
   * @throws ProtocolError ERR_VRING_REPLY: no such answer is possible; the session is over.
   */
  async ask<R>(
    entry: Answering<R>,
    payload: Uint8Array = NOTHING,
    fds: readonly number[] = [],
  ): Promise<Answer<R>> {
    const reply = await this.askRaw(entry, payload, fds);
    const [least, most] = entry.replyFds;
    const count = reply.fds.length;
    if (most > 0 && (count < least || count > most)) {
      closeFds(reply.fds);
      const due = least === most ? `${least}` : `${least} to ${most}`;
      throw this.channel.failReply(entry.id, 'fds', `${count} came, expected ${due}`);
    }
    const fd = most > 0 ? (reply.fds.shift() ?? null) : null;
    closeFds(reply.fds);
    try {
      return { value: this.#parse(entry, reply.payload), fd };
    } catch (error) {
      fd?.close();
      throw error;
    }
  }

  async askU64(entry: Answering<bigint>, payload?: Uint8Array): Promise<bigint> {
    return (await this.ask(entry, payload)).value;
  }

  #parse<R>(entry: Answering<R>, payload: Uint8Array): R {
    const rule = entry.replyPayload;
    if (rule === null) throw this.channel.failReply(entry.id, 'request', 'has no reply');
    try {
      return parsePayload(rule, entry.name, payload);
    } catch (error) {
      const { field = 'payload', message } = error as { field?: string; message: string };
      throw this.channel.failReply(entry.id, field, message);
    }
  }
}
