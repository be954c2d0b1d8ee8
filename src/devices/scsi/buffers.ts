/**
 * A unit's memory for READ BUFFER and WRITE BUFFER, by which drivers try whether data get through:
 * data buffer 0, and the echo buffer. It is there once somebody has written.
 */
import { BUFFER_BYTES } from './limits.ts';

export class Buffers {
  #data: Uint8Array | null = null;
  /** What was written last; null: nothing since the reset. */
  echo: Uint8Array | null = null;

  /** `offset` and `sizeBytes` are inside. */
  write(offset: number, bytes: Uint8Array): void {
    this.#data ??= new Uint8Array(BUFFER_BYTES);
    this.#data.set(bytes, offset);
  }

  /** Up to its end. */
  read(offset: number, sizeBytes: number): Uint8Array {
    const end = Math.min(BUFFER_BYTES, offset + sizeBytes);
    return this.#data?.slice(offset, end) ?? new Uint8Array(end - offset);
  }

  clear(): void {
    this.#data = null;
    this.echo = null;
  }
}
