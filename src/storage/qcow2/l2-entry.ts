/**
 * What an L2 entry says of a cluster of the disk. Specification: qcow2.txt, "Cluster mapping",
 * "Extended L2 Entries".
 */

/** Nothing here: the backing file's bytes, or zeros. */
export const NONE = 0;
export const ZERO = 1;
/** At a host offset, all of it. */
export const DATA = 2;
export const COMPRESSED = 3;
/** Subclusters of several kinds; extended L2 entries only. */
export const MIXED = 4;

export type ClusterKind =
  | typeof NONE
  | typeof ZERO
  | typeof DATA
  | typeof COMPRESSED
  | typeof MIXED;

export type Cluster = {
  readonly kind: ClusterKind;
  /** Of DATA, MIXED, COMPRESSED; also of a ZERO that keeps its cluster. Else 0. */
  readonly hostAt: number;
  /** Of COMPRESSED: bytes from there, to the end of a sector. */
  readonly packedBytes: number;
  /** Of MIXED: bit n is subcluster n. */
  readonly allocated: number;
  readonly zeros: number;
};

const HIGH_OFFSET = 0x00ffffff; //   bits 32-55 of an entry
const HIGH_RESERVED = 0x3f000000; // bits 56-61
const HIGH_COMPRESSED = 0x40000000;
export const HIGH_COPIED = 0x80000000;
const LOW_RESERVED = 0x1fe;
const LOW_ZERO = 1;
const ALL = 0xffffffff;

/**
 * Null: bits are set that must not be. `bitmap`: of an extended entry, [zeros, allocated].
 * Bounds and alignment are the caller's to check.
 */
export function decodeEntry(
  hi: number,
  lo: number,
  clusterBits: number,
  bitmap: readonly [number, number] | null,
): Cluster | null {
  if ((hi & HIGH_COMPRESSED) !== 0) {
    return bitmap !== null && (bitmap[0] | bitmap[1]) !== 0 ? null : packed(hi, lo, clusterBits);
  }
  if ((hi & HIGH_RESERVED) !== 0 || (lo & LOW_RESERVED) !== 0) return null;
  const hostAt = (hi & HIGH_OFFSET) * 2 ** 32 + ((lo & 0xfffffe00) >>> 0);
  const plain = { hostAt, packedBytes: 0, allocated: 0, zeros: 0 };
  if (bitmap === null) {
    const kind = (lo & LOW_ZERO) !== 0 ? ZERO : hostAt === 0 ? NONE : DATA;
    return { kind, ...plain };
  }
  const [zeros, allocated] = bitmap;
  if ((lo & LOW_ZERO) !== 0 || (zeros & allocated) !== 0) return null;
  if (hostAt === 0 && allocated !== 0) return null;
  if (allocated === ALL) return { kind: DATA, ...plain };
  if (zeros === ALL) return { kind: ZERO, ...plain };
  if (zeros === 0 && allocated === 0 && hostAt === 0) return { kind: NONE, ...plain };
  return { kind: MIXED, hostAt, packedBytes: 0, allocated, zeros };
}

/** High and low word of an entry that we write: all of the cluster, ours alone. */
export function dataEntry(hostAt: number): [number, number] {
  return [(HIGH_COPIED | Math.floor(hostAt / 2 ** 32)) >>> 0, hostAt >>> 0];
}

/** The offset in an L1 entry or an L2 entry of that layout; null: reserved bits are set. */
export function tableOffset(hi: number, lo: number): number | null {
  if ((hi & 0x7f000000) !== 0 || (lo & 0x1ff) !== 0) return null;
  return (hi & HIGH_OFFSET) * 2 ** 32 + lo;
}

/** Where the entry's offset ends depends on the size of clusters: "Compressed Clusters". */
function packed(hi: number, lo: number, clusterBits: number): Cluster {
  const word = (BigInt(hi & 0x3fffffff) << 32n) | BigInt(lo);
  const offsetBits = BigInt(62 - (clusterBits - 8));
  const hostAt = Number(word & ((1n << offsetBits) - 1n));
  const sectors = Number(word >> offsetBits) + 1;
  const packedBytes = sectors * 512 - (hostAt % 512);
  return { kind: COMPRESSED, hostAt, packedBytes, allocated: 0, zeros: 0 };
}
