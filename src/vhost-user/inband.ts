/**
 * In-band notifications (protocol feature 14): kicks, calls and errors as messages instead of
 * eventfds. Workers know eventfds only, so each is an eventfd of the session's own: VRING_KICK
 * signals the one, and what a worker writes to the others becomes a message of the backend
 * channel. That is slow, and meant for front-ends that cannot pass eventfds.
 */
import { createEventfd, drainEventfd, type Fd, type Poll, pollFd } from '../sys/index.ts';

type Which = 'call' | 'err';

export class InbandNotifier {
  /** INBAND_NOTIFICATIONS was acked. Set by the session. */
  negotiated = false;
  readonly #signal: (which: Which, index: number) => void;
  readonly #polls = new Map<string, Poll>();

  /** `signal` sends VRING_CALL or VRING_ERR. */
  constructor(signal: (which: Which, index: number) => void) {
    this.#signal = signal;
  }

  /** What VRING_KICK signals; the caller's. Null: the driver is polled. */
  makeKick(index: number): Fd | null {
    return this.negotiated ? createEventfd(`in-band kick of vring ${index}`) : null;
  }

  /** What a target signals; the caller's, to be unwatched before it is closed. */
  watch(index: number, which: Which): Fd | null {
    if (!this.negotiated) return null;
    const fd = createEventfd(`in-band ${which} of vring ${index}`);
    const poll = pollFd(fd.number, { read: true }, () => {
      if (drainEventfd(fd.number) > 0) this.#signal(which, index);
    });
    this.#polls.set(`${which} ${index}`, poll);
    return fd;
  }

  unwatch(index: number, which: Which): void {
    const key = `${which} ${index}`;
    this.#polls.get(key)?.close();
    this.#polls.delete(key);
  }

  /** Idempotent. */
  close(): void {
    for (const poll of this.#polls.values()) poll.close();
    this.#polls.clear();
  }
}
