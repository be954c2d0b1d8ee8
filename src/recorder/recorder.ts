/**
 * Stands between a front-end and a back-end: whoever connects to `socket` is joined with whoever
 * listens on `upstream`, one after the other, and what they say is written down.
 */
import { rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { VringError } from '../base/errors.ts';
import { acceptUnix, connectUnix, type Fd, listenUnix, pollFd } from '../sys/index.ts';
import type { ChannelEnd } from './channel-recorder.ts';
import { UPSTREAM_RETRY_MS, UPSTREAM_WAIT_MS } from './limits.ts';
import type { Side } from './recorded-event.ts';
import type { Recording } from './recording.ts';
import { SessionRecorder } from './session-recorder.ts';

export type RecorderEvent =
  | { readonly kind: 'connected'; readonly session: number }
  | { readonly kind: 'closed'; readonly session: number; readonly end: ChannelEnd }
  /** Nobody listens upstream: who connected was sent away. */
  | { readonly kind: 'failed'; readonly reason: Error };

export type RecorderOptions = {
  /** Where the recorder listens. */
  readonly socket: string;
  /** A listener at `socket` that exists; the recorder's from now on. */
  readonly listener?: Fd;
  /** Where it connects. */
  readonly upstream: string;
  /** Who connects to `socket`; the other one listens on `upstream`. Default: the front-end. */
  readonly connects?: Side;
  /** Also record kicks and calls. */
  readonly rings?: boolean;
  /** Stays the caller's, who closes it after the recorder. */
  readonly recording: Recording;
  readonly onEvent?: (event: RecorderEvent) => void;
};

export class Recorder {
  readonly #options: RecorderOptions;
  readonly #listener: Fd;
  readonly #poll: ReturnType<typeof pollFd>;
  readonly #done: Promise<void>;
  readonly #closing = new AbortController();
  #session: SessionRecorder | null = null;
  #sessions = 0;
  #wake: (() => void) | null = null;

  /**
   * Listens at once. @throws VringError ERR_VRING_SOCKET_IN_USE, ERR_VRING_SOCKET_PATH.
   */
  constructor(options: RecorderOptions) {
    this.#options = options;
    this.#listener = options.listener ?? listenUnix(options.socket);
    this.#poll = pollFd(this.#listener.number, {}, () => this.#wakeUp());
    this.#done = this.#run();
  }

  /** Sessions so far. */
  get sessions(): number {
    return this.#sessions;
  }

  /** Idempotent. Ends the session, closes and removes the socket. */
  async close(): Promise<void> {
    if (!this.#closing.signal.aborted) {
      this.#closing.abort();
      this.#poll.close();
      this.#listener.close();
      rmSync(this.#options.socket, { force: true });
      this.#wakeUp();
      await this.#session?.close();
    }
    await this.#done;
  }

  async #run(): Promise<void> {
    while (!this.#closing.signal.aborted) {
      let socket: Fd | null = null;
      try {
        socket = acceptUnix(this.#listener.number);
        if (socket === null) await this.#connectionWaits();
        else await this.#serve(socket);
      } catch (error) {
        socket?.close();
        if (this.#closing.signal.aborted) return;
        this.#options.onEvent?.({ kind: 'failed', reason: error as Error });
        await sleep(UPSTREAM_RETRY_MS);
      }
    }
  }

  async #serve(connected: Fd): Promise<void> {
    const { recording, rings = false, connects = 'front-end', onEvent } = this.#options;
    const upstream = await this.#connectUpstream();
    const number = ++this.#sessions;
    const sockets =
      connects === 'front-end'
        ? { 'front-end': connected, 'back-end': upstream }
        : { 'front-end': upstream, 'back-end': connected };
    const session = new SessionRecorder({ number, recording, rings, sockets });
    this.#session = session;
    onEvent?.({ kind: 'connected', session: number });
    const end = await session.closed;
    this.#session = null;
    onEvent?.({ kind: 'closed', session: number, end });
  }

  async #connectUpstream(): Promise<Fd> {
    const { upstream } = this.#options;
    const end = performance.now() + UPSTREAM_WAIT_MS;
    for (;;) {
      try {
        return connectUnix(upstream);
      } catch (error) {
        const canHelp = error instanceof VringError && error.recovery === 'retry';
        if (!canHelp || performance.now() > end) throw error;
      }
      await sleep(UPSTREAM_RETRY_MS, undefined, { signal: this.#closing.signal });
    }
  }

  #connectionWaits(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
      this.#poll.update({ read: true });
    });
  }

  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = null;
    if (!this.#closing.signal.aborted) this.#poll.update({});
    wake?.();
  }
}
