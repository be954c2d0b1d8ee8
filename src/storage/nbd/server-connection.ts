/**
 * One client of an export, from its greeting to its end. Requests are carried out at once, as many
 * as the limits allow; then the client waits, because nothing more is read from it. A request's
 * bytes count until its reply has left, so a client that does not read its replies waits, too.
 */
import type { Socket } from 'node:net';
import {
  decodeNbdRequest,
  encodeNbdChunk,
  encodeNbdSimpleReply,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_DEFAULT_MAX_PAYLOAD_BYTES,
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REQUEST_BYTES,
  NBD_STATE_HOLE,
  NBD_STATE_ZERO,
  type NbdRequest,
} from '../../wire/nbd.ts';
import { EROFS } from '../../sys/index.ts';
import type { Layer } from '../layer/layer.ts';
import { ByteStream } from './byte-stream.ts';
import { NbdError, protocolError } from './nbd-error.ts';
import {
  ALLOCATION_ID,
  type Agreed,
  type ClientChannel,
  type ExportFacts,
  serveHandshake,
} from './server-handshake.ts';
import type { ExportTls } from './server-tls.ts';

const HANDSHAKE_TIMEOUT_MS = 10_000;
const SECTOR_BYTES = 512;
const MAX_REQUESTS = 64;
/** Of one connection; a request of the maximum is alone. */
const MAX_BYTES = NBD_DEFAULT_MAX_PAYLOAD_BYTES;

/** Which flags a command may have; what is not here is no command. */
const FLAGS_OF: Readonly<Record<number, number>> = {
  [NBD_CMD_READ]: NBD_CMD_FLAG_DF | NBD_CMD_FLAG_FUA,
  [NBD_CMD_WRITE]: NBD_CMD_FLAG_FUA,
  [NBD_CMD_FLUSH]: NBD_CMD_FLAG_FUA,
  [NBD_CMD_TRIM]: NBD_CMD_FLAG_FUA,
  [NBD_CMD_CACHE]: NBD_CMD_FLAG_FUA,
  [NBD_CMD_WRITE_ZEROES]: NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE,
  [NBD_CMD_BLOCK_STATUS]: NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_FUA,
};
const CHANGES = new Set([NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES]);

/** What is counted over all connections. */
export type ExportCounters = {
  requests: number;
  failedRequests: number;
  readBytes: number;
  writtenBytes: number;
  /** Clients that broke the protocol or the handshake's time. */
  badClients: number;
};

export type ServerConnectionOptions = {
  readonly layer: Layer;
  readonly facts: ExportFacts;
  readonly readOnly: boolean;
  readonly counters: ExportCounters;
  /** Null: there is none. */
  readonly tls: ExportTls | null;
};

type Work = { readonly data: Buffer | null; readonly chunk: number };

export class ServerConnection {
  readonly #channel: ClientChannel;
  readonly #options: ServerConnectionOptions;
  #agreed: Agreed = { structured: false, allocation: false };
  #requests = 0;
  #bytes = 0;
  /** The reader waits until there is less to do. */
  #wake: (() => void) | null = null;
  /** Resolves when nothing of the layer is in use any more. */
  readonly ended: Promise<void>;

  constructor(socket: Socket, options: ServerConnectionOptions) {
    this.#channel = { socket, stream: new ByteStream(socket) };
    this.#options = options;
    this.ended = this.#serve();
  }

  get #stream(): ByteStream {
    return this.#channel.stream;
  }

  get #socket(): Socket {
    return this.#channel.socket;
  }

  close(): void {
    this.#stream.fail(new NbdError('ERR_VRING_NBD_CLOSED', 'the export was closed'));
  }

  async #serve(): Promise<void> {
    try {
      if (await this.#handshake()) await this.#transmission();
    } catch (error) {
      const { code } = error as { code?: string };
      if (code !== 'ERR_VRING_NBD_CLOSED') this.#options.counters.badClients++;
      this.#stream.fail(error as Error);
    }
    await this.#drained(() => this.#requests === 0);
    if (this.#stream.failure === null) this.#socket.end();
    // Whoever does not take our goodbye is not waited for.
    setTimeout(() => this.#socket.destroy(), 1000).unref();
  }

  async #handshake(): Promise<boolean> {
    const timer = setTimeout(() => {
      this.#stream.fail(protocolError(`no handshake within ${HANDSHAKE_TIMEOUT_MS} ms`));
    }, HANDSHAKE_TIMEOUT_MS);
    try {
      const { facts, tls } = this.#options;
      const agreed = await serveHandshake(this.#channel, facts, tls);
      if (agreed !== null) this.#agreed = agreed;
      return agreed !== null;
    } finally {
      clearTimeout(timer);
    }
  }

  async #transmission(): Promise<void> {
    for (;;) {
      const head = decodeNbdRequest(await this.#stream.take(NBD_REQUEST_BYTES));
      if (head === null) throw protocolError('the magic of a request is wrong');
      if (head.type === NBD_CMD_DISC) return;
      const isWrite = head.type === NBD_CMD_WRITE;
      const carries = isWrite || head.type === NBD_CMD_READ;
      if (isWrite && head.sizeBytes > NBD_DEFAULT_MAX_PAYLOAD_BYTES) {
        throw protocolError(`a write of ${head.sizeBytes} bytes`);
      }
      const bytes = carries ? Math.min(head.sizeBytes, MAX_BYTES) : 0;
      await this.#drained(
        () =>
          this.#requests === 0 ||
          (this.#requests < MAX_REQUESTS && this.#bytes + bytes <= MAX_BYTES),
      );
      const payload = isWrite ? await this.#stream.take(head.sizeBytes) : null;
      this.#requests++;
      this.#bytes += bytes;
      void this.#run(head, payload).finally(() => {
        this.#requests--;
        this.#bytes -= bytes;
        this.#wake?.();
      });
    }
  }

  async #drained(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => (this.#wake = resolve));
    this.#wake = null;
  }

  async #run(head: NbdRequest, payload: Buffer | null): Promise<void> {
    const { counters } = this.#options;
    counters.requests++;
    let error = this.#judge(head);
    let work: Work = { data: null, chunk: NBD_REPLY_TYPE_OFFSET_DATA };
    try {
      if (error === 0) work = await this.#carryOut(head, payload);
    } catch (thrown) {
      error = nbdErrorOf(thrown);
    }
    if (error !== 0) counters.failedRequests++;
    await this.#reply(head, error, work);
  }

  /** 0, or why not. What is read here is a client's. */
  #judge({ type, flags, at, sizeBytes }: NbdRequest): number {
    const { layer, readOnly } = this.#options;
    const allowed = FLAGS_OF[type];
    if (allowed === undefined || (flags & ~allowed) !== 0) return NBD_EINVAL;
    if (type === NBD_CMD_FLUSH) return at === 0n && sizeBytes === 0 ? 0 : NBD_EINVAL;
    if (CHANGES.has(type) && readOnly) return NBD_EPERM;
    if (type === NBD_CMD_BLOCK_STATUS && !this.#agreed.allocation) return NBD_EINVAL;
    if (at + BigInt(sizeBytes) > BigInt(layer.sizeBytes)) {
      return type === NBD_CMD_WRITE || type === NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
    }
    if (sizeBytes === 0) return NBD_EINVAL;
    if (type === NBD_CMD_READ && sizeBytes > NBD_DEFAULT_MAX_PAYLOAD_BYTES) return NBD_EOVERFLOW;
    // Not what we said is the smallest block; the end of the range is one then, too.
    if (Number(at) % SECTOR_BYTES !== 0 || sizeBytes % SECTOR_BYTES !== 0) return NBD_EINVAL;
    return 0;
  }

  async #carryOut(head: NbdRequest, payload: Buffer | null): Promise<Work> {
    const { layer, counters } = this.#options;
    const { type, sizeBytes } = head;
    const at = Number(head.at);
    const fua = (head.flags & NBD_CMD_FLAG_FUA) !== 0;
    const nothing: Work = { data: null, chunk: NBD_REPLY_TYPE_OFFSET_DATA };
    switch (type) {
      case NBD_CMD_READ: {
        const data = Buffer.allocUnsafe(sizeBytes);
        await layer.read(at, data);
        counters.readBytes += sizeBytes;
        return { data, chunk: NBD_REPLY_TYPE_OFFSET_DATA };
      }
      case NBD_CMD_WRITE:
        await layer.write(at, payload!, fua);
        counters.writtenBytes += sizeBytes;
        return nothing;
      case NBD_CMD_FLUSH:
        await layer.flush();
        return nothing;
      case NBD_CMD_TRIM:
        await layer.discard(at, sizeBytes);
        if (fua) await layer.flush();
        return nothing;
      case NBD_CMD_WRITE_ZEROES:
        await layer.zero(at, sizeBytes, { fua, unmap: (head.flags & NBD_CMD_FLAG_NO_HOLE) === 0 });
        return nothing;
      case NBD_CMD_BLOCK_STATUS:
        return { data: await this.#status(head), chunk: NBD_REPLY_TYPE_BLOCK_STATUS };
      default: // CACHE is advice
        return nothing;
    }
  }

  async #status({ at, sizeBytes, flags }: NbdRequest): Promise<Buffer> {
    let extents = await this.#options.layer.extents(Number(at), sizeBytes);
    if ((flags & NBD_CMD_FLAG_REQ_ONE) !== 0) extents = extents.slice(0, 1);
    const bytes = Buffer.alloc(4 + 8 * extents.length);
    bytes.writeUInt32BE(ALLOCATION_ID, 0);
    for (const [i, { sizeBytes, kind }] of extents.entries()) {
      const zero = kind === 'data' ? 0 : NBD_STATE_ZERO;
      bytes.writeUInt32BE(sizeBytes, 4 + 8 * i);
      bytes.writeUInt32BE(kind === 'hole' ? zero | NBD_STATE_HOLE : zero, 8 + 8 * i);
    }
    return bytes;
  }

  /** Resolves when it has left, or cannot any more. */
  #reply({ handle, type, at }: NbdRequest, error: number, work: Work): Promise<void> {
    if (this.#stream.failure !== null) return Promise.resolve();
    const { data, chunk } = work;
    const inChunks =
      this.#agreed.structured && (type === NBD_CMD_READ || type === NBD_CMD_BLOCK_STATUS);
    const flags = NBD_REPLY_FLAG_DONE;
    if (!inChunks) {
      const head = encodeNbdSimpleReply(error, handle);
      return this.#send(head, error === 0 ? data : null);
    }
    if (error !== 0) {
      const fields = { flags, type: NBD_REPLY_TYPE_ERROR, handle, sizeBytes: 6 };
      const head = encodeNbdChunk(fields, 6);
      head.writeUInt32BE(error, 20);
      head.writeUInt16BE(0, 24);
      return this.#send(head, null);
    }
    const isData = chunk === NBD_REPLY_TYPE_OFFSET_DATA;
    const sizeBytes = data!.length + (isData ? 8 : 0);
    const head = encodeNbdChunk({ flags, type: chunk, handle, sizeBytes }, isData ? 8 : 0);
    if (isData) head.writeBigUInt64BE(at, 20);
    return this.#send(head, data);
  }

  #send(head: Buffer, data: Buffer | null): Promise<void> {
    return new Promise((resolve) => {
      this.#socket.cork();
      this.#socket.write(head, data === null ? () => resolve() : undefined);
      if (data !== null) this.#socket.write(data, () => resolve());
      this.#socket.uncork();
    });
  }
}

const KNOWN_ERRORS = new Set([
  NBD_EPERM,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EOVERFLOW,
  NBD_ENOTSUP,
]);

/** The layer's message stays here: it names paths and servers that are no client's business. */
function nbdErrorOf(thrown: unknown): number {
  const { errno } = thrown as { errno?: unknown };
  if (errno === EROFS) return NBD_EPERM;
  return typeof errno === 'number' && KNOWN_ERRORS.has(errno) ? errno : NBD_EIO;
}
