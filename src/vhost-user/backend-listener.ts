/**
 * Server mode: listens on a path and serves one front-end at a time.
 *
 * A second front-end that connects meanwhile waits in the kernel's backlog, where its first
 * messages wait too; it is served when the first one is gone and everything of it is released.
 * That is what a VM that restarts needs (the new QEMU may connect before the old one is gone),
 * and it leaves nothing to refuse or to log when somebody connects in a loop.
 */
import { rmSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { acceptUnix, type Fd, listenUnix, pollFd } from '../sys/index.ts';
import { BackendEndpoint, type EndpointOptions } from './endpoint.ts';
import { ACCEPT_RETRY_MS } from './limits.ts';

export type ListenerOptions = EndpointOptions & {
  /** Permission bits of the socket, for instance 0o660. */
  readonly mode?: number;
  readonly owner?: { readonly uid: number; readonly gid: number };
  /** A socket that listens on `path` already, for instance of a predecessor; taken over. */
  readonly listener?: Fd;
};

export class BackendListener extends BackendEndpoint {
  protected readonly idleState = 'listening';
  readonly #listener: Fd;
  readonly #poll: ReturnType<typeof pollFd>;
  readonly #done: Promise<void>;
  #wake: (() => void) | null = null;

  /**
   * Removes a stale socket and listens at once.
   * @throws VringError ERR_VRING_SOCKET_IN_USE, ERR_VRING_SOCKET_PATH; SysError.
   */
  constructor(options: ListenerOptions) {
    super(options);
    this.#listener =
      options.listener ??
      listenUnix(options.path, {
        ...(options.mode === undefined ? {} : { mode: options.mode }),
        ...(options.owner === undefined ? {} : { owner: options.owner }),
      });
    this.#poll = pollFd(this.#listener.number, {}, () => this.#wakeUp());
    this.#done = this.#run();
  }

  protected override get listenerFd(): Fd {
    return this.#listener;
  }

  /** Idempotent. Ends the session, closes and removes the socket. */
  close(): Promise<void> {
    return this.#end(true);
  }

  /** After `suspend`: another process listens and serves now. The socket's path stays. */
  surrender(): Promise<void> {
    return this.#end(false);
  }

  async #end(removePath: boolean): Promise<void> {
    if (!this.isClosed) {
      const ended = this.shutDown();
      this.#poll.close();
      this.#listener.close();
      if (removePath) rmSync(this.path, { force: true });
      this.#wakeUp();
      await ended;
    }
    await this.#done;
  }

  async #run(): Promise<void> {
    await this.serveAdopted();
    while (!this.isClosed) {
      await this.whileSuspended();
      if (this.isClosed) return;
      let socket: Fd | null = null;
      try {
        socket = acceptUnix(this.#listener.number);
      } catch (error) {
        this.failed(error as Error);
        await this.#pause(ACCEPT_RETRY_MS);
        continue;
      }
      if (socket === null) {
        await this.#connectionWaits();
        continue;
      }
      await this.serve(socket);
      await nextTurn(); // or somebody who connects and closes in a loop would keep the event loop
    }
  }

  #connectionWaits(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
      this.#poll.update({ read: true });
    });
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.#wakeUp(), ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = null;
    if (!this.isClosed) this.#poll.update({});
    wake?.();
  }
}
