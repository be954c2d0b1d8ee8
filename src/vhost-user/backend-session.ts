/**
 * One front-end's connection to a back-end.
 *
 * Theory of operation. A loop takes one message at a time: framing (connection.ts), table entry,
 * negotiation, payload, fds, handler, answer; only then the next, so that every message sees the
 * whole effect of the one before it, and a back-end that is busy stopping a ring is not asked
 * anything else. There is no global "state" variable: the protocol allows nearly every order
 * (protocol features before features, enable before features, memory at any time), so the state
 * is what has been said so far, and a ring runs exactly when it is complete (vring-control.ts).
 *
 * What goes wrong:
 *  - framing, or whatever else the target throws: the session ends with it as its reason;
 *  - a message that is unknown, not implemented, not negotiated, malformed or impossible: with
 *    need_reply and REPLY_ACK it is answered by a non-zero ack and the session goes on, because
 *    the front-end knows; without, the session ends. A refused message changes nothing, except
 *    that a ring which cannot start with what the message said stays stopped;
 *  - a device that refuses (read-only configuration, MTU): an ack at most.
 * Fds of a message that nobody took are closed, whatever happened.
 */
import { ProtocolError, VringError } from '../base/errors.ts';
import { MAX_VRINGS } from '../base/limits.ts';
import { assert } from '../base/assert.ts';
import type { Fd } from '../sys/index.ts';
import { parsePayload } from '../wire/vhost-user-parse.ts';
import {
  U64Payload,
  VHOST_USER_NEED_REPLY_MASK,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_REPLY_MASK,
  VHOST_USER_VERSION,
} from '../wire/vhost-user.ts';
import { handlerOf } from './backend-dispatch.ts';
import type { HandlerResult, SessionContext } from './backend-handlers.ts';
import { closeFds, type Message, MessageConnection } from './connection.ts';
import { MemoryControl } from './memory-control.ts';
import { FRONT_END_MESSAGES, type MessageEntry, requestName } from './message-table.ts';
import type { BackendTarget } from './target.ts';
import { VringControl, type VringSnapshot } from './vring-control.ts';

const bit = (n: number): bigint => 1n << BigInt(n);

/** Protocol features that a session implements; a target offers some of them. */
export const BACKEND_PROTOCOL_FEATURES =
  bit(VHOST_USER_PROTOCOL_F_MQ) |
  bit(VHOST_USER_PROTOCOL_F_REPLY_ACK) |
  bit(VHOST_USER_PROTOCOL_F_MTU) |
  bit(VHOST_USER_PROTOCOL_F_CONFIG) |
  bit(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
  bit(VHOST_USER_PROTOCOL_F_STATUS);

/** A session, as status displays see it. */
export type SessionState = {
  /** Acked, bit 30 included; null before SET_FEATURES. */
  readonly features: bigint | null;
  readonly protocolFeatures: bigint | null;
  readonly owned: boolean;
  readonly memory: { readonly regions: number; readonly bytes: number } | null;
  readonly mtu: number | null;
  readonly vrings: readonly VringSnapshot[];
  /** Messages handled, and how many of them were refused without ending the session. */
  readonly messages: number;
  readonly refusals: number;
  readonly lastRefusal: ProtocolError | null;
};

export type SessionOptions = {
  /** A message was refused and the session goes on. Once per message: count, do not log each. */
  readonly onRefused?: (error: ProtocolError) => void;
  /** After every message: what `state` says may be new. */
  readonly onChange?: () => void;
};

export class BackendSession {
  /** Resolves when everything of the session is released; null for an orderly end. */
  readonly closed: Promise<Error | null>;

  readonly #connection: MessageConnection;
  readonly #context: SessionContext;
  readonly #options: SessionOptions;
  #closeReason: Error | null = null;
  #messages = 0;
  #refusals = 0;
  #lastRefusal: ProtocolError | null = null;

  /** Takes the socket over and starts at once. */
  constructor(socket: Fd, target: BackendTarget, options: SessionOptions = {}) {
    assert(target.queueCount > 0 && target.queueCount <= MAX_VRINGS, 'queueCount in 1..MAX_VRINGS');
    const vrings = new VringControl(target);
    this.#options = options;
    this.#context = {
      target,
      vrings,
      memory: new MemoryControl(target, vrings),
      offeredProtocolFeatures: target.protocolFeatures & BACKEND_PROTOCOL_FEATURES,
      features: null,
      protocolFeatures: null,
      owned: false,
      mtu: null,
      postcopy: 'none',
      stateTransfer: false,
      isRunning: (index) => vrings.isRunning(index),
      vringSetup: (index) => vrings.setup(index),
      get runningVrings() {
        return vrings.runningCount;
      },
    };
    this.#connection = new MessageConnection(socket, { expectReplies: false, nameOf: requestName });
    this.closed = this.#run();
  }

  get state(): SessionState {
    const { features, protocolFeatures, owned, mtu, memory, vrings } = this.#context;
    return {
      features,
      protocolFeatures,
      owned,
      mtu,
      memory: memory.snapshot(),
      vrings: vrings.snapshots(),
      messages: this.#messages,
      refusals: this.#refusals,
      lastRefusal: this.#lastRefusal,
    };
  }

  /** Idempotent. Ends the session after the message at hand; `closed` says when. */
  close(reason: Error | null = null): Promise<Error | null> {
    if (!this.#connection.closed) this.#closeReason = reason;
    this.#connection.close();
    return this.closed;
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
      // After our own close() the reason is ours, not what the closing made fail.
      if (!this.#connection.closed) reason = asError(error);
    }
    reason ??= this.#closeReason;
    this.#connection.close();
    try {
      await this.#context.target.sessionClosed(reason);
    } catch (error) {
      reason ??= asError(error);
    }
    this.#context.vrings.close();
    this.#context.memory.close();
    return reason;
  }

  async #handle(message: Message): Promise<void> {
    this.#messages++;
    const entry = FRONT_END_MESSAGES.get(message.request);
    let result: HandlerResult;
    try {
      if (entry === undefined) throw unknownMessage(message.request);
      result = await this.#dispatch(entry, message);
    } catch (error) {
      // Messages with a reply of their own have no place for an error.
      if (!(error instanceof ProtocolError) || !this.#acks(entry, message)) throw error;
      result = error;
    } finally {
      closeFds(message.fds);
    }
    if (result instanceof ProtocolError) {
      this.#refusals++;
      this.#lastRefusal = result;
      this.#options.onRefused?.(result);
    }
    if (result instanceof Uint8Array) await this.#reply(message.request, result);
    else if (this.#acks(entry, message)) {
      const value = result === undefined ? 0n : 1n;
      await this.#reply(message.request, U64Payload.encode({ value }));
    }
    this.#options.onChange?.();
  }

  /** Everything that makes a message acceptable here and now, then its handler. */
  async #dispatch(entry: MessageEntry, message: Message): Promise<HandlerResult> {
    const { name, needs } = entry;
    const handler = handlerOf(entry.id);
    if (handler === null) {
      const problem = `request ${entry.id} is not implemented and its feature was not offered`;
      throw new ProtocolError('ERR_VRING_MESSAGE_UNSUPPORTED', name, 'request', problem);
    }
    if (needs !== null && !this.#negotiated(needs)) {
      const problem = `protocol feature bit ${needs} was not negotiated`;
      throw new ProtocolError('ERR_VRING_NOT_NEGOTIATED', name, 'request', problem);
    }
    checkFdRange(entry, message.fds.length);
    const value = parsePayload(entry.payload, name, message.payload);
    const due = entry.payload.fdCount?.(value);
    if (due !== undefined && due !== message.fds.length) {
      throw fdError(name, message.fds.length, `${due}, as the payload says`);
    }
    for (const rule of entry.legal) {
      if (rule.holds(this.#context, value)) continue;
      const problem = `breaks the rule ${rule.id}: ${rule.says} (${rule.section})`;
      throw new ProtocolError('ERR_VRING_MESSAGE_STATE', name, 'request', problem);
    }
    return handler(this.#context, { request: name, value, fds: message.fds });
  }

  #negotiated(feature: number): boolean {
    return ((this.#context.protocolFeatures ?? 0n) & bit(feature)) !== 0n;
  }

  /** Whether success or failure is to be answered by a u64. */
  #acks(entry: MessageEntry | undefined, message: Message): boolean {
    if (entry?.reply === 'payload') return false;
    if (entry?.reply === 'both') return true;
    const asked = (message.flags & VHOST_USER_NEED_REPLY_MASK) !== 0;
    return asked && this.#negotiated(VHOST_USER_PROTOCOL_F_REPLY_ACK);
  }

  async #reply(request: number, payload: Uint8Array): Promise<void> {
    await this.#connection.send(request, VHOST_USER_VERSION | VHOST_USER_REPLY_MASK, payload);
  }
}

function checkFdRange({ name, fds: [min, max] }: MessageEntry, count: number): void {
  if (count >= min && count <= max) return;
  throw fdError(name, count, min === max ? `${min}` : `${min} to ${max}`);
}

function fdError(name: string, count: number, due: string): ProtocolError {
  return new ProtocolError('ERR_VRING_MESSAGE_FDS', name, 'fds', `${count} came, expected ${due}`);
}

function unknownMessage(request: number): ProtocolError {
  const last = FRONT_END_MESSAGES.size;
  const problem = `${request} is not a request of this protocol, expected 1 to ${last}`;
  const name = requestName(request);
  return new ProtocolError('ERR_VRING_MESSAGE_UNKNOWN', name, 'request', problem);
}

function asError(thrown: unknown): Error {
  if (thrown instanceof Error) return thrown;
  return new VringError('ERR_VRING_ASSERTION', `thrown: ${String(thrown)}`);
}
