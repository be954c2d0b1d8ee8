/**
 * One connection to an NBD server after its handshake: requests go out at once, replies come in any
 * order and are told apart by their handle. A peer that breaks the protocol loses the connection,
 * and every request under way rejects with why; `NbdLayer` decides what then.
 */
import { connect, type Socket } from 'node:net';
import { assert } from '../../base/assert.ts';
import { EINVAL, EIO, EOPNOTSUPP, EROFS } from '../../sys/index.ts';
import {
  encodeNbdRequest,
  NBD_CHUNK_BYTES,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_READ,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EPERM,
  NBD_EINVAL,
  NBD_EOVERFLOW,
  NBD_ESHUTDOWN,
  NBD_MAX_STRING_BYTES,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_FLAG_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_BYTES,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
} from '../../wire/nbd.ts';
import { LayerError } from '../layer/layer.ts';
import type { ByteStream } from './byte-stream.ts';
import { negotiate, type NbdFacts, type Negotiated } from './client-handshake.ts';
import { NbdError, peerText, protocolError } from './nbd-error.ts';
import type { NbdAddress } from './nbd-uri.ts';
import { ReadCoverage } from './read-coverage.ts';

/** ENOSPC: not in every build's constants of ours. */
const ENOSPC = NBD_ENOSPC;
/** Descriptors of one block status reply: 8 bytes each. */
const MAX_STATUS_BYTES = 4 + 8 * 65_536;
/** An error, the length of its text, the text, an offset. */
const MAX_ERROR_BYTES = 6 + NBD_MAX_STRING_BYTES + 8;

export type BlockStatus = { readonly sizeBytes: number; readonly flags: number };

/** One command. `into` of a read and `from` of a write have `sizeBytes`. */
export type NbdCommand = {
  readonly type: number;
  readonly flags: number;
  readonly at: number;
  readonly sizeBytes: number;
  readonly into?: Uint8Array;
  readonly from?: Uint8Array;
};

type Pending = {
  readonly command: NbdCommand;
  readonly resolve: (status: BlockStatus[] | null) => void;
  readonly reject: (error: Error) => void;
  /** The socket no longer looks at `from`. */
  sent: boolean;
  /** The reply came: null, or what the server said. */
  outcome: { readonly error: Error | null } | null;
  /** Of a reply in chunks: what it has said so far. */
  readonly coverage: ReadCoverage | null;
  chunks: number;
  error: Error | null;
  status: BlockStatus[] | null;
};

export type ConnectOptions = {
  readonly address: NbdAddress;
  readonly timeoutMs: number;
  /** Gives up connecting. */
  readonly signal?: AbortSignal;
};

export class NbdConnection {
  readonly facts: NbdFacts;
  /** Why it ended. */
  failure: Error | null = null;
  readonly #socket: Socket;
  readonly #stream: ByteStream;
  readonly #pending = new Map<bigint, Pending>();
  readonly #onEnd: (error: Error) => void;
  #nextHandle = 1n;

  /** @throws NbdError, ConfigError. */
  static async open(
    { address, timeoutMs, signal }: ConnectOptions,
    onEnd: (error: Error) => void,
  ): Promise<NbdConnection> {
    const socket = connect(address.at);
    socket.setNoDelay(true);
    let late: NbdError | null = null;
    const timer = setTimeout(() => {
      const text = `no handshake within ${timeoutMs} ms`;
      late = new NbdError('ERR_VRING_NBD_TIMEOUT', text);
      socket.destroy();
    }, timeoutMs);
    const giveUp = (): unknown => socket.destroy();
    signal?.addEventListener('abort', giveUp);
    try {
      await connected(socket);
      return new NbdConnection(await negotiate(socket, address), onEnd);
    } catch (error) {
      socket.destroy();
      throw late ?? error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', giveUp);
    }
  }

  private constructor({ stream, socket, facts }: Negotiated, onEnd: (error: Error) => void) {
    this.facts = facts;
    this.#socket = socket;
    this.#stream = stream;
    this.#onEnd = onEnd;
    stream.onFailure = (error) => this.#ended(error);
    void this.#receive();
  }

  /**
   * Resolves with the extents of a block status, null for all else.
   * @throws LayerError: the server said so. NbdError: the connection ended before it answered.
   */
  request(command: NbdCommand): Promise<BlockStatus[] | null> {
    if (this.failure !== null) return Promise.reject(this.failure);
    const { type, flags, at, sizeBytes, from } = command;
    assert((from?.length ?? sizeBytes) === sizeBytes);
    const handle = this.#nextHandle++;
    return new Promise((resolve, reject) => {
      const isRead = type === NBD_CMD_READ;
      const coverage = isRead && this.facts.structured ? new ReadCoverage(sizeBytes) : null;
      const reply = { outcome: null, coverage, chunks: 0, error: null, status: null };
      const pending: Pending = { command, resolve, reject, sent: false, ...reply };
      this.#pending.set(handle, pending);
      const sent = (): void => {
        pending.sent = true;
        if (pending.outcome !== null) this.#settle(handle, pending, pending.outcome.error);
      };
      const head = encodeNbdRequest({ flags, type, handle, at: BigInt(at), sizeBytes });
      if (from === undefined) {
        this.#socket.write(head, sent);
        return;
      }
      this.#socket.cork();
      this.#socket.write(head);
      this.#socket.write(from, sent);
      this.#socket.uncork();
    });
  }

  /** Ends it; requests under way reject with `error`. */
  drop(error: Error): void {
    this.#stream.fail(error);
  }

  /** Says goodbye; when nothing is under way. */
  async close(): Promise<void> {
    if (this.failure === null) {
      const command = { flags: 0, type: NBD_CMD_DISC, handle: 0n, at: 0n, sizeBytes: 0 };
      await new Promise<void>((resolve) => {
        this.#socket.once('close', () => resolve());
        this.#socket.end(encodeNbdRequest(command));
        setTimeout(resolve, 1000).unref();
      });
    }
    this.drop(new NbdError('ERR_VRING_NBD_CLOSED', 'the NBD connection was closed'));
  }

  #ended(error: Error): void {
    if (this.failure !== null) return;
    this.failure = error;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { reject } of pending) reject(error);
    this.#onEnd(error);
  }

  async #receive(): Promise<void> {
    const stream = this.#stream;
    try {
      for (;;) {
        const head = await stream.take(NBD_SIMPLE_REPLY_BYTES);
        const magic = head.readUInt32BE(0);
        const handle = head.readBigUInt64BE(8);
        if (magic !== NBD_SIMPLE_REPLY_MAGIC && magic !== NBD_STRUCTURED_REPLY_MAGIC) {
          throw protocolError(`the magic of a reply is 0x${magic.toString(16)}`);
        }
        const pending = this.#pending.get(handle);
        if (pending === undefined)
          throw protocolError(`a reply to handle ${handle}, not asked for`);
        if (pending.outcome !== null) throw protocolError(`two replies to handle ${handle}`);
        if (magic === NBD_SIMPLE_REPLY_MAGIC) {
          await this.#simpleReply(handle, pending, head.readUInt32BE(4));
        } else {
          const sizeBytes = (await stream.take(NBD_CHUNK_BYTES - head.length)).readUInt32BE(0);
          await this.#chunk(handle, pending, head.readUInt16BE(4), head.readUInt16BE(6), sizeBytes);
        }
      }
    } catch (error) {
      this.#stream.fail(error as Error);
    }
  }

  async #simpleReply(handle: bigint, pending: Pending, error: number): Promise<void> {
    const { command, coverage, chunks } = pending;
    if (chunks > 0) throw protocolError('a simple reply in the middle of one in chunks');
    if (coverage !== null || command.type === NBD_CMD_BLOCK_STATUS) {
      // Sent by servers that refuse before they look at the command.
      if (error === 0) throw protocolError('a simple reply where chunks were agreed on');
    } else if (error === 0 && command.type === NBD_CMD_READ) {
      await this.#stream.readInto(command.into!);
    }
    this.#finish(handle, pending, error === 0 ? null : serverError(error, ''));
  }

  async #chunk(
    handle: bigint,
    pending: Pending,
    flags: number,
    type: number,
    sizeBytes: number,
  ): Promise<void> {
    if (!this.facts.structured) throw protocolError('a chunk where simple replies were agreed on');
    // Nothing smaller than a sector is worth a chunk; errors may come beside.
    if (++pending.chunks > 16 + pending.command.sizeBytes / 512) {
      throw protocolError(`${pending.chunks} chunks for ${pending.command.sizeBytes} bytes`);
    }
    if ((type & NBD_REPLY_TYPE_FLAG_ERROR) !== 0) await this.#errorChunk(pending, sizeBytes);
    else if (type === NBD_REPLY_TYPE_OFFSET_DATA) await this.#dataChunk(pending, sizeBytes);
    else if (type === NBD_REPLY_TYPE_OFFSET_HOLE) await this.#holeChunk(pending, sizeBytes);
    else if (type === NBD_REPLY_TYPE_BLOCK_STATUS) await this.#statusChunk(pending, sizeBytes);
    else if (type !== NBD_REPLY_TYPE_NONE) throw protocolError(`a chunk of type ${type}`);
    else if (sizeBytes !== 0 || (flags & NBD_REPLY_FLAG_DONE) === 0) {
      throw protocolError('an empty chunk that is not the last, or not empty');
    }
    if ((flags & NBD_REPLY_FLAG_DONE) === 0) return;
    const { command, coverage, error, status } = pending;
    if (error === null && coverage?.isWhole === false) {
      throw protocolError(`a read of ${command.sizeBytes} bytes at ${command.at} has gaps`);
    }
    if (error === null && command.type === NBD_CMD_BLOCK_STATUS && status === null) {
      throw protocolError('a block status without a status');
    }
    this.#finish(handle, pending, error);
  }

  async #dataChunk(pending: Pending, sizeBytes: number): Promise<void> {
    if (sizeBytes < 8) throw protocolError(`a data chunk of ${sizeBytes} bytes`);
    const offset = (await this.#stream.take(8)).readBigUInt64BE(0);
    const start = this.#cover(pending, offset, sizeBytes - 8);
    await this.#stream.readInto(pending.command.into!.subarray(start, start + sizeBytes - 8));
  }

  async #holeChunk(pending: Pending, sizeBytes: number): Promise<void> {
    if (sizeBytes !== 12) throw protocolError(`a hole chunk of ${sizeBytes} bytes`);
    const bytes = await this.#stream.take(12);
    const holeBytes = bytes.readUInt32BE(8);
    const start = this.#cover(pending, bytes.readBigUInt64BE(0), holeBytes);
    pending.command.into!.fill(0, start, start + holeBytes);
  }

  #cover({ command, coverage }: Pending, offset: bigint, sizeBytes: number): number {
    if (coverage === null) throw protocolError('data in a reply to what is no read');
    const inside = offset >= BigInt(command.at) && offset < BigInt(command.at + command.sizeBytes);
    const start = inside ? Number(offset) - command.at : -1;
    const problem = coverage.add(start, sizeBytes);
    if (problem === null) return start;
    const asked = `${command.sizeBytes} bytes at ${command.at}`;
    throw protocolError(`${problem}: ${sizeBytes} bytes at ${offset}, asked for were ${asked}`);
  }

  async #statusChunk(pending: Pending, sizeBytes: number): Promise<void> {
    const { allocationId } = this.facts;
    const isAsked = pending.command.type === NBD_CMD_BLOCK_STATUS && pending.status === null;
    const isSound = sizeBytes >= 12 && sizeBytes <= MAX_STATUS_BYTES && (sizeBytes - 4) % 8 === 0;
    if (!isAsked || !isSound) throw protocolError(`a block status of ${sizeBytes} bytes`);
    const bytes = await this.#stream.take(sizeBytes);
    const id = bytes.readUInt32BE(0);
    if (id !== allocationId) throw protocolError(`the status of context ${id}, not asked for`);
    pending.status = [];
    for (let at = 4; at < sizeBytes; at += 8) {
      const extentBytes = bytes.readUInt32BE(at);
      if (extentBytes === 0) throw protocolError('an extent of 0 bytes');
      pending.status.push({ sizeBytes: extentBytes, flags: bytes.readUInt32BE(at + 4) });
    }
  }

  async #errorChunk(pending: Pending, sizeBytes: number): Promise<void> {
    if (sizeBytes < 6 || sizeBytes > MAX_ERROR_BYTES) {
      throw protocolError(`an error of ${sizeBytes} bytes`);
    }
    const bytes = await this.#stream.take(sizeBytes);
    const error = bytes.readUInt32BE(0);
    const textBytes = bytes.readUInt16BE(4);
    if (error === 0 || textBytes > sizeBytes - 6) throw protocolError('an error that is none');
    pending.error ??= serverError(error, peerText(bytes.subarray(6, 6 + textBytes)));
  }

  #finish(handle: bigint, pending: Pending, error: Error | null): void {
    pending.outcome = { error };
    if (pending.sent) this.#settle(handle, pending, error);
  }

  #settle(handle: bigint, pending: Pending, error: Error | null): void {
    if (!this.#pending.delete(handle)) return; // it has ended meanwhile
    if (error === null) return pending.resolve(pending.status);
    pending.reject(error);
    // "The server is shutting down": it will say so to everybody.
    if (error instanceof NbdError) this.drop(error);
  }
}

/** ESHUTDOWN is about the connection, all else about the request. */
function serverError(error: number, text: string): Error {
  const said = text === '' ? '' : `: '${text}'`;
  if (error === NBD_ESHUTDOWN) {
    return new NbdError('ERR_VRING_NBD_CLOSED', `the NBD server is shutting down${said}`);
  }
  return new LayerError(errnoOf(error), `the NBD server answered with error ${error}${said}`);
}

function errnoOf(error: number): number {
  switch (error) {
    case NBD_EPERM:
      return EROFS;
    case NBD_ENOSPC:
      return ENOSPC;
    case NBD_EINVAL:
    case NBD_EOVERFLOW:
      return EINVAL;
    case NBD_ENOTSUP:
      return EOPNOTSUPP;
    default:
      return EIO;
  }
}

function connected(socket: Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('close', () => reject(new NbdError('ERR_VRING_NBD_CLOSED', 'connecting ended')));
    // Stays: an error that nobody listens to would end the process.
    socket.on('error', (cause) => {
      reject(new NbdError('ERR_VRING_NBD_CLOSED', `cannot connect: ${cause.message}`, { cause }));
    });
  });
}
