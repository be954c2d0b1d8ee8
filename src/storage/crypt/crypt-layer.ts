/**
 * The data behind a LUKS2 header, in the clear: AES-XTS with `plain64`, as dm-crypt has it.
 *
 * A write never reads: XTS ciphers each 16 bytes by themselves, so a sector of 512 bytes within an
 * encrypted one of 4096 is written alone, and no lock is needed between neighbours.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { messageOf, VringError } from '../../base/errors.ts';
import type { Extent, Layer, ZeroOptions } from '../layer/layer.ts';
import { PassLayer } from '../layer/pass-layer.ts';
import type { CryptSpec } from '../stack/stack-spec.ts';
import { CryptError } from './errors.ts';
import { openKeyslot } from './keyslot.ts';
import { MAX_KEY_FILE_BYTES } from './limits.ts';
import { readHeader } from './luks2-header.ts';
import type { HeaderCopy } from './luks2-layout.ts';
import { type Metadata, parseMetadata, type Segment } from './luks2-metadata.ts';
import { XtsCipher } from './xts.ts';

/** Largest piece that is ciphered and written at once: what a request costs in memory. */
const PIECE_BYTES = 1024 * 1024;

/**
 * `below` stays the caller's when this throws.
 * @throws CryptError: no header, no key, or not supported; SysError, LayerError.
 */
export async function openCryptLayer(below: Layer, spec: CryptSpec): Promise<CryptLayer> {
  const { header, repaired } = await readHeader(below);
  const { segment, ...metadata } = parseHeader(header, below);
  const passphrase = await readKeyFile(spec.keyFile);
  const { key, slot } = await openKeyslot(below, metadata, passphrase);
  passphrase.fill(0);
  const cipher = new XtsCipher(key, segment.sectorBytes, segment.firstIv);
  key.fill(0);
  const passDiscards = spec.discard === 'pass';
  return new CryptLayer(below, { cipher, segment, passDiscards, slot, repaired });
}

function parseHeader(header: HeaderCopy, below: Layer): Metadata {
  try {
    return parseMetadata(header.json, header.headerBytes, below.sizeBytes);
  } catch (error) {
    if (!(error instanceof CryptError)) throw error;
    throw new CryptError(`${below.description}: ${error.message}`, { cause: error });
  }
}

/**
 * All of the file, a newline at its end included, as `cryptsetup --key-file` does.
 * @throws CryptError: empty, too long, or it cannot be read.
 */
export async function readKeyFile(path: string): Promise<Uint8Array> {
  let file: FileHandle;
  try {
    file = await open(path);
  } catch (cause) {
    const why = (cause as NodeJS.ErrnoException).code ?? messageOf(cause);
    throw new CryptError(`key file ${path} cannot be opened: ${why}`, { cause });
  }
  try {
    const bytes = new Uint8Array(MAX_KEY_FILE_BYTES + 1);
    let length = 0;
    for (let more = true; more && length < bytes.length;) {
      const { bytesRead } = await file.read(bytes, length, bytes.length - length);
      length += bytesRead;
      more = bytesRead > 0;
    }
    if (length > 0 && length <= MAX_KEY_FILE_BYTES) return bytes.subarray(0, length);
    const has = length === 0 ? 'is empty' : `has more than ${MAX_KEY_FILE_BYTES} bytes`;
    throw new CryptError(`key file ${path} ${has}`);
  } finally {
    await file.close();
  }
}

type CryptParts = {
  readonly cipher: XtsCipher;
  readonly segment: Segment;
  readonly passDiscards: boolean;
  readonly slot: string;
  readonly repaired: string | null;
};

export class CryptLayer extends PassLayer {
  readonly description: string;
  /** What was wrong with a copy of the header, which was written anew. */
  readonly repaired: string | null;
  /** The keyslot that was opened. */
  readonly slot: string;
  #sizeBytes: number;
  readonly #cipher: XtsCipher;
  readonly #segment: Segment;
  readonly #passDiscards: boolean;
  #encryptedBytes = 0;
  #decryptedBytes = 0;

  /** See `openCryptLayer`. */
  constructor(below: Layer, parts: CryptParts) {
    super(below);
    this.description = `crypt over ${below.description}`;
    this.repaired = parts.repaired;
    this.slot = parts.slot;
    this.#cipher = parts.cipher;
    this.#segment = parts.segment;
    this.#passDiscards = parts.passDiscards;
    this.#sizeBytes = this.#dataBytes(below.sizeBytes);
  }

  override get sizeBytes(): number {
    return this.#sizeBytes;
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    await this.below.read(this.#segment.at + at, into);
    this.#cipher.decrypt(at, into, into);
    this.#decryptedBytes += into.length;
  }

  override async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    for (let done = 0; done < from.length; done += PIECE_BYTES) {
      const piece = from.subarray(done, done + PIECE_BYTES);
      const secret = new Uint8Array(piece.length);
      this.#cipher.encrypt(at + done, piece, secret);
      await this.below.write(this.#segment.at + at + done, secret, fua);
      this.#encryptedBytes += piece.length;
    }
  }

  /** Where it is passed on, whoever sees the medium sees what is in use. */
  override async discard(at: number, sizeBytes: number): Promise<void> {
    if (this.#passDiscards) await this.below.discard(this.#segment.at + at, sizeBytes);
  }

  /** Zeros are data like any other: what reads as zeros below reads as noise here. */
  override async zero(at: number, sizeBytes: number, options: ZeroOptions): Promise<void> {
    const zeros = new Uint8Array(Math.min(sizeBytes, PIECE_BYTES));
    for (let done = 0; done < sizeBytes; done += PIECE_BYTES) {
      const piece = zeros.subarray(0, Math.min(PIECE_BYTES, sizeBytes - done));
      await this.write(at + done, piece, options.fua);
    }
  }

  override async extents(at: number, sizeBytes: number): Promise<Extent[]> {
    return sizeBytes === 0 ? [] : [{ at, sizeBytes, kind: 'data' }];
  }

  override async measure(): Promise<number> {
    return this.#dataBytes(await this.below.measure());
  }

  override async resize(sizeBytes: number): Promise<void> {
    if (sizeBytes === this.sizeBytes) return;
    const { at, sizeBytes: fixed, sectorBytes } = this.#segment;
    if (fixed !== null || sizeBytes % sectorBytes !== 0 || sizeBytes <= 0) {
      const why =
        fixed === null ? `no whole sectors of ${sectorBytes}` : 'its header fixes its size';
      const text = `${this.description} stays at ${this.sizeBytes} bytes, ${sizeBytes}: ${why}`;
      throw new VringError('ERR_VRING_DISK_RESIZE', text);
    }
    await this.below.resize(at + sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  override counters(): Record<string, number> {
    return {
      ...this.below.counters(),
      encryptedBytes: this.#encryptedBytes,
      decryptedBytes: this.#decryptedBytes,
    };
  }

  #dataBytes(belowBytes: number): number {
    const { at, sizeBytes, sectorBytes } = this.#segment;
    if (sizeBytes !== null) return sizeBytes;
    return Math.max(0, Math.floor((belowBytes - at) / sectorBytes) * sectorBytes);
  }
}
