/**
 * Any NBD server as the bottom of a stack.
 *
 * What a server acknowledged and did not flush is lost when it dies, while the guest may flush on
 * the server that follows and be told that all is well. So acknowledged writes are kept until a
 * flush succeeded (`WriteLog`), and repeated in order on a new connection before anything else.
 * Writes that overlap go one after the other: then the log has the order of the disk.
 */
import { EINVAL, EIO, EOPNOTSUPP, EROFS } from '../../sys/index.ts';
import { messageOf, SysError } from '../../base/errors.ts';
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_STATE_HOLE,
  NBD_STATE_ZERO,
} from '../../wire/nbd.ts';
import { type Extent, LayerError, MAX_EXTENTS, type ZeroOptions } from '../layer/layer.ts';
import { SourceLayer } from '../layer/source-layer.ts';
import type { BlockStatus, NbdCommand, NbdConnection } from './client-connection.ts';
import { NbdError, protocolError } from './nbd-error.ts';
import { NbdLink } from './nbd-link.ts';
import { parseNbdUri } from './nbd-uri.ts';
import { RangeLock } from './range-lock.ts';
import { Slots } from '../slots.ts';
import { type LoggedWrite, WriteLog } from './write-log.ts';

const SECTOR_BYTES = 512;
/** Commands at once. */
const MAX_IN_FLIGHT = 64;
/** Larger requests go in pieces, at once: the first one need not wait for the last byte. */
const MAX_PIECE_BYTES = 2 * 2 ** 20;
/** Zeros, discards and status of that many bytes at a time; they carry no payload. */
const MAX_RANGE_BYTES = 64 * 2 ** 20;
const DEFAULT_TIMEOUT_SECONDS = 30;

export type NbdLayerOptions = {
  readonly uri: string;
  readonly readOnly?: boolean;
  /** How long a request may take, reconnecting included. */
  readonly timeoutSeconds?: number;
};

/**
 * @throws NbdError: no server, refused, no disk. ConfigError: the URI.
 */
export async function openNbdLayer(options: NbdLayerOptions): Promise<NbdLayer> {
  const address = parseNbdUri(options.uri);
  const timeoutMs = 1000 * (options.timeoutSeconds ?? DEFAULT_TIMEOUT_SECONDS);
  let layer: NbdLayer | null = null;
  const replay = async (connection: NbdConnection): Promise<void> => layer?.replay(connection);
  let link: NbdLink;
  try {
    link = await NbdLink.open({ address, timeoutMs, replay });
  } catch (error) {
    if (!(error instanceof NbdError)) throw error;
    const text = `${address.uri}: ${error.message}`;
    throw new NbdError(error.code as 'ERR_VRING_NBD_CLOSED', text, { cause: error });
  }
  const { sizeBytes, blocks } = link.facts;
  if (sizeBytes === 0 || sizeBytes % Math.max(SECTOR_BYTES, blocks.minBytes) !== 0) {
    await link.close();
    const wanted = `whole blocks of ${Math.max(SECTOR_BYTES, blocks.minBytes)}, one at least`;
    const text = `${address.uri} has ${sizeBytes} bytes; a disk has ${wanted}`;
    throw new NbdError('ERR_VRING_NBD_EXPORT', text);
  }
  layer = new NbdLayer(address.uri, link, timeoutMs, options.readOnly ?? false);
  return layer;
}

type Piece = { readonly at: number; readonly sizeBytes: number };

export class NbdLayer extends SourceLayer {
  readonly description: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly #link: NbdLink;
  readonly #timeoutMs: number;
  readonly #slots = new Slots(MAX_IN_FLIGHT);
  readonly #lock = new RangeLock();
  readonly #log = new WriteLog();
  /** See README.md of storage, "A failed flush stays failed". */
  #lost: LayerError | null = null;
  #flushing: Promise<void> | null = null;
  #replayed = 0;

  /** Use `openNbdLayer`. */
  constructor(uri: string, link: NbdLink, timeoutMs: number, readOnly: boolean) {
    super();
    this.description = uri;
    this.#link = link;
    this.#timeoutMs = timeoutMs;
    this.sizeBytes = link.facts.sizeBytes;
    this.readOnly = readOnly || this.#has(NBD_FLAG_READ_ONLY);
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    await this.#each(this.#pieces(at, into.length), 'read', async (piece, deadlineMs) => {
      const target = into.subarray(piece.at - at, piece.at - at + piece.sizeBytes);
      await this.#readPiece(piece, target, deadlineMs);
    });
  }

  async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    this.#checkWritable('write', at);
    await this.#roomInLog();
    await this.#each(this.#pieces(at, from.length), 'write', (piece, deadlineMs) => {
      const source = from.subarray(piece.at - at, piece.at - at + piece.sizeBytes);
      return this.#writePiece(piece, source, fua, deadlineMs);
    });
    await this.#durable(fua);
  }

  async flush(): Promise<void> {
    if (this.#lost !== null) throw this.#lost;
    if (!this.#has(NBD_FLAG_SEND_FLUSH)) return; // it has no cache, as far as NBD can tell
    const mark = this.#log.mark();
    const command = { type: NBD_CMD_FLUSH, flags: 0, at: 0, sizeBytes: 0 };
    try {
      await this.#link.run(command, this.#deadline());
    } catch (error) {
      this.#lose(this.#failed('flush', 0, error));
    }
    // Another one, or a replay, may have found out meanwhile.
    if (this.#lost !== null) throw this.#lost;
    this.#log.flushed(mark);
  }

  async discard(at: number, sizeBytes: number): Promise<void> {
    this.#checkWritable('discard', at);
    if (!this.#has(NBD_FLAG_SEND_TRIM)) return;
    const { minBytes } = this.#link.facts.blocks;
    const start = Math.ceil(at / minBytes) * minBytes;
    const end = Math.floor((at + sizeBytes) / minBytes) * minBytes;
    const ranges = split(start, end - start, MAX_RANGE_BYTES);
    await this.#each(ranges, 'discard', async (piece, deadlineMs) => {
      await this.#alone(piece, () =>
        this.#link.run({ type: NBD_CMD_TRIM, flags: 0, ...piece }, deadlineMs),
      );
    });
  }

  async zero(at: number, sizeBytes: number, options: ZeroOptions): Promise<void> {
    this.#checkWritable('zero', at);
    await this.#roomInLog();
    const { minBytes } = this.#link.facts.blocks;
    const hasZeroes = this.#has(NBD_FLAG_SEND_WRITE_ZEROES);
    const start = Math.min(at + sizeBytes, Math.ceil(at / minBytes) * minBytes);
    const inner = Math.floor((at + sizeBytes) / minBytes) * minBytes;
    const end = hasZeroes ? Math.max(start, inner) : start;
    const ranges = split(start, end - start, MAX_RANGE_BYTES);
    await this.#each(ranges, 'zero', (piece, deadlineMs) =>
      this.#zeroPiece(piece, options, deadlineMs),
    );
    // What is no whole block, or all of it, is written.
    const written = [...this.#pieces(at, start - at), ...this.#pieces(end, at + sizeBytes - end)];
    await this.#each(written, 'zero', (piece, deadlineMs) =>
      this.#writePiece(piece, Buffer.alloc(piece.sizeBytes), options.fua, deadlineMs),
    );
    await this.#durable(options.fua);
  }

  override async extents(at: number, sizeBytes: number): Promise<Extent[]> {
    if (this.#link.facts.allocationId === null || sizeBytes === 0) {
      return super.extents(at, sizeBytes);
    }
    const found: Extent[] = [];
    const end = at + sizeBytes;
    for (let next = at; next < end && found.length < MAX_EXTENTS;) {
      const asked = this.#aligned({ at: next, sizeBytes: Math.min(end - next, MAX_RANGE_BYTES) });
      const deadlineMs = this.#deadline();
      const command = { type: NBD_CMD_BLOCK_STATUS, flags: 0, ...asked };
      const status = await this.#link.run(command, deadlineMs).catch((error: unknown) => {
        if (error instanceof LayerError && (error.errno === EINVAL || error.errno === EOPNOTSUPP)) {
          return [{ sizeBytes: asked.sizeBytes, flags: 0 }]; // data: never wrong
        }
        throw this.#failed('block status', next, error);
      });
      const known = addExtents(found, status!, asked, next, end);
      if (known === next && found.length < MAX_EXTENTS) {
        throw this.#failed('block status', next, protocolError('a status about something else'));
      }
      next = known;
    }
    return found;
  }

  override counters(): Record<string, number> {
    const { reconnects, retries, isConnected } = this.#link;
    return {
      nbdConnected: isConnected ? 1 : 0,
      nbdReconnects: reconnects,
      nbdRetriedCommands: retries,
      nbdReplayedWrites: this.#replayed,
      nbdUnflushedBytes: this.#log.sizeBytes,
    };
  }

  override async close(): Promise<void> {
    await this.#link.close();
  }

  /**
   * Repeats what may be lost, in order, several at once where they do not overlap.
   * @throws NbdError: the connection ended.
   */
  async replay(connection: NbdConnection): Promise<void> {
    const slots = new Slots(MAX_IN_FLIGHT);
    const lock = new RangeLock();
    let ended: NbdError | null = null;
    const repeat = async (entry: LoggedWrite, release: () => void): Promise<void> => {
      const unlock = await lock.acquire(entry.at, commandOf(entry).sizeBytes);
      try {
        if (ended === null) await withTimeout(connection, commandOf(entry), this.#timeoutMs);
        this.#replayed++;
      } catch (error) {
        // Not the connection: the server is there and refuses what it had taken before.
        if (error instanceof NbdError) ended = error;
        else this.#lose(this.#failed('repeating a write after a reconnect', entry.at, error));
      } finally {
        unlock();
        release();
      }
    };
    const running: Promise<void>[] = [];
    for (const entry of this.#log.entries) running.push(repeat(entry, await slots.acquire()));
    await Promise.all(running);
    if (ended !== null) throw ended;
  }

  async #readPiece(piece: Piece, into: Uint8Array, deadlineMs: number): Promise<void> {
    const wide = this.#aligned(piece);
    if (wide.sizeBytes === piece.sizeBytes) {
      await this.#link.run({ type: NBD_CMD_READ, flags: 0, ...piece, into }, deadlineMs);
      return;
    }
    const bytes = Buffer.allocUnsafe(wide.sizeBytes);
    await this.#link.run({ type: NBD_CMD_READ, flags: 0, ...wide, into: bytes }, deadlineMs);
    into.set(bytes.subarray(piece.at - wide.at, piece.at - wide.at + piece.sizeBytes));
  }

  async #writePiece(
    piece: Piece,
    from: Uint8Array,
    fua: boolean,
    deadlineMs: number,
  ): Promise<void> {
    const wide = this.#aligned(piece);
    const flags = fua ? this.#fuaFlag() : 0;
    await this.#alone(wide, async () => {
      let bytes = from;
      if (wide.sizeBytes !== piece.sizeBytes) {
        bytes = Buffer.allocUnsafe(wide.sizeBytes);
        await this.#readPiece(wide, bytes, deadlineMs);
        bytes.set(from, piece.at - wide.at);
      }
      await this.#link.run({ type: NBD_CMD_WRITE, flags, ...wide, from: bytes }, deadlineMs);
      if (this.#isLogged(flags)) {
        this.#log.add({ kind: 'write', at: wide.at, bytes: Buffer.from(bytes) });
      }
    });
  }

  async #zeroPiece(piece: Piece, options: ZeroOptions, deadlineMs: number): Promise<void> {
    const { unmap } = options;
    const flags = (options.fua ? this.#fuaFlag() : 0) | (unmap ? 0 : NBD_CMD_FLAG_NO_HOLE);
    await this.#alone(piece, async () => {
      await this.#link.run({ type: NBD_CMD_WRITE_ZEROES, flags, ...piece }, deadlineMs);
      if (this.#isLogged(flags)) this.#log.add({ kind: 'zero', ...piece, unmap });
    });
  }

  /** A durable write is repeated too where an older one that overlaps may be. */
  #isLogged(flags: number): boolean {
    if (this.#lost !== null || !this.#has(NBD_FLAG_SEND_FLUSH)) return false;
    return (flags & NBD_CMD_FLAG_FUA) === 0 || this.#log.count > 0;
  }

  #fuaFlag(): number {
    return this.#has(NBD_FLAG_SEND_FUA) ? NBD_CMD_FLAG_FUA : 0;
  }

  /** A server without FUA is asked to flush. */
  async #durable(fua: boolean): Promise<void> {
    if (!fua) return;
    if (!this.#has(NBD_FLAG_SEND_FUA)) await this.flush();
    else if (this.#lost !== null) throw this.#lost;
  }

  async #roomInLog(): Promise<void> {
    if (this.#log.isHalfFull && this.#flushing === null) {
      this.#flushing = this.flush()
        .catch(() => {}) // it is kept in #lost, and the log is empty then
        .finally(() => (this.#flushing = null));
    }
    if (this.#log.isFull) await this.#flushing;
  }

  #lose(error: LayerError): void {
    this.#lost ??= error;
    this.#log.clear();
  }

  async #alone(piece: Piece, work: () => Promise<unknown>): Promise<void> {
    const release = await this.#lock.acquire(piece.at, piece.sizeBytes);
    try {
      await work();
    } finally {
      release();
    }
  }

  /** All pieces have ended when it settles: nobody uses the caller's memory any more. */
  async #each(
    pieces: readonly Piece[],
    op: string,
    work: (piece: Piece, deadlineMs: number) => Promise<void>,
  ): Promise<void> {
    const results = await Promise.allSettled(
      pieces.map(async (piece) => {
        const deadlineMs = this.#deadline();
        const release = await this.#slots.acquire();
        try {
          await work(piece, deadlineMs);
        } catch (error) {
          throw this.#failed(op, piece.at, error);
        } finally {
          release();
        }
      }),
    );
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  #deadline(): number {
    return performance.now() + this.#timeoutMs;
  }

  #pieces(at: number, sizeBytes: number): Piece[] {
    const { minBytes, maxBytes } = this.#link.facts.blocks;
    const most = Math.floor(Math.min(maxBytes, MAX_PIECE_BYTES) / minBytes) * minBytes;
    return split(at, sizeBytes, most);
  }

  /** Grown to whole blocks of the server's. */
  #aligned({ at, sizeBytes }: Piece): Piece {
    const { minBytes } = this.#link.facts.blocks;
    const start = Math.floor(at / minBytes) * minBytes;
    const end = Math.ceil((at + sizeBytes) / minBytes) * minBytes;
    return { at: start, sizeBytes: end - start };
  }

  #has(flag: number): boolean {
    return (this.#link.facts.flags & flag) !== 0;
  }

  #checkWritable(op: string, at: number): void {
    if (!this.readOnly) return;
    throw new LayerError(EROFS, `${this.description}: ${op} at byte ${at}: it is read-only`);
  }

  #failed(op: string, at: number, cause: unknown): LayerError {
    const known = cause instanceof LayerError || cause instanceof SysError;
    const text = `${this.description}: ${op} at byte ${at}: ${messageOf(cause)}`;
    return new LayerError(known ? cause.errno : EIO, text, { cause });
  }
}

/** In pieces that end at multiples of `most`, so that all but the ends are aligned. */
function split(at: number, sizeBytes: number, most: number): Piece[] {
  const pieces: Piece[] = [];
  const end = at + sizeBytes;
  for (let next = at; next < end;) {
    const pieceEnd = Math.min(end, Math.floor(next / most) * most + most);
    pieces.push({ at: next, sizeBytes: pieceEnd - next });
    next = pieceEnd;
  }
  return pieces;
}

function commandOf(entry: LoggedWrite): NbdCommand {
  const { at } = entry;
  if (entry.kind === 'write') {
    const { bytes } = entry;
    return { type: NBD_CMD_WRITE, flags: 0, at, sizeBytes: bytes.length, from: bytes };
  }
  const flags = entry.unmap ? 0 : NBD_CMD_FLAG_NO_HOLE;
  return { type: NBD_CMD_WRITE_ZEROES, flags, at, sizeBytes: entry.sizeBytes };
}

/** A server that hangs while it is told again is one that is not there. */
async function withTimeout(
  connection: NbdConnection,
  command: NbdCommand,
  timeoutMs: number,
): Promise<void> {
  const timer = setTimeout(() => {
    const text = `the NBD server is silent: repeating a write at byte ${command.at}`;
    connection.drop(new NbdError('ERR_VRING_NBD_TIMEOUT', text));
  }, timeoutMs);
  try {
    await connection.request(command);
  } finally {
    clearTimeout(timer);
  }
}

/** Adds what a status said about [next, end); returns up to where it is known now. */
function addExtents(
  found: Extent[],
  status: readonly BlockStatus[],
  asked: Piece,
  next: number,
  end: number,
): number {
  let at = asked.at;
  let known = next;
  for (const { sizeBytes, flags } of status) {
    const from = Math.max(at, known);
    const to = Math.min(at + sizeBytes, end);
    at += sizeBytes;
    if (to <= from) continue;
    const isZero = (flags & NBD_STATE_ZERO) !== 0;
    const kind = !isZero ? 'data' : (flags & NBD_STATE_HOLE) !== 0 ? 'hole' : 'zero';
    const last = found.at(-1);
    if (last?.kind === kind) {
      found[found.length - 1] = { ...last, sizeBytes: last.sizeBytes + to - from };
    } else if (found.length === MAX_EXTENTS) {
      return known;
    } else {
      found.push({ at: from, sizeBytes: to - from, kind });
    }
    known = to;
  }
  return known;
}
