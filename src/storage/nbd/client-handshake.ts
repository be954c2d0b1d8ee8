/**
 * The client's half of the handshake, up to the first request. Fixed newstyle: STARTTLS where it is
 * wanted, structured replies, `base:allocation`, GO. What older servers know instead: EXPORT_NAME,
 * which cannot be refused but by hanging up, and before that the oldstyle handshake, in which a
 * server says what it has and asks nothing. Whatever a server answers is bounded: options have so
 * many replies, replies so many bytes, and the caller's clock ends it all.
 */
import type { Socket } from 'node:net';
import {
  encodeNbdOption,
  encodeNbdString,
  NBD_DEFAULT_MAX_PAYLOAD_BYTES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_MAGIC,
  NBD_META_BASE_ALLOCATION,
  NBD_OLDSTYLE_MAGIC,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_OPTION_MAGIC,
  NBD_OPTION_REPLY_MAGIC,
  NBD_REP_ACK,
  NBD_REP_ERR_BLOCK_SIZE_REQD,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_FLAG_ERROR,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
} from '../../wire/nbd.ts';
import { ByteStream } from './byte-stream.ts';
import { secureSocket } from './client-tls.ts';
import { NbdError, peerText, protocolError } from './nbd-error.ts';
import type { NbdAddress } from './nbd-uri.ts';

/** Of one option's reply: a string of 4096 bytes and what stands around it. */
const MAX_REPLY_BYTES = 8192;
/** Replies to one option; a server with more to say about one export makes no sense. */
const MAX_REPLIES = 64;

export type NbdFacts = {
  readonly sizeBytes: number;
  /** NBD_FLAG_... */
  readonly flags: number;
  readonly blocks: NbdBlocks;
  /** Reads are answered in chunks. */
  readonly structured: boolean;
  /** Of `base:allocation`; null where the server does not tell. */
  readonly allocationId: number | null;
};

/** What requests must be multiples of; powers of two. */
export type NbdBlocks = { readonly minBytes: number; readonly maxBytes: number };

export type Negotiated = { readonly stream: ByteStream; readonly socket: Socket; facts: NbdFacts };

/**
 * @throws NbdError: refused, broken off, wrong. ConfigError: files for TLS.
 */
export async function negotiate(socket: Socket, address: NbdAddress): Promise<Negotiated> {
  let channel = new OptionChannel(socket, new ByteStream(socket));
  const style = await channel.greet();
  if (style !== 'fixed newstyle') {
    if (address.tls !== null) throw noTls();
    const facts =
      style === 'oldstyle' ? await channel.oldstyle(address) : await channel.exportName(address);
    return { stream: channel.stream, socket, facts };
  }
  if (address.tls !== null) channel = await channel.startTls(address.tls);
  const structured = await channel.ask(NBD_OPT_STRUCTURED_REPLY);
  const allocationId = structured ? await channel.allocationContext(address.exportName) : null;
  const { stream, socket: used } = channel;
  return { stream, socket: used, facts: await channel.go(address, structured, allocationId) };
}

type Reply = { readonly type: number; readonly data: Buffer };
type Style = 'fixed newstyle' | 'newstyle' | 'oldstyle';

/** Of a server that does not say: sectors, and what every server takes. */
const USUAL_BLOCKS: NbdBlocks = { minBytes: 512, maxBytes: NBD_DEFAULT_MAX_PAYLOAD_BYTES };
const SAID_NOTHING = { blocks: USUAL_BLOCKS, structured: false, allocationId: null };
/** Behind size and flags, unless both sides know NO_ZEROES. */
const ZEROES_BYTES = 124;

class OptionChannel {
  readonly socket: Socket;
  readonly stream: ByteStream;
  #noZeroes: boolean;

  constructor(socket: Socket, stream: ByteStream, noZeroes = false) {
    this.socket = socket;
    this.stream = stream;
    this.#noZeroes = noZeroes;
  }

  async greet(): Promise<Style> {
    const bytes = await this.stream.take(16);
    if (bytes.readBigUInt64BE(0) !== NBD_MAGIC) {
      throw protocolError(`its first words are '${peerText(bytes.subarray(0, 8))}', not NBDMAGIC`);
    }
    const magic = bytes.readBigUInt64BE(8);
    if (magic === NBD_OLDSTYLE_MAGIC) return 'oldstyle';
    if (magic !== NBD_OPTION_MAGIC) throw protocolError('IHAVEOPT is missing from its greeting');
    const flags = (await this.stream.take(2)).readUInt16BE(0);
    const common = flags & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    this.#noZeroes = (common & NBD_FLAG_NO_ZEROES) !== 0;
    const ours = Buffer.alloc(4);
    ours.writeUInt32BE(common, 0);
    this.socket.write(ours);
    return (common & NBD_FLAG_FIXED_NEWSTYLE) === 0 ? 'newstyle' : 'fixed newstyle';
  }

  /** True: the server has it and it is on now. */
  async ask(option: number): Promise<boolean> {
    this.socket.write(encodeNbdOption(option));
    const { type } = await this.#reply(option);
    return type === NBD_REP_ACK;
  }

  async startTls(tls: NonNullable<NbdAddress['tls']>): Promise<OptionChannel> {
    if (!(await this.ask(NBD_OPT_STARTTLS))) {
      throw noTls();
    }
    // What came in the clear behind the acknowledgement would be taken for what came encrypted.
    if (this.stream.detach() > 0) throw protocolError('it sent data in the clear after STARTTLS');
    const secure = await secureSocket(this.socket, tls);
    return new OptionChannel(secure, new ByteStream(secure), this.#noZeroes);
  }

  async allocationContext(exportName: string): Promise<number | null> {
    const count = Buffer.alloc(4);
    count.writeUInt32BE(1, 0);
    const name = encodeNbdString(exportName);
    const data = Buffer.concat([count, encodeNbdString(NBD_META_BASE_ALLOCATION)]);
    this.socket.write(encodeNbdOption(NBD_OPT_SET_META_CONTEXT, Buffer.concat([name, data])));
    let id: number | null = null;
    for (let count = 0; count < MAX_REPLIES; count++) {
      const { type, data } = await this.#reply(NBD_OPT_SET_META_CONTEXT);
      if (type === NBD_REP_ACK) return id;
      if (type >= NBD_REP_FLAG_ERROR) return null;
      if (type !== NBD_REP_META_CONTEXT || data.length < 4) {
        throw protocolError(`reply of type ${type} with ${data.length} bytes to SET_META_CONTEXT`);
      }
      if (data.subarray(4).toString() === NBD_META_BASE_ALLOCATION) id = data.readUInt32BE(0);
    }
    throw protocolError(`more than ${MAX_REPLIES} replies to SET_META_CONTEXT`);
  }

  async go(
    address: NbdAddress,
    structured: boolean,
    allocationId: number | null,
  ): Promise<NbdFacts> {
    const wanted = Buffer.alloc(4);
    wanted.writeUInt16BE(1, 0);
    wanted.writeUInt16BE(NBD_INFO_BLOCK_SIZE, 2);
    const data = Buffer.concat([encodeNbdString(address.exportName), wanted]);
    this.socket.write(encodeNbdOption(NBD_OPT_GO, data));
    let found: { sizeBytes: number; flags: number } | null = null;
    let blocks = USUAL_BLOCKS;
    for (let count = 0; count < MAX_REPLIES; count++) {
      const { type, data } = await this.#reply(NBD_OPT_GO);
      if (type === NBD_REP_ACK) {
        if (found === null) throw protocolError('GO was acknowledged without a size');
        return { ...found, blocks, structured, allocationId };
      }
      if (type === NBD_REP_ERR_UNSUP) {
        return { ...(await this.exportName(address)), structured, allocationId };
      }
      if (type >= NBD_REP_FLAG_ERROR) throw goRefused(type, data, address);
      if (type !== NBD_REP_INFO || data.length < 2) {
        throw protocolError(`reply of type ${type} with ${data.length} bytes to GO`);
      }
      const info = data.readUInt16BE(0);
      if (info === NBD_INFO_EXPORT) found = exportInfo(data);
      else if (info === NBD_INFO_BLOCK_SIZE) blocks = blockInfo(data);
    }
    throw protocolError(`more than ${MAX_REPLIES} replies to GO`);
  }

  /** The end of a handshake before GO. There is no reply to it, only the export. */
  async exportName({ exportName }: NbdAddress): Promise<NbdFacts> {
    this.socket.write(encodeNbdOption(NBD_OPT_EXPORT_NAME, Buffer.from(exportName)));
    try {
      const found = sizeAndFlags(await this.stream.take(10));
      if (!this.#noZeroes) await this.stream.take(ZEROES_BYTES);
      return { ...found, ...SAID_NOTHING };
    } catch (cause) {
      if ((cause as NbdError).code !== 'ERR_VRING_NBD_CLOSED') throw cause;
      const text = `the server hung up when it was asked for export ${JSON.stringify(exportName)}`;
      const why = 'a server without NBD_OPT_GO says so that it has none of that name';
      throw new NbdError('ERR_VRING_NBD_REFUSED', `${text}; ${why}`, { cause });
    }
  }

  /** Behind the greeting of an oldstyle server: size, 16 global flags, those of the export. */
  async oldstyle({ exportName }: NbdAddress): Promise<NbdFacts> {
    if (exportName !== '') {
      const name = JSON.stringify(exportName);
      throw refused(`the oldstyle handshake knows no names, and ${name} is wanted; leave it out`);
    }
    const bytes = await this.stream.take(12);
    const found = sizeAndFlags(Buffer.concat([bytes.subarray(0, 8), bytes.subarray(10)]));
    await this.stream.take(ZEROES_BYTES);
    return { ...found, ...SAID_NOTHING };
  }

  async #reply(option: number): Promise<Reply> {
    const head = await this.stream.take(20);
    if (head.readBigUInt64BE(0) !== NBD_OPTION_REPLY_MAGIC) {
      throw protocolError(`the magic of a reply to option ${option} is wrong`);
    }
    const about = head.readUInt32BE(8);
    if (about !== option) throw protocolError(`it answers option ${about}, ${option} was asked`);
    const type = head.readUInt32BE(12);
    const sizeBytes = head.readUInt32BE(16);
    if (sizeBytes > MAX_REPLY_BYTES) {
      throw protocolError(`a reply of ${sizeBytes} bytes to option ${option}`);
    }
    const data = await this.stream.take(sizeBytes);
    if (type === NBD_REP_ERR_TLS_REQD) {
      throw refused('the server wants TLS; use nbds:// in place of nbd://');
    }
    return { type, data };
  }
}

function exportInfo(data: Buffer): { sizeBytes: number; flags: number } {
  if (data.length !== 12) throw protocolError(`NBD_INFO_EXPORT has ${data.length} bytes, not 12`);
  return sizeAndFlags(data.subarray(2));
}

function sizeAndFlags(data: Buffer): { sizeBytes: number; flags: number } {
  const size = data.readBigUInt64BE(0);
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new NbdError('ERR_VRING_NBD_EXPORT', `the export has ${size} bytes; 2^53-1 are possible`);
  }
  return { sizeBytes: Number(size), flags: data.readUInt16BE(8) };
}

/** "Block size constraints": powers of two, 1 to 64 KiB; a maximum of at least 1 MiB or all. */
function blockInfo(data: Buffer): NbdBlocks {
  if (data.length !== 14) {
    throw protocolError(`NBD_INFO_BLOCK_SIZE has ${data.length} bytes, not 14`);
  }
  const minBytes = data.readUInt32BE(2);
  const maxBytes = data.readUInt32BE(10);
  const isPower = minBytes > 0 && (minBytes & (minBytes - 1)) === 0;
  if (!isPower || minBytes > 65536 || maxBytes < minBytes) {
    throw protocolError(`block sizes from ${minBytes} to ${maxBytes}`);
  }
  return { minBytes, maxBytes };
}

function refused(message: string): NbdError {
  return new NbdError('ERR_VRING_NBD_REFUSED', message);
}

function noTls(): NbdError {
  return refused('the server has no TLS for nbds://; use nbd://, or give it a certificate');
}

function goRefused(type: number, data: Buffer, address: NbdAddress): NbdError {
  const said = data.length === 0 ? '' : `: '${peerText(data)}'`;
  const name = JSON.stringify(address.exportName);
  switch (type) {
    case NBD_REP_ERR_UNKNOWN:
      return refused(`the server has no export ${name}${said}; nbdinfo --list shows what it has`);
    case NBD_REP_ERR_POLICY:
      return refused(`the server does not allow us export ${name}${said}`);
    case NBD_REP_ERR_BLOCK_SIZE_REQD:
      return refused(`the server does not take our block size${said}`);
    default:
      return refused(
        `the server refuses export ${name} with error ${type - NBD_REP_FLAG_ERROR}${said}`,
      );
  }
}
