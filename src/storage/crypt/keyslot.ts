/** Keyslots: where the volume key lies, in stripes, encrypted with a key made of a passphrase. */
import { pbkdf2, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import type { Layer } from '../layer/layer.ts';
import { mergeStripes, splitKey } from './anti-forensic.ts';
import { CryptError } from './errors.ts';
import { deriveKey } from './key-derivation.ts';
import { type Digest, type Keyslot, type Metadata, stripesBytes } from './luks2-metadata.ts';
import { XtsCipher } from './xts.ts';

/** Areas of keyslots are encrypted in sectors of this, each area from IV 0 on. */
const AREA_SECTOR_BYTES = 512;

export type OpenSlot = { readonly slot: string; readonly key: Uint8Array };

/**
 * The volume key, from the first keyslot that the passphrase opens. The caller overwrites it.
 * @throws CryptError: none opens. LayerError, SysError.
 */
export async function openKeyslot(
  below: Layer,
  metadata: Omit<Metadata, 'segment'>,
  passphrase: Uint8Array,
): Promise<OpenSlot> {
  for (const slot of metadata.keyslots) {
    const key = await readSlot(below, slot, passphrase);
    if (await isKey(metadata.digest, key)) return { slot: slot.id, key };
    key.fill(0);
  }
  const tried = metadata.keyslots.map(({ id }) => id).join(', ');
  const what = tried === '' ? 'no keyslot can be tried' : `the key opens none of keyslots ${tried}`;
  const others = metadata.refusals.length === 0 ? '' : `; ${metadata.refusals.join('; ')}`;
  const advice = 'cryptsetup luksAddKey adds a slot, cryptsetup open --test-passphrase tries a key';
  throw new CryptError(`${below.description}: ${what}${others}. ${advice}`);
}

/** Writes stripes of `key` into the area of `slot`. */
export async function writeSlot(
  below: Layer,
  slot: Keyslot,
  passphrase: Uint8Array,
  key: Uint8Array,
): Promise<void> {
  const cipher = await areaCipher(slot, passphrase);
  const area = new Uint8Array(stripesBytes(slot.keyBytes, slot.stripes));
  area.set(splitKey(key, slot.stripes, slot.afHash));
  cipher.encrypt(0, area, area);
  await below.write(slot.areaAt, area, true);
}

export async function makeDigest(digest: Omit<Digest, 'digest'>, key: Uint8Array): Promise<Digest> {
  return { ...digest, digest: await digestOf(digest, key, DIGEST_BYTES) };
}

const DIGEST_BYTES = 32;

async function readSlot(below: Layer, slot: Keyslot, passphrase: Uint8Array): Promise<Uint8Array> {
  const cipher = await areaCipher(slot, passphrase);
  const area = new Uint8Array(stripesBytes(slot.keyBytes, slot.stripes));
  await below.read(slot.areaAt, area);
  cipher.decrypt(0, area, area);
  const stripes = area.subarray(0, slot.keyBytes * slot.stripes);
  const key = mergeStripes(stripes, slot.keyBytes, slot.afHash);
  area.fill(0);
  return key;
}

async function areaCipher(slot: Keyslot, passphrase: Uint8Array): Promise<XtsCipher> {
  const key = await deriveKey(slot.kdf, passphrase, slot.areaKeyBytes);
  const cipher = new XtsCipher(key, AREA_SECTOR_BYTES);
  key.fill(0);
  return cipher;
}

async function isKey(digest: Digest, key: Uint8Array): Promise<boolean> {
  return timingSafeEqual(await digestOf(digest, key, digest.digest.length), digest.digest);
}

function digestOf(
  digest: Omit<Digest, 'digest'>,
  key: Uint8Array,
  sizeBytes: number,
): Promise<Uint8Array> {
  return promisify(pbkdf2)(key, digest.salt, digest.iterations, sizeBytes, digest.hash);
}
