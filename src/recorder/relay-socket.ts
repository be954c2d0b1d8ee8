/**
 * A nonblocking stream socket that is read by one and written by another loop, each of which
 * waits for it: nothing is queued here, so that a slow reader slows the sender down.
 */
import { SysError } from '../base/errors.ts';
import { type Fd, pollFd, type Received, receiveWithFds, sendWithFds } from '../sys/index.ts';

const END: Received = { bytes: 0, fds: [], fdsTruncated: false };

export class RelaySocket {
  readonly #socket: Fd;
  readonly #poll: ReturnType<typeof pollFd>;
  #reader: (() => void) | null = null;
  #writer: (() => void) | null = null;

  /** Takes the socket over. @throws SysError for an fd that cannot be waited for; it is closed. */
  constructor(socket: Fd) {
    this.#socket = socket;
    try {
      this.#poll = pollFd(socket.number, {}, (readable, writable) => {
        if (readable) this.#wakeReader();
        if (writable) this.#wakeWriter();
        this.#updateInterest();
      });
    } catch (error) {
      socket.close();
      throw error;
    }
  }

  get closed(): boolean {
    return this.#socket.closed;
  }

  /** Waits for bytes. 0 of them: the peer, or we, have closed. One caller at a time. */
  async receive(into: Uint8Array, maxFds: number): Promise<Received> {
    for (;;) {
      if (this.closed) return END;
      let got: Received | null;
      try {
        got = receiveWithFds(this.#socket.number, into, maxFds);
      } catch (error) {
        // ENOTCONN and the like: whatever the peer calls a socket, it is over.
        if (error instanceof SysError) return END;
        throw error;
      }
      if (got !== null) return got;
      await new Promise<void>((resolve) => {
        this.#reader = resolve;
        this.#updateInterest();
      });
    }
  }

  /** Waits until the kernel has all bytes; the fds go with the first. False: nobody reads them. */
  async send(bytes: Uint8Array, fds: readonly number[]): Promise<boolean> {
    let sent = 0;
    while (sent < bytes.length) {
      if (this.closed) return false;
      let count: number;
      try {
        const rest = sent === 0 ? bytes : bytes.subarray(sent);
        count = sendWithFds(this.#socket.number, rest, sent === 0 ? fds : []);
      } catch (error) {
        if (error instanceof SysError) return false;
        throw error;
      }
      sent += count;
      if (count > 0) continue;
      await new Promise<void>((resolve) => {
        this.#writer = resolve;
        this.#updateInterest();
      });
    }
    return true;
  }

  /** Idempotent. Who waits is told. */
  close(): void {
    if (this.closed) return;
    this.#poll.close();
    this.#socket.close();
    this.#wakeReader();
    this.#wakeWriter();
  }

  #wakeReader(): void {
    const wake = this.#reader;
    this.#reader = null;
    wake?.();
  }

  #wakeWriter(): void {
    const wake = this.#writer;
    this.#writer = null;
    wake?.();
  }

  #updateInterest(): void {
    if (this.closed) return;
    this.#poll.update({ read: this.#reader !== null, write: this.#writer !== null });
  }
}
