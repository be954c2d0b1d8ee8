/**
 * The JSON part of a LUKS2 header (on-disk format 1.0.0, section 3), as far as one AES-XTS segment
 * needs it. `parseMetadata` returns values on which nothing is left to check but the passphrase.
 */
import { CryptError } from './errors.ts';
import { type Kdf, parseKdf } from './key-derivation.ts';
import { AF_STRIPES, MAX_KEYSLOTS, MAX_PBKDF2_ITERATIONS } from './limits.ts';
import { BINARY_BYTES } from './luks2-layout.ts';
import {
  base64Of,
  decimalOf,
  fieldOf,
  hashOf,
  integerOf,
  objectOf,
  type JsonObject,
  textOf,
} from './metadata-fields.ts';

export const ENCRYPTION = 'aes-xts-plain64';

export type Keyslot = {
  readonly id: string;
  /** Of the volume key. */
  readonly keyBytes: number;
  readonly stripes: number;
  readonly afHash: string;
  /** Where the encrypted stripes are on the device. */
  readonly areaAt: number;
  readonly areaBytes: number;
  /** Of the key that the stripes are encrypted with. */
  readonly areaKeyBytes: number;
  readonly kdf: Kdf;
};

export type Segment = {
  readonly at: number;
  /** Null: to the end of the device. */
  readonly sizeBytes: number | null;
  readonly firstIv: number;
  readonly sectorBytes: number;
};

/** What says that a volume key is the right one. */
export type Digest = {
  readonly hash: string;
  readonly iterations: number;
  readonly salt: Uint8Array;
  readonly digest: Uint8Array;
};

export type Metadata = {
  readonly segment: Segment;
  readonly digest: Digest;
  /** Those of the segment that can be used here, those with a high priority first. */
  readonly keyslots: readonly Keyslot[];
  /** Why the others cannot. */
  readonly refusals: readonly string[];
};

/** Bytes of AF stripes in whole sectors of 512 bytes. */
export function stripesBytes(keyBytes: number, stripes: number): number {
  return Math.ceil((keyBytes * stripes) / 512) * 512;
}

/**
 * `headerBytes`: of one copy; `deviceBytes`: of what the header is on.
 * @throws CryptError.
 */
export function parseMetadata(json: string, headerBytes: number, deviceBytes: number): Metadata {
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch (cause) {
    throw new CryptError('the JSON area of the LUKS2 header is no JSON', { cause });
  }
  const root = objectOf(parsed, 'header');
  const config = objectOf(fieldOf(root, 'config', ''), 'config');
  const jsonBytes = decimalOf(config, 'json_size', 'config');
  if (jsonBytes !== headerBytes - BINARY_BYTES) {
    const expected = headerBytes - BINARY_BYTES;
    throw new CryptError(`config.json_size is ${jsonBytes}, expected ${expected}`);
  }
  refuseRequirements(config);
  const areasEnd = 2 * headerBytes + decimalOf(config, 'keyslots_size', 'config');
  const segment = parseSegment(root, areasEnd, deviceBytes);
  const { digest, slots } = findDigest(root);
  const keyslots: { slot: Keyslot; priority: number }[] = [];
  const refusals: string[] = [];
  for (const [id, value] of entriesOf(root, 'keyslots')) {
    if (!slots.includes(id)) continue;
    try {
      const priority = 'priority' in value ? integerOf(value, 'priority', id, 0, 2) : 1;
      if (priority === 0) throw new CryptError('its priority is "ignore"');
      const slot = parseKeyslot(id, value, 2 * headerBytes, Math.min(areasEnd, deviceBytes));
      keyslots.push({ slot, priority });
    } catch (error) {
      if (!(error instanceof CryptError)) throw error;
      refusals.push(`keyslot ${id}: ${error.message}`);
    }
  }
  keyslots.sort((a, b) => b.priority - a.priority);
  return { segment, digest, keyslots: keyslots.map(({ slot }) => slot), refusals };
}

function entriesOf(root: JsonObject, name: string): [string, JsonObject][] {
  const entries = Object.entries(objectOf(fieldOf(root, name, ''), name));
  if (entries.length > MAX_KEYSLOTS) {
    throw new CryptError(`${name} has ${entries.length} entries, expected ${MAX_KEYSLOTS} at most`);
  }
  return entries.map(([id, value]) => [id, objectOf(value, `${name}.${id}`)]);
}

/** Such as `online-reencrypt`: who does not know what it means must not touch the data. */
function refuseRequirements(config: JsonObject): void {
  if (!('requirements' in config)) return;
  const requirements = objectOf(config['requirements'], 'config.requirements');
  const mandatory = requirements['mandatory'];
  if (mandatory === undefined || (Array.isArray(mandatory) && mandatory.length === 0)) return;
  const names = JSON.stringify(mandatory).slice(0, 200);
  throw new CryptError(
    `the header requires ${names}, which is not known here; ` +
      'if a re-encryption was begun, finish it with cryptsetup reencrypt --resume-only',
  );
}

function parseSegment(root: JsonObject, areasEnd: number, deviceBytes: number): Segment {
  const entries = entriesOf(root, 'segments');
  if (entries.length !== 1) {
    throw new CryptError(`the header has ${entries.length} segments, expected one`);
  }
  const [id, segment] = entries[0]!;
  const path = `segments.${id}`;
  const type = textOf(segment, 'type', path);
  if (type !== 'crypt') throw new CryptError(`${path}.type is ${type}, expected crypt`);
  if ('integrity' in segment) {
    throw new CryptError(`${path} has integrity tags, which need dm-integrity: not supported`);
  }
  checkEncryption(segment, path);
  const sectorBytes = integerOf(segment, 'sector_size', path, 512, 4096);
  if (![512, 1024, 2048, 4096].includes(sectorBytes)) {
    throw new CryptError(`${path}.sector_size is ${sectorBytes}`);
  }
  const at = decimalOf(segment, 'offset', path);
  const dynamic = segment['size'] === 'dynamic';
  const sizeBytes = dynamic ? null : decimalOf(segment, 'size', path);
  if (at < areasEnd || at % sectorBytes !== 0) {
    throw new CryptError(`${path}.offset is ${at}, expected whole sectors behind ${areasEnd}`);
  }
  if (sizeBytes !== null && (sizeBytes === 0 || sizeBytes % sectorBytes !== 0)) {
    throw new CryptError(`${path}.size is ${sizeBytes}, expected whole sectors of ${sectorBytes}`);
  }
  const end = at + (sizeBytes ?? sectorBytes);
  if (end > deviceBytes) {
    throw new CryptError(`${path} ends at ${end}, what it is on has ${deviceBytes} bytes`);
  }
  return { at, sizeBytes, firstIv: decimalOf(segment, 'iv_tweak', path), sectorBytes };
}

function checkEncryption(object: JsonObject, path: string): void {
  const encryption = textOf(object, 'encryption', path);
  if (encryption === ENCRYPTION) return;
  throw new CryptError(`${path}.encryption is ${encryption}, expected ${ENCRYPTION}`);
}

/** The digest of the segment, and the slots whose keys it is of. */
function findDigest(root: JsonObject): { digest: Digest; slots: readonly unknown[] } {
  const [segmentId] = entriesOf(root, 'segments')[0]!;
  for (const [id, value] of entriesOf(root, 'digests')) {
    const path = `digests.${id}`;
    const { segments, keyslots } = value;
    if (!Array.isArray(segments) || !segments.includes(segmentId)) continue;
    const type = textOf(value, 'type', path);
    if (type !== 'pbkdf2') throw new CryptError(`${path}.type is ${type}, expected pbkdf2`);
    const digest = base64Of(value, 'digest', path);
    if (digest.length < 16) {
      throw new CryptError(`${path}.digest has ${digest.length} bytes, expected 16 or more`);
    }
    return {
      digest: {
        hash: hashOf(value, 'hash', path),
        iterations: integerOf(value, 'iterations', path, 1, MAX_PBKDF2_ITERATIONS),
        salt: base64Of(value, 'salt', path),
        digest,
      },
      slots: Array.isArray(keyslots) ? keyslots : [],
    };
  }
  throw new CryptError(`segment ${segmentId} has no digest, so that no key can be told right`);
}

function parseKeyslot(id: string, slot: JsonObject, from: number, to: number): Keyslot {
  const type = textOf(slot, 'type', '');
  if (type !== 'luks2') throw new CryptError(`type ${type}, expected luks2`);
  const keyBytes = keyBytesOf(slot, 'key_size', '');
  const area = objectOf(fieldOf(slot, 'area', ''), 'area');
  if (textOf(area, 'type', 'area') !== 'raw') throw new CryptError('area.type is not raw');
  checkEncryption(area, 'area');
  const areaAt = decimalOf(area, 'offset', 'area');
  const areaBytes = decimalOf(area, 'size', 'area');
  if (areaAt < from || areaAt % 512 !== 0 || areaAt + areaBytes > to) {
    const text = `its area is ${areaBytes} bytes at ${areaAt}, expected between ${from} and ${to}`;
    throw new CryptError(text);
  }
  const af = objectOf(fieldOf(slot, 'af', ''), 'af');
  if (textOf(af, 'type', 'af') !== 'luks1') throw new CryptError('af.type is not luks1');
  const stripes = integerOf(af, 'stripes', 'af', 1, AF_STRIPES);
  if (stripesBytes(keyBytes, stripes) > areaBytes) {
    throw new CryptError(`${stripes} stripes of ${keyBytes} bytes do not fit ${areaBytes} bytes`);
  }
  return {
    id,
    keyBytes,
    stripes,
    afHash: hashOf(af, 'hash', 'af'),
    areaAt,
    areaBytes,
    areaKeyBytes: keyBytesOf(area, 'key_size', 'area'),
    kdf: parseKdf(objectOf(fieldOf(slot, 'kdf', ''), 'kdf')),
  };
}

function keyBytesOf(object: JsonObject, name: string, path: string): number {
  const keyBytes = integerOf(object, name, path, 32, 64);
  if (keyBytes === 32 || keyBytes === 64) return keyBytes;
  throw new CryptError(`${name} is ${keyBytes} bytes, AES-XTS has 32 or 64`);
}
