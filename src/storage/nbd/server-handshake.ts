/**
 * The server's half of the fixed newstyle handshake, for one export. Whatever a client asks is
 * bounded: so many options, so many bytes each, and the caller's clock ends it all. Where TLS is
 * required, a client in the clear learns nothing but that.
 */
import type { Socket } from 'node:net';
import {
  encodeNbdOptionReply,
  encodeNbdString,
  NBD_DEFAULT_MAX_PAYLOAD_BYTES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_MAGIC,
  NBD_META_BASE_ALLOCATION,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_OPTION_MAGIC,
  NBD_REP_ACK,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
} from '../../wire/nbd.ts';
import { ByteStream } from './byte-stream.ts';
import { NbdError, protocolError } from './nbd-error.ts';
import type { ExportTls } from './server-tls.ts';

/** An export's name and queries, 4096 bytes each: over it the option is refused. */
const MAX_OPTION_BYTES = 65_536;
/** What is larger is no option of anybody's: the connection ends. */
const MAX_SKIPPED_BYTES = 2 ** 20;
const MAX_OPTIONS = 128;
const MIN_BLOCK_BYTES = 512;
const PREFERRED_BLOCK_BYTES = 4096;

/** Of `base:allocation`, the only context. */
export const ALLOCATION_ID = 1;

export type ExportFacts = {
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  /** NBD_FLAG_... */
  readonly flags: number;
  /** Smallest write; 512 when left out. */
  readonly blockBytes?: number;
};

export type Agreed = { readonly structured: boolean; readonly allocation: boolean };

/** How a client is reached: by another socket once it is encrypted. */
export type ClientChannel = { socket: Socket; stream: ByteStream };

/**
 * Resolves when the client's first request follows on `channel`; null: it only looked.
 * @throws NbdError.
 */
export async function serveHandshake(
  channel: ClientChannel,
  facts: ExportFacts,
  tls: ExportTls | null,
): Promise<Agreed | null> {
  const greeting = Buffer.alloc(18);
  greeting.writeBigUInt64BE(NBD_MAGIC, 0);
  greeting.writeBigUInt64BE(NBD_OPTION_MAGIC, 8);
  greeting.writeUInt16BE(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES, 16);
  channel.socket.write(greeting);
  const flags = (await channel.stream.take(4)).readUInt32BE(0);
  if ((flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) !== 0) {
    throw protocolError(`client flags 0x${flags.toString(16)}`);
  }
  const noZeroes = (flags & NBD_FLAG_NO_ZEROES) !== 0;
  const tlsState: TlsState = tls === null ? 'none' : tls.required ? 'required' : 'possible';
  let session = new OptionSession(channel.socket, facts, noZeroes, tlsState);
  for (let count = 0; count < MAX_OPTIONS; count++) {
    const head = await channel.stream.take(16);
    if (head.readBigUInt64BE(0) !== NBD_OPTION_MAGIC)
      throw protocolError('an option without IHAVEOPT');
    const option = head.readUInt32BE(8);
    const sizeBytes = head.readUInt32BE(12);
    if (sizeBytes > MAX_SKIPPED_BYTES) throw protocolError(`an option of ${sizeBytes} bytes`);
    const data = await channel.stream.take(sizeBytes);
    const next = session.handle(option, data);
    if (next === 'encrypt') {
      await encrypt(channel, tls!);
      // "Any previously negotiated state is forgotten."
      session = new OptionSession(channel.socket, facts, noZeroes, 'on');
    } else if (next !== 'more') {
      return next === 'done' ? session.agreed : null;
    }
  }
  throw protocolError(`more than ${MAX_OPTIONS} options`);
}

async function encrypt(channel: ClientChannel, tls: ExportTls): Promise<void> {
  const clear = channel.stream;
  // What comes in the clear behind STARTTLS would be taken for what came encrypted.
  if (clear.detach() > 0) throw protocolError('it sent data in the clear after STARTTLS');
  const secure = await tls.secure(channel.socket);
  channel.socket = secure;
  channel.stream = new ByteStream(secure);
  if (clear.failure !== null) channel.stream.fail(clear.failure); // the export was closed meanwhile
}

type TlsState = 'none' | 'possible' | 'required' | 'on';
type Next = 'more' | 'done' | 'ended' | 'encrypt';

class OptionSession {
  readonly #socket: Socket;
  readonly #facts: ExportFacts;
  readonly #noZeroes: boolean;
  readonly #tls: TlsState;
  #structured = false;
  #allocation = false;

  constructor(socket: Socket, facts: ExportFacts, noZeroes: boolean, tls: TlsState) {
    this.#socket = socket;
    this.#facts = facts;
    this.#noZeroes = noZeroes;
    this.#tls = tls;
  }

  get agreed(): Agreed {
    return { structured: this.#structured, allocation: this.#allocation };
  }

  handle(option: number, data: Buffer): Next {
    if (option === NBD_OPT_ABORT) return this.#reply(option, NBD_REP_ACK, undefined, 'ended');
    if (option === NBD_OPT_STARTTLS) return this.#startTls(data);
    const isRefused = this.#tls === 'required';
    if (option === NBD_OPT_EXPORT_NAME) {
      // Nothing but hanging up is an answer to it.
      if (isRefused) throw new NbdError('ERR_VRING_NBD_REFUSED', 'a client without TLS');
      return this.#exportName(data);
    }
    if (isRefused) return this.#reply(option, NBD_REP_ERR_TLS_REQD);
    if (data.length > MAX_OPTION_BYTES) return this.#reply(option, NBD_REP_ERR_TOO_BIG);
    switch (option) {
      case NBD_OPT_LIST:
        if (data.length !== 0) return this.#reply(option, NBD_REP_ERR_INVALID);
        this.#reply(option, NBD_REP_SERVER, encodeNbdString(this.#facts.name));
        return this.#reply(option, NBD_REP_ACK);
      case NBD_OPT_STRUCTURED_REPLY:
        if (data.length !== 0) return this.#reply(option, NBD_REP_ERR_INVALID);
        this.#structured = true;
        return this.#reply(option, NBD_REP_ACK);
      case NBD_OPT_INFO:
      case NBD_OPT_GO:
        return this.#information(option, data);
      case NBD_OPT_LIST_META_CONTEXT:
      case NBD_OPT_SET_META_CONTEXT:
        return this.#contexts(option, data);
      default:
        return this.#reply(option, NBD_REP_ERR_UNSUP);
    }
  }

  #reply(option: number, type: number, data?: Uint8Array, next: Next = 'more'): Next {
    this.#socket.write(encodeNbdOptionReply(option, type, data));
    return next;
  }

  #startTls(data: Buffer): Next {
    if (this.#tls === 'none') return this.#reply(NBD_OPT_STARTTLS, NBD_REP_ERR_UNSUP);
    if (this.#tls === 'on' || data.length !== 0) {
      return this.#reply(NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID);
    }
    return this.#reply(NBD_OPT_STARTTLS, NBD_REP_ACK, undefined, 'encrypt');
  }

  /** The empty name is the default export, which is ours. */
  #isOurs(name: string): boolean {
    return name === '' || name === this.#facts.name;
  }

  #exportName(data: Buffer): Next {
    const name = data.toString();
    if (!this.#isOurs(name)) {
      const text = `the client wants export ${JSON.stringify(name.slice(0, 100))}`;
      throw new NbdError('ERR_VRING_NBD_REFUSED', text); // nothing else can be answered
    }
    const reply = Buffer.alloc(this.#noZeroes ? 10 : 134);
    reply.writeBigUInt64BE(BigInt(this.#facts.sizeBytes), 0);
    reply.writeUInt16BE(this.#facts.flags, 8);
    this.#socket.write(reply);
    return 'done';
  }

  #information(option: number, data: Buffer): Next {
    const name = stringAt(data, 0);
    const countAt = 4 + (name === null ? 0 : Buffer.byteLength(name));
    const count = name !== null && data.length >= countAt + 2 ? data.readUInt16BE(countAt) : -1;
    if (count < 0 || data.length !== countAt + 2 + 2 * count) {
      return this.#reply(option, NBD_REP_ERR_INVALID);
    }
    if (!this.#isOurs(name!)) return this.#reply(option, NBD_REP_ERR_UNKNOWN);
    const wanted = new Set<number>();
    for (let i = 0; i < count; i++) wanted.add(data.readUInt16BE(countAt + 2 + 2 * i));
    const facts = this.#facts;
    const size = Buffer.alloc(10);
    size.writeBigUInt64BE(BigInt(facts.sizeBytes), 0);
    size.writeUInt16BE(facts.flags, 8);
    this.#inform(option, NBD_INFO_EXPORT, size);
    const blocks = Buffer.alloc(12);
    const { blockBytes = MIN_BLOCK_BYTES } = facts;
    blocks.writeUInt32BE(blockBytes, 0);
    blocks.writeUInt32BE(Math.max(blockBytes, PREFERRED_BLOCK_BYTES), 4);
    blocks.writeUInt32BE(NBD_DEFAULT_MAX_PAYLOAD_BYTES, 8);
    this.#inform(option, NBD_INFO_BLOCK_SIZE, blocks);
    if (wanted.has(NBD_INFO_NAME)) this.#inform(option, NBD_INFO_NAME, Buffer.from(facts.name));
    if (wanted.has(NBD_INFO_DESCRIPTION)) {
      this.#inform(option, NBD_INFO_DESCRIPTION, Buffer.from(facts.description));
    }
    return this.#reply(option, NBD_REP_ACK, undefined, option === NBD_OPT_GO ? 'done' : 'more');
  }

  #inform(option: number, type: number, data: Buffer): void {
    const head = Buffer.alloc(2);
    head.writeUInt16BE(type, 0);
    this.#reply(option, NBD_REP_INFO, Buffer.concat([head, data]));
  }

  #contexts(option: number, data: Buffer): Next {
    const strings = parseContexts(data);
    const isSet = option === NBD_OPT_SET_META_CONTEXT;
    if (strings === null) return this.#reply(option, NBD_REP_ERR_INVALID);
    // "MUST NOT be sent before structured replies were agreed on."
    if (isSet && !this.#structured) return this.#reply(option, NBD_REP_ERR_INVALID);
    if (!this.#isOurs(strings[0]!)) return this.#reply(option, NBD_REP_ERR_UNKNOWN);
    const queries = strings.slice(1);
    const wants = (query: string): boolean =>
      query === NBD_META_BASE_ALLOCATION || (!isSet && query === 'base:');
    const isWanted = queries.some(wants) || (!isSet && queries.length === 0);
    if (isSet) this.#allocation = isWanted;
    if (isWanted) {
      const context = Buffer.alloc(4);
      context.writeUInt32BE(isSet ? ALLOCATION_ID : 0, 0);
      const data = Buffer.concat([context, Buffer.from(NBD_META_BASE_ALLOCATION)]);
      this.#reply(option, NBD_REP_META_CONTEXT, data);
    }
    return this.#reply(option, NBD_REP_ACK);
  }
}

/** The export's name, then the queries; null: the lengths do not add up. */
function parseContexts(data: Buffer): string[] | null {
  const name = stringAt(data, 0);
  if (name === null) return null;
  const strings = [name];
  let at = 4 + Buffer.byteLength(name);
  if (data.length < at + 4) return null;
  const count = data.readUInt32BE(at);
  at += 4;
  for (let i = 0; i < count; i++) {
    const query = stringAt(data, at);
    if (query === null) return null; // also ends a count that is larger than the option
    strings.push(query);
    at += 4 + Buffer.byteLength(query);
  }
  return at === data.length ? strings : null;
}

function stringAt(data: Buffer, at: number): string | null {
  if (data.length < at + 4) return null;
  const sizeBytes = data.readUInt32BE(at);
  if (data.length < at + 4 + sizeBytes) return null;
  const bytes = data.subarray(at + 4, at + 4 + sizeBytes);
  const text = bytes.toString('utf8');
  // Names are UTF-8; one that is not would have another length when it is encoded again.
  return Buffer.byteLength(text) === sizeBytes ? text : null;
}
