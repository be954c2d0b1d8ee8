/**
 * The header of a qcow2 image, version 2 and 3. Nothing is left to check on what `parseHeader`
 * returns but where its tables end, which `checkPlaces` compares with the file.
 * Specification: QEMU, docs/interop/qcow2.txt; its names are used here.
 */
import { MAX_DISK_BYTES, SECTOR_BYTES } from '../disk-image.ts';
import { Qcow2Error } from './qcow2-error.ts';

export const QCOW2_MAGIC = 0x514649fb;

export const INCOMPAT_DIRTY = 1;
const INCOMPAT_CORRUPT = 2;
const INCOMPAT_DATA_FILE = 4;
const INCOMPAT_COMPRESSION = 8;
const INCOMPAT_EXTENDED_L2 = 16;
const INCOMPAT_KNOWN = 31;

/** Header extensions. */
export const EXT_BACKING_FORMAT = 0xe2792aca;
const EXT_FEATURE_NAMES = 0x6803f857;
const EXT_ENCRYPTION = 0x0537be77;
const EXT_DATA_FILE = 0x44415441;

/** Offsets in the header of what we change; all in its first sector, so that no cut tears them. */
export const AT_SIZE = 24;
export const AT_L1 = 36;
export const AT_REFCOUNT_TABLE = 48;
export const AT_INCOMPATIBLE = 72;
export const AT_AUTOCLEAR = 88;
export const V3_HEADER_BYTES = 104;

/** QEMU's own limits, so that an image is one for both or for none. */
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
export const MAX_L1_BYTES = 2 ** 25;
export const MAX_REFCOUNT_TABLE_BYTES = 2 ** 23;
export const MAX_SNAPSHOTS = 65536;
const MAX_NAME_BYTES = 1023;

export type Qcow2Header = {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly clusterBytes: number;
  readonly sizeBytes: number;
  readonly l1Count: number;
  readonly l1At: number;
  readonly refcountTableAt: number;
  readonly refcountTableBytes: number;
  /** Bits of a refcount: 1 << this. */
  readonly refcountOrder: number;
  readonly snapshotCount: number;
  readonly snapshotsAt: number;
  readonly isDirty: boolean;
  readonly isExtendedL2: boolean;
  readonly compression: 'zlib' | 'zstd';
  readonly backingName: string | null;
  readonly backingFormat: string | null;
};

/** Bytes of an image's start that hold its header, extensions and the backing file's name. */
export function headerBytes(clusterBits: number): number {
  return Math.max(2 ** clusterBits, SECTOR_BYTES);
}

/** @throws Qcow2Error: not qcow2, or what we do not know. `start`: the first sector at least. */
export function clusterBitsOf(start: Buffer, image: string): number {
  const fail = failing(image);
  const magic = start.readUInt32BE(0);
  if (magic !== QCOW2_MAGIC) {
    throw fail('magic', `is 0x${magic.toString(16)}, expected 0x514649fb: it is not qcow2`);
  }
  const version = start.readUInt32BE(4);
  if (version !== 2 && version !== 3) throw fail('version', `is ${version}, expected 2 or 3`);
  const bits = start.readUInt32BE(20);
  if (bits < MIN_CLUSTER_BITS || bits > MAX_CLUSTER_BITS) {
    throw fail('cluster_bits', `is ${bits}, expected ${MIN_CLUSTER_BITS} to ${MAX_CLUSTER_BITS}`);
  }
  return bits;
}

/**
 * `start`: the first cluster.
 * @throws Qcow2Error naming the field.
 */
export function parseHeader(start: Buffer, image: string): Qcow2Header {
  const fail = failing(image);
  const clusterBits = clusterBitsOf(start, image);
  const version = start.readUInt32BE(4) as 2 | 3;
  const word = (at: number, field: string): number => wordOf(start, at, field, fail);
  const is3 = version === 3;
  const headerLength = is3 ? start.readUInt32BE(100) : 72;
  const clusterBytes = 2 ** clusterBits;
  if (headerLength < (is3 ? V3_HEADER_BYTES : 72) || headerLength > clusterBytes) {
    throw fail('header_length', `is ${headerLength}, expected ${V3_HEADER_BYTES} to a cluster`);
  }
  const extensions = readExtensions(start, headerLength, fail);
  const incompatible = is3 ? checkFeatures(start, extensions, fail) : 0;
  const crypt = start.readUInt32BE(32);
  if (crypt !== 0 || extensions.has(EXT_ENCRYPTION)) {
    throw fail('crypt_method', `is ${crypt}: encrypted images are not opened; decrypt it first`);
  }
  const compression = headerLength > 104 && is3 ? start.readUInt8(104) : 0;
  if (compression > 1) throw fail('compression_type', `is ${compression}, expected 0 or 1`);
  if ((compression !== 0) !== ((incompatible & INCOMPAT_COMPRESSION) !== 0)) {
    throw fail('compression_type', `is ${compression}, which its feature bit does not say`);
  }
  const isExtendedL2 = (incompatible & INCOMPAT_EXTENDED_L2) !== 0;
  if (isExtendedL2 && clusterBits < 14) {
    throw fail('cluster_bits', `is ${clusterBits}, expected 14 at least with extended L2 entries`);
  }
  const header: Qcow2Header = {
    version,
    clusterBits,
    clusterBytes,
    sizeBytes: word(AT_SIZE, 'size'),
    l1Count: start.readUInt32BE(AT_L1),
    l1At: word(40, 'l1_table_offset'),
    refcountTableAt: word(AT_REFCOUNT_TABLE, 'refcount_table_offset'),
    refcountTableBytes: start.readUInt32BE(56) * clusterBytes,
    refcountOrder: is3 ? start.readUInt32BE(96) : 4,
    snapshotCount: start.readUInt32BE(60),
    snapshotsAt: word(64, 'snapshots_offset'),
    isDirty: (incompatible & INCOMPAT_DIRTY) !== 0,
    isExtendedL2,
    compression: compression === 0 ? 'zlib' : 'zstd',
    backingName: backingNameOf(start, clusterBytes, fail),
    backingFormat: extensions.get(EXT_BACKING_FORMAT)?.toString('utf8') ?? null,
  };
  checkSizes(header, fail);
  return header;
}

/** Clusters of the disk that one L2 table maps. */
export function l2Count({ clusterBits, isExtendedL2 }: Qcow2Header): number {
  return 2 ** (clusterBits - (isExtendedL2 ? 4 : 3));
}

/** L1 entries that a disk of this size needs. */
export function l1CountFor(header: Qcow2Header, sizeBytes: number): number {
  return Math.ceil(sizeBytes / (header.clusterBytes * l2Count(header)));
}

type Fail = (field: string, problem: string) => Qcow2Error;

function failing(image: string): Fail {
  return (field, problem) => new Qcow2Error(image, field, problem);
}

function wordOf(bytes: Buffer, at: number, field: string, fail: Fail): number {
  const value = bytes.readBigUInt64BE(at);
  if (value > BigInt(MAX_DISK_BYTES)) throw fail(field, `is ${value}, beyond every file`);
  return Number(value);
}

function checkFeatures(start: Buffer, extensions: Map<number, Buffer>, fail: Fail): number {
  const low = start.readUInt32BE(AT_INCOMPATIBLE + 4);
  const all = start.readBigUInt64BE(AT_INCOMPATIBLE);
  const field = 'incompatible_features';
  if ((low & INCOMPAT_CORRUPT) !== 0) {
    throw fail(field, 'say that it is corrupt: repair it with qemu-img check -r all');
  }
  if ((low & INCOMPAT_DATA_FILE) !== 0 || extensions.has(EXT_DATA_FILE)) {
    throw fail(field, 'ask for an external data file, which is not opened: qemu-img convert it');
  }
  for (let bit = 0; bit < 64; bit++) {
    if (((all >> BigInt(bit)) & 1n) === 0n || (bit < 5 && (INCOMPAT_KNOWN >> bit) & 1)) continue;
    const name = featureName(extensions.get(EXT_FEATURE_NAMES), bit);
    throw fail(field, `have bit ${bit} (${name}), which is not known here`);
  }
  return low;
}

/** Entries of 48 bytes: type (0: incompatible), bit, name. */
function featureName(names: Buffer | undefined, bit: number): string {
  const table = names ?? Buffer.alloc(0);
  for (let at = 0; at + 48 <= table.length; at += 48) {
    if (table[at] !== 0 || table[at + 1] !== bit) continue;
    // The name is the image's: what is no letter stays out of messages.
    const name = table.toString('latin1', at + 2, at + 48).replace(/\0.*$/s, '');
    return name.replace(/[^\x20-\x7e]/g, '?');
  }
  return 'no name given';
}

function readExtensions(start: Buffer, from: number, fail: Fail): Map<number, Buffer> {
  const found = new Map<number, Buffer>();
  const backingAt = Number(start.readBigUInt64BE(8) & 0xffffffffn);
  const end = backingAt > 0 && backingAt <= start.length ? backingAt : start.length;
  for (let at = from; at + 8 <= end;) {
    const type = start.readUInt32BE(at);
    if (type === 0) break;
    const length = start.readUInt32BE(at + 4);
    if (length > end - at - 8) {
      const name = `header extension 0x${type.toString(16)}`;
      throw fail(name, `has ${length} bytes at ${at}, which leave the header`);
    }
    found.set(type, start.subarray(at + 8, at + 8 + length));
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return found;
}

function backingNameOf(start: Buffer, clusterBytes: number, fail: Fail): string | null {
  const at = wordOf(start, 8, 'backing_file_offset', fail);
  const size = start.readUInt32BE(16);
  if (at === 0) return null;
  if (size > MAX_NAME_BYTES) {
    throw fail('backing_file_size', `is ${size}, expected at most ${MAX_NAME_BYTES}`);
  }
  if (at + size > clusterBytes) throw fail('backing_file_offset', `is ${at}, outside the header`);
  return size === 0 ? null : start.toString('utf8', at, at + size);
}

function checkSizes(header: Qcow2Header, fail: Fail): void {
  const { clusterBytes, sizeBytes, l1Count, refcountOrder, snapshotCount } = header;
  if (sizeBytes === 0 || sizeBytes % SECTOR_BYTES !== 0) {
    throw fail('size', `is ${sizeBytes}, expected whole sectors of 512 bytes, one at least`);
  }
  if (l1Count * 8 > MAX_L1_BYTES) {
    throw fail('l1_size', `is ${l1Count}, expected at most ${MAX_L1_BYTES / 8}`);
  }
  const needed = l1CountFor(header, sizeBytes);
  if (l1Count < needed) {
    throw fail('l1_size', `is ${l1Count}, ${needed} are needed for ${sizeBytes} bytes`);
  }
  if (refcountOrder > 6) throw fail('refcount_order', `is ${refcountOrder}, expected 0 to 6`);
  if (header.refcountTableBytes > MAX_REFCOUNT_TABLE_BYTES) {
    const clusters = header.refcountTableBytes / clusterBytes;
    throw fail('refcount_table_clusters', `is ${clusters}, which is more than 8 MiB`);
  }
  if (snapshotCount > MAX_SNAPSHOTS) {
    throw fail('nb_snapshots', `is ${snapshotCount}, expected at most ${MAX_SNAPSHOTS}`);
  }
  const places: [string, number][] = [
    ['l1_table_offset', header.l1At],
    ['refcount_table_offset', header.refcountTableAt],
    ['snapshots_offset', snapshotCount > 0 ? header.snapshotsAt : 0],
  ];
  for (const [field, at] of places) {
    if (at % clusterBytes !== 0) throw fail(field, `is ${at}, no multiple of ${clusterBytes}`);
    if (at === 0 && field === 'l1_table_offset') throw fail(field, 'is 0, where the header is');
  }
}
