/** An eventfd in the middle: what is signalled on one side is signalled on the other. */
import { drainEventfd, type Fd, pollFd, signalEventfd } from '../sys/index.ts';

export class SignalRelay {
  readonly #source: Fd;
  readonly #target: Fd;
  readonly #onSignal: (count: number) => void;
  readonly #poll: ReturnType<typeof pollFd>;
  #closed = false;

  /** Takes both over. `onSignal` comes before the signal is handed on. */
  constructor(source: Fd, target: Fd, onSignal: (count: number) => void) {
    this.#source = source;
    this.#target = target;
    this.#onSignal = onSignal;
    // Only what is readable is read: a peer may have made its eventfd a blocking one.
    this.#poll = pollFd(source.number, { read: true }, (readable) => {
      if (readable && !this.#closed) this.#relay();
    });
  }

  /** Signals the target on behalf of a relay before this one. */
  signal(): void {
    signalEventfd(this.#target.number);
  }

  /**
   * Ends a relay whose target nobody reads any more. True: there were signals that nobody took;
   * the eventfd that both targets stand for would have kept them, so its successor gets them.
   */
  closeUnread(): boolean {
    if (this.#closed) return false;
    const isUnread = drainEventfd(this.#target.number) > 0;
    this.close();
    return isUnread;
  }

  /** Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#poll.close();
    this.#source.close();
    this.#target.close();
  }

  #relay(): void {
    const count = drainEventfd(this.#source.number);
    if (count === 0) return;
    this.#onSignal(count);
    this.signal();
  }
}
