/**
 * The backend channel: requests of the back-end, over the socket that SET_BACKEND_REQ_FD brought.
 *
 * Theory of operation. Requests go out at once and are answered in their order. A front-end
 * answers where it always does (SHARED_OBJECT_LOOKUP) or where we ask for it (need_reply, only
 * with REPLY_ACK); a request without an answer is done when the kernel has it. What waits for an
 * answer is bounded in number and in time: a front-end that never answers loses the channel, and
 * whoever waited is told. The session itself waits for nothing that comes over this channel.
 */
import { ProtocolError, VringError } from '../base/errors.ts';
import { Fd } from '../sys/index.ts';
import { parsePayload } from '../wire/vhost-user-parse.ts';
import { U64Payload, VHOST_USER_NEED_REPLY_MASK, VHOST_USER_VERSION } from '../wire/vhost-user.ts';
import { closeFds, type Message, MessageConnection, type Preread } from './connection.ts';
import { CALL_TIMEOUT_MS, MAX_CHANNEL_REQUESTS } from './limits.ts';
import { BACK_END_MESSAGES, backEndRequestName, type MessageEntry } from './message-table.ts';

type Waiting = {
  readonly entry: MessageEntry;
  /** Null: whoever asked has been told otherwise already; the answer is swallowed. */
  resolve: ((reply: Message) => void) | null;
  reject: ((error: Error) => void) | null;
  readonly timer: NodeJS.Timeout | null;
};

/** What a successor must know to go on with a channel. */
export type ChannelState = {
  /** Requests whose answers are still to come and mean nothing any more. */
  readonly unanswered: readonly number[];
};

export type ChannelOptions = {
  readonly socket: Fd;
  /** The channel broke or ended; not after `close()`. */
  readonly onEnd: (reason: Error | null) => void;
  readonly state?: ChannelState;
  readonly preread?: Preread;
};

export class BackendChannel {
  readonly #connection: MessageConnection;
  readonly #waiting: Waiting[] = [];
  readonly #onEnd: ChannelOptions['onEnd'];
  #closed = false;
  /** Requests sent so far. */
  requests = 0;

  /** Takes the socket over. */
  constructor({ socket, onEnd, state, preread }: ChannelOptions) {
    this.#onEnd = onEnd;
    this.#connection = new MessageConnection(
      socket,
      { expectReplies: true, nameOf: backEndRequestName },
      preread,
    );
    for (const id of state?.unanswered ?? []) {
      const entry = BACK_END_MESSAGES.get(id);
      if (entry !== undefined) {
        this.#waiting.push({ entry, resolve: null, reject: null, timer: null });
      }
    }
    void this.#run();
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Requests that wait for an answer. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /**
   * Sends without waiting for an answer; failures end the channel and are nobody's otherwise.
   * Returns false where it could not be sent.
   */
  tell<T>(entry: MessageEntry<T, never>, payload: Uint8Array): boolean {
    if (this.#closed) return false;
    this.requests++;
    // A front-end that leaves 64 KiB unread loses the channel: a call must not be lost in silence.
    this.#connection
      .send(entry.id, VHOST_USER_VERSION, payload)
      .catch((error: Error) => this.#end(error));
    return true;
  }

  /**
   * Sends, and waits for the answer where there is one: `answers` says so. `fds` must stay open
   * until it resolves.
   * @throws VringError ERR_VRING_CLOSED, ERR_VRING_BACKPRESSURE, ERR_VRING_TIMEOUT,
   *   ERR_VRING_REFUSED.
   */
  async ask<T, R>(
    entry: MessageEntry<T, R>,
    payload: Uint8Array,
    answers: boolean,
    fds: readonly number[] = [],
  ): Promise<Message | null> {
    if (this.#closed) throw channelError('ERR_VRING_CLOSED', entry.name, 'the channel is closed');
    if (this.#waiting.length >= MAX_CHANNEL_REQUESTS) {
      const problem = `${MAX_CHANNEL_REQUESTS} requests wait for the front-end already`;
      throw channelError('ERR_VRING_BACKPRESSURE', entry.name, problem);
    }
    this.requests++;
    const always = entry.reply === 'payload';
    const flags = VHOST_USER_VERSION | (answers && !always ? VHOST_USER_NEED_REPLY_MASK : 0);
    const reply = answers ? this.#await(entry as unknown as MessageEntry) : null;
    void reply?.catch(() => undefined); // handed on below, unless sending fails first
    try {
      await this.#connection.send(entry.id, flags, payload, fds);
    } catch (error) {
      this.#end(error as Error);
      throw error;
    }
    if (reply === null) return null;
    const message = await reply;
    if (!always) {
      try {
        this.#checkAck(entry as unknown as MessageEntry, message);
      } finally {
        closeFds(message.fds);
      }
    }
    return message;
  }

  /** Idempotent. Whoever waits is told. */
  close(): void {
    this.#shut(channelError('ERR_VRING_CLOSED', 'backend channel', 'the channel was closed'));
  }

  /** Nothing is read or sent any more until `resume`; what waited for an answer is told so. */
  suspend(): ChannelState & { readonly preread: Preread } {
    const preread = this.#connection.pause();
    const problem = 'the device is handed over to another process';
    for (const each of this.#waiting) this.#give(each, 'ERR_VRING_SUSPENDED', problem);
    return { unanswered: this.#waiting.map(({ entry }) => entry.id), preread };
  }

  resume(): void {
    this.#connection.resume();
  }

  get socket(): Fd {
    return this.#connection.socket;
  }

  #give(waiting: Waiting, code: string, problem: string): void {
    const { reject, entry, timer } = waiting;
    if (timer !== null) clearTimeout(timer);
    waiting.reject = null;
    waiting.resolve = null;
    reject?.(channelError(code, entry.name, problem));
  }

  #await(entry: MessageEntry): Promise<Message> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        const problem = `no answer for ${CALL_TIMEOUT_MS} ms; the channel was closed`;
        this.#end(channelError('ERR_VRING_TIMEOUT', entry.name, problem));
      }, CALL_TIMEOUT_MS);
      timer.unref();
      this.#waiting.push({ entry, resolve, reject, timer });
    });
  }

  #checkAck(entry: MessageEntry, { payload }: Message): void {
    if (payload.length !== U64Payload.size) {
      const problem = `${payload.length} bytes of answer, expected one u64`;
      throw new ProtocolError('ERR_VRING_MESSAGE_SIZE', entry.name, 'size', problem);
    }
    const { value } = U64Payload.decode(payload);
    if (value === 0n) return;
    throw channelError('ERR_VRING_REFUSED', entry.name, `the front-end answered ${value}`);
  }

  async #run(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#connection.receive();
        if (message === null) break;
        this.#answered(message);
      }
      this.#end(null);
    } catch (error) {
      this.#end(error as Error);
    }
  }

  /** Answers come in the order of the requests. */
  #answered(message: Message): void {
    const next = this.#waiting.shift();
    try {
      if (next === undefined || next.entry.id !== message.request) {
        const due = next === undefined ? 'none' : next.entry.name;
        const name = backEndRequestName(message.request);
        const problem = `an answer to ${name} came, expected ${due}`;
        throw new ProtocolError('ERR_VRING_MESSAGE_UNKNOWN', name, 'request', problem);
      }
      const { replyPayload, replyFds, reply, name } = next.entry;
      const [min, max] = reply === 'payload' ? replyFds : [0, 0];
      if (message.fds.length < min || message.fds.length > max) {
        const problem = `${message.fds.length} came with the answer, expected at most ${max}`;
        throw new ProtocolError('ERR_VRING_MESSAGE_FDS', name, 'fds', problem);
      }
      if (reply === 'payload' && replyPayload) parsePayload(replyPayload, name, message.payload);
    } catch (error) {
      closeFds(message.fds);
      if (next !== undefined) this.#waiting.unshift(next); // told by whoever ends the channel
      throw error;
    }
    if (next.timer !== null) clearTimeout(next.timer);
    if (next.resolve === null) closeFds(message.fds);
    else next.resolve(message);
  }

  #end(reason: Error | null): void {
    if (this.#closed) return;
    const problem = 'the front-end closed the channel';
    this.#shut(reason ?? channelError('ERR_VRING_PEER_CLOSED', 'backend channel', problem));
    this.#onEnd(reason);
  }

  #shut(error: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#connection.close();
    for (const { reject, timer } of this.#waiting.splice(0)) {
      if (timer !== null) clearTimeout(timer);
      reject?.(error);
    }
  }
}

function channelError(code: string, name: string, problem: string): VringError {
  return new VringError(code, `${name}: ${problem}`, { recovery: 'retry' });
}
