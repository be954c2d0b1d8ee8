/**
 * What server mode and client mode have in common: one session at a time on one path, a state
 * and the reason of the last failure for displays, and one callback.
 */
import type { VringError } from '../base/errors.ts';
import type { Fd } from '../sys/index.ts';
import { BackendSession, type SessionOptions } from './backend-session.ts';
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
};

/** Base of BackendListener and BackendConnector. */
export abstract class BackendEndpoint {
  readonly path: string;
  readonly #options: EndpointOptions;
  #session: BackendSession | null = null;
  #sessions = 0;
  #reason: Error | null = null;
  #failure: string | null = null; // of the last 'failed' event
  #closed = false;

  protected constructor(options: EndpointOptions) {
    this.path = options.path;
    this.#options = options;
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

  /** Serves one connection until it is over and released. Returns the reason. */
  protected async serve(socket: Fd): Promise<Error | null> {
    const session = new BackendSession(socket, this.#options.target, this.#options);
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
    await this.#session?.close();
  }

  #emit(event: EndpointEvent): void {
    this.#options.onEvent?.(event);
  }
}
