/** Our XTS against OpenSSL's, sector by sector, in every position and size. */
import assert from 'node:assert/strict';
import { createCipheriv, randomBytes, randomInt } from 'node:crypto';
import { test } from 'node:test';
import { XtsCipher } from './xts.ts';

/** OpenSSL's, whole sectors from `sector` on. */
function reference(key: Uint8Array, sectorBytes: number, sector: number, data: Uint8Array) {
  const out = new Uint8Array(data.length);
  for (let at = 0; at < data.length; at += sectorBytes) {
    const iv = Buffer.alloc(16);
    iv.writeBigUInt64LE(BigInt(sector + at / sectorBytes) * BigInt(sectorBytes / 512));
    const cipher = createCipheriv(`aes-${key.length * 4}-xts`, key, iv);
    out.set(cipher.update(data.subarray(at, at + sectorBytes)), at);
  }
  return out;
}

for (const sectorBytes of [512, 1024, 2048, 4096]) {
  for (const keyBytes of [32, 64]) {
    test(`sectors of ${sectorBytes}, AES-${keyBytes * 4}`, () => {
      const key = randomBytes(keyBytes);
      const xts = new XtsCipher(key, sectorBytes);
      // Sector numbers beyond 2^32, the largest that a disk has among them.
      for (const sector of [0, 1, 2 ** 32 - 3, 2 ** 41]) {
        const clear = randomBytes(sectorBytes * 40);
        const secret = new Uint8Array(clear.length);
        xts.encrypt(sector * sectorBytes, clear, secret);
        assert.deepEqual(secret, reference(key, sectorBytes, sector, clear));
        xts.decrypt(sector * sectorBytes, secret, secret);
        assert.deepEqual(secret, new Uint8Array(clear), 'in place');
      }
    });
  }
}

test('any part by itself is the part of the whole', () => {
  const key = randomBytes(64);
  const xts = new XtsCipher(key, 4096);
  const clear = randomBytes(256 * 1024); // several pieces, which begin within sectors
  const whole = reference(key, 4096, 7, clear);
  for (let round = 0; round < 100; round++) {
    const from = 512 * randomInt(500);
    const to = from + 512 * (1 + randomInt((clear.length - from) / 512));
    const part = new Uint8Array(to - from);
    xts.encrypt(7 * 4096 + from, clear.subarray(from, to), part);
    assert.deepEqual(part, whole.subarray(from, to), `${from} to ${to}`);
  }
});
