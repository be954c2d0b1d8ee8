/**
 * The binary part of a LUKS2 header: 4096 bytes, big-endian, followed by the JSON area. There are
 * two copies, the second directly behind the first. LUKS2 on-disk format 1.0.0, section 2.1.
 */
import { hash, randomBytes } from 'node:crypto';
import { HEADER_SIZES } from './limits.ts';

export const BINARY_BYTES = 4096;

export type HeaderCopy = {
  readonly seqid: number;
  /** Binary part and JSON area. */
  readonly headerBytes: number;
  readonly label: string;
  readonly uuid: string;
  readonly subsystem: string;
  readonly checksum: string;
  /** The JSON text, without the zeros behind it. */
  readonly json: string;
};

export type WhichCopy = 'primary' | 'secondary';

// Offsets of `struct luks2_hdr_disk`.
const VERSION_AT = 6;
const HEADER_BYTES_AT = 8;
const SEQID_AT = 16;
const LABEL = { at: 24, bytes: 48 };
const CHECKSUM_NAME = { at: 72, bytes: 32 };
const SALT = { at: 104, bytes: 64 };
const UUID = { at: 168, bytes: 40 };
const SUBSYSTEM = { at: 208, bytes: 48 };
const HEADER_AT_AT = 256;
const CHECKSUM = { at: 448, bytes: 64 };

const MAGIC: Readonly<Record<WhichCopy, readonly number[]>> = {
  primary: [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe], //   LUKS
  secondary: [0x53, 0x4b, 0x55, 0x4c, 0xba, 0xbe], // SKUL
};
/** Those that cryptsetup knows by name and OpenSSL by the same. */
const CHECKSUM_HASHES: readonly string[] = ['sha1', 'sha224', 'sha256', 'sha384', 'sha512'];

export function hasMagic(bytes: Uint8Array, which: WhichCopy): boolean {
  return MAGIC[which].every((byte, i) => bytes[i] === byte);
}

/** How large the copy is that begins with `binary`; a string says why it is none. */
export function headerBytesOf(binary: Uint8Array, which: WhichCopy, at: number): number | string {
  const view = new DataView(binary.buffer, binary.byteOffset, binary.byteLength);
  if (!hasMagic(binary, which)) return 'no LUKS magic';
  const version = view.getUint16(VERSION_AT);
  if (version !== 2) return `LUKS version ${version}, expected 2: cryptsetup convert --type luks2`;
  const headerBytes = Number(view.getBigUint64(HEADER_BYTES_AT));
  if (!HEADER_SIZES.includes(headerBytes)) return `header size ${headerBytes} is none of LUKS2`;
  const saysAt = Number(view.getBigUint64(HEADER_AT_AT));
  if (saysAt !== at) return `says that it is at ${saysAt}, found at ${at}`;
  return headerBytes;
}

/** A whole copy, whose size `headerBytesOf` has told; a string says what is wrong with it. */
export function readCopy(bytes: Uint8Array): HeaderCopy | string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const checksum = textAt(bytes, CHECKSUM_NAME);
  if (!CHECKSUM_HASHES.includes(checksum)) return `checksum ${JSON.stringify(checksum)} is unknown`;
  const digest = checksumOf(bytes, checksum);
  const said = bytes.subarray(CHECKSUM.at, CHECKSUM.at + digest.length);
  if (!digest.every((byte, i) => byte === said[i])) return 'its checksum is wrong';
  const seqid = Number(view.getBigUint64(SEQID_AT));
  if (!Number.isSafeInteger(seqid)) return `its sequence number ${seqid} is beyond 2^53`;
  const area = bytes.subarray(BINARY_BYTES);
  const end = area.indexOf(0);
  if (end < 0) return 'its JSON area does not end';
  return {
    seqid,
    headerBytes: bytes.length,
    label: textAt(bytes, LABEL),
    uuid: textAt(bytes, UUID),
    subsystem: textAt(bytes, SUBSYSTEM),
    checksum,
    json: new TextDecoder().decode(area.subarray(0, end)),
  };
}

/** The bytes of one copy; each has a salt of its own, so that no two headers are alike. */
export function writeCopy(copy: HeaderCopy, which: WhichCopy): Uint8Array {
  const bytes = new Uint8Array(copy.headerBytes);
  const view = new DataView(bytes.buffer);
  bytes.set(MAGIC[which]);
  view.setUint16(VERSION_AT, 2);
  view.setBigUint64(HEADER_BYTES_AT, BigInt(copy.headerBytes));
  view.setBigUint64(SEQID_AT, BigInt(copy.seqid));
  view.setBigUint64(HEADER_AT_AT, BigInt(which === 'primary' ? 0 : copy.headerBytes));
  putText(bytes, LABEL, copy.label);
  putText(bytes, CHECKSUM_NAME, copy.checksum);
  putText(bytes, UUID, copy.uuid);
  putText(bytes, SUBSYSTEM, copy.subsystem);
  bytes.set(randomBytes(SALT.bytes), SALT.at);
  bytes.set(new TextEncoder().encode(copy.json), BINARY_BYTES);
  bytes.set(checksumOf(bytes, copy.checksum), CHECKSUM.at);
  return bytes;
}

/** Over all of the copy, as if the checksum itself were zeros. */
function checksumOf(bytes: Uint8Array, name: string): Uint8Array {
  const zeroed = bytes.slice();
  zeroed.fill(0, CHECKSUM.at, CHECKSUM.at + CHECKSUM.bytes);
  return hash(name, zeroed, 'buffer');
}

function textAt(bytes: Uint8Array, field: { at: number; bytes: number }): string {
  const area = bytes.subarray(field.at, field.at + field.bytes);
  const end = area.indexOf(0);
  return new TextDecoder().decode(area.subarray(0, end < 0 ? area.length : end));
}

function putText(bytes: Uint8Array, field: { at: number; bytes: number }, text: string): void {
  // One byte stays zero: these are C strings.
  bytes.set(new TextEncoder().encode(text).subarray(0, field.bytes - 1), field.at);
}
