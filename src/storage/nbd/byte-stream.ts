/**
 * A socket as a stream of bytes that are asked for: exactly so many, or into given memory. Reads
 * ahead at most READ_AHEAD_BYTES; then the peer waits.
 *
 * One reader at a time. When the socket ends, the read that waits and all that follow reject.
 */
import type { Socket } from 'node:net';
import { assert } from '../../base/assert.ts';
import { NbdError } from './nbd-error.ts';

const READ_AHEAD_BYTES = 2 ** 20;

type Waiter = {
  readonly into: Uint8Array;
  done: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
};

export class ByteStream {
  readonly #socket: Socket;
  readonly #chunks: Buffer[] = [];
  #queuedBytes = 0;
  #waiter: Waiter | null = null;
  #failure: Error | null = null;
  #onFailure: ((error: Error) => void) | null = null;
  readonly #listeners: readonly (readonly [string, (value: Buffer & Error) => void])[];

  constructor(socket: Socket) {
    this.#socket = socket;
    this.#listeners = [
      ['data', (chunk: Buffer) => this.#take(chunk)],
      ['end', () => this.fail(new NbdError('ERR_VRING_NBD_CLOSED', 'the NBD peer hung up'))],
      ['close', () => this.fail(new NbdError('ERR_VRING_NBD_CLOSED', 'the NBD connection ended'))],
      ['error', (cause: Error) => this.#failed(cause)],
    ];
    for (const [event, listener] of this.#listeners) socket.on(event, listener);
  }

  get failure(): Error | null {
    return this.#failure;
  }

  /** At once when it has failed already. */
  set onFailure(callback: (error: Error) => void) {
    this.#onFailure = callback;
    if (this.#failure !== null) callback(this.#failure);
  }

  /** Exactly `sizeBytes`, which the caller has bounded. */
  async take(sizeBytes: number): Promise<Buffer> {
    const head = this.#chunks[0];
    if (this.#failure === null && head !== undefined && head.length > sizeBytes) {
      this.#chunks[0] = head.subarray(sizeBytes); // the usual case: a header in a large chunk
      this.#consumed(sizeBytes);
      return head.subarray(0, sizeBytes);
    }
    const bytes = Buffer.allocUnsafe(sizeBytes);
    await this.readInto(bytes);
    return bytes;
  }

  readInto(into: Uint8Array): Promise<void> {
    assert(this.#waiter === null, 'one reader at a time');
    const waiter = { into, done: 0 };
    while (waiter.done < into.length && this.#chunks.length > 0) {
      const chunk = this.#chunks[0]!;
      const moved = copyChunk(waiter, chunk);
      if (moved === chunk.length) this.#chunks.shift();
      else this.#chunks[0] = chunk.subarray(moved);
      this.#consumed(moved);
    }
    if (waiter.done === into.length) return Promise.resolve();
    if (this.#failure !== null) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#waiter = { ...waiter, resolve, reject };
    });
  }

  /** Ends the connection; whoever reads gets `error`. */
  fail(error: Error): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    this.#socket.destroy();
    const waiter = this.#waiter;
    this.#waiter = null;
    waiter?.reject(error);
    this.#onFailure?.(error);
  }

  /**
   * Gives the socket to somebody else, who reads it from here on (TLS).
   * @returns Bytes that had come already.
   */
  detach(): number {
    for (const [event, listener] of this.#listeners) this.#socket.off(event, listener);
    return this.#queuedBytes;
  }

  #failed(cause: Error): void {
    const text = `the NBD connection failed: ${cause.message}`;
    this.fail(new NbdError('ERR_VRING_NBD_CLOSED', text, { cause }));
  }

  #take(chunk: Buffer): void {
    if (this.#failure !== null) return;
    const waiter = this.#waiter;
    let rest = chunk;
    if (waiter !== null) {
      rest = chunk.subarray(copyChunk(waiter, chunk));
      if (waiter.done === waiter.into.length) {
        this.#waiter = null;
        waiter.resolve();
      }
    }
    if (rest.length === 0) return;
    this.#chunks.push(rest);
    this.#queuedBytes += rest.length;
    if (this.#queuedBytes > READ_AHEAD_BYTES) this.#socket.pause();
  }

  #consumed(sizeBytes: number): void {
    const before = this.#queuedBytes;
    this.#queuedBytes -= sizeBytes;
    if (before > READ_AHEAD_BYTES && this.#queuedBytes <= READ_AHEAD_BYTES) this.#socket.resume();
  }
}

function copyChunk(waiter: { readonly into: Uint8Array; done: number }, chunk: Buffer): number {
  const count = Math.min(chunk.length, waiter.into.length - waiter.done);
  waiter.into.set(count === chunk.length ? chunk : chunk.subarray(0, count), waiter.done);
  waiter.done += count;
  return count;
}
