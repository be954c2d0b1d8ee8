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
 *  - a message that is unknown, served by no target, not negotiated, malformed or illegal now: with
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
import {
  U64Payload,
  VHOST_USER_ADD_MEM_REG,
  VHOST_USER_NEED_REPLY_MASK,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_REPLY_MASK,
  VHOST_USER_SET_MEM_TABLE,
  VHOST_USER_VERSION,
} from '../wire/vhost-user.ts';
import { hasFeature } from '../wire/virtio.ts';
import { SessionContext } from './backend-context.ts';
import { handlerOf } from './backend-dispatch.ts';
import type { HandlerResult, Reply } from './backend-handlers.ts';
import { closeFds, type Message, MessageConnection, type Preread } from './connection.ts';
import { POSTCOPY_STALL_MS, SUSPEND_TIMEOUT_MS } from './limits.ts';
import { FRONT_END_MESSAGES, type MessageEntry, requestName } from './message-table.ts';
import { checkMessage, checkNegotiated, unknownMessage } from './message-checks.ts';
import { release } from './migration-handlers.ts';
import { type PreparedMemory, prereadOf, ReceivedFds, restoreContext } from './session-restore.ts';
import {
  type MemorySnapshot,
  memorySnapshot,
  type SessionSnapshot,
  sessionSnapshot,
} from './session-snapshot.ts';
import { type SessionState, stateOf } from './session-state.ts';
import type { BackendTarget } from './target.ts';

export type { SessionState };

export type SessionOptions = {
  /** A message was refused and the session goes on. Once per message: count, do not log each. */
  readonly onRefused?: (error: ProtocolError) => void;
  /** After every message: what `state` says may be new. */
  readonly onChange?: () => void;
};

export type RestoreOptions = SessionOptions & {
  /** Memory of the session that was mapped while its predecessor still ran. */
  readonly prepared?: PreparedMemory;
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
  #handling: Promise<void> | null = null;
  #suspended = false;
  #watch: NodeJS.Timeout | undefined = undefined;

  /** Takes the socket over and starts at once. `before` is for `restore`. */
  constructor(
    socket: Fd,
    target: BackendTarget,
    options: SessionOptions = {},
    before: Restoration | null = null,
  ) {
    assert(target.queueCount > 0 && target.queueCount <= MAX_VRINGS, 'queueCount in 1..MAX_VRINGS');
    this.#options = options;
    this.#context = new SessionContext(target);
    const framing = { expectReplies: false, nameOf: requestName };
    this.#connection = new MessageConnection(socket, framing, before?.input);
    if (before !== null) this.#pauseReading();
    this.closed = this.#run(before);
  }

  /**
   * Goes on with the session of another process: maps its memory, tells the target what was
   * negotiated, and waits, suspended, for `resume`. Takes the snapshot's fds over.
   * @throws VringError ERR_VRING_SNAPSHOT where the target is not what the front-end was promised;
   *   nothing is left then, and the process that made the snapshot may resume.
   */
  static async restore(
    { state, fds }: SessionSnapshot,
    target: BackendTarget,
    { prepared, ...options }: RestoreOptions = {},
  ): Promise<BackendSession> {
    const received = new ReceivedFds(fds);
    try {
      const socket = received.take(state.socket);
      const input = prereadOf(state.input, received);
      let done: (error: Error | null) => void = () => undefined;
      const restored = new Promise<Error | null>((resolve) => (done = resolve));
      const apply = (context: SessionContext): Promise<void> =>
        restoreContext(context, state, received, prepared ?? null);
      const session = new BackendSession(socket, target, options, { input, apply, done });
      const error = await restored;
      if (error === null) return session;
      await session.closed;
      throw error;
    } finally {
      received.closeRest();
      prepared?.close();
    }
  }

  /**
   * Memory for a successor to map while this session still runs. The fds stay the session's.
   * @throws VringError ERR_VRING_BUSY, as `suspend` would: before anybody stands still for it.
   */
  prepare(): MemorySnapshot {
    this.#refuseBusy();
    return memorySnapshot(this.#context);
  }

  /**
   * Stops reading and stops every ring, after the message at hand. The snapshot's fds stay the
   * session's, until `resume` or `surrender`.
   * @throws VringError ERR_VRING_CLOSED, ERR_VRING_BUSY (postcopy or a state transfer is under
   *   way), ERR_VRING_TIMEOUT; the session goes on then.
   */
  async suspend(): Promise<SessionSnapshot> {
    this.#connection.pause();
    try {
      await this.#finishMessage();
      if (this.#connection.closed) throw sessionError('ERR_VRING_CLOSED', 'the session is over');
      this.#refuseBusy();
    } catch (error) {
      this.#connection.resume();
      throw error;
    }
    this.#pauseReading();
    try {
      await this.#context.vrings.haltAll();
    } catch (error) {
      await this.close(asError(error)); // the target is broken, as after any other call
      throw error;
    }
    this.#context.iotlb.forgetMisses();
    return sessionSnapshot(this.#context, this.#connection.socket, this.#connection.pause());
  }

  /** After `suspend` or `restore`: rings and reading go on. */
  async resume(): Promise<void> {
    if (!this.#suspended) return;
    this.#suspended = false;
    // Its end may be under way: what is started now the target would never be told to stop.
    if (this.#connection.closed) return;
    try {
      await this.#context.vrings.startAll(true);
    } catch (error) {
      // A ring that is impossible was so before, and its front-end was told then: it stays stopped.
      if (!(error instanceof ProtocolError)) {
        await this.close(asError(error));
        throw error;
      }
    }
    this.#context.requests.channel?.resume();
    this.#connection.resume();
  }

  /** After `suspend`: another process has the session now. Its front-end notices nothing. */
  surrender(): Promise<Error | null> {
    assert(this.#suspended, 'a session is suspended before it is surrendered');
    return this.close();
  }

  #refuseBusy(): void {
    const { postcopy, stateTransfer } = this.#context;
    if (postcopy !== 'none') throw sessionError('ERR_VRING_BUSY', 'postcopy is under way');
    if (stateTransfer) throw sessionError('ERR_VRING_BUSY', 'device state is being moved');
  }

  #pauseReading(): void {
    this.#suspended = true;
    this.#connection.pause();
  }

  async #finishMessage(): Promise<void> {
    // A message that was read is not handled yet in this turn of the event loop.
    await new Promise<void>((resolve) => setImmediate(resolve));
    const { promise: late, resolve } = Promise.withResolvers<'late'>();
    const timer = setTimeout(() => resolve('late'), SUSPEND_TIMEOUT_MS);
    try {
      while (this.#handling !== null) {
        const first = await Promise.race([this.#handling.catch(() => undefined), late]);
        if (first === 'late') {
          const problem = `the message at hand was not done in ${SUSPEND_TIMEOUT_MS} ms`;
          throw sessionError('ERR_VRING_TIMEOUT', problem);
        }
      }
    } finally {
      clearTimeout(timer);
    }
  }

  get state(): SessionState {
    return {
      ...stateOf(this.#context),
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

  async #run(before: Restoration | null): Promise<Error | null> {
    let reason: Error | null = null;
    try {
      await Promise.resolve(); // the constructor returns before the target hears of anything
      this.#context.target.sessionOpened?.(this.#context.requests);
      await before?.apply(this.#context);
      before?.done(null);
      for (;;) {
        const message = await this.#connection.receive();
        if (message === null) break;
        this.#handling = this.#handle(message);
        const guard = this.#guardPostcopy();
        await this.#handling.finally(() => clearTimeout(guard));
        this.#handling = null;
        if (this.#context.postcopy === 'listening') this.#watchPostcopy();
      }
    } catch (error) {
      this.#handling = null;
      before?.done(asError(error));
      // After our own close() the reason is ours, not what the closing made fail.
      if (!this.#connection.closed) reason = asError(error);
    }
    reason ??= this.#closeReason;
    clearInterval(this.#watch);
    this.#connection.close();
    this.#context.disconnect();
    try {
      await this.#context.target.sessionClosed(reason);
    } catch (error) {
      reason ??= asError(error);
    }
    this.#context.close();
    return reason;
  }

  /**
   * Between messages the target is asked now and then: a worker that sleeps in a page fault serves
   * none of its other guests either, whose sessions cannot know why.
   */
  #watchPostcopy(): void {
    this.#watch ??= setInterval(() => {
      if (this.#context.postcopy !== 'listening') {
        clearInterval(this.#watch);
        this.#watch = undefined;
      } else if (this.#handling === null) {
        const guard = this.#guardPostcopy();
        const answered = this.#context.vrings.probe().catch(() => undefined);
        void answered.finally(() => clearTimeout(guard));
      }
    }, POSTCOPY_STALL_MS / 2).unref();
  }

  /** Ends the session when what it asked of the target waits for a page that nobody brings. */
  #guardPostcopy(): NodeJS.Timeout | undefined {
    if (this.#context.postcopy !== 'listening') return undefined;
    return setTimeout(() => {
      const problem = `nothing was done for ${POSTCOPY_STALL_MS} ms; were pages brought?`;
      this.#context.postcopyControl.end();
      void this.close(new VringError('ERR_VRING_POSTCOPY', problem, { recovery: 'reconnect' }));
    }, POSTCOPY_STALL_MS);
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
    if (result instanceof ProtocolError) this.#refused(result);
    if (result instanceof Uint8Array) await this.#reply(message.request, { payload: result });
    else if (result !== undefined && !(result instanceof Error)) {
      await this.#reply(message.request, result);
    } else if (this.#acks(entry, message)) {
      const payload = U64Payload.encode({ value: result === undefined ? 0n : 1n });
      await this.#reply(message.request, { payload });
    }
    this.#options.onChange?.();
  }

  #refused(error: ProtocolError): void {
    this.#refusals++;
    this.#lastRefusal = error;
    this.#options.onRefused?.(error);
  }

  /** Everything that makes a message acceptable here and now, then its handler. */
  #dispatch(entry: MessageEntry, message: Message): HandlerResult | Promise<HandlerResult> {
    checkNegotiated(entry, this.#context);
    if (this.#isPostcopyAck(message)) return release(this.#context.vrings);
    const value = checkMessage(entry, message, this.#context);
    return handlerOf(entry.id)(this.#context, { request: entry.name, value, fds: message.fds });
  }

  /**
   * While postcopy listens, a memory message of eight zeros means: the front-end has the addresses
   * that it was told, and pages can be asked for ("SET_MEM_TABLE", "ADD_MEM_REG").
   */
  #isPostcopyAck({ request, payload, fds }: Message): boolean {
    return (
      this.#context.postcopy === 'listening' &&
      (request === VHOST_USER_SET_MEM_TABLE || request === VHOST_USER_ADD_MEM_REG) &&
      fds.length === 0 &&
      payload.length === U64Payload.size &&
      U64Payload.decode(payload).value === 0n
    );
  }

  /** Whether success or failure is to be answered by a u64. */
  #acks(entry: MessageEntry | undefined, message: Message): boolean {
    if (entry?.reply === 'payload') return false;
    if (entry?.reply === 'both') return true;
    const { protocolFeatures } = this.#context;
    const asked = (message.flags & VHOST_USER_NEED_REPLY_MASK) !== 0;
    return asked && hasFeature(protocolFeatures ?? 0n, VHOST_USER_PROTOCOL_F_REPLY_ACK);
  }

  async #reply(request: number, { payload, fds = [], refusal }: Reply): Promise<void> {
    const flags = VHOST_USER_VERSION | VHOST_USER_REPLY_MASK;
    try {
      const numbers = fds.map((fd) => fd.number);
      await this.#connection.send(request, flags, payload, numbers);
    } finally {
      for (const fd of fds) fd.close();
    }
    if (refusal !== undefined) this.#refused(refusal);
  }
}

/** What a session begins with that goes on with another one. */
type Restoration = {
  readonly input: Preread;
  readonly apply: (context: SessionContext) => Promise<void>;
  readonly done: (error: Error | null) => void;
};

function sessionError(code: string, problem: string): VringError {
  const text = `the session cannot be handed over: ${problem}`;
  return new VringError(code, text, { recovery: 'retry' });
}

function asError(thrown: unknown): Error {
  if (thrown instanceof Error) return thrown;
  return new VringError('ERR_VRING_ASSERTION', `thrown: ${String(thrown)}`);
}
