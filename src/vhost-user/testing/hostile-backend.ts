/**
 * A back-end that answers by the table, and now and then not: wrong, twice, late, in pieces, with
 * other fds, never. Over the backend channel it asks for what the table has, right or wrong.
 */
import { type Fd, sendWithFds } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { closeFds, type Message, MessageConnection } from '../connection.ts';
import {
  BACK_END_MESSAGES,
  FRONT_END_MESSAGES,
  type MessageEntry,
  REQUEST,
  requestName,
} from '../message-table.ts';
import { FAKE_FEATURES } from './fake-target.ts';
import type { FuzzFds } from './fuzz-fds.ts';
import { MessageGenerator } from './message-generator.ts';
import { mutate, type Outgoing } from './mutate.ts';
import type { Random } from './random.ts';
import { encodeMessage, u64 } from './raw-peer.ts';
import { SessionModel } from './session-model.ts';

const REPLY = 5;
const NEED_REPLY = 9;
const FEATURES = FAKE_FEATURES | (1n << 26n) | (1n << 30n);
const ALL_PROTOCOL_FEATURES = (1n << BigInt(wire.PROTOCOL_FEATURE_NAMES.length)) - 1n;

export class HostileBackend {
  readonly #socket: Fd;
  readonly #connection: MessageConnection;
  readonly #random: Random;
  readonly #zoo: FuzzFds;
  readonly #generator: MessageGenerator;
  /** Percent of what it says that is spoiled. */
  readonly #spoiled: number;
  readonly #features: bigint;
  readonly #protocolFeatures: bigint;
  readonly #channels: Fd[] = [];
  readonly #done: Promise<void>;

  /** Takes the socket over. */
  constructor(socket: Fd, random: Random, zoo: FuzzFds) {
    this.#socket = socket;
    this.#random = random;
    this.#zoo = zoo;
    this.#spoiled = random.pick([0, 0, 2, 5, 20]);
    const few = (all: bigint): bigint => (random.once(4) ? all & random.u64() : all);
    this.#features = few(FEATURES);
    this.#protocolFeatures = few(ALL_PROTOCOL_FEATURES);
    this.#generator = new MessageGenerator(random, {
      queueCount: 4,
      features: FEATURES,
      protocolFeatures: ALL_PROTOCOL_FEATURES,
      ringSize: 256,
      model: new SessionModel(),
    });
    this.#connection = new MessageConnection(socket, { expectReplies: false, nameOf: requestName });
    this.#done = this.#run();
  }

  async close(): Promise<void> {
    this.#connection.close();
    await this.#done;
    for (const each of this.#channels) each.close();
  }

  async #run(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#connection.receive();
        if (message === null) return;
        try {
          this.#answer(message);
        } finally {
          closeFds(message.fds);
        }
      }
    } catch {
      // The front-end closed in the middle, or the connection is closed already.
    } finally {
      this.#connection.close();
    }
  }

  #isSpoiled(): boolean {
    return this.#random.next(100) < this.#spoiled;
  }

  #answer(message: Message): void {
    const entry = FRONT_END_MESSAGES.get(message.request);
    if (entry === undefined) return;
    if (entry.id === REQUEST.SET_BACKEND_REQ_FD.id) this.#channels.push(...message.fds.splice(0));
    if (this.#channels.length > 0 && this.#random.once(2)) this.#ask();
    const isAsked = (message.flags & wire.VHOST_USER_NEED_REPLY_MASK) !== 0;
    const isDue = entry.reply !== 'ack' || isAsked;
    // An answer that nobody asked for, or none where one is due.
    if (isDue === this.#isSpoiled()) return;
    const [min, max] = entry.replyFds;
    const random = this.#random;
    const fdCount = random.once(2) ? max : min;
    let reply: Outgoing = {
      bytes: encodeMessage(entry.id, this.#reply(entry, message), REPLY),
      fds: Array.from({ length: fdCount }, () => random.pick(this.#zoo.memory).number),
    };
    if (this.#isSpoiled()) reply = mutate(random, reply, this.#zoo);
    const end = this.#isSpoiled() ? random.next(reply.bytes.length) : reply.bytes.length;
    this.#send(this.#socket, { bytes: reply.bytes.subarray(0, end), fds: reply.fds });
    if (this.#isSpoiled()) this.#send(this.#socket, reply);
    if (this.#isSpoiled()) this.#connection.close();
  }

  #reply({ id, replyPayload, payload: asked }: MessageEntry, { payload }: Message): Uint8Array {
    const random = this.#random;
    if (replyPayload === null) return u64(this.#isSpoiled() ? random.u64() : 0n);
    if (id === REQUEST.GET_FEATURES.id) return u64(this.#features);
    if (id === REQUEST.GET_PROTOCOL_FEATURES.id) return u64(this.#protocolFeatures);
    if (id === REQUEST.GET_QUEUE_NUM.id) return u64(random.pick([1, 2, 4, 128]));
    if (id === REQUEST.GET_MAX_MEM_SLOTS.id) return u64(random.pick([1, 8, 32, 509]));
    // What echoes the request is mostly the same again.
    const isMade = id === REQUEST.GET_INFLIGHT_FD.id;
    const isEcho = replyPayload === asked && payload.length > 0 && !isMade;
    if (isEcho && !this.#isSpoiled()) return payload.slice();
    const isU64 = replyPayload.maxBytes === 8 && replyPayload.minBytes === 8;
    if (isU64 && !this.#isSpoiled()) return u64(0n);
    return this.#generator.payload(replyPayload);
  }

  /** Some request of the back-end; answers are not read, which the front-end must survive. */
  #ask(): void {
    const random = this.#random;
    const entry = random.pick([...BACK_END_MESSAGES.values()]);
    const plan = this.#generator.request(entry, () => true);
    const channel = this.#channels.at(-1);
    if (plan === null || channel === undefined) return;
    const fds = Array.from({ length: plan.fdCount }, () => random.pick(this.#zoo.memory).number);
    const flags = random.once(2) ? NEED_REPLY : 1;
    const message = { bytes: encodeMessage(entry.id, plan.payload, flags), fds };
    this.#send(channel, this.#isSpoiled() ? mutate(random, message, this.#zoo) : message);
  }

  #send(socket: Fd, { bytes, fds }: Outgoing): void {
    if (bytes.length === 0 || socket.closed) return;
    try {
      sendWithFds(socket.number, bytes, fds);
    } catch {
      // It is closed at the other end, or was never a socket.
    }
  }
}
