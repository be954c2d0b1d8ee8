/**
 * A server that may go away and come back: one connection at a time, made anew when it ended, and
 * commands that are carried out on whichever there is.
 *
 * A command has until its deadline. What was under way when a connection ended is sent again on the
 * next one, after `replay` has repeated what the server had promised. Reconnecting goes on for as
 * long as the link is open; when it has failed for longer than the timeout, commands fail at once.
 */
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../../base/errors.ts';
import {
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from '../../wire/nbd.ts';
import { EIO } from '../../sys/index.ts';
import { LayerError } from '../layer/layer.ts';
import { type BlockStatus, type NbdCommand, NbdConnection } from './client-connection.ts';
import type { NbdFacts } from './client-handshake.ts';
import { NbdError } from './nbd-error.ts';
import type { NbdAddress } from './nbd-uri.ts';

const { ETIMEDOUT } = constants.errno;
/** A handshake is a few round trips. */
const HANDSHAKE_TIMEOUT_MS = 10_000;
const FIRST_PAUSE_MS = 20;
const LAST_PAUSE_MS = 1000;
/** A command that makes the server break the protocol is not tried for ever. */
const MAX_VIOLATIONS = 2;
/** What commands were made for; an export that comes back without one of them is another one. */
const LASTING_FLAGS =
  NBD_FLAG_READ_ONLY |
  NBD_FLAG_SEND_FLUSH |
  NBD_FLAG_SEND_FUA |
  NBD_FLAG_SEND_TRIM |
  NBD_FLAG_SEND_WRITE_ZEROES;

export type NbdLinkOptions = {
  readonly address: NbdAddress;
  readonly timeoutMs: number;
  /** Repeats writes that were not yet durable, before anything else is sent. */
  readonly replay: (connection: NbdConnection) => Promise<void>;
};

export class NbdLink {
  readonly facts: NbdFacts;
  reconnects = 0;
  /** Commands that were sent again. */
  retries = 0;
  readonly #options: NbdLinkOptions;
  #connection: NbdConnection | null = null;
  /** Since when there is none. */
  #outageMs = 0;
  #lastError: Error | null = null;
  readonly #closed = new AbortController();
  /** Who waits for a connection. */
  readonly #waiting = new Set<() => void>();

  /** @throws NbdError, ConfigError: nothing is tried again yet. */
  static async open(options: NbdLinkOptions): Promise<NbdLink> {
    const { address } = options;
    const timeoutMs = Math.min(HANDSHAKE_TIMEOUT_MS, options.timeoutMs);
    let link: NbdLink | null = null;
    const connection = await NbdConnection.open({ address, timeoutMs }, (error) => {
      link?.lost(error);
    });
    link = new NbdLink(options, connection);
    if (connection.failure !== null) link.lost(connection.failure);
    return link;
  }

  private constructor(options: NbdLinkOptions, connection: NbdConnection) {
    this.#options = options;
    this.#connection = connection;
    this.facts = connection.facts;
  }

  get #isClosed(): boolean {
    return this.#closed.signal.aborted;
  }

  get isConnected(): boolean {
    return this.#connection !== null;
  }

  /**
   * @throws LayerError ETIMEDOUT, or what the server answered; NbdError once closed.
   */
  async run(command: NbdCommand, deadlineMs: number): Promise<BlockStatus[] | null> {
    for (let violations = 0; ;) {
      const connection = this.#connection ?? (await this.#connected(deadlineMs));
      try {
        return await untilDeadline(connection, command, deadlineMs);
      } catch (error) {
        if (!(error instanceof NbdError) || this.#isClosed) throw error;
        if (performance.now() >= deadlineMs) throw this.#tooLate(error);
        if (error.code === 'ERR_VRING_NBD_PROTOCOL' && ++violations === MAX_VIOLATIONS) {
          throw new LayerError(EIO, error.message, { cause: error });
        }
        this.retries++;
      }
    }
  }

  /** When nothing is under way. */
  async close(): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    this.#closed.abort();
    this.#wakeAll();
    await connection?.close();
  }

  /** The connection ended. */
  lost(error: Error): void {
    if (this.#connection === null) return;
    this.#connection = null;
    this.#lastError = error;
    this.#outageMs = performance.now();
    if (!this.#isClosed) void this.#reconnect();
  }

  #tooLate(cause: Error | null): LayerError {
    const { timeoutMs } = this.#options;
    const why = cause === null ? '' : `: ${messageOf(cause)}`;
    const text = `no answer of the NBD server within ${timeoutMs / 1000} s${why}`;
    return new LayerError(ETIMEDOUT, text, { cause });
  }

  async #connected(deadlineMs: number): Promise<NbdConnection> {
    for (;;) {
      if (this.#isClosed) throw new NbdError('ERR_VRING_NBD_CLOSED', 'the NBD disk is closed');
      if (this.#connection !== null) return this.#connection;
      const now = performance.now();
      const isGone = now > this.#outageMs + this.#options.timeoutMs;
      if (isGone || now >= deadlineMs) throw this.#tooLate(this.#lastError);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(() => done(), deadlineMs - now);
        const done = (): void => {
          clearTimeout(timer);
          this.#waiting.delete(done);
          resolve();
        };
        this.#waiting.add(done);
      });
    }
  }

  async #reconnect(): Promise<void> {
    for (let pauseMs = FIRST_PAUSE_MS; !this.#isClosed;) {
      try {
        await this.#reconnectOnce();
        return;
      } catch (error) {
        this.#lastError = error as Error;
      }
      await sleep(pauseMs, undefined, { signal: this.#closed.signal }).catch(() => {}); // closed
      pauseMs = Math.min(2 * pauseMs, LAST_PAUSE_MS);
    }
  }

  async #reconnectOnce(): Promise<void> {
    const { address, replay } = this.#options;
    let isReady = false;
    const { signal } = this.#closed;
    const options = { address, timeoutMs: HANDSHAKE_TIMEOUT_MS, signal };
    const connection = await NbdConnection.open(options, (error) => {
      if (isReady) this.lost(error);
    });
    try {
      this.#checkSame(connection.facts);
      await replay(connection);
      if (connection.failure !== null) throw connection.failure;
      if (this.#isClosed) throw new NbdError('ERR_VRING_NBD_CLOSED', 'the NBD disk is closed');
    } catch (error) {
      connection.drop(error as Error);
      throw error;
    }
    isReady = true;
    this.#connection = connection;
    this.reconnects++;
    this.#wakeAll();
  }

  #checkSame(now: NbdFacts): void {
    const { sizeBytes, flags, blocks, structured } = this.facts;
    const sameFlags = ((flags ^ now.flags) & LASTING_FLAGS) === 0;
    const fits = now.blocks.minBytes <= blocks.minBytes && now.blocks.maxBytes >= blocks.maxBytes;
    const sameContext = !structured || now.allocationId === this.facts.allocationId;
    if (now.sizeBytes === sizeBytes && sameFlags && fits && sameContext) return;
    const text =
      `the export came back with ${now.sizeBytes} bytes and flags 0x${now.flags.toString(16)}, ` +
      `it had ${sizeBytes} and 0x${flags.toString(16)}; start the server with the same disk again`;
    throw new NbdError('ERR_VRING_NBD_CHANGED', text);
  }

  #wakeAll(): void {
    for (const done of this.#waiting) done();
  }
}

/** A command that is late takes its connection along: only that takes its memory back. */
async function untilDeadline(
  connection: NbdConnection,
  command: NbdCommand,
  deadlineMs: number,
): Promise<BlockStatus[] | null> {
  const timer = setTimeout(
    () => {
      const text = `the NBD server is silent: command ${command.type} at byte ${command.at}`;
      connection.drop(new NbdError('ERR_VRING_NBD_TIMEOUT', text));
    },
    Math.max(1, deadlineMs - performance.now()),
  );
  try {
    return await connection.request(command);
  } finally {
    clearTimeout(timer);
  }
}
