/**
 * The back-end of a driver, whichever it is now: notices that it is gone, looks for the next one
 * where it was told how, and hands everything over.
 */
import { VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { VHOST_USER_PROTOCOL_F_GPA_ADDRESSES } from '../wire/vhost-user.ts';
import { hasFeature } from '../wire/virtio.ts';
import {
  protocolFeaturesOf,
  reconnect,
  type DriverSetup,
  type ReconnectOptions,
} from './attach.ts';

/** What the driver does meanwhile. */
export type KeeperHooks = {
  /** What the next back-end must offer and be told. */
  readonly setup: () => DriverSetup;
  readonly lost: (reason: Error | null) => void;
  /** The next one has everything, `milliseconds` after the last one was gone. */
  readonly restored: (milliseconds: number) => Promise<void>;
  /** There will be none any more. */
  readonly failed: (error: Error) => void;
};

export class BackendKeeper {
  /** Back-ends after the first. */
  reconnects = 0;
  #options: ReconnectOptions | null;
  readonly #hooks: KeeperHooks;
  readonly #abort = new AbortController();
  #backend: VhostBackend;
  #protocolFeatures: bigint;
  #searching = false;

  /** Owns the back-end. Without `options` the end of the first back-end is a failure. */
  constructor(backend: VhostBackend, options: ReconnectOptions | null, hooks: KeeperHooks) {
    this.#options = options;
    this.#hooks = hooks;
    this.#backend = backend;
    this.#protocolFeatures = protocolFeaturesOf(backend);
    this.#watch(backend);
  }

  get backend(): VhostBackend {
    return this.#backend;
  }

  /** Of vhost-user, as negotiated with the back-end that the driver chose itself. */
  get protocolFeatures(): bigint {
    return this.#protocolFeatures;
  }

  /** Whether ring addresses are guest-physical for the back-end. */
  get gpaAddresses(): boolean {
    return hasFeature(this.#protocolFeatures, VHOST_USER_PROTOCOL_F_GPA_ADDRESSES);
  }

  /** Nobody is there, and somebody is being looked for. */
  get searching(): boolean {
    return this.#searching;
  }

  /** The driver goes on with this one, later ones are where it is; the old one is the caller's. */
  replace(backend: VhostBackend, connect: ReconnectOptions['connect']): void {
    if (this.#options !== null) this.#options = { ...this.#options, connect };
    this.#backend = backend;
    this.#protocolFeatures = protocolFeaturesOf(backend);
    this.#watch(backend);
  }

  /** Ends a search; `close` comes after the driver stopped its rings. */
  abort(): void {
    this.#abort.abort();
  }

  async close(): Promise<void> {
    this.#abort.abort();
    await this.#backend.close();
  }

  #watch(backend: VhostBackend): void {
    void backend.closed.then((reason) => {
      if (this.#abort.signal.aborted || backend !== this.#backend) return;
      if (this.#options !== null) void this.#search(this.#options, reason);
      else this.#hooks.failed(this.#gone(reason));
    });
  }

  async #search(options: ReconnectOptions, reason: Error | null): Promise<void> {
    const since = performance.now();
    const { signal } = this.#abort;
    this.#searching = true;
    this.#hooks.lost(reason);
    try {
      const backend = await reconnect(options, this.#hooks.setup(), signal);
      if (signal.aborted) return void (await backend.close());
      this.#backend = backend;
    } catch (error) {
      if (!signal.aborted) this.#hooks.failed(error as Error);
      return;
    } finally {
      this.#searching = false;
    }
    this.reconnects++;
    try {
      await this.#hooks.restored(performance.now() - since);
    } catch (error) {
      // What failed because this one is gone, too, is done again with the next one.
      if (!isGone(error)) this.#hooks.failed(error as Error);
    }
    this.#watch(this.#backend);
  }

  #gone(reason: Error | null): Error {
    const why = reason === null ? 'the back-end closed the connection' : reason.message;
    const text = `${this.#backend.description}: ${why}`;
    return new VringError('ERR_VRING_GUEST_BACKEND_GONE', text, {
      recovery: 'reconnect',
      cause: reason,
    });
  }
}

function isGone(error: unknown): boolean {
  return error instanceof VringError && error.recovery === 'reconnect';
}
