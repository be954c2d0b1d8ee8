/**
 * Writes a recording: JSON lines and, where asked, the same messages as pcapng. Bounded: who puts
 * messages waits for `drained`, ring events are dropped and counted while the disk is behind.
 */
import { once } from 'node:events';
import { createWriteStream, type WriteStream } from 'node:fs';
import { messageOf, VringError } from '../base/errors.ts';
import {
  commentedPacket,
  DIRECTION_INBOUND,
  DIRECTION_OUTBOUND,
  interfaceDescription,
  LINKTYPE_USER0,
  sectionHeader,
} from '../capture/index.ts';
import { MAX_BUFFERED_BYTES, MAX_RELAYED_PAYLOAD_BYTES } from './limits.ts';
import {
  type EventBody,
  type MessageEvent,
  type RawEvent,
  RECORDING_FORMAT,
  RECORDING_VERSION,
  type RecordingHeader,
  type RingEvent,
} from './recorded-event.ts';

export type RecordingOptions = Omit<RecordingHeader, 'format' | 'version' | 'started'> & {
  /** File of JSON lines. */
  readonly out: string;
  /** File of the same messages for Wireshark. */
  readonly pcapng?: string;
};

/** In front of each message in the pcapng file; the layout is in docs/recorder.md. */
const PSEUDO_HEADER_BYTES = 16;

export class Recording {
  readonly #lines: WriteStream;
  readonly #packets: WriteStream | null;
  readonly #start = process.hrtime.bigint();
  readonly #wallStart = BigInt(Date.now()) * 1_000_000n;
  #seq = 0;
  #lostRingEvents = 0;
  #failure: Error | null = null;

  private constructor(lines: WriteStream, packets: WriteStream | null, options: RecordingOptions) {
    this.#lines = lines;
    this.#packets = packets;
    for (const stream of [lines, packets]) {
      stream?.on('error', (error) => (this.#failure ??= error));
    }
    const { program, socket, upstream, connects, rings } = options;
    const header: RecordingHeader = {
      format: RECORDING_FORMAT,
      version: RECORDING_VERSION,
      program,
      started: new Date(Number(this.#wallStart / 1_000_000n)).toISOString(),
      socket,
      upstream,
      connects,
      rings,
    };
    lines.write(`${JSON.stringify(header)}\n`);
    packets?.write(sectionHeader(program));
    const most = PSEUDO_HEADER_BYTES + 12 + MAX_RELAYED_PAYLOAD_BYTES;
    packets?.write(interfaceDescription(`${socket} - ${upstream}`, most, LINKTYPE_USER0));
  }

  /** Creates the files. @throws VringError ERR_VRING_RECORDING_FILE. */
  static async create(options: RecordingOptions): Promise<Recording> {
    const lines = await openFile(options.out);
    try {
      const packets = options.pcapng === undefined ? null : await openFile(options.pcapng);
      return new Recording(lines, packets, options);
    } catch (error) {
      lines.destroy();
      throw error;
    }
  }

  /** Events so far. */
  get events(): number {
    return this.#seq;
  }

  get lostRingEvents(): number {
    return this.#lostRingEvents;
  }

  /** Why nothing more is written; relaying goes on. */
  get failure(): Error | null {
    return this.#failure;
  }

  /** Writes one event and returns its number. */
  put(session: number, body: EventBody): number {
    const time = process.hrtime.bigint() - this.#start;
    const seq = ++this.#seq;
    if (this.#failure !== null) return seq;
    this.#lines.write(`${JSON.stringify({ seq, time: Number(time), session, ...body })}\n`);
    if (body.event === 'message' || body.event === 'raw') this.#packet(time, seq, session, body);
    return seq;
  }

  /** Writes the event unless the disk is behind: then it is counted. */
  putRingEvent(session: number, body: RingEvent): void {
    if (this.#lines.writableLength > MAX_BUFFERED_BYTES) this.#lostRingEvents++;
    else this.put(session, body);
  }

  /** Resolves when there is room for more. */
  async drained(): Promise<void> {
    for (const stream of [this.#lines, this.#packets]) {
      for (;;) {
        const isBehind = stream !== null && stream.writableLength > MAX_BUFFERED_BYTES;
        if (!isBehind || this.#failure !== null) break;
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    }
  }

  /** Writes what waits and closes the files. @throws VringError ERR_VRING_RECORDING_FILE. */
  async close(): Promise<void> {
    for (const stream of [this.#lines, this.#packets]) {
      if (stream === null || stream.destroyed) continue;
      stream.end();
      await once(stream, 'close').catch((error: Error) => (this.#failure ??= error));
    }
    if (this.#failure !== null) throw fileError('the recording is incomplete', this.#failure);
  }

  #packet(time: bigint, seq: number, session: number, body: MessageEvent | RawEvent): void {
    if (this.#packets === null) return;
    const bytes = Buffer.from(body.hex, 'hex');
    const packet = Buffer.alloc(PSEUDO_HEADER_BYTES + bytes.length);
    const isInbound = body.from === 'front-end';
    packet[0] = RECORDING_VERSION;
    packet[1] = body.channel === 'control' ? 0 : 1;
    packet[2] = isInbound ? 0 : 1;
    packet[3] = body.event === 'message' ? 0 : 1;
    packet.writeUInt32LE(session, 4);
    packet.writeUInt32LE(seq >>> 0, 8);
    packet.writeUInt16LE(body.fds.length, 12);
    packet.set(bytes, PSEUDO_HEADER_BYTES);
    const direction = isInbound ? DIRECTION_INBOUND : DIRECTION_OUTBOUND;
    this.#packets.write(commentedPacket(this.#wallStart + time, packet, direction, inWords(body)));
  }
}

/** One line for people: `#12 VHOST_USER_SET_VRING_NUM request index=0 num=256`. */
function inWords(body: MessageEvent | RawEvent): string {
  const fds = body.fds.map(({ kind }) => ` +${kind}`).join('');
  if (body.event === 'raw') return `bytes without framing: ${body.reason}${fds}`;
  const fields = Object.entries(body.payload ?? {}).map(([name, value]) => {
    return ` ${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`;
  });
  const reply = body.replyTo === undefined ? '' : ` to #${body.replyTo ?? 'nothing'}`;
  const problem = body.problem === undefined ? '' : ` (${body.problem})`;
  return `${body.name} ${body.kind}${reply}${fields.join('')}${fds}${problem}`;
}

async function openFile(path: string): Promise<WriteStream> {
  const file = createWriteStream(path, { mode: 0o600 });
  try {
    await once(file, 'open');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== 'ENOENT') throw fileError(`cannot write ${path}`, cause);
    const text = `cannot write ${path}: its folder does not exist; make it first`;
    throw new VringError('ERR_VRING_RECORDING_FILE', text, { cause });
  }
  return file;
}

function fileError(text: string, cause: unknown): VringError {
  return new VringError('ERR_VRING_RECORDING_FILE', `${text}: ${messageOf(cause)}`, { cause });
}
