/**
 * The anti-forensic splitter of LUKS: a key as many stripes, every one of which is needed to have
 * it, so that overwriting any part of the area destroys it. LUKS1 on-disk format 1.2, section 2.4;
 * `type: "luks1"` in LUKS2.
 */
import { hash, randomBytes } from 'node:crypto';

/** The key that `stripes` were made of: `keyBytes` of it. */
export function mergeStripes(stripes: Uint8Array, keyBytes: number, hashName: string): Uint8Array {
  const last = stripes.length - keyBytes;
  const key = mixStripes(stripes.subarray(0, last), keyBytes, hashName);
  xorInto(key, stripes.subarray(last));
  return key;
}

/** `count` stripes that `mergeStripes` makes `key` of; all but the last are random. */
export function splitKey(key: Uint8Array, count: number, hashName: string): Uint8Array {
  const stripes = new Uint8Array(key.length * count);
  const last = stripes.length - key.length;
  stripes.set(randomBytes(last));
  const mixed = mixStripes(stripes.subarray(0, last), key.length, hashName);
  xorInto(mixed, key);
  stripes.set(mixed, last);
  mixed.fill(0);
  return stripes;
}

function mixStripes(stripes: Uint8Array, keyBytes: number, hashName: string): Uint8Array {
  const mixed = new Uint8Array(keyBytes);
  const digestBytes = hash(hashName, '', 'buffer').length;
  for (let at = 0; at < stripes.length; at += keyBytes) {
    xorInto(mixed, stripes.subarray(at, at + keyBytes));
    diffuse(mixed, hashName, digestBytes);
  }
  return mixed;
}

/** Each piece of a digest's length becomes the digest of its number and itself. */
function diffuse(block: Uint8Array, hashName: string, digestBytes: number): void {
  for (let at = 0, number = 0; at < block.length; at += digestBytes, number++) {
    const piece = block.subarray(at, at + digestBytes);
    const message = new Uint8Array(4 + piece.length);
    new DataView(message.buffer).setUint32(0, number);
    message.set(piece, 4);
    piece.set(hash(hashName, message, 'buffer').subarray(0, piece.length));
  }
}

function xorInto(to: Uint8Array, mask: Uint8Array): void {
  for (let i = 0; i < to.length; i++) to[i]! ^= mask[i]!;
}
