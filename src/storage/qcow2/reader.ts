/** Where the bytes of a range of the disk are, and reading them. */
import type { Layer } from '../layer/layer.ts';
import type { Qcow2Image } from './image.ts';
import { readCompressed } from './inflate.ts';
import { type Cluster, COMPRESSED, DATA, MIXED, ZERO } from './l2-entry.ts';
import { readPast } from './read-past.ts';

export type Piece = {
  readonly at: number;
  sizeBytes: number;
  readonly kind: 'data' | 'zero' | 'none' | 'packed';
  /** Of `data`. */
  readonly hostAt: number;
  /** Of `packed`. */
  readonly cluster: Cluster | null;
};

/** In order, without gaps; neighbours that continue each other are one. At most `max`. */
export async function mapRange(
  image: Qcow2Image,
  at: number,
  sizeBytes: number,
  max = Infinity,
): Promise<Piece[]> {
  const { tables, header } = image;
  const pieces: Piece[] = [];
  const span = tables.spanBytes;
  for (let from = at; from < at + sizeBytes && pieces.length < max;) {
    const l1Index = Math.floor(from / span);
    const end = Math.min(at + sizeBytes, (l1Index + 1) * span);
    const table = await tables.use(l1Index);
    if (table === null) {
      add(pieces, { at: from, sizeBytes: end - from, kind: 'none', hostAt: 0, cluster: null });
      from = end;
      continue;
    }
    try {
      while (from < end && pieces.length < max) {
        const index = Math.floor((from % span) / header.clusterBytes);
        const clusterEnd = l1Index * span + (index + 1) * header.clusterBytes;
        const size = Math.min(end, clusterEnd) - from;
        addCluster(image, pieces, tables.clusterOf(table, index), from, size);
        from += size;
      }
    } finally {
      tables.release(table);
    }
  }
  return pieces;
}

export async function readRange(
  image: Qcow2Image,
  backing: Layer | null,
  at: number,
  into: Uint8Array,
): Promise<void> {
  const pieces = await mapRange(image, at, into.length);
  // Most reads are one piece of data: no array of promises then.
  if (pieces.length === 1) return readPiece(image, backing, pieces[0]!, into);
  await Promise.all(
    pieces.map((piece) => {
      const from = piece.at - at;
      return readPiece(image, backing, piece, into.subarray(from, from + piece.sizeBytes));
    }),
  );
}

/** What an unallocated range reads as. */
export async function readBacking(
  backing: Layer | null,
  at: number,
  into: Uint8Array,
): Promise<void> {
  if (backing === null) into.fill(0);
  else await readPast(backing, at, into);
}

async function readPiece(
  image: Qcow2Image,
  backing: Layer | null,
  piece: Piece,
  into: Uint8Array,
): Promise<void> {
  switch (piece.kind) {
    case 'data':
      return readPast(image.below, piece.hostAt, into);
    case 'zero':
      return void into.fill(0);
    case 'none':
      return readBacking(backing, piece.at, into);
    case 'packed': {
      const plain = await readCompressed(image.below, image.header, piece.cluster!);
      const from = piece.at % image.header.clusterBytes;
      into.set(plain.subarray(from, from + into.length));
    }
  }
}

function addCluster(
  image: Qcow2Image,
  pieces: Piece[],
  cluster: Cluster,
  at: number,
  sizeBytes: number,
): void {
  const { clusterBytes } = image.header;
  const hostAt = cluster.hostAt + (at % clusterBytes);
  switch (cluster.kind) {
    case DATA:
      return add(pieces, { at, sizeBytes, kind: 'data', hostAt, cluster: null });
    case COMPRESSED:
      return add(pieces, { at, sizeBytes, kind: 'packed', hostAt: 0, cluster });
    case MIXED: {
      const kinds = image.tables.subclusters(cluster);
      const step = clusterBytes / 32;
      for (let from = at; from < at + sizeBytes;) {
        const inside = from % clusterBytes;
        const end = Math.min(at + sizeBytes, from - (inside % step) + step);
        const kind = kinds[Math.floor(inside / step)]!;
        const host = kind === 'data' ? cluster.hostAt + inside : 0;
        add(pieces, { at: from, sizeBytes: end - from, kind, hostAt: host, cluster: null });
        from = end;
      }
      return;
    }
    default: {
      const kind = cluster.kind === ZERO ? 'zero' : 'none';
      return add(pieces, { at, sizeBytes, kind, hostAt: 0, cluster: null });
    }
  }
}

function add(pieces: Piece[], piece: Piece): void {
  const last = pieces.at(-1);
  const isSame = last !== undefined && last.kind === piece.kind && piece.kind !== 'packed';
  if (isSame && (piece.kind !== 'data' || last.hostAt + last.sizeBytes === piece.hostAt)) {
    last.sizeBytes += piece.sizeBytes;
  } else pieces.push(piece);
}
