/**
 * AES-XTS by our tweaks over OpenSSL's ECB, against an `aes-256-xts` object for each sector.
 * Prints microseconds per request; checks that both say the same.
 *
 *   node src/storage/crypt/xts.bench.ts
 */
import assert from 'node:assert/strict';
import { createCipheriv, randomBytes } from 'node:crypto';
import { XtsCipher } from './xts.ts';

const ROUNDS = 9;
const ROUND_MS = 100;
const key = randomBytes(64);

function byObjects(sectorBytes: number, from: Uint8Array, into: Uint8Array): void {
  const iv = Buffer.alloc(16);
  for (let at = 0; at < from.length; at += sectorBytes) {
    iv.writeUInt32LE(at / 512, 0);
    const cipher = createCipheriv('aes-256-xts', key, iv);
    into.set(cipher.update(from.subarray(at, at + sectorBytes)), at);
  }
}

/** Best of all rounds, microseconds. */
function measure(work: () => void): number {
  let best = Infinity;
  for (let round = 0; round < ROUNDS; round++) {
    const startMs = performance.now();
    let times = 0;
    for (; performance.now() - startMs < ROUND_MS; times++) work();
    best = Math.min(best, ((performance.now() - startMs) / times) * 1000);
  }
  return best;
}

console.log('sector  request  objects us  tweaks us  ratio');
for (const sectorBytes of [512, 4096]) {
  const xts = new XtsCipher(key, sectorBytes);
  for (const sizeBytes of [4096, 65536, 1048576]) {
    const clear = randomBytes(sizeBytes);
    const [one, other] = [new Uint8Array(sizeBytes), new Uint8Array(sizeBytes)];
    const objects = measure(() => byObjects(sectorBytes, clear, one));
    const tweaks = measure(() => xts.encrypt(0, clear, other));
    assert.deepEqual(one, other);
    const cells = [sectorBytes, sizeBytes, objects.toFixed(1), tweaks.toFixed(1)];
    const widths = [6, 9, 12, 11];
    const line = cells.map((cell, i) => String(cell).padStart(widths[i]!)).join('');
    console.log(`${line}${(objects / tweaks).toFixed(1).padStart(7)}`);
  }
}
