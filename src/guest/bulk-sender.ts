/**
 * The sending half of the bulk transfer: a window of numbered chunks over UDP, selective
 * acknowledgement, and the SHA-256 of both ends compared at the end.
 *
 * Theory of operation: chunks `base .. next` are under way. An acknowledgement moves `base` and
 * marks later chunks; a chunk that three later ones have overtaken, or that is older than the
 * retransmission time, is sent again and halves the congestion window, at most once per round
 * trip. States: opening, sending, finishing, done; each repeats its datagram until answered.
 */
import { createHash, type Hash } from 'node:crypto';
import { VringError } from '../base/errors.ts';
import {
  BULK_ACK,
  BULK_BITMAP_BYTES,
  BULK_DATA,
  BULK_FIN,
  BULK_FIN_ACK,
  BULK_HEADER_BYTES,
  BULK_OPEN,
  BULK_OPEN_ACK,
  BULK_PORT,
  BULK_WINDOW,
  SHA256_BYTES,
  bulkDatagram,
  readBulkHeader,
  rejectOnAbort,
  writeBulkHeader,
  type BulkHeader,
  type BulkResult,
} from './bulk-message.ts';
import type { IpAddress } from './ip-address.ts';
import type { NetStack } from './stack.ts';
import { MAX_GSO_PAYLOAD_BYTES } from './udp.ts';

/** What is sent; read at any offset, again when a chunk was lost. */
export type BulkSource = {
  readonly totalBytes: number;
  /** Fills all of `into`. */
  readInto(offset: number, into: Uint8Array): void;
};

export type SendBulkOptions = {
  readonly to: IpAddress;
  readonly port?: number;
  readonly source: BulkSource;
  /** Several chunks in one frame, cut by the link (USO). Default: when the link offers it. */
  readonly segmentation?: boolean;
  /** A chunk is not sent again sooner; default 20. More where the other side may be held up. */
  readonly minRtoMs?: number;
  /** Give up when nothing was acknowledged for so long. */
  readonly stallMs?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (bytes: number) => void;
};

/** Longest transfer: chunk numbers are u32. */
const MAX_TRANSFER_BYTES = 2 ** 40;
const TICK_MS = 5;
const REOPEN_MS = 200;
/** How often FIN is repeated: some seven times while a finished receiver still answers. */
const REFIN_MS = 40;
const FIRST_WINDOW = 32;
const OVERTAKEN_BY = 3;
const MIN_RTO_MS = 20;

/** @throws VringError ERR_VRING_GUEST_BULK_* when nobody receives or the transfer stalls. */
export async function sendBulk(stack: NetStack, options: SendBulkOptions): Promise<BulkResult> {
  await stack.resolve(options.to);
  const sender = new BulkSender(stack, options);
  try {
    return await sender.run();
  } finally {
    sender.close();
  }
}

type State = 'opening' | 'sending' | 'finishing' | 'done';

class BulkSender {
  readonly #stack: NetStack;
  readonly #options: SendBulkOptions;
  readonly #id = Math.floor(Math.random() * 2 ** 32);
  readonly #chunkBytes: number;
  readonly #chunks: number;
  readonly #perFrame: number;
  readonly #scratch: Uint8Array;
  readonly #hash: Hash = createHash('sha256');
  readonly #done = Promise.withResolvers<BulkResult>();
  readonly #acked = new Uint8Array(BULK_WINDOW);
  readonly #sentAt = new Float64Array(BULK_WINDOW);
  readonly #forget: () => void;
  #port = 0;
  #timer: NodeJS.Timeout | null = null;
  #state: State = 'opening';
  #base = 0;
  #next = 0;
  #highestAcked = -1;
  #window = FIRST_WINDOW;
  #lastCut = 0;
  #rttMs = 10;
  #repeated = 0;
  #startedAt = 0;
  #askedAt = 0;
  #progressAt = 0;
  #digest: Buffer | null = null;

  constructor(stack: NetStack, options: SendBulkOptions) {
    const { totalBytes } = options.source;
    if (totalBytes > MAX_TRANSFER_BYTES) {
      throw new VringError('ERR_VRING_GUEST_TOO_LONG', `a transfer of ${totalBytes} bytes`);
    }
    this.#stack = stack;
    this.#options = options;
    this.#forget = rejectOnAbort(options.signal, this.#done);
    const room = stack.udp.maxPayload(options.to.family) - BULK_HEADER_BYTES;
    this.#chunkBytes = room & ~7; // sources produce words
    this.#chunks = Math.ceil(totalBytes / this.#chunkBytes);
    const datagram = this.#chunkBytes + BULK_HEADER_BYTES;
    const segmentation = options.segmentation ?? stack.link.offloads.uso;
    this.#perFrame = segmentation ? Math.floor(MAX_GSO_PAYLOAD_BYTES / datagram) : 1;
    this.#scratch = new Uint8Array(this.#perFrame * datagram);
  }

  run(): Promise<BulkResult> {
    this.#port = this.#stack.udp.bind(0, (payload) => this.#input(payload));
    this.#startedAt = this.#progressAt = performance.now();
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.#tick();
    return this.#done.promise;
  }

  close(): void {
    this.#forget();
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#stack.udp.unbind(this.#port);
  }

  #tick(): void {
    const now = performance.now();
    if (now - this.#progressAt > (this.#options.stallMs ?? 10_000)) return this.#fail();
    if (this.#state === 'opening') this.#repeat(now, REOPEN_MS, () => this.#sendOpen());
    else if (this.#state === 'finishing') this.#repeat(now, REFIN_MS, () => this.#sendFin());
    else if (this.#state === 'sending') {
      const rto = Math.max(this.#options.minRtoMs ?? MIN_RTO_MS, this.#rttMs * 4);
      this.#resend(now, this.#next, now - rto);
      this.#pump(now);
    }
  }

  #repeat(now: number, everyMs: number, ask: () => void): void {
    if (now - this.#askedAt < everyMs) return;
    this.#askedAt = now;
    ask();
  }

  #input(payload: Uint8Array): void {
    const header = readBulkHeader(payload);
    if (header === null || header.id !== this.#id) return;
    const now = performance.now();
    if (header.type === BULK_OPEN_ACK && this.#state === 'opening') {
      this.#progressAt = now;
      this.#state = 'sending';
      this.#finishIfComplete(now);
      this.#pump(now);
    } else if (header.type === BULK_ACK && this.#state === 'sending') {
      this.#takeAck(header, payload.subarray(BULK_HEADER_BYTES), now);
    } else if (header.type === BULK_FIN_ACK && this.#state === 'finishing') {
      this.#takeFinAck(payload.subarray(BULK_HEADER_BYTES), now);
    }
  }

  #takeAck(header: BulkHeader, bitmap: Uint8Array, now: number): void {
    if (header.index > this.#next || bitmap.length < BULK_BITMAP_BYTES) return;
    const rtt = ((micros(now) - header.stamp) >>> 0) / 1000;
    if (rtt < 10_000) this.#rttMs += (rtt - this.#rttMs) / 8;
    const before = this.#base;
    for (let i = this.#base; i < this.#next; i++) {
      const bit = i - header.index;
      const there = bit < 0 || (bit < BULK_WINDOW && (bitmap[bit >> 3] & (1 << (bit & 7))) !== 0);
      if (!there || this.#acked[i % BULK_WINDOW] !== 0) continue;
      this.#acked[i % BULK_WINDOW] = 1;
      if (i > this.#highestAcked) this.#highestAcked = i;
      this.#window = Math.min(BULK_WINDOW, this.#window + 1);
    }
    while (this.#base < this.#next && this.#acked[this.#base % BULK_WINDOW] !== 0) this.#base++;
    if (this.#base !== before) {
      this.#progressAt = now;
      this.#options.onProgress?.(Math.min(this.#base * this.#chunkBytes, this.#total));
    }
    this.#resend(now, this.#highestAcked - OVERTAKEN_BY + 1, now - this.#rttMs);
    this.#finishIfComplete(now);
    this.#pump(now);
  }

  /** Sends again what is not acknowledged, below chunk `end`, and was sent before `sentBefore`. */
  #resend(now: number, end: number, sentBefore: number): void {
    for (let i = this.#base; i < end; i++) {
      const slot = i % BULK_WINDOW;
      if (this.#acked[slot] !== 0 || this.#sentAt[slot] > sentBefore) continue;
      if (now - this.#lastCut > this.#rttMs) {
        this.#lastCut = now;
        this.#window = Math.max(4, this.#window >> 1);
      }
      if (!this.#sendChunks(i, 1, now)) return;
      this.#repeated++;
    }
  }

  /** Sends new chunks while the window and the link have room. */
  #pump(now: number): void {
    while (this.#state === 'sending' && this.#next < this.#chunks) {
      const room = this.#base + this.#window - this.#next;
      const count = Math.min(room, this.#perFrame, this.#chunks - this.#next);
      if (count <= 0) return;
      if (!this.#sendChunks(this.#next, count, now)) return;
      for (let i = 0; i < count; i++) {
        this.#acked[this.#next % BULK_WINDOW] = 0;
        this.#hash.update(this.#chunkOf(i, this.#next));
        this.#next++;
      }
    }
  }

  /** The chunk that `#sendChunks` put at place `i` of the scratch buffer. */
  #chunkOf(i: number, index: number): Uint8Array {
    const at = i * (this.#chunkBytes + BULK_HEADER_BYTES) + BULK_HEADER_BYTES;
    return this.#scratch.subarray(at, at + this.#lengthOf(index));
  }

  #lengthOf(index: number): number {
    return Math.min(this.#chunkBytes, this.#total - index * this.#chunkBytes);
  }

  #sendChunks(first: number, count: number, now: number): boolean {
    const datagram = this.#chunkBytes + BULK_HEADER_BYTES;
    let lenBytes = 0;
    for (let i = 0; i < count; i++) {
      const index = first + i;
      const header = { type: BULK_DATA, id: this.#id, index, stamp: micros(now) };
      writeBulkHeader(this.#scratch, i * datagram, header);
      this.#options.source.readInto(index * this.#chunkBytes, this.#chunkOf(i, index));
      lenBytes = i * datagram + BULK_HEADER_BYTES + this.#lengthOf(index);
    }
    const gsoSize = count > 1 ? datagram : 0;
    if (!this.#send(this.#scratch.subarray(0, lenBytes), gsoSize)) return false;
    for (let i = 0; i < count; i++) this.#sentAt[(first + i) % BULK_WINDOW] = now;
    return true;
  }

  #finishIfComplete(now: number): void {
    if (this.#state !== 'sending' || this.#base < this.#chunks) return;
    this.#state = 'finishing';
    this.#digest = this.#hash.digest();
    this.#askedAt = now;
    this.#sendFin();
  }

  #takeFinAck(theirs: Uint8Array, now: number): void {
    this.#state = 'done';
    const ours = this.#digest;
    this.#done.resolve({
      bytes: this.#total,
      seconds: (now - this.#startedAt) / 1000,
      sha256: ours?.toString('hex') ?? '',
      matches: ours?.equals(theirs.subarray(0, SHA256_BYTES)) ?? false,
      repeated: this.#repeated,
    });
  }

  #sendOpen(): void {
    const body = new Uint8Array(12);
    const view = new DataView(body.buffer);
    view.setBigUint64(0, BigInt(this.#total));
    view.setUint32(8, this.#chunkBytes);
    this.#send(bulkDatagram({ type: BULK_OPEN, id: this.#id, index: 0, stamp: 0 }, body));
  }

  #sendFin(): void {
    const header = { type: BULK_FIN, id: this.#id, index: this.#chunks, stamp: 0 };
    this.#send(bulkDatagram(header, this.#digest ?? undefined));
  }

  #send(payload: Uint8Array, gsoSize = 0): boolean {
    const { to, port } = this.#options;
    return this.#stack.udp.send(to, port ?? BULK_PORT, this.#port, payload, gsoSize);
  }

  get #total(): number {
    return this.#options.source.totalBytes;
  }

  #fail(): void {
    const who = `${this.#options.to.text} port ${this.#options.port ?? BULK_PORT}`;
    const error =
      this.#state === 'opening'
        ? new VringError('ERR_VRING_GUEST_BULK_REFUSED', `nobody receives at ${who}`)
        : new VringError(
            'ERR_VRING_GUEST_BULK_STALLED',
            `${who} acknowledges nothing any more, ${this.#base} of ${this.#chunks} chunks arrived`,
          );
    this.#state = 'done';
    this.#done.reject(error);
  }
}

/** Milliseconds as u32 microseconds, wrapping. */
function micros(milliseconds: number): number {
  return Math.floor(milliseconds * 1000) >>> 0;
}
