/** Compressed clusters. */
import { promisify } from 'node:util';
import { inflateRaw, zstdDecompress } from 'node:zlib';
import { SECTOR_BYTES } from '../disk-image.ts';
import type { Layer } from '../layer/layer.ts';
import type { Qcow2Header } from './format.ts';
import type { Cluster } from './l2-entry.ts';
import { Qcow2Error } from './qcow2-error.ts';
import { readPast } from './read-past.ts';

const inflate = promisify(inflateRaw);
const unzstd = promisify(zstdDecompress);

/**
 * One cluster, unpacked. What is packed ends by itself; the rest of its last sector is another's.
 * @throws Qcow2Error: it is no stream, or not one of a cluster.
 */
export async function readCompressed(
  below: Layer,
  { compression, clusterBytes }: Qcow2Header,
  { hostAt, packedBytes }: Cluster,
): Promise<Buffer> {
  const skip = hostAt % SECTOR_BYTES;
  const sectors = Buffer.allocUnsafeSlow(skip + packedBytes);
  await readPast(below, hostAt - skip, sectors);
  const bytes = sectors.subarray(skip);
  const options = { maxOutputLength: clusterBytes };
  const field = `compressed cluster at byte ${hostAt}`;
  let plain: Buffer;
  try {
    if (compression === 'zlib') plain = await inflate(bytes, options);
    else plain = await unzstd(bytes.subarray(0, zstdFrameBytes(bytes)), options);
  } catch (cause) {
    const code = (cause as { code?: string }).code ?? 'an error';
    throw new Qcow2Error(below.description, field, `cannot be unpacked as ${compression}: ${code}`);
  }
  if (plain.length === clusterBytes) return plain;
  const text = `unpacks to ${plain.length} bytes, expected ${clusterBytes}`;
  throw new Qcow2Error(below.description, field, text);
}

/**
 * Where the first frame ends: what follows it may be the next cluster's frame, and would be
 * unpacked as well. RFC 8878, 3.1.1. Of what is no frame, everything.
 */
function zstdFrameBytes(bytes: Buffer): number {
  if (bytes.length < 6 || bytes.readUInt32LE(0) !== 0xfd2fb528) return bytes.length;
  const descriptor = bytes[4]!;
  const isSingle = (descriptor & 32) !== 0;
  const windowBytes = isSingle ? 0 : 1;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
  const contentBytes = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
  let at = 5 + windowBytes + dictionaryBytes + contentBytes;
  for (let isLast = false; !isLast;) {
    if (at + 3 > bytes.length) return bytes.length;
    const header = bytes.readUIntLE(at, 3);
    isLast = (header & 1) !== 0;
    at += 3 + (((header >> 1) & 3) === 1 ? 1 : header >> 3); // one byte that is repeated
  }
  return Math.min(bytes.length, at + ((descriptor & 4) !== 0 ? 4 : 0));
}
