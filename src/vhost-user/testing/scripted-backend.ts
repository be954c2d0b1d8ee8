/**
 * A back-end that knows nothing but the table: it checks every request against it, keeps what came
 * and answers what a test says, or zeros. It can speak over the backend channel.
 */
import { createEventfd, type Fd } from '../../sys/index.ts';
import { parsePayload } from '../../wire/vhost-user-parse.ts';
import { U64Payload } from '../../wire/vhost-user.ts';
import { closeFds, type Message, MessageConnection } from '../connection.ts';
import {
  backEndRequestName,
  FRONT_END_MESSAGES,
  type MessageEntry,
  REQUEST,
  requestName,
} from '../message-table.ts';

const REPLY = 5;
const NEED_REPLY = 9;

export type Seen = {
  readonly id: number;
  readonly value: unknown;
  readonly fds: number;
};

/** Payload and fds of a reply; the fds are closed after sending. */
export type Scripted = { readonly payload?: Uint8Array; readonly fds?: readonly Fd[] };

export class ScriptedBackend {
  readonly seen: Seen[] = [];
  /** By request id: what to answer instead of zeros. */
  readonly answers = new Map<number, (message: Message) => Scripted>();
  features = (1n << 32n) | (1n << 33n) | (1n << 26n) | (1n << 30n);
  protocolFeatures = (1n << 23n) - 1n;
  /** What the connection ended with. */
  readonly done: Promise<Error | null>;
  readonly #connection: MessageConnection;
  #channel: MessageConnection | null = null;
  #acked = 0n;
  readonly #kept: Fd[] = [];

  constructor(socket: Fd) {
    this.#connection = new MessageConnection(socket, { expectReplies: false, nameOf: requestName });
    this.done = this.#run();
  }

  /** Ids of the requests since the last call. */
  take(): Seen[] {
    return this.seen.splice(0);
  }

  /** Fds that came and that a test wants to use; closed at the end. */
  keep(message: Message): Fd[] {
    const fds = message.fds.splice(0);
    this.#kept.push(...fds);
    return fds;
  }

  /** One request over the backend channel; the ack's value, null where none is due. */
  async event(
    id: number,
    payload: Uint8Array,
    fds: readonly number[] = [],
    replies = true,
  ): Promise<{ readonly value: bigint; readonly fds: number } | null> {
    const channel = this.#channel;
    if (channel === null) throw new Error('there is no backend channel');
    await channel.send(id, replies || (this.#acked & 8n) === 0n ? NEED_REPLY : 1, payload, fds);
    if (!replies) return null;
    const message = await channel.receive();
    if (message === null) throw new Error('the backend channel was closed');
    const count = message.fds.length;
    closeFds(message.fds);
    return { value: U64Payload.decode(message.payload).value, fds: count };
  }

  close(): void {
    this.#connection.close();
  }

  async #run(): Promise<Error | null> {
    let reason: Error | null = null;
    try {
      for (;;) {
        const message = await this.#connection.receive();
        if (message === null) break;
        await this.#handle(message);
      }
    } catch (error) {
      reason = error as Error;
    }
    this.#connection.close();
    this.#channel?.close();
    for (const fd of this.#kept) fd.close();
    return reason;
  }

  async #handle(message: Message): Promise<void> {
    const entry = FRONT_END_MESSAGES.get(message.request);
    if (entry === undefined) throw new Error(`unknown request ${message.request}`);
    const ackOfPostcopy = this.#isPostcopyAck(entry, message);
    const value = ackOfPostcopy
      ? 'ack'
      : parsePayload(entry.payload, entry.name, message.payload.slice());
    const fds = message.fds.length;
    if (!ackOfPostcopy && (fds < entry.fds[0] || fds > entry.fds[1])) {
      throw new Error(`${entry.name}: ${fds} fds`);
    }
    this.seen.push({ id: entry.id, value, fds });
    if (entry.id === REQUEST.SET_PROTOCOL_FEATURES.id) this.#acked = value as bigint;
    if (entry.id === REQUEST.SET_BACKEND_REQ_FD.id) {
      const nameOf = backEndRequestName;
      this.#channel = new MessageConnection(message.fds.shift()!, { expectReplies: true, nameOf });
    }
    const answer = this.answers.get(entry.id)?.(message) ?? this.#usual(entry);
    closeFds(message.fds);
    const needReply = (message.flags & 8) !== 0 && (this.#acked & 8n) !== 0n;
    if (answer === null && !needReply) return;
    const { payload = U64Payload.encode({ value: 0n }), fds: sent = [] } = answer ?? {};
    await this.#connection.send(
      entry.id,
      REPLY,
      payload,
      sent.map((fd) => fd.number),
    );
    for (const fd of sent) fd.close();
  }

  /** Null: an ack where one was asked for. */
  #usual(entry: MessageEntry): Scripted | null {
    if (entry.id === REQUEST.GET_FEATURES.id) return u64Answer(this.features);
    if (entry.id === REQUEST.GET_PROTOCOL_FEATURES.id) return u64Answer(this.protocolFeatures);
    if (entry.reply === 'ack') return null;
    const fds = entry.replyFds[0] > 0 ? [createEventfd('an answer')] : [];
    const size = entry.replyPayload?.minBytes ?? U64Payload.size;
    return { payload: new Uint8Array(size), fds };
  }

  #isPostcopyAck(entry: MessageEntry, { payload, fds }: Message): boolean {
    const table = entry.id === REQUEST.SET_MEM_TABLE.id || entry.id === REQUEST.ADD_MEM_REG.id;
    return table && payload.length === U64Payload.size && fds.length === 0;
  }
}

export function u64Answer(value: bigint): Scripted {
  return { payload: U64Payload.encode({ value }) };
}
