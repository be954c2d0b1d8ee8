/** Bytes through one end of a pipe or socket, without blocking: the state of a device. */
import { messageOf, VringError } from '../base/errors.ts';
import { type Fd, pollFd, readNow, writeNow } from '../sys/index.ts';

const CHUNK_BYTES = 64 * 1024;

/**
 * Bytes that come in pieces, in one array that doubles: kept piece by piece, a state that is sent
 * byte by byte would cost hundreds of times its size.
 */
export class Gathered {
  #bytes = new Uint8Array(CHUNK_BYTES);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  /** Where the next bytes go: never empty. */
  room(): Uint8Array {
    if (this.#length === this.#bytes.length) {
      const larger = new Uint8Array(2 * this.#bytes.length);
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    return this.#bytes.subarray(this.#length);
  }

  /** So many came into `room()`. */
  took(count: number): void {
    this.#length += count;
  }
}

/**
 * Reads until the other end is closed. The fd stays the caller's.
 * @throws VringError ERR_VRING_DEVICE_STATE: more than `limitBytes`, or nothing for `idleMs`.
 */
export async function readToEnd(fd: Fd, limitBytes: number, idleMs: number): Promise<Uint8Array> {
  const gathered = new Gathered();
  for (;;) {
    const count = attempt(() => readNow(fd.number, gathered.room()));
    if (count === 0) return gathered.bytes;
    if (count === null) {
      await ready(fd, { read: true }, idleMs);
      continue;
    }
    gathered.took(count);
    if (gathered.length > limitBytes) {
      throw stateError(`more than ${limitBytes} bytes of device state came`);
    }
  }
}

/**
 * Writes everything; the caller closes the fd then, which is how the reader knows the end.
 * @throws VringError ERR_VRING_DEVICE_STATE: nothing was taken for `idleMs`; EPIPE as its cause.
 */
export async function writeAll(fd: Fd, bytes: Uint8Array, idleMs: number): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    const count = attempt(() => writeNow(fd.number, bytes.subarray(at)));
    if (count === null) await ready(fd, { write: true }, idleMs);
    else at += count;
  }
}

/** The call's result; null when the fd is not ready. */
function attempt(call: () => number | null): number | null {
  try {
    return call();
  } catch (cause) {
    throw stateError(`the other end of the state's pipe: ${messageOf(cause)}`, cause);
  }
}

async function ready(fd: Fd, events: { read?: true; write?: true }, idleMs: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const poll = pollFd(fd.number, events, () => resolve());
  const text = `no byte of device state moved for ${idleMs} ms`;
  const timer = setTimeout(() => reject(stateError(text)), idleMs);
  try {
    await promise;
  } finally {
    clearTimeout(timer);
    poll.close();
  }
}

function stateError(text: string, cause?: unknown): VringError {
  return new VringError('ERR_VRING_DEVICE_STATE', text, { recovery: 'retry', cause });
}
