/**
 * Client mode: connects to a front-end that listens (QEMU's `server=on`), and again whenever the
 * session ends. Pauses double from RECONNECT_MIN_MS to RECONNECT_MAX_MS; a session that did not
 * end by an error starts over with the shortest.
 */
import { connectUnix, type Fd } from '../sys/index.ts';
import { BackendEndpoint, type EndpointOptions } from './endpoint.ts';
import { RECONNECT_MAX_MS, RECONNECT_MIN_MS } from './limits.ts';

export class BackendConnector extends BackendEndpoint {
  protected readonly idleState = 'connecting';
  readonly #done: Promise<void>;
  #wake: (() => void) | null = null;

  /** Starts to connect at once; failures are events and retried, never thrown. */
  constructor(options: EndpointOptions) {
    super(options);
    this.#done = this.#run();
  }

  /** Idempotent. Ends the session and stops connecting. */
  async close(): Promise<void> {
    if (!this.isClosed) {
      const ended = this.shutDown();
      this.#wake?.();
      await ended;
    }
    await this.#done;
  }

  /** After `suspend`: another process serves the session and connects again. */
  surrender(): Promise<void> {
    return this.close();
  }

  async #run(): Promise<void> {
    await Promise.resolve(); // the constructor returns before the first event
    let pauseMs = RECONNECT_MIN_MS;
    await this.serveAdopted();
    while (!this.isClosed) {
      await this.whileSuspended();
      if (this.isClosed) return;
      let socket: Fd | null = null;
      try {
        socket = connectUnix(this.path);
      } catch (error) {
        this.failed(error as Error);
      }
      if (socket !== null && (await this.serve(socket)) === null) pauseMs = RECONNECT_MIN_MS;
      if (this.isClosed) return;
      await this.#pause(pauseMs);
      pauseMs = Math.min(pauseMs * 2, RECONNECT_MAX_MS);
    }
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#wake = null;
        resolve();
      };
      const timer = setTimeout(done, ms);
      this.#wake = done;
    });
  }
}
