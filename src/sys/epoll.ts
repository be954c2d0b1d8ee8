/** Waiting for many descriptors in a thread that has nothing else to do. */
import { EPOLLET, EPOLLIN, EPOLLOUT } from '../wire/linux.ts';
import { EINTR, check, sysError } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

export type EpollOptions = {
  /** Report only changes; without it a ready fd is reported by every wait. */
  edge?: boolean;
  /** Wait until it can be written, instead of read. */
  write?: boolean;
};

/** One epoll instance. A token is any 32-bit number that the caller wants back. */
export class Epoll {
  #fd: Fd;
  #number: number;

  /** @syscalls epoll_create1 */
  constructor() {
    this.#fd = new Fd(
      check('epoll_create1', native.epollCreate(), () => 'epoll'),
      'epoll',
    );
    this.#number = this.#fd.number;
  }

  /** Readable while something is ready: another loop can wait for it. */
  get fd(): number {
    return this.#fd.number;
  }

  /**
   * Watches an fd, which must be removed before it is closed.
   * @throws SysError EEXIST, EPERM (a regular file), EBADF.
   * @syscalls epoll_ctl
   */
  add(fd: number, token: number, options: EpollOptions = {}): void {
    const ready = options.write === true ? EPOLLOUT : EPOLLIN;
    const events = (options.edge === true ? ready + EPOLLET : ready) >>> 0;
    const result = native.epollAdd(this.#fd.number, fd, token, events);
    check('epoll_ctl(ADD)', result, () => `fd ${fd}`);
  }

  /**
   * Stops watching an fd.
   * @throws SysError ENOENT, EBADF.
   * @syscalls epoll_ctl
   */
  remove(fd: number): void {
    check('epoll_ctl(DEL)', native.epollRemove(this.#fd.number, fd), () => `fd ${fd}`);
  }

  /**
   * Blocks this thread until something is ready; fills `tokens` (up to 256) and returns how many.
   * A timeout of -1 waits forever, 0 only looks. A signal, like the timeout, returns 0.
   * @syscalls epoll_wait
   */
  wait(tokens: Int32Array, timeoutMs: number): number {
    const count = native.epollWait(this.#number, tokens, timeoutMs);
    if (count >= 0) return count;
    if (count === -EINTR) return 0;
    throw sysError('epoll_wait', count, `timeout ${timeoutMs} ms`);
  }

  /** @syscalls close */
  close(): void {
    this.#fd.close();
    this.#number = -1;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
