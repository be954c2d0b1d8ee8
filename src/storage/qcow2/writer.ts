/**
 * Changes to an image. Whoever calls has the range's clusters to himself (`writeRange`,
 * `zeroRange`, `discardRange`), or shares them with others that change no entry (`writeInPlace`).
 *
 * An entry is in the file before the change that needs it is answered. It may be on the disk before
 * the data is; what that may show is what README.md, "What a crash may find", is about.
 */
import type { Layer } from '../layer/layer.ts';
import { AT_SIZE } from './format.ts';
import { type Cluster, COMPRESSED, DATA, dataEntry, NONE, ZERO } from './l2-entry.ts';
import type { Qcow2Image } from './image.ts';
import { mapRange, readRange } from './reader.ts';
import { SectorTable } from './sector-table.ts';

type Change = {
  readonly index: number;
  readonly old: Cluster;
  /** What is written into the new cluster, from byte `skip` of it. */
  readonly bytes: Uint8Array;
  readonly skip: number;
  hostAt: number;
};

/** A write below that is due. */
type Due = { hostAt: number; bytes: Uint8Array };

export class Qcow2Writer {
  readonly #image: Qcow2Image;
  readonly #backing: Layer | null;
  readonly #making = new Map<number, Promise<void>>();
  allocations = 0;
  copies = 0;

  constructor(image: Qcow2Image, backing: Layer | null) {
    this.#image = image;
    this.#backing = backing;
  }

  /** False: something of the range has no cluster of its own; nothing was written. */
  async writeInPlace(at: number, from: Uint8Array): Promise<boolean> {
    const image = this.#image;
    if (!image.tables.isSettled) await image.tables.settle();
    const pieces = await mapRange(image, at, from.length);
    for (const { kind, hostAt, sizeBytes } of pieces) {
      if (kind !== 'data' || !this.#isOurs(hostAt, sizeBytes)) return false;
    }
    // Packed as one with its neighbours, a cluster of ours may be followed by a mixed one: its
    // subclusters that are there are ours as well.
    const due = pieces.map(({ hostAt, at: pieceAt, sizeBytes }) => {
      const first = pieceAt - at;
      return { hostAt, bytes: from.subarray(first, first + sizeBytes) };
    });
    await this.#writeAll(due);
    return true;
  }

  async writeRange(at: number, from: Uint8Array): Promise<void> {
    await this.#image.change();
    if (!this.#image.tables.isSettled) await this.#image.tables.settle();
    const span = this.#image.tables.spanBytes;
    for (let done = 0; done < from.length;) {
      const size = Math.min(from.length - done, span - ((at + done) % span));
      await this.#writeSpan(at + done, from.subarray(done, done + size));
      done += size;
    }
  }

  async zeroRange(at: number, sizeBytes: number, unmap: boolean): Promise<void> {
    const { clusterBytes } = this.#image.header;
    await this.#image.change();
    if (!this.#image.tables.isSettled) await this.#image.tables.settle();
    const end = at + sizeBytes;
    const first = Math.ceil(at / clusterBytes) * clusterBytes;
    // What lies behind the disk's end in its last cluster is nobody's.
    const last =
      end === this.#image.sizeBytes ? end : Math.floor(end / clusterBytes) * clusterBytes;
    if (at < first) await this.#zeroPart(at, Math.min(first, end) - at);
    if (first < last) await this.#emptyClusters(first, last, unmap ? 'unmap' : 'keep');
    if (first <= last && last < end) await this.#zeroPart(last, end - last);
  }

  /** Whole clusters of the range are given back, and read as zeros. */
  async discardRange(at: number, sizeBytes: number): Promise<void> {
    const { clusterBytes } = this.#image.header;
    const first = Math.ceil(at / clusterBytes) * clusterBytes;
    const end = at + sizeBytes;
    const last =
      end === this.#image.sizeBytes ? end : Math.floor(end / clusterBytes) * clusterBytes;
    if (first >= last) return;
    await this.#image.change();
    if (!this.#image.tables.isSettled) await this.#image.tables.settle();
    await this.#emptyClusters(first, last, 'discard');
  }

  /** What is new reads as zeros, whatever the last cluster or the backing file has there. */
  async growTo(sizeBytes: number): Promise<void> {
    const image = this.#image;
    const { clusterBytes } = image.header;
    const old = image.sizeBytes;
    await image.change();
    await image.growL1(sizeBytes);
    const clusterEnd = Math.ceil(old / clusterBytes) * clusterBytes;
    const end = Math.min(sizeBytes, Math.max(clusterEnd, this.#backing?.sizeBytes ?? 0));
    image.sizeBytes = sizeBytes;
    try {
      if (end > old) await this.zeroRange(old, end - old, true);
      await image.tables.settle();
      await image.barrier.sync();
      await image.writeHeader((start) => start.writeBigUInt64BE(BigInt(sizeBytes), AT_SIZE));
    } catch (error) {
      image.sizeBytes = old;
      throw error;
    }
  }

  /** True: the range reads as zeros as long as nothing is allocated for it. */
  #isBare(at: number): boolean {
    return this.#backing === null || at >= this.#backing.sizeBytes;
  }

  #isOurs(hostAt: number, sizeBytes: number): boolean {
    const { clusters, header } = this.#image;
    const last = hostAt + sizeBytes - 1;
    for (let at = hostAt; at <= last; at += header.clusterBytes) {
      if (!clusters.isOurs(at)) return false;
    }
    return clusters.isOurs(last);
  }

  async #writeSpan(at: number, from: Uint8Array): Promise<void> {
    const { tables, clusters, barrier, header } = this.#image;
    const { clusterBytes } = header;
    const table = await this.#useWritable(Math.floor(at / tables.spanBytes));
    try {
      const due: Due[] = [];
      const changes: Change[] = [];
      let isOrdered = false;
      for (let done = 0; done < from.length;) {
        const inside = (at + done) % clusterBytes;
        const size = Math.min(from.length - done, clusterBytes - inside);
        const index = Math.floor(((at + done) % tables.spanBytes) / clusterBytes);
        const old = tables.clusterOf(table, index);
        const bytes = from.subarray(done, done + size);
        if (old.kind === DATA && clusters.isOurs(old.hostAt)) {
          due.push({ hostAt: old.hostAt + inside, bytes });
        } else {
          const { change, replacesData } = await this.#prepare(at + done, bytes, index, old);
          changes.push(change);
          isOrdered ||= replacesData;
        }
        done += size;
      }
      const places = await clusters.allocate(changes.length);
      try {
        for (const [i, change] of changes.entries()) {
          change.hostAt = places[i]!;
          due.push({ hostAt: change.hostAt + change.skip, bytes: change.bytes });
        }
        await this.#writeAll(merge(due));
        if (isOrdered) await barrier.sync();
      } catch (error) {
        clusters.giveBack(places);
        throw error;
      }
      await this.#point(table, changes);
    } finally {
      tables.release(table);
    }
  }

  /** Entries last; then the clusters that they pointed to are free. */
  async #point(table: SectorTable, changes: readonly Change[]): Promise<void> {
    if (changes.length === 0) return;
    const { tables } = this.#image;
    for (const { index, hostAt } of changes) tables.setData(table, index, hostAt);
    this.allocations += changes.length;
    await tables.write(table);
    for (const { old } of changes) this.#release(old);
  }

  /**
   * What goes into a new cluster. Where zeros were, the bytes alone: the new one holds zeros.
   * Where data was, all of it, and on the disk before the entry that replaces the old one is.
   */
  async #prepare(
    at: number,
    bytes: Uint8Array,
    index: number,
    old: Cluster,
  ): Promise<{ change: Change; replacesData: boolean }> {
    const { header, sizeBytes } = this.#image;
    const { clusterBytes } = header;
    const skip = at % clusterBytes;
    const plain: Change = { index, old, bytes, skip, hostAt: 0 };
    const clusterAt = at - skip;
    const wasZero = old.kind === ZERO || (old.kind === NONE && this.#isBare(clusterAt));
    if (wasZero) return { change: plain, replacesData: false };
    if (bytes.length === clusterBytes) return { change: plain, replacesData: true };
    const whole = Buffer.alloc(clusterBytes);
    const there = Math.min(clusterBytes, sizeBytes - clusterAt);
    await readRange(this.#image, this.#backing, clusterAt, whole.subarray(0, there));
    // What was zeros without saying so needs no order either.
    if (isZero(whole)) return { change: plain, replacesData: false };
    whole.set(bytes, skip);
    this.copies++;
    return { change: { index, old, bytes: whole, skip: 0, hostAt: 0 }, replacesData: true };
  }

  /** Within one cluster. */
  async #zeroPart(at: number, sizeBytes: number): Promise<void> {
    const { clusterBytes } = this.#image.header;
    for (const piece of await mapRange(this.#image, at, sizeBytes)) {
      const { kind, hostAt } = piece;
      if (kind === 'zero') continue;
      if (kind === 'none' && this.#isBare(piece.at - (piece.at % clusterBytes))) continue;
      if (kind === 'data' && this.#isOurs(hostAt, piece.sizeBytes)) {
        await this.#image.below.zero(hostAt, piece.sizeBytes, { unmap: false, fua: false });
      } else await this.writeRange(piece.at, Buffer.alloc(piece.sizeBytes));
    }
  }

  /** Whole clusters read as zeros; `keep`: those that are there stay allocated. */
  async #emptyClusters(at: number, end: number, how: 'unmap' | 'keep' | 'discard'): Promise<void> {
    const { tables } = this.#image;
    for (let from = at; from < end;) {
      const l1Index = Math.floor(from / tables.spanBytes);
      const spanEnd = Math.min(end, (l1Index + 1) * tables.spanBytes);
      const isNothing = tables.offsetOf(l1Index) === 0 && (how === 'discard' || this.#isBare(from));
      if (!isNothing) await this.#emptySpan(l1Index, from, spanEnd, how);
      from = spanEnd;
    }
  }

  async #emptySpan(
    l1Index: number,
    at: number,
    end: number,
    how: 'unmap' | 'keep' | 'discard',
  ): Promise<void> {
    const { tables, header, below, clusters } = this.#image;
    const table = await this.#useWritable(l1Index);
    try {
      const emptied: { index: number; kind: typeof NONE | typeof ZERO; old: Cluster }[] = [];
      const zeroed: Promise<void>[] = [];
      for (let from = at; from < end; from += header.clusterBytes) {
        const index = Math.floor((from % tables.spanBytes) / header.clusterBytes);
        const old = tables.clusterOf(table, index);
        if (old.kind === NONE && (how === 'discard' || this.#isBare(from))) continue;
        if (old.kind === ZERO && (old.hostAt === 0 || how === 'keep')) continue;
        if (how === 'keep' && old.kind === DATA && clusters.isOurs(old.hostAt)) {
          zeroed.push(below.zero(old.hostAt, header.clusterBytes, { unmap: false, fua: false }));
        } else emptied.push({ index, kind: this.#isBare(from) ? NONE : ZERO, old });
      }
      await Promise.all(zeroed);
      if (emptied.length === 0) return;
      for (const { index, kind } of emptied) tables.setEmpty(table, index, kind);
      await tables.write(table);
      for (const { old } of emptied) this.#release(old);
    } finally {
      tables.release(table);
    }
  }

  /** An L2 table that is the disk's alone; the caller releases it. */
  async #useWritable(l1Index: number): Promise<SectorTable> {
    const { tables } = this.#image;
    for (;;) {
      const at = tables.offsetOf(l1Index);
      const isOurs = at !== 0 && this.#image.clusters.isOurs(at);
      const making = this.#making.get(l1Index);
      if (isOurs && making === undefined) {
        const table = await tables.use(l1Index);
        if (table !== null) return table;
        continue;
      }
      await (making ?? this.#make(l1Index, at));
    }
  }

  #make(l1Index: number, oldAt: number): Promise<void> {
    const made = this.#makeTable(l1Index, oldAt).finally(() => this.#making.delete(l1Index));
    this.#making.set(l1Index, made);
    return made;
  }

  /** A new table of nothing, or a copy of one that a snapshot uses as well. */
  async #makeTable(l1Index: number, oldAt: number): Promise<void> {
    const { tables, clusters, below, barrier, header } = this.#image;
    const old = oldAt === 0 ? null : await tables.use(l1Index);
    const [at] = await clusters.allocate(1);
    try {
      // Written in full: what a full file system has no room for is refused here, not later.
      const bytes = old === null ? Buffer.alloc(header.clusterBytes) : Buffer.from(old.bytes);
      await below.write(at!, bytes, false);
      if (old !== null) await barrier.sync();
      tables.replace(l1Index, new SectorTable(below, at!, bytes));
    } catch (error) {
      clusters.giveBack([at!]);
      throw error;
    } finally {
      if (old !== null) tables.release(old);
    }
    const [hi, lo] = dataEntry(at!);
    tables.l1.set(l1Index, hi, lo);
    await tables.write(tables.l1);
    if (oldAt !== 0) clusters.release(oldAt, header.clusterBytes);
  }

  #release(old: Cluster): void {
    if (old.hostAt === 0) return;
    const { clusters, header } = this.#image;
    const size = old.kind === COMPRESSED ? old.packedBytes : header.clusterBytes;
    clusters.release(old.hostAt, size);
  }

  async #writeAll(due: readonly Due[]): Promise<void> {
    const { below } = this.#image;
    await Promise.all(due.map(({ hostAt, bytes }) => below.write(hostAt, bytes, false)));
  }
}

/** Neighbours in the file whose bytes are neighbours in memory as well, as one write. */
function merge(due: readonly Due[]): Due[] {
  const merged: Due[] = [];
  for (const next of due) {
    const last = merged.at(-1);
    const follows =
      last !== undefined &&
      last.hostAt + last.bytes.length === next.hostAt &&
      last.bytes.buffer === next.bytes.buffer &&
      last.bytes.byteOffset + last.bytes.length === next.bytes.byteOffset;
    if (!follows) merged.push({ ...next });
    else {
      const size = last.bytes.length + next.bytes.length;
      last.bytes = new Uint8Array(last.bytes.buffer, last.bytes.byteOffset, size);
    }
  }
  return merged;
}

function isZero(bytes: Buffer): boolean {
  return bytes.equals(ZEROS.subarray(0, bytes.length));
}

const ZEROS = Buffer.alloc(2 ** 21);
