/**
 * The receiving half of the bulk transfer: puts chunks in order, hashes them, acknowledges.
 * One transfer; one acknowledgement for all chunks that arrived in one turn of the event loop.
 */
import { createHash } from 'node:crypto';
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
  type BulkHeader,
  type BulkResult,
} from './bulk-message.ts';
import type { IpAddress } from './ip-address.ts';
import type { NetStack } from './stack.ts';

export type ReceiveBulkOptions = {
  readonly port?: number;
  /** Gets the bytes in order; valid during the call only. */
  readonly write?: (bytes: Uint8Array) => void;
  /** How long to wait for a sender; forever when it is not given. */
  readonly waitMs?: number;
  /** Give up when nothing came for so long after the start. */
  readonly stallMs?: number;
  readonly signal?: AbortSignal;
};

/**
 * How long a finished receiver still answers: the sender may not have got the last word, and
 * repeats its FIN every 40 ms.
 */
const LINGER_MS = 300;

type Peer = { readonly address: IpAddress; readonly port: number };

/** @throws VringError ERR_VRING_GUEST_BULK_* when no sender comes or it falls silent. */
export async function receiveBulk(
  stack: NetStack,
  options: ReceiveBulkOptions = {},
): Promise<BulkResult> {
  const receiver = new BulkReceiver(stack, options);
  return receiver.run();
}

class BulkReceiver {
  readonly #stack: NetStack;
  readonly #options: ReceiveBulkOptions;
  readonly #port: number;
  readonly #hash = createHash('sha256');
  readonly #done = Promise.withResolvers<BulkResult>();
  /** Chunks ahead of `#base`, by index modulo the window. */
  readonly #early: (Uint8Array | null)[] = Array.from({ length: BULK_WINDOW }, () => null);
  #peer: Peer | null = null;
  #id = 0;
  #totalBytes = 0;
  #chunkBytes = 0;
  #base = 0;
  #received = 0;
  #repeated = 0;
  #startedAt = 0;
  #heardAt = performance.now();
  #ackStamp = 0;
  #ackDue = false;
  #result: BulkResult | null = null;
  #digest: Buffer | null = null;

  constructor(stack: NetStack, options: ReceiveBulkOptions) {
    this.#stack = stack;
    this.#options = options;
    this.#port = options.port ?? BULK_PORT;
  }

  async run(): Promise<BulkResult> {
    this.#stack.udp.bind(this.#port, (payload, address, port) =>
      this.#input(payload, { address, port }),
    );
    const forget = rejectOnAbort(this.#options.signal, this.#done);
    const watchdog = setInterval(() => this.#watch(), 100);
    try {
      const result = await this.#done.promise;
      await new Promise((resolve) => setTimeout(resolve, LINGER_MS));
      return result;
    } finally {
      forget();
      clearInterval(watchdog);
      this.#stack.udp.unbind(this.#port);
    }
  }

  #watch(): void {
    if (this.#result !== null) return;
    const silentMs = performance.now() - this.#heardAt;
    const { waitMs, stallMs } = this.#options;
    if (this.#peer === null) {
      if (waitMs === undefined || silentMs < waitMs) return;
      this.#done.reject(
        new VringError('ERR_VRING_GUEST_BULK_NOBODY', `no sender came within ${waitMs} ms`),
      );
    } else if (silentMs > (stallMs ?? 10_000)) {
      this.#done.reject(
        new VringError(
          'ERR_VRING_GUEST_BULK_STALLED',
          `${this.#peer.address.text} fell silent after ${this.#received} bytes`,
        ),
      );
    }
  }

  #input(payload: Uint8Array, from: Peer): void {
    const header = readBulkHeader(payload);
    if (header === null) return;
    const body = payload.subarray(BULK_HEADER_BYTES);
    if (this.#peer === null) {
      if (header.type !== BULK_OPEN || body.length < 12) return;
      const view = new DataView(body.buffer, body.byteOffset, body.length);
      this.#peer = from;
      this.#id = header.id;
      this.#totalBytes = Number(view.getBigUint64(0));
      this.#chunkBytes = view.getUint32(8);
      this.#startedAt = performance.now();
    }
    if (header.id !== this.#id || from.address.text !== this.#peer.address.text) return;
    this.#heardAt = performance.now();
    if (header.type === BULK_OPEN) this.#answer({ ...header, type: BULK_OPEN_ACK });
    else if (header.type === BULK_DATA) this.#takeChunk(header, body);
    else if (header.type === BULK_FIN) this.#takeFin(header, body);
  }

  #takeChunk(header: BulkHeader, body: Uint8Array): void {
    this.#scheduleAck(header.stamp);
    const ahead = header.index - this.#base;
    const slot = header.index % BULK_WINDOW;
    const lenBytes = Math.min(this.#chunkBytes, this.#totalBytes - header.index * this.#chunkBytes);
    if (ahead >= BULK_WINDOW || body.length !== lenBytes) return;
    if (ahead < 0 || this.#early[slot] !== null) return void this.#repeated++;
    if (ahead > 0) {
      this.#early[slot] = body.slice();
      return;
    }
    this.#take(body);
    for (;;) {
      const next = this.#early[this.#base % BULK_WINDOW];
      if (next === null) return;
      this.#early[this.#base % BULK_WINDOW] = null;
      this.#take(next);
    }
  }

  #take(chunk: Uint8Array): void {
    this.#base++;
    this.#received += chunk.length;
    this.#hash.update(chunk);
    this.#options.write?.(chunk);
  }

  #scheduleAck(stamp: number): void {
    this.#ackStamp = stamp;
    if (this.#ackDue) return;
    this.#ackDue = true;
    setImmediate(() => {
      this.#ackDue = false;
      const bitmap = new Uint8Array(BULK_BITMAP_BYTES);
      for (let bit = 0; bit < BULK_WINDOW; bit++) {
        const there = this.#early[(this.#base + bit) % BULK_WINDOW] !== null;
        if (there) bitmap[bit >> 3] |= 1 << (bit & 7);
      }
      const header = { type: BULK_ACK, id: this.#id, index: this.#base, stamp: this.#ackStamp };
      this.#answer(header, bitmap);
    });
  }

  #takeFin(header: BulkHeader, theirs: Uint8Array): void {
    if (this.#received < this.#totalBytes) return;
    this.#digest ??= this.#hash.digest();
    this.#answer({ ...header, type: BULK_FIN_ACK }, this.#digest);
    if (this.#result !== null) return;
    this.#result = {
      bytes: this.#received,
      seconds: (performance.now() - this.#startedAt) / 1000,
      sha256: this.#digest.toString('hex'),
      matches: this.#digest.equals(theirs.subarray(0, SHA256_BYTES)),
      repeated: this.#repeated,
    };
    this.#done.resolve(this.#result);
  }

  #answer(header: BulkHeader, body?: Uint8Array): void {
    const peer = this.#peer;
    if (peer === null) return;
    const datagram = bulkDatagram(header, body);
    if (this.#stack.udp.send(peer.address, peer.port, this.#port, datagram)) return;
    // The neighbour is not known yet: the sender repeats itself, so this answer may be lost.
    this.#stack.resolve(peer.address).catch(() => {});
  }
}
