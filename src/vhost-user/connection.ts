/**
 * Framing: messages over a nonblocking Unix stream socket.
 *
 * Theory of operation. Reading is pulled: `receive` reads one header, then exactly its payload,
 * never more, so that the kernel's buffer is the only queue and a peer that sends faster than we
 * handle is stopped by it. fds arrive with the first byte of the header; they are wrapped into
 * owners at once and belong to the message, or are closed if the message never completes.
 * Writing is queued: `send` tries at once, keeps the rest for when the socket is writable, and
 * resolves when the last byte is with the kernel. Short reads and writes may happen at any byte.
 *
 * A framing error (version, flags, oversize, misplaced fds, end of stream inside a message) is
 * final: nobody knows where the next message starts.
 */
import { ProtocolError, SysError, VringError } from '../base/errors.ts';
import { type Fd, pollFd, ReceivedFd, receiveWithFds, sendWithFds } from '../sys/index.ts';
import {
  VHOST_USER_FLAGS_MASK,
  VHOST_USER_REPLY_MASK,
  VHOST_USER_VERSION,
  VHOST_USER_VERSION_MASK,
  VhostUserHeader,
} from '../wire/vhost-user.ts';
import { publishMessage } from './diagnostics.ts';
import {
  MAX_MESSAGE_FDS,
  MAX_PAYLOAD_BYTES,
  MAX_QUEUED_BYTES,
  MESSAGES_PER_TURN,
} from './limits.ts';

/** One message as it came: the header is sound, the payload not looked at. */
export type Message = {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  /** Owned by whoever holds the message: take those that you keep, close the rest. */
  readonly fds: Fd[];
};

/** What was read of a message that is not complete yet; another process may go on with it. */
export type Preread = { readonly bytes: Uint8Array; readonly fds: readonly Fd[] };

export type ConnectionOptions = {
  /** True on the side that receives replies: they must carry the reply flag, requests must not. */
  readonly expectReplies: boolean;
  /** Name of a request id, for errors and diagnostics. */
  readonly nameOf: (request: number) => string;
};

type Outgoing = {
  readonly bytes: Uint8Array;
  readonly fds: readonly number[];
  sent: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
};

/** Closes what a message still holds. */
export function closeFds(fds: Fd[]): void {
  for (const fd of fds.splice(0)) fd.close();
}

export class MessageConnection {
  readonly #socket: Fd;
  readonly #options: ConnectionOptions;
  readonly #poll: ReturnType<typeof pollFd>;
  #closed = false;
  #paused = false;

  readonly #header = new Uint8Array(VhostUserHeader.size);
  #payload: Uint8Array | null = null;
  #filled = 0; // bytes of the header, then of the payload
  #fds: Fd[] = [];
  #taken = 0; // messages since the event loop had its turn
  #wake: (() => void) | null = null;

  readonly #queue: Outgoing[] = [];
  #queuedBytes = 0;

  /** Takes the socket over, and what a predecessor had read from it: `close` closes it. */
  constructor(socket: Fd, options: ConnectionOptions, preread?: Preread) {
    this.#socket = socket;
    this.#options = options;
    if (preread !== undefined) this.#prefill(preread);
    this.#poll = pollFd(socket.number, {}, (readable, writable) => {
      if (writable) this.#flush();
      if (readable) this.#wakeReader();
      this.#updateInterest();
    });
  }

  get closed(): boolean {
    return this.#closed;
  }

  get socket(): Fd {
    return this.#socket;
  }

  /** Messages that the kernel has not taken whole yet. */
  get unsent(): number {
    return this.#queue.length;
  }

  /**
   * Reads nothing more until `resume`. Returns what has been read of the next message, which
   * stays this connection's: to be copied by whoever hands the socket over.
   */
  pause(): Preread {
    this.#paused = true;
    this.#updateInterest();
    const payload = this.#payload;
    const bytes =
      payload === null
        ? this.#header.slice(0, this.#filled)
        : Buffer.concat([this.#header, payload.subarray(0, this.#filled)]);
    return { bytes, fds: this.#fds };
  }

  /** Idempotent. */
  resume(): void {
    this.#paused = false;
    this.#wakeReader();
  }

  /** @throws ProtocolError when the predecessor's bytes begin no message. */
  #prefill({ bytes, fds }: Preread): void {
    const lead = bytes.subarray(0, this.#header.length);
    this.#header.set(lead);
    this.#filled = lead.length;
    this.#fds = [...fds];
    if (lead.length < this.#header.length) return;
    this.#payload = new Uint8Array(this.#checkHeader());
    this.#filled = Math.min(bytes.length - lead.length, this.#payload.length);
    this.#payload.set(bytes.subarray(lead.length, lead.length + this.#filled));
  }

  /**
   * The next message, or null once the peer (between two messages) or we have closed. One caller
   * at a time.
   * @throws ProtocolError for a framing error; SysError when the socket fails.
   */
  async receive(): Promise<Message | null> {
    if (++this.#taken > MESSAGES_PER_TURN) {
      await new Promise<void>((resolve) => setImmediate(resolve));
      this.#taken = 1;
    }
    for (;;) {
      if (this.#closed) return null;
      const message = this.#paused ? 'again' : this.#read();
      if (message !== 'again') return message;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        this.#updateInterest();
      });
      this.#taken = 1;
    }
  }

  /**
   * Sends one message. `fds` stay the caller's and must stay open until the promise resolves,
   * which is when the kernel has everything.
   * @throws VringError ERR_VRING_PEER_CLOSED, ERR_VRING_CLOSED, ERR_VRING_BACKPRESSURE.
   */
  send(
    request: number,
    flags: number,
    payload: Uint8Array,
    fds: readonly number[] = [],
  ): Promise<void> {
    const name = this.#options.nameOf(request);
    const bytes = new Uint8Array(VhostUserHeader.size + payload.length);
    bytes.set(VhostUserHeader.encode({ request, flags, size: payload.length }));
    bytes.set(payload, VhostUserHeader.size);
    return new Promise((resolve, reject) => {
      if (this.#closed) {
        reject(closedError(name));
        return;
      }
      if (this.#queuedBytes + bytes.length > MAX_QUEUED_BYTES) {
        const text = `${name}: the peer does not read: ${this.#queuedBytes} bytes wait already`;
        reject(new VringError('ERR_VRING_BACKPRESSURE', text, { recovery: 'reconnect' }));
        return;
      }
      publishMessage('sent', name, flags, payload.length, fds.length);
      this.#queue.push({ bytes, fds, sent: 0, resolve, reject });
      this.#queuedBytes += bytes.length;
      if (this.#queue.length === 1) this.#flush();
      this.#updateInterest();
    });
  }

  /** Idempotent. Waiting `receive` returns null, waiting `send`s reject. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#poll.close();
    this.#socket.close();
    closeFds(this.#fds);
    this.#queuedBytes = 0;
    for (const item of this.#queue.splice(0)) item.reject(closedError('send'));
    this.#wakeReader();
  }

  #wakeReader(): void {
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }

  #updateInterest(): void {
    if (this.#closed) return;
    this.#poll.update({
      read: this.#wake !== null && !this.#paused,
      write: this.#queue.length > 0,
    });
  }

  /** Reads on until a message is complete, the stream ends (null) or there is no more for now. */
  #read(): Message | null | 'again' {
    for (;;) {
      const target = this.#payload ?? this.#header;
      if (this.#filled < target.length) {
        const got = this.#receiveInto(target.subarray(this.#filled));
        if (got === null) return 'again';
        this.#takeFds(got.fds, got.fdsTruncated);
        if (got.bytes === 0) return this.#endOfStream();
        this.#filled += got.bytes;
        continue;
      }
      if (this.#payload !== null) return this.#complete(this.#payload);
      this.#payload = new Uint8Array(this.#checkHeader());
      this.#filled = 0;
    }
  }

  #receiveInto(bytes: Uint8Array): ReturnType<typeof receiveWithFds> {
    try {
      return receiveWithFds(this.#socket.number, bytes, MAX_MESSAGE_FDS);
    } catch (error) {
      // A peer that dies with answers of ours unread resets the connection: an end like others.
      if (error instanceof SysError && error.errnoName === 'ECONNRESET') {
        return { bytes: 0, fds: [], fdsTruncated: false };
      }
      throw error;
    }
  }

  #complete(payload: Uint8Array): Message {
    const { request, flags } = VhostUserHeader.decode(this.#header);
    const fds = this.#fds;
    this.#fds = [];
    this.#payload = null;
    this.#filled = 0;
    publishMessage('received', this.#options.nameOf(request), flags, payload.length, fds.length);
    return { request, flags, payload, fds };
  }

  /** Returns the payload's size. */
  #checkHeader(): number {
    const { request, flags, size } = VhostUserHeader.decode(this.#header);
    const name = this.#options.nameOf(request);
    const version = flags & VHOST_USER_VERSION_MASK;
    const flagsText = `0x${flags.toString(16)}`;
    const badFlags = (problem: string): ProtocolError =>
      new ProtocolError('ERR_VRING_MESSAGE_FLAGS', name, 'flags', `${flagsText} ${problem}`);
    if (version !== VHOST_USER_VERSION) {
      throw badFlags(`is version ${version}, expected ${VHOST_USER_VERSION}`);
    }
    if ((flags & ~VHOST_USER_FLAGS_MASK) !== 0) {
      throw badFlags('has reserved bits set, expected bits 0-3 only');
    }
    if (((flags & VHOST_USER_REPLY_MASK) !== 0) !== this.#options.expectReplies) {
      throw this.#options.expectReplies
        ? badFlags('is a request, expected a reply (bit 2 set)')
        : badFlags('is a reply, expected a request (bit 2 clear)');
    }
    if (size > MAX_PAYLOAD_BYTES) {
      const problem = `${size} bytes of payload, expected at most ${MAX_PAYLOAD_BYTES}`;
      throw new ProtocolError('ERR_VRING_MESSAGE_SIZE', name, 'size', problem);
    }
    return size;
  }

  #takeFds(numbers: readonly number[], truncated: boolean): void {
    const first = this.#payload === null && this.#filled === 0;
    for (const number of numbers) {
      this.#fds.push(new ReceivedFd(number, 'received with a message'));
    }
    if (numbers.length === 0 && !truncated) return;
    if (truncated) {
      const problem = `more than ${MAX_MESSAGE_FDS} with one message`;
      throw new ProtocolError('ERR_VRING_MESSAGE_FDS', this.#nameSoFar(), 'fds', problem);
    }
    if (!first) {
      const problem = `${numbers.length} behind the first byte, expected with it`;
      throw new ProtocolError('ERR_VRING_MESSAGE_FDS', this.#nameSoFar(), 'fds', problem);
    }
  }

  #nameSoFar(): string {
    if (this.#payload === null) return 'VHOST_USER header';
    return this.#options.nameOf(VhostUserHeader.decode(this.#header).request);
  }

  #endOfStream(): null {
    if (this.#payload === null && this.#filled === 0) return null;
    const due = (this.#payload ?? this.#header).length;
    const part = this.#payload === null ? 'header' : 'payload';
    const problem = `the peer closed after ${this.#filled} of ${due} bytes; it may connect again`;
    throw new ProtocolError('ERR_VRING_MESSAGE_TRUNCATED', this.#nameSoFar(), part, problem);
  }

  #flush(): void {
    while (!this.#closed && this.#queue.length > 0) {
      const item = this.#queue[0]!;
      try {
        // The fds go with the first byte: as long as none is sent, they are sent again.
        const rest = item.sent === 0 ? item.bytes : item.bytes.subarray(item.sent);
        const sent = sendWithFds(this.#socket.number, rest, item.sent === 0 ? item.fds : []);
        if (sent === 0) return;
        item.sent += sent;
      } catch (error) {
        this.#failWrites(error);
        return;
      }
      if (item.sent < item.bytes.length) continue;
      this.#queue.shift();
      this.#queuedBytes -= item.bytes.length;
      item.resolve();
    }
  }

  #failWrites(cause: unknown): void {
    const gone = cause instanceof SysError && ['EPIPE', 'ECONNRESET'].includes(cause.errnoName);
    const error = gone
      ? new VringError('ERR_VRING_PEER_CLOSED', 'the peer closed the connection', {
          recovery: 'reconnect',
          cause,
        })
      : (cause as Error);
    this.#queuedBytes = 0;
    for (const item of this.#queue.splice(0)) item.reject(error);
  }
}

function closedError(what: string): VringError {
  return new VringError('ERR_VRING_CLOSED', `${what}: this side has closed the connection`, {
    recovery: 'reconnect',
  });
}
