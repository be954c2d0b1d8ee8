/** Reads a pcapng file of ours, block by block, and refuses what is not one. */
import { equal, ok } from 'node:assert/strict';

export type CapturedFrame = {
  readonly bytes: Buffer;
  /** 1 inbound: the port sent it; 2 outbound: it got it. */
  readonly direction: number;
  readonly nanoseconds: bigint;
  /** Bytes that it had before it was cut. */
  readonly fullBytes: number;
};

/** draft-ietf-opsawg-pcapng, section 4. Little-endian, one section, one interface. */
export function readPcapng(file: Buffer): CapturedFrame[] {
  const frames: CapturedFrame[] = [];
  const types: number[] = [];
  for (let at = 0; at < file.length;) {
    const type = file.readUInt32LE(at);
    const size = file.readUInt32LE(at + 4);
    ok(size >= 12 && size % 4 === 0 && at + size <= file.length, `block of ${size} bytes at ${at}`);
    equal(file.readUInt32LE(at + size - 4), size, 'both sizes of a block');
    types.push(type);
    if (type === 0x0a0d0d0a) equal(file.readUInt32LE(at + 8), 0x1a2b3c4d, 'byte order');
    if (type === 1) equal(file.readUInt16LE(at + 8), 1, 'LINKTYPE_ETHERNET');
    if (type === 6) frames.push(readFrame(file.subarray(at, at + size)));
    at += size;
  }
  equal(types[0], 0x0a0d0d0a, 'a section header comes first');
  equal(types[1], 1, 'then the interface');
  return frames;
}

function readFrame(block: Buffer): CapturedFrame {
  const time = (BigInt(block.readUInt32LE(12)) << 32n) | BigInt(block.readUInt32LE(16));
  const bytes = block.subarray(28, 28 + block.readUInt32LE(20));
  let direction = 0;
  for (let at = 28 + Math.ceil(bytes.length / 4) * 4; at < block.length - 4;) {
    const [code, size] = [block.readUInt16LE(at), block.readUInt16LE(at + 2)];
    if (code === 2) direction = block.readUInt32LE(at + 4) & 3;
    if (code === 0) break;
    at += 4 + Math.ceil(size / 4) * 4;
  }
  return { bytes, direction, nanoseconds: time, fullBytes: block.readUInt32LE(24) };
}
