/** A clock that can be waited for like any descriptor, by threads without an event loop. */
import { check } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

/** Not set, and so never readable; non-blocking. */
export class Timerfd {
  readonly #fd: Fd;
  readonly #number: number;

  /** @syscalls timerfd_create */
  constructor(what: string) {
    this.#fd = new Fd(
      check('timerfd_create', native.timerfdCreate(), () => what),
      what,
    );
    this.#number = this.#fd.number;
  }

  get fd(): number {
    return this.#number;
  }

  /**
   * Readable so long from now, once and until it is set again. Hot: allocates nothing.
   * @syscalls timerfd_settime
   */
  set(ms: number): void {
    native.timerfdSet(this.#number, Math.max(1, Math.ceil(ms * 1e6)));
  }

  /**
   * Not readable any more.
   * @syscalls timerfd_settime
   */
  clear(): void {
    native.timerfdSet(this.#number, 0);
  }

  /** Idempotent. @syscalls close */
  close(): void {
    this.#fd.close();
  }
}
