/**
 * The socket between two processes of which one takes over from the other: messages of JSON, bytes
 * and file descriptors.
 *
 * A message is a header, its JSON, its bytes. The kernel carries at most 253 descriptors with one
 * sendmsg(2), so a message with more is sent in several pieces, each with its share; the receiver
 * reads on until the header's number is there. Every header carries the version of the format: the
 * two processes may be of different releases, and what is not understood is refused by name.
 */
import { messageOf, SysError, VringError } from '../base/errors.ts';
import { Fd, pollFd, receiveWithFds, sendWithFds } from '../sys/index.ts';
import { struct, u32 } from '../wire/struct.ts';

/** Of everything that two processes say to each other here; raised by any change. */
export const HAND_OVER_FORMAT = 4;

/** 256 ports with all their rings and memory regions take 8 MiB. */
export const MAX_HAND_OVER_JSON_BYTES = 32 * 1024 * 1024;
/** A full MAC table: 131072 entries of 16 bytes. */
export const MAX_HAND_OVER_BLOB_BYTES = 4 * 1024 * 1024;
/** Beyond it neither process could hold them: the usual hard limit of RLIMIT_NOFILE is 2^20. */
export const MAX_HAND_OVER_FDS = 65536;
/** SCM_MAX_FD of the kernel. */
const FDS_PER_PIECE = 253;

export const ERR_HAND_OVER = 'ERR_VRING_HAND_OVER';
/** The other process speaks another version of the format. */
export const ERR_HAND_OVER_FORMAT = 'ERR_VRING_HAND_OVER_FORMAT';

const MAGIC = 0x4f_48_52_56; // "VRHO"

const Header = struct('HandOverHeader', 20, {
  magic: u32(0),
  format: u32(4), //    HAND_OVER_FORMAT of the sender
  jsonBytes: u32(8),
  blobBytes: u32(12),
  fdCount: u32(16),
});

export type HandOverMessage = {
  readonly kind: string;
  readonly body: unknown;
  readonly blob: Uint8Array;
  /** Owned by whoever has the message; a taken one is replaced by null. */
  readonly fds: ReceivedFds;
};

/** Descriptors of a message, by position; what nobody takes is closed. */
export class ReceivedFds {
  readonly #fds: (Fd | null)[];

  constructor(fds: readonly Fd[]) {
    this.#fds = [...fds];
  }

  get count(): number {
    return this.#fds.length;
  }

  /** @throws VringError ERR_VRING_HAND_OVER when it is not there, or was taken. */
  take(position: number, what: string): Fd {
    const fd = this.#fds[position] ?? null;
    if (fd === null) throw new VringError(ERR_HAND_OVER, `no descriptor came for ${what}`);
    this.#fds[position] = null;
    return fd;
  }

  /** Idempotent. */
  close(): void {
    for (const fd of this.#fds.splice(0)) fd?.close();
  }
}

/** Descriptors on their way out: borrowed, and named by their position. */
export class SentFds {
  readonly numbers: number[] = [];

  add(fd: Fd | number): number {
    return this.numbers.push(typeof fd === 'number' ? fd : fd.number) - 1;
  }
}

export class HandOverChannel {
  readonly #socket: Fd;
  readonly #poll: ReturnType<typeof pollFd>;
  #wake: (() => void) | null = null;

  /** Takes the socket over. */
  constructor(socket: Fd) {
    this.#socket = socket;
    this.#poll = pollFd(socket.number, {}, () => {
      this.#poll.update({});
      this.#wake?.();
    });
  }

  /** @throws VringError ERR_VRING_HAND_OVER when the other process is gone or too slow. */
  async send(
    kind: string,
    body: unknown,
    fds: SentFds = new SentFds(),
    blob: Uint8Array = new Uint8Array(0),
    timeoutMs = 10_000,
  ): Promise<void> {
    const json = Buffer.from(JSON.stringify({ kind, body }));
    const header = { jsonBytes: json.length, blobBytes: blob.length, fdCount: fds.numbers.length };
    checkSizes(header);
    const head = Header.encode({ magic: MAGIC, format: HAND_OVER_FORMAT, ...header });
    const bytes = Buffer.concat([head, json, blob]);
    const deadline = performance.now() + timeoutMs;
    const pieces = Math.max(1, Math.ceil(fds.numbers.length / FDS_PER_PIECE));
    for (let piece = 0; piece < pieces; piece++) {
      // One byte carries each piece but the last, which has the rest of the message.
      const part = piece === pieces - 1 ? bytes.subarray(piece) : bytes.subarray(piece, piece + 1);
      const own = fds.numbers.slice(piece * FDS_PER_PIECE, (piece + 1) * FDS_PER_PIECE);
      await this.#sendPiece(kind, part, own, deadline);
    }
  }

  /**
   * The next message.
   * @throws VringError ERR_VRING_HAND_OVER, ERR_VRING_HAND_OVER_FORMAT; nothing stays open then.
   */
  async receive(timeoutMs: number): Promise<HandOverMessage> {
    const deadline = performance.now() + timeoutMs;
    const fds: Fd[] = [];
    try {
      const header = Header.decode(await this.#read(Header.size, fds, deadline));
      if (header.magic !== MAGIC) throw failure('what came is no hand-over message');
      if (header.format !== HAND_OVER_FORMAT) throw formatError(header.format);
      checkSizes(header);
      const json = await this.#read(header.jsonBytes, fds, deadline);
      const blob = await this.#read(header.blobBytes, fds, deadline);
      if (fds.length !== header.fdCount) {
        throw failure(`${fds.length} descriptors came, ${header.fdCount} were announced`);
      }
      return { ...parseJson(json), blob, fds: new ReceivedFds(fds) };
    } catch (error) {
      for (const fd of fds) fd.close();
      throw error;
    }
  }

  /** Idempotent. */
  close(): void {
    this.#poll.close();
    this.#socket.close();
    this.#wake?.();
  }

  async #sendPiece(kind: string, bytes: Uint8Array, fds: number[], deadline: number) {
    let sent = 0;
    while (sent < bytes.length) {
      if (this.#socket.closed) throw gone(`sending "${kind}"`);
      try {
        const now = sendWithFds(this.#socket.number, bytes.subarray(sent), sent === 0 ? fds : []);
        sent += now;
        if (now === 0) await this.#ready({ write: true }, deadline, `take "${kind}"`);
      } catch (error) {
        throw error instanceof SysError ? gone(`sending "${kind}"`, error) : error;
      }
    }
  }

  /** Exactly `size` bytes; the descriptors that come with them go to `fds`. */
  async #read(size: number, fds: Fd[], deadline: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(size);
    let filled = 0;
    while (filled < size) {
      if (this.#socket.closed) throw gone('waiting');
      const got = this.#receive(bytes.subarray(filled));
      if (got === null) {
        await this.#ready({ read: true }, deadline, 'say anything');
        continue;
      }
      for (const number of got.fds) fds.push(new Fd(number, 'handed over'));
      if (got.fdsTruncated || fds.length > MAX_HAND_OVER_FDS) throw failure('too many descriptors');
      if (got.bytes === 0) throw gone('waiting');
      filled += got.bytes;
    }
    return bytes;
  }

  #receive(into: Uint8Array): ReturnType<typeof receiveWithFds> {
    try {
      return receiveWithFds(this.#socket.number, into, FDS_PER_PIECE);
    } catch (error) {
      throw gone('waiting', error);
    }
  }

  #ready(events: { read?: true; write?: true }, deadline: number, what: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const leftMs = Math.max(0, deadline - performance.now());
      const timer = setTimeout(() => {
        this.#wake = null;
        this.#poll.update({});
        reject(failure(`the other process did not ${what} in time`));
      }, leftMs);
      this.#wake = () => {
        clearTimeout(timer);
        this.#wake = null;
        resolve();
      };
      this.#poll.update(events);
    });
  }
}

export function formatError(theirs: number): VringError {
  const text =
    `the other process hands over in format ${theirs}, this one knows ${HAND_OVER_FORMAT}; ` +
    'stop the old switch and start the new one';
  return new VringError(ERR_HAND_OVER_FORMAT, text);
}

function checkSizes(header: { jsonBytes: number; blobBytes: number; fdCount: number }): void {
  const { jsonBytes, blobBytes, fdCount } = header;
  if (jsonBytes > MAX_HAND_OVER_JSON_BYTES || blobBytes > MAX_HAND_OVER_BLOB_BYTES) {
    throw failure(`a message of ${jsonBytes} and ${blobBytes} bytes is larger than any of ours`);
  }
  if (fdCount > MAX_HAND_OVER_FDS) throw failure(`a message with ${fdCount} descriptors`);
}

function parseJson(bytes: Uint8Array): { kind: string; body: unknown } {
  try {
    const value = JSON.parse(Buffer.from(bytes).toString('utf8')) as {
      kind: string;
      body: unknown;
    };
    if (typeof value?.kind === 'string') return { kind: value.kind, body: value.body };
  } catch (cause) {
    throw failure(`a message that is no JSON: ${messageOf(cause)}`, cause);
  }
  throw failure('a message without a kind');
}

function gone(doing: string, cause?: unknown): VringError {
  return failure(`the other process is gone (${doing})`, cause);
}

function failure(problem: string, cause?: unknown): VringError {
  return new VringError(ERR_HAND_OVER, problem, cause === undefined ? {} : { cause });
}
