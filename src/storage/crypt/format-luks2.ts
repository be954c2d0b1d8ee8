/** A new LUKS2 header, as `cryptsetup luksFormat` would make one. */
import { randomBytes, randomUUID } from 'node:crypto';
import type { Layer } from '../layer/layer.ts';
import { CryptError } from './errors.ts';
import { type Kdf, kdfJson } from './key-derivation.ts';
import { makeDigest, writeSlot } from './keyslot.ts';
import { AF_STRIPES } from './limits.ts';
import { writeHeader } from './luks2-header.ts';
import { BINARY_BYTES, type HeaderCopy } from './luks2-layout.ts';
import { type Digest, ENCRYPTION, type Keyslot, stripesBytes } from './luks2-metadata.ts';

export type FormatOptions = {
  /** What opens it: the content of a key file. */
  readonly passphrase: Uint8Array;
  readonly label?: string;
  /** 512, 1024, 2048 or 4096; default 4096. */
  readonly sectorBytes?: number;
  /** Of the volume key: 32 or 64 (AES-128, AES-256); default 64. */
  readonly keyBytes?: 32 | 64;
  /** Default argon2id, 4 passes over 256 MiB: 1.4 s on a core of 2 vCPU EPYC. */
  readonly kdf?: KdfCost;
  /** Whatever is there now may go. */
  readonly replace?: boolean;
};

export type KdfCost =
  | { readonly type: 'pbkdf2'; readonly iterations: number }
  | { readonly type: 'argon2id'; readonly memoryKib: number; readonly passes: number };

/** As cryptsetup lays it out: two headers, areas of keys, and data from 16 MiB on. */
const HEADER_BYTES = 16 * 1024;
export const DATA_AT = 16 * 1024 * 1024;
const AREA_AT = 2 * HEADER_BYTES;
/** cryptsetup aligns areas to 4096 bytes, so that it can write them with O_DIRECT. */
const AREA_ALIGNMENT = 4096;
/** What is looked at before it is written over, in pieces. */
const PIECE_BYTES = 2 ** 20;
const HASH = 'sha256';
const SALT_BYTES = 32;
/** The volume key is random: what the digest costs protects nothing. cryptsetup's least. */
const DIGEST_ITERATIONS = 1000;
const DEFAULT_COST: KdfCost = { type: 'argon2id', memoryKib: 256 * 1024, passes: 4 };
const LANES = 4;

/**
 * Returns the UUID of the header.
 * @throws CryptError: too small, read-only, or not empty. LayerError, SysError.
 */
export async function formatLuks2(below: Layer, options: FormatOptions): Promise<string> {
  const { sectorBytes = 4096, keyBytes = 64, passphrase } = options;
  if (below.readOnly) throw new CryptError(`${below.description} is read-only`);
  if (below.sizeBytes < DATA_AT + sectorBytes) {
    const text = `${below.description} has ${below.sizeBytes} bytes, a LUKS2 header takes`;
    throw new CryptError(`${text} ${DATA_AT} and data ${sectorBytes} at least`);
  }
  if (![512, 1024, 2048, 4096].includes(sectorBytes)) {
    throw new CryptError(`encrypted sectors of ${sectorBytes} bytes, expected 512 to 4096`);
  }
  if (options.replace !== true) await refuseContent(below);
  const slot: Keyslot = {
    id: '0',
    keyBytes,
    stripes: AF_STRIPES,
    afHash: HASH,
    areaAt: AREA_AT,
    areaBytes: roundUp(stripesBytes(keyBytes, AF_STRIPES), AREA_ALIGNMENT),
    areaKeyBytes: 64,
    kdf: withSalt(options.kdf ?? DEFAULT_COST),
  };
  const key = randomBytes(keyBytes);
  try {
    await writeSlot(below, slot, passphrase, key);
    const salt = randomBytes(SALT_BYTES);
    const digest = await makeDigest({ hash: HASH, iterations: DIGEST_ITERATIONS, salt }, key);
    const header: HeaderCopy = {
      seqid: 1,
      headerBytes: HEADER_BYTES,
      label: options.label ?? '',
      uuid: randomUUID(),
      subsystem: '',
      checksum: HASH,
      json: JSON.stringify(metadataJson(slot, digest, sectorBytes)),
    };
    await writeHeader(below, header);
    return header.uuid;
  } finally {
    key.fill(0);
  }
}

/** All that the header takes: some formats begin late (btrfs at 64 KiB, ISO 9660 at 32 KiB). */
async function refuseContent(below: Layer): Promise<void> {
  const piece = Buffer.alloc(PIECE_BYTES);
  const zeros = Buffer.alloc(PIECE_BYTES);
  for (let at = 0; at < DATA_AT; at += PIECE_BYTES) {
    await below.read(at, piece);
    if (piece.equals(zeros)) continue;
    const first = at + piece.findIndex((byte) => byte !== 0);
    const text = `${below.description} is not empty: byte ${first} is not zero`;
    throw new CryptError(`${text}, and a header of ${DATA_AT} bytes destroys what is there`);
  }
}

function metadataJson(slot: Keyslot, digest: Digest, sectorBytes: number): unknown {
  const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
  return {
    keyslots: {
      [slot.id]: {
        type: 'luks2',
        key_size: slot.keyBytes,
        af: { type: 'luks1', stripes: slot.stripes, hash: slot.afHash },
        area: {
          type: 'raw',
          offset: String(slot.areaAt),
          size: String(slot.areaBytes),
          encryption: ENCRYPTION,
          key_size: slot.areaKeyBytes,
        },
        kdf: kdfJson(slot.kdf),
      },
    },
    tokens: {},
    segments: {
      0: {
        type: 'crypt',
        offset: String(DATA_AT),
        size: 'dynamic',
        iv_tweak: '0',
        encryption: ENCRYPTION,
        sector_size: sectorBytes,
      },
    },
    digests: {
      0: {
        type: 'pbkdf2',
        keyslots: [slot.id],
        segments: ['0'],
        hash: digest.hash,
        iterations: digest.iterations,
        salt: base64(digest.salt),
        digest: base64(digest.digest),
      },
    },
    config: {
      json_size: String(HEADER_BYTES - BINARY_BYTES),
      keyslots_size: String(DATA_AT - AREA_AT),
    },
  };
}

function withSalt(cost: KdfCost): Kdf {
  const salt = randomBytes(SALT_BYTES);
  return cost.type === 'pbkdf2' ? { ...cost, hash: HASH, salt } : { ...cost, lanes: LANES, salt };
}

function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}
