/**
 * The half of AES-XTS that is not AES (IEEE 1619): tweaks, and what is xored with them. Words are
 * little-endian, as the hosts are that vring runs on.
 */

const WORDS = 4; // of one AES block

/**
 * Fills `tweaks` for `blocks` blocks in a row. Sector n of the range begins with the four words of
 * `starts` from 4n on and multiplies by alpha from block to block; the range begins `skip` blocks
 * into sector 0.
 */
export function expandTweaks(
  starts: Int32Array,
  blocksPerSector: number,
  skip: number,
  blocks: number,
  tweaks: Int32Array,
): void {
  let to = 0;
  const end = blocks * WORDS;
  let block = -skip; // of what is written, within its sector; below zero: not written yet
  for (let sector = 0; to < end; sector++) {
    let a = starts[sector * WORDS]!;
    let b = starts[sector * WORDS + 1]!;
    let c = starts[sector * WORDS + 2]!;
    let d = starts[sector * WORDS + 3]!;
    const left = blocksPerSector - (sector === 0 ? skip : 0);
    for (; block < left && to < end; block++) {
      if (block >= 0) {
        tweaks[to] = a;
        tweaks[to + 1] = b;
        tweaks[to + 2] = c;
        tweaks[to + 3] = d;
        to += WORDS;
      }
      // Times alpha in GF(2^128): a shift by one, and 0x87 where a bit fell out.
      const carry = (d >> 31) & 0x87;
      d = (d << 1) | (c >>> 31);
      c = (c << 1) | (b >>> 31);
      b = (b << 1) | (a >>> 31);
      a = (a << 1) ^ carry;
    }
    block = 0;
  }
}

export function xorWords(words: Int32Array, mask: Int32Array, count: number): void {
  for (let i = 0; i < count; i++) words[i]! ^= mask[i]!;
}
