import { strictEqual } from 'node:assert';
import { test } from 'node:test';
import { checksumAdd, checksumFinish, pseudoHeaderSum4, pseudoHeaderSum6 } from './ip.ts';

test('the sum of the example in RFC 1071, section 3', () => {
  const bytes = Uint8Array.of(0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7);
  strictEqual(checksumFinish(checksumAdd(0, bytes, 0, 8)), ~0xddf2 & 0xffff);
});

test('an odd last byte is the upper half of a word; a whole header sums to zero', () => {
  strictEqual(checksumAdd(0, Uint8Array.of(0x12, 0x34, 0x56), 0, 3), 0x1234 + 0x5600);
  const header = Buffer.from('45000073000040004011b861c0a80001c0a800c7', 'hex');
  strictEqual(checksumFinish(checksumAdd(0, header, 0, 20)), 0);
  header.writeUInt16BE(0, 10);
  strictEqual(checksumFinish(checksumAdd(0, header, 0, 20)), 0xb861);
});

test('pseudo headers take addresses, protocol and length', () => {
  const header = Buffer.from('45000073000040004011b861c0a80001c0a800c7', 'hex');
  const words4 = 0xc0a8 + 0x0001 + 0xc0a8 + 0x00c7;
  strictEqual(pseudoHeaderSum4(header, 0, 17, 95), words4 + 17 + 95);
  const header6 = new Uint8Array(40).fill(1, 8);
  strictEqual(pseudoHeaderSum6(header6, 0, 6, 20), 16 * 0x0101 + 26);
});

test('the longest sum of ones folds', () => {
  strictEqual(checksumFinish(checksumAdd(0, new Uint8Array(65536).fill(0xff), 0, 65536)), 0);
});
