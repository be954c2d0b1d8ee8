/** From a passphrase to the key of a keyslot, at a cost that the header sets and we bound. */
import { argon2, pbkdf2 } from 'node:crypto';
import { promisify } from 'node:util';
import { CryptError } from './errors.ts';
import {
  MAX_ARGON2_KIB,
  MAX_ARGON2_KIB_PASSES,
  MAX_ARGON2_LANES,
  MAX_PBKDF2_ITERATIONS,
} from './limits.ts';
import { base64Of, hashOf, integerOf, type JsonObject, textOf } from './metadata-fields.ts';

export type Kdf =
  | {
      readonly type: 'pbkdf2';
      readonly hash: string;
      readonly iterations: number;
      readonly salt: Uint8Array;
    }
  | {
      readonly type: 'argon2i' | 'argon2id';
      readonly passes: number;
      readonly memoryKib: number;
      readonly lanes: number;
      readonly salt: Uint8Array;
    };

const U32_MAX = 2 ** 32 - 1;

/** @throws CryptError: of another kind, or dearer than we pay. */
export function parseKdf(kdf: JsonObject): Kdf {
  const type = textOf(kdf, 'type', 'kdf');
  const salt = base64Of(kdf, 'salt', 'kdf');
  if (type === 'pbkdf2') {
    const iterations = integerOf(kdf, 'iterations', 'kdf', 1, MAX_PBKDF2_ITERATIONS);
    return { type, hash: hashOf(kdf, 'hash', 'kdf'), iterations, salt };
  }
  if (type !== 'argon2i' && type !== 'argon2id') {
    throw new CryptError(`kdf.type is ${type}, expected pbkdf2, argon2i or argon2id`);
  }
  const passes = integerOf(kdf, 'time', 'kdf', 1, U32_MAX);
  const memoryKib = integerOf(kdf, 'memory', 'kdf', 8, U32_MAX);
  const lanes = integerOf(kdf, 'cpus', 'kdf', 1, U32_MAX);
  if (memoryKib > MAX_ARGON2_KIB) {
    const text = `${type} wants ${memoryKib} KiB of memory, ${MAX_ARGON2_KIB} are given`;
    throw new CryptError(`${text}: cryptsetup luksConvertKey --pbkdf-memory ${MAX_ARGON2_KIB}`);
  }
  if (memoryKib * passes > MAX_ARGON2_KIB_PASSES || lanes > MAX_ARGON2_LANES) {
    const text = `${type} wants ${passes} passes over ${memoryKib} KiB in ${lanes} lanes`;
    const most = `${MAX_ARGON2_KIB_PASSES} KiB in all and ${MAX_ARGON2_LANES} lanes are given`;
    throw new CryptError(`${text}, ${most}: cryptsetup luksConvertKey --pbkdf-force-iterations 4`);
  }
  return { type, passes, memoryKib, lanes, salt };
}

/** Runs on the thread pool. */
export async function deriveKey(
  kdf: Kdf,
  passphrase: Uint8Array,
  keyBytes: number,
): Promise<Uint8Array> {
  if (kdf.type === 'pbkdf2') {
    return promisify(pbkdf2)(passphrase, kdf.salt, kdf.iterations, keyBytes, kdf.hash);
  }
  const { type, salt, lanes, memoryKib, passes } = kdf;
  return promisify(argon2)(type, {
    message: passphrase,
    nonce: salt,
    parallelism: lanes,
    tagLength: keyBytes,
    memory: memoryKib,
    passes,
  });
}

/** As the header has it. */
export function kdfJson(kdf: Kdf): JsonObject {
  const salt = Buffer.from(kdf.salt).toString('base64');
  if (kdf.type === 'pbkdf2') {
    return { type: kdf.type, hash: kdf.hash, iterations: kdf.iterations, salt };
  }
  const { type, passes, memoryKib, lanes } = kdf;
  return { type, time: passes, memory: memoryKib, cpus: lanes, salt };
}
