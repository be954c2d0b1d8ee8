/**
 * What server mode and client mode have in common: one session at a time on one path, a state
 * and the reason of the last failure for displays, and one callback.
 */
import type { VringError } from '../base/errors.ts';
import type { Fd } from '../sys/index.ts';
import { BackendSession, type SessionOptions } from './backend-session.ts';
import type { PreparedMemory } from './session-restore.ts';
import type { MemorySnapshot, SessionSnapshot } from './session-snapshot.ts';
import type { BackendTarget } from './target.ts';

export type EndpointState =
  | 'listening' //  server mode, nobody is connected
  | 'connecting' // client mode, nobody answers yet
  | 'connected' //  a session runs
  | 'closed'; //    for good

export type EndpointEvent =
  | { readonly kind: 'connected'; readonly session: BackendSession }
  /** The session ended; null for an orderly end. */
  | { readonly kind: 'disconnected'; readonly reason: Error | null }
  /** connect(2) or accept(2) failed. Not repeated while the cause stays the same. */
  | { readonly kind: 'failed'; readonly reason: Error };

export type EndpointOptions = SessionOptions & {
  readonly path: string;
  /** Serves every session of this endpoint, one after the other. */
  readonly target: BackendTarget;
  readonly onEvent?: (event: EndpointEvent) => void;
  /** The session of another process to go on with, before anybody else is served. */
  readonly adopt?: { readonly session: SessionSnapshot; readonly prepared?: PreparedMemory };
};

/** What another process needs to go on with an endpoint. The fds stay ours. */
export type EndpointSnapshot = {
  /** Server mode: the socket that listens, with whoever waits in its backlog. */
  readonly listener: Fd | null;
  readonly session: SessionSnapshot | null;
};

/** Base of BackendListener and BackendConnector. */
export abstract class BackendEndpoint {
  readonly path: string;
  /**
   * The adopted session, suspended until `resume`; null without one. Rejects where it cannot be
   * restored: the endpoint is of no use then, surrender it, and the predecessor may resume.
   */
  readonly adopted: Promise<BackendSession | null>;
  readonly #options: EndpointOptions;
  #session: BackendSession | null = null;
  #sessions = 0;
  #reason: Error | null = null;
  #failure: string | null = null; // of the last 'failed' event
  #closed = false;
  #suspended: { readonly over: Promise<void>; readonly end: () => void } | null = null;

  protected constructor(options: EndpointOptions) {
    this.path = options.path;
    this.#options = options;
    const { adopt } = options;
    if (adopt === undefined) this.adopted = Promise.resolve(null);
    else {
      this.#hold(); // until `resume`: nobody is served before the session goes on
      this.adopted = this.#restore(adopt);
      this.adopted.catch(() => undefined); // whoever adopts waits for it
    }
  }

  protected abstract readonly idleState: 'listening' | 'connecting';

  get state(): EndpointState {
    if (this.#closed) return 'closed';
    return this.#session === null ? this.idleState : 'connected';
  }

  /** The session that runs, or null. */
  get session(): BackendSession | null {
    return this.#session;
  }

  /** Sessions so far, the running one included. */
  get sessions(): number {
    return this.#sessions;
  }

  /** Why there is no session, or why the last one ended; null after an orderly end. */
  get reason(): Error | null {
    return this.#reason;
  }

  protected get isClosed(): boolean {
    return this.#closed;
  }

  /** The session's memory, for a successor to map while it still runs. Null without a session. */
  prepare(): MemorySnapshot | null {
    return this.#session?.prepare() ?? null;
  }

  /**
   * Nobody new is served, and the running session is suspended: see BackendSession. What the
   * snapshot names stays ours until `surrender`.
   * @throws VringError as BackendSession.suspend; the endpoint goes on then.
   */
  async suspend(): Promise<EndpointSnapshot> {
    this.#hold();
    const session = this.#session;
    try {
      return { listener: this.listenerFd, session: (await session?.suspend()) ?? null };
    } catch (error) {
      if (this.#session !== session || (error as VringError).code === 'ERR_VRING_CLOSED') {
        await session?.closed; // its front-end went away meanwhile: there is none to hand over
        return { listener: this.listenerFd, session: null };
      }
      this.#release();
      throw error;
    }
  }

  /** After `suspend`, or with an adopted session: goes on. */
  async resume(): Promise<void> {
    await this.adopted;
    try {
      await this.#session?.resume();
    } finally {
      this.#release(); // a session that cannot go on has ended, and others may come
    }
  }

  /** Server mode: what listens. */
  protected get listenerFd(): Fd | null {
    return null;
  }

  /** Resolves at once unless the endpoint is suspended. */
  protected async whileSuspended(): Promise<void> {
    while (this.#suspended !== null && !this.#closed) await this.#suspended.over;
  }

  #hold(): void {
    this.#suspended ??= (() => {
      const { promise, resolve } = Promise.withResolvers<void>();
      return { over: promise, end: resolve };
    })();
  }

  #release(): void {
    const suspended = this.#suspended;
    this.#suspended = null;
    suspended?.end();
  }

  async #restore(adopt: NonNullable<EndpointOptions['adopt']>): Promise<BackendSession> {
    const { target } = this.#options;
    const prepared = adopt.prepared === undefined ? {} : { prepared: adopt.prepared };
    const session = await BackendSession.restore(adopt.session, target, {
      ...this.#options,
      ...prepared,
    });
    this.#session = session;
    return session;
  }

  /** Serves the adopted session, if there is one, until it is over. */
  protected async serveAdopted(): Promise<Error | null> {
    try {
      const session = await this.adopted;
      return session === null ? null : await this.#follow(session);
    } catch (error) {
      this.failed(error as Error);
      return error as Error;
    }
  }

  /** Serves one connection until it is over and released. Returns the reason. */
  protected serve(socket: Fd): Promise<Error | null> {
    return this.#follow(new BackendSession(socket, this.#options.target, this.#options));
  }

  async #follow(session: BackendSession): Promise<Error | null> {
    this.#session = session;
    this.#sessions++;
    this.#failure = null;
    this.#emit({ kind: 'connected', session });
    const reason = await session.closed;
    this.#session = null;
    this.#reason = reason;
    this.#emit({ kind: 'disconnected', reason });
    return reason;
  }

  /** connect(2) or accept(2) failed: said once for each change of cause. */
  protected failed(error: Error): void {
    this.#reason = error;
    const cause = `${(error as VringError).code}: ${error.message}`;
    if (cause === this.#failure) return;
    this.#failure = cause;
    this.#emit({ kind: 'failed', reason: error });
  }

  /** Ends the running session and marks the endpoint closed. */
  protected async shutDown(): Promise<void> {
    this.#closed = true;
    this.#release();
    await this.adopted.catch(() => null);
    await this.#session?.close();
  }

  #emit(event: EndpointEvent): void {
    this.#options.onEvent?.(event);
  }
}
