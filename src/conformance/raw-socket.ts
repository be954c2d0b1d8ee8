/**
 * A socket that sends any bytes with any fds and reads whatever comes back without judging it:
 * a conformance check must see the wrong flags that a proper connection refuses to show.
 */
import { SysError, VringError } from '../base/errors.ts';
import { type Fd, pollFd, ReceivedFd, receiveWithFds, sendWithFds } from '../sys/index.ts';
import { VhostUserHeader } from '../wire/vhost-user.ts';

export type RawMessage = {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  /** The receiver's to close. */
  readonly fds: Fd[];
};

/** `closed`: end of the stream or a reset. `partial`: it ended inside a message. */
export type Reception = RawMessage | 'closed' | 'partial' | 'timeout';

/** A larger message is nonsense, whoever sends it. */
const MAX_PAYLOAD_BYTES = 1 << 16;
const MAX_FDS = 253;
const SEND_TIMEOUT_MS = 2000;

/** Header and payload of one message; `size` may lie. */
export function encodeMessage(
  request: number,
  flags: number,
  payload: Uint8Array,
  size = payload.length,
): Uint8Array {
  return Buffer.concat([VhostUserHeader.encode({ request, flags, size }), payload]);
}

export class RawSocket {
  readonly #socket: Fd;
  readonly #poll: ReturnType<typeof pollFd>;
  #wake: (() => void) | null = null;
  readonly #header = new Uint8Array(VhostUserHeader.size);
  #payload: Uint8Array | null = null;
  #filled = 0;
  #fds: Fd[] = [];
  #ended: 'closed' | 'partial' | null = null;

  /** Takes the socket over. */
  constructor(socket: Fd) {
    this.#socket = socket;
    this.#poll = pollFd(socket.number, {}, () => {
      const wake = this.#wake;
      this.#wake = null;
      this.#poll.update({});
      wake?.();
    });
  }

  get closed(): boolean {
    return this.#socket.closed;
  }

  /** All bytes, the fds with the first. False: the peer has closed or does not read. */
  async send(bytes: Uint8Array, fds: readonly number[] = []): Promise<boolean> {
    const deadline = performance.now() + SEND_TIMEOUT_MS;
    let sent = 0;
    while (sent < bytes.length) {
      if (this.#socket.closed) return false;
      try {
        const count = sendWithFds(
          this.#socket.number,
          sent === 0 ? bytes : bytes.subarray(sent),
          sent === 0 ? fds : [],
        );
        sent += count;
        if (count > 0) continue;
      } catch (error) {
        if (error instanceof SysError) return false;
        throw error;
      }
      if (performance.now() > deadline) return false;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return true;
  }

  /** The next message, whatever it is. */
  async receive(timeoutMs: number): Promise<Reception> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      if (this.#ended !== null) return this.#ended;
      if (this.#socket.closed) return 'closed';
      const message = this.#read();
      if (message !== null) return message;
      const left = deadline - performance.now();
      if (left <= 0) return 'timeout';
      await this.#readable(left);
    }
  }

  /** Idempotent. */
  close(): void {
    if (this.#socket.closed) return;
    this.#poll.close();
    this.#socket.close();
    for (const fd of this.#fds.splice(0)) fd.close();
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }

  #readable(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#wake = null;
        if (!this.#socket.closed) this.#poll.update({});
        resolve();
      }, timeoutMs);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      this.#poll.update({ read: true });
    });
  }

  #read(): Reception | null {
    for (;;) {
      const target = this.#payload ?? this.#header;
      if (this.#filled === target.length) {
        if (this.#payload !== null) return this.#complete(this.#payload);
        const { size } = VhostUserHeader.decode(this.#header);
        if (size > MAX_PAYLOAD_BYTES) {
          const text = `the peer announces ${size} bytes of payload, which is no message`;
          throw new VringError('ERR_VRING_MESSAGE_SIZE', text, { recovery: 'reconnect' });
        }
        this.#payload = new Uint8Array(size);
        this.#filled = 0;
        continue;
      }
      const got = this.#receiveInto(target.subarray(this.#filled));
      if (got === null) return null;
      if (got === 0) {
        const inside = this.#filled > 0 || this.#payload !== null;
        this.#ended = inside ? 'partial' : 'closed';
        return this.#ended;
      }
      this.#filled += got;
    }
  }

  #receiveInto(bytes: Uint8Array): number | null {
    try {
      const got = receiveWithFds(this.#socket.number, bytes, MAX_FDS);
      for (const number of got?.fds ?? []) this.#fds.push(new ReceivedFd(number, 'from the peer'));
      return got === null ? null : got.bytes;
    } catch (error) {
      if (error instanceof SysError) return 0; // reset: the same as closed
      throw error;
    }
  }

  #complete(payload: Uint8Array): RawMessage {
    const { request, flags } = VhostUserHeader.decode(this.#header);
    const fds = this.#fds;
    this.#fds = [];
    this.#payload = null;
    this.#filled = 0;
    return { request, flags, payload, fds };
  }
}

export function closeAll(fds: readonly Fd[]): void {
  for (const fd of fds) fd.close();
}
