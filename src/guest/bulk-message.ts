/**
 * The datagrams of the bulk transfer: a 16-byte header, then a body. Big-endian, as on a network.
 *
 *     OPEN      sender    total bytes u64, chunk bytes u32
 *     OPEN_ACK  receiver
 *     DATA      sender    one chunk; `index` counts chunks
 *     ACK       receiver  `index` is the first chunk that is missing, `stamp` is echoed; a bitmap
 *                         says which of the following WINDOW chunks are there
 *     FIN       sender    SHA-256 of everything
 *     FIN_ACK   receiver  SHA-256 of what arrived
 */
import { VringError } from '../base/errors.ts';

export const BULK_PORT = 7700;

export const BULK_OPEN = 1;
export const BULK_OPEN_ACK = 2;
export const BULK_DATA = 3;
export const BULK_ACK = 4;
export const BULK_FIN = 5;
export const BULK_FIN_ACK = 6;

const MAGIC = 0x7642; // "vB"
const AT_TYPE = 2; //   u8
const AT_ID = 4; //     u32: the transfer
const AT_INDEX = 8; //  u32
const AT_STAMP = 12; // u32: microseconds of the sender's clock
export const BULK_HEADER_BYTES = 16;

/** Chunks under way at once. Below the smallest receive ring in use, which is 256. */
export const BULK_WINDOW = 192;
export const BULK_BITMAP_BYTES = BULK_WINDOW / 8;
export const SHA256_BYTES = 32;

export type BulkHeader = {
  readonly type: number;
  readonly id: number;
  readonly index: number;
  readonly stamp: number;
};

export function writeBulkHeader(bytes: Uint8Array, at: number, header: BulkHeader): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, BULK_HEADER_BYTES);
  view.setUint16(0, MAGIC);
  view.setUint16(AT_TYPE, header.type << 8);
  view.setUint32(AT_ID, header.id);
  view.setUint32(AT_INDEX, header.index);
  view.setUint32(AT_STAMP, header.stamp);
}

/** Null when the datagram is not one of ours. */
export function readBulkHeader(bytes: Uint8Array): BulkHeader | null {
  if (bytes.length < BULK_HEADER_BYTES) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, BULK_HEADER_BYTES);
  if (view.getUint16(0) !== MAGIC) return null;
  return {
    type: view.getUint8(AT_TYPE),
    id: view.getUint32(AT_ID),
    index: view.getUint32(AT_INDEX),
    stamp: view.getUint32(AT_STAMP),
  };
}

/** A whole datagram without or with a body. */
export function bulkDatagram(header: BulkHeader, body: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(BULK_HEADER_BYTES + body.length);
  writeBulkHeader(bytes, 0, header);
  bytes.set(body, BULK_HEADER_BYTES);
  return bytes;
}

/** Rejects `done` when the signal aborts. Returns what undoes that. */
export function rejectOnAbort(
  signal: AbortSignal | undefined,
  done: { reject: (error: Error) => void },
): () => void {
  const abort = (): void => {
    done.reject(new VringError('ERR_VRING_CLOSED', 'the bulk transfer was ended'));
  };
  if (signal?.aborted === true) abort();
  signal?.addEventListener('abort', abort, { once: true });
  return () => signal?.removeEventListener('abort', abort);
}

export type BulkResult = {
  readonly bytes: number;
  readonly seconds: number;
  /** Hex, of what was sent or of what arrived. */
  readonly sha256: string;
  /** The other side has the same checksum. */
  readonly matches: boolean;
  /** Sender: chunks sent again. Receiver: chunks that came twice. */
  readonly repeated: number;
};
