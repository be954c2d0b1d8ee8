/** A front-end that sends any bytes and fds, right or wrong, for tests and the fuzzer. */
import { type Fd, sendWithFds } from '../../sys/index.ts';
import { U64Payload, VhostUserHeader } from '../../wire/vhost-user.ts';
import { closeFds, type Message, MessageConnection } from '../connection.ts';
import { requestName } from '../message-table.ts';

/** Header and payload of one request. */
export function encodeMessage(
  request: number,
  payload: Uint8Array = new Uint8Array(0),
  flags = 1,
  size = payload.length,
): Uint8Array {
  return Buffer.concat([VhostUserHeader.encode({ request, flags, size }), payload]);
}

export function u64(value: bigint | number): Uint8Array {
  return U64Payload.encode({ value: BigInt(value) });
}

export class RawPeer {
  readonly #socket: Fd;
  readonly #connection: MessageConnection;

  /** Takes the socket over. `requests`: the far end of a backend channel. */
  constructor(socket: Fd, receives: 'replies' | 'requests' = 'replies') {
    this.#socket = socket;
    this.#connection = new MessageConnection(socket, {
      expectReplies: receives === 'replies',
      nameOf: requestName,
    });
  }

  /** Sends all bytes, the fds with the first one. False: the other side has closed. */
  async sendRaw(bytes: Uint8Array, fds: readonly number[] = []): Promise<boolean> {
    let sent = 0;
    while (sent < bytes.length) {
      if (this.#connection.closed) return false;
      try {
        const rest = bytes.subarray(sent);
        const count = sendWithFds(this.#socket.number, rest, sent === 0 ? fds : []);
        sent += count;
        if (count === 0) await new Promise((resolve) => setImmediate(resolve));
      } catch {
        return false;
      }
    }
    return true;
  }

  send(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
    flags = 1,
  ): Promise<boolean> {
    return this.sendRaw(encodeMessage(request, payload, flags), fds);
  }

  /** The next message; null when the other side has closed. Its fds are closed. */
  async reply(): Promise<Message | null> {
    const message = await this.receive();
    if (message !== null) closeFds(message.fds);
    return message;
  }

  /** The next reply, its fds the caller's; null when the other side has closed. */
  receive(): Promise<Message | null> {
    return this.#connection.receive();
  }

  /** Asks with a request that has a reply of its own, or with need_reply (flags 9). */
  async ask(
    request: number,
    payload?: Uint8Array,
    fds: readonly number[] = [],
    flags = 1,
  ): Promise<Uint8Array> {
    await this.send(request, payload, fds, flags);
    const message = await this.reply();
    if (message === null) throw new Error(`${requestName(request)}: closed instead of a reply`);
    return message.payload;
  }

  close(): void {
    this.#connection.close();
  }
}
