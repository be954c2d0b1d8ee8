/** What the bulk transfer sends: a file, or bytes made from a seed. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { VringError, messageOf } from '../base/errors.ts';
import type { BulkSource } from './bulk-sender.ts';

/** Bytes that look random and depend on the seed and their place alone. */
export function patternSource(totalBytes: number, seed = 1): BulkSource {
  return {
    totalBytes,
    readInto(offset, into) {
      const view = new DataView(into.buffer, into.byteOffset, into.length);
      let at = 0;
      for (; at + 4 <= into.length; at += 4) view.setUint32(at, scramble(offset + at, seed));
      const last = scramble(offset + at, seed);
      for (let i = at; i < into.length; i++) into[i] = last >>> (8 * (i & 3));
    },
  };
}

/** A file's bytes. @throws VringError ERR_VRING_GUEST_FILE */
export function fileSource(path: string): BulkSource & { close(): void } {
  try {
    const fd = openSync(path, 'r');
    return {
      totalBytes: fstatSync(fd).size,
      readInto(offset, into) {
        const bytes = readSync(fd, into, 0, into.length, offset);
        if (bytes === into.length) return;
        throw new VringError('ERR_VRING_GUEST_FILE', `${path} became shorter while it was sent`);
      },
      close: () => closeSync(fd),
    };
  } catch (error) {
    throw new VringError('ERR_VRING_GUEST_FILE', `cannot read: ${messageOf(error)}`, {
      cause: error,
    });
  }
}

/** The finaliser of MurmurHash3 over the word's place. */
function scramble(offset: number, seed: number): number {
  let word = (Math.floor(offset / 4) ^ Math.imul(seed, 0x9e3779b1)) >>> 0;
  word = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
  return (word ^ (word >>> 16)) >>> 0;
}
