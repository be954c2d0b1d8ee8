/**
 * Requests and their answers on the front-end's side: one request is out at a time, its answer
 * is the next message that comes. A wrong or late answer ends the session, because from then on
 * nobody knows which answer belongs to what.
 */
import { ProtocolError, VringError } from '../base/errors.ts';
import type { Fd } from '../sys/index.ts';
import { U64Payload, VHOST_USER_NEED_REPLY_MASK, VHOST_USER_VERSION } from '../wire/vhost-user.ts';
import { closeFds, type Message, MessageConnection } from './connection.ts';
import { requestName } from './message-table.ts';

type Pending = {
  readonly request: number;
  readonly resolve: (message: Message) => void;
  readonly reject: (error: Error) => void;
};

export class FrontendChannel {
  /** Resolves when the session is over: null after `close()`, else why the back-end is gone. */
  readonly closed: Promise<Error | null>;
  readonly #connection: MessageConnection;
  readonly #timeoutMs: number;
  #pending: Pending | null = null;
  #last: Promise<unknown> = Promise.resolve();
  #reason: Error | null = null;
  #closedByUs = false;

  constructor(socket: Fd, timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
    this.#connection = new MessageConnection(socket, { expectReplies: true, nameOf: requestName });
    this.closed = this.#run();
  }

  /** Sends a request that has a reply of its own. The fds of the reply are the caller's. */
  ask(
    request: number,
    payload: Uint8Array,
    fds: readonly number[] = [],
    flags = VHOST_USER_VERSION,
  ): Promise<Message> {
    return this.#inTurn(() => this.#exchange(request, flags, payload, fds));
  }

  /**
   * Sends a request without a reply; with `ack` it asks for one and waits.
   * @throws ProtocolError ERR_VRING_REFUSED when the ack is not zero; the session goes on.
   */
  tell(request: number, payload: Uint8Array, fds: readonly number[], ack: boolean): Promise<void> {
    return this.#inTurn(async () => {
      if (!ack) {
        await this.#timed(
          request,
          this.#connection.send(request, VHOST_USER_VERSION, payload, fds),
        );
        return;
      }
      const flags = VHOST_USER_VERSION | VHOST_USER_NEED_REPLY_MASK;
      const reply = await this.#exchange(request, flags, payload, fds);
      closeFds(reply.fds); // no ack carries any
      this.checkAck(request, reply.payload);
    });
  }

  /** @throws ProtocolError ERR_VRING_REFUSED when the ack is not zero; the session goes on. */
  checkAck(request: number, payload: Uint8Array): void {
    const value = this.readU64(request, payload);
    if (value === 0n) return;
    const problem = `the back-end refused the message (${value}); its log says why`;
    throw new ProtocolError('ERR_VRING_REFUSED', requestName(request), 'reply', problem, {
      recovery: 'reset',
    });
  }

  /** Ends the session because of an answer that makes no sense. Returns the error to throw. */
  failReply(request: number, field: string, problem: string): Error {
    return this.fail(replyError(request, field, problem));
  }

  /** Ends the session with this reason, which it returns. */
  fail(error: Error): Error {
    if (!this.#connection.closed) this.#reason ??= error;
    this.#connection.close();
    return error;
  }

  /** The value of a u64 reply. */
  readU64(request: number, payload: Uint8Array): bigint {
    if (payload.length === U64Payload.size) return U64Payload.decode(payload).value;
    const problem = `${payload.length} bytes of reply, expected ${U64Payload.size}`;
    throw this.failReply(request, 'size', problem);
  }

  /** Idempotent. */
  close(): void {
    if (!this.#connection.closed) this.#closedByUs = true;
    this.#connection.close();
  }

  #inTurn<T>(body: () => Promise<T>): Promise<T> {
    const result = this.#last.then(body);
    this.#last = result.catch(() => undefined);
    return result;
  }

  async #exchange(
    request: number,
    flags: number,
    payload: Uint8Array,
    fds: readonly number[],
  ): Promise<Message> {
    if (this.#connection.closed) throw this.#gone(request);
    const reply = new Promise<Message>((resolve, reject) => {
      this.#pending = { request, resolve, reject };
    });
    reply.catch(() => undefined); // the send may fail first
    try {
      const sent = this.#connection.send(request, flags, payload, fds);
      return await this.#timed(
        request,
        sent.then(() => reply),
      );
    } finally {
      this.#pending = null;
    }
  }

  /** @throws VringError ERR_VRING_TIMEOUT, which ends the session. */
  async #timed<T>(request: number, work: Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | null = null;
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => {
        const text =
          `${requestName(request)}: no answer from the back-end for ${this.#timeoutMs} ms; ` +
          'the connection is closed, connect again';
        const error = new VringError('ERR_VRING_TIMEOUT', text, { recovery: 'reconnect' });
        reject(this.fail(error));
      }, this.#timeoutMs);
    });
    try {
      return await Promise.race([work, late]);
    } catch (error) {
      throw this.#explain(request, error);
    } finally {
      clearTimeout(timer!);
    }
  }

  /** A socket that failed under a call is a back-end that went away. */
  #explain(request: number, error: unknown): unknown {
    const { code } = error as VringError;
    if (code === 'ERR_VRING_CLOSED' || code === 'ERR_VRING_PEER_CLOSED') return this.#gone(request);
    return error;
  }

  /** Why a call cannot be answered any more. */
  #gone(request: number): Error {
    const name = requestName(request);
    if (this.#closedByUs) {
      return new VringError('ERR_VRING_CLOSED', `${name}: this front-end is closed`);
    }
    const reason = this.#reason as VringError | null;
    if (reason !== null && reason.code !== 'ERR_VRING_PEER_CLOSED') return reason;
    return peerClosed(`${name}: the back-end closed the connection; connect again`);
  }

  async #run(): Promise<Error | null> {
    try {
      for (;;) {
        const message = await this.#connection.receive();
        if (message === null) break;
        this.#accept(message);
      }
    } catch (error) {
      if (!this.#connection.closed) this.#reason ??= error as Error;
    }
    if (!this.#connection.closed) this.#reason ??= peerClosed('the back-end closed the connection');
    this.#connection.close();
    const pending = this.#pending;
    this.#pending = null;
    pending?.reject(this.#gone(pending.request));
    return this.#reason;
  }

  #accept(message: Message): void {
    const pending = this.#pending;
    if (pending !== null && pending.request === message.request) {
      this.#pending = null;
      pending.resolve(message);
      return;
    }
    closeFds(message.fds);
    const due = pending === null ? 'none' : `one to ${requestName(pending.request)}`;
    const problem = `an unexpected reply, expected ${due}`;
    throw replyError(message.request, 'request', problem);
  }
}

function peerClosed(text: string): VringError {
  return new VringError('ERR_VRING_PEER_CLOSED', text, { recovery: 'reconnect' });
}

function replyError(request: number, field: string, problem: string): ProtocolError {
  return new ProtocolError('ERR_VRING_REPLY', requestName(request), field, problem);
}
