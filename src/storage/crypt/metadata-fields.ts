/** Fields of untrusted JSON, each checked as it is taken; all throw CryptError with its path. */
import { CryptError } from './errors.ts';

export type JsonObject = Readonly<Record<string, unknown>>;

/** Those of LUKS that OpenSSL has by the same name. */
const HASHES: readonly string[] = [
  'sha1',
  'sha224',
  'sha256',
  'sha384',
  'sha512',
  'sha3-256',
  'sha3-384',
  'sha3-512',
];
/** Salts and digests are 32 or 64 bytes; nothing here is longer than a key by far. */
const MAX_BASE64_CHARACTERS = 1024;

export function fieldOf(object: JsonObject, name: string, path: string): unknown {
  if (Object.hasOwn(object, name)) return object[name];
  throw new CryptError(`${pathOf(path, name)} is missing`);
}

export function objectOf(value: unknown, path: string): JsonObject {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return value as JsonObject;
  }
  throw new CryptError(`${path} is no object`);
}

export function textOf(object: JsonObject, name: string, path: string): string {
  const value = fieldOf(object, name, path);
  if (typeof value === 'string' && value.length <= MAX_BASE64_CHARACTERS) return value;
  throw new CryptError(`${pathOf(path, name)} is no text of ${MAX_BASE64_CHARACTERS} at most`);
}

/** A number of JSON. */
export function integerOf(
  object: JsonObject,
  name: string,
  path: string,
  min: number,
  max: number,
): number {
  const value = fieldOf(object, name, path);
  if (Number.isInteger(value) && (value as number) >= min && (value as number) <= max) {
    return value as number;
  }
  const shown = JSON.stringify(value).slice(0, 40);
  throw new CryptError(`${pathOf(path, name)} is ${shown}, expected ${min} to ${max}`);
}

/** A 64-bit number, which LUKS2 writes as text. */
export function decimalOf(object: JsonObject, name: string, path: string): number {
  const text = textOf(object, name, path);
  const value = /^[0-9]{1,16}$/.test(text) ? Number(text) : NaN;
  if (Number.isSafeInteger(value)) return value;
  const shown = JSON.stringify(text).slice(0, 40);
  throw new CryptError(`${pathOf(path, name)} is ${shown}, expected a number below 2^53 as text`);
}

export function base64Of(object: JsonObject, name: string, path: string): Uint8Array {
  const text = textOf(object, name, path);
  if (/^[A-Za-z0-9+/]+={0,2}$/.test(text)) return Buffer.from(text, 'base64');
  throw new CryptError(`${pathOf(path, name)} is no base64`);
}

export function hashOf(object: JsonObject, name: string, path: string): string {
  const text = textOf(object, name, path);
  if (HASHES.includes(text)) return text;
  throw new CryptError(`${pathOf(path, name)} is ${text}, expected one of ${HASHES.join(', ')}`);
}

function pathOf(path: string, name: string): string {
  return path === '' ? name : `${path}.${name}`;
}
