/**
 * An open image: its header, tables, clusters, and the life of its dirty bit.
 *
 *   clean ── first change ──► dirty: refcounts of the file mean nothing ── finish ──► clean
 *
 * README.md, "What a crash may find", says why each step is where it is.
 */
import { assert } from '../../base/assert.ts';
import { SECTOR_BYTES } from '../disk-image.ts';
import type { Layer } from '../layer/layer.ts';
import { Barrier } from './barrier.ts';
import { Clusters } from './clusters.ts';
import { type Backing, nameBacking } from './create.ts';
import {
  AT_AUTOCLEAR,
  AT_INCOMPATIBLE,
  AT_L1,
  AT_REFCOUNT_TABLE,
  clusterBitsOf,
  headerBytes,
  INCOMPAT_DIRTY,
  l1CountFor,
  parseHeader,
  type Qcow2Header,
} from './format.ts';
import { Qcow2Error } from './qcow2-error.ts';
import { readPast } from './read-past.ts';
import { type RefcountPlace, writeRefcounts } from './refcounts.ts';
import { SectorTable } from './sector-table.ts';
import { Tables } from './tables.ts';
import { walkImage } from './walk.ts';

export class Qcow2Image {
  readonly below: Layer;
  readonly header: Qcow2Header;
  readonly tables: Tables;
  readonly barrier: Barrier;
  /** The disk's: `header.sizeBytes` is what it was when the image was opened. */
  sizeBytes: number;
  backingName: string | null;
  #l1Count: number;
  /** First sector, as it is in the file. */
  readonly #start: Buffer;
  #clusters: Clusters | null = null;
  #refcountBlocks: number[] = [];
  #refcountTable: RefcountPlace;
  #dirty: Promise<void> | null = null;
  /** The file says so. */
  #isDirty: boolean;

  private constructor(below: Layer, header: Qcow2Header, start: Buffer, l1: SectorTable) {
    this.below = below;
    this.header = header;
    this.sizeBytes = header.sizeBytes;
    this.backingName = header.backingName;
    this.#l1Count = header.l1Count;
    this.tables = new Tables(below, header, l1);
    this.barrier = new Barrier(below, () => this.#clusters?.beforeFlush() ?? (() => undefined));
    this.#start = start;
    this.#isDirty = header.isDirty;
    const clusters = header.refcountTableBytes / header.clusterBytes;
    this.#refcountTable = { at: header.refcountTableAt, clusters };
  }

  /** Reads header and L1 table; writes nothing. @throws Qcow2Error. */
  static async open(below: Layer): Promise<Qcow2Image> {
    const image = below.description;
    if (below.sizeBytes < 72) throw new Qcow2Error(image, 'the file', 'is too short for a header');
    const sector = Buffer.alloc(SECTOR_BYTES);
    await readPast(below, 0, sector);
    const start = Buffer.alloc(headerBytes(clusterBitsOf(sector, image)));
    await readPast(below, 0, start);
    const header = parseHeader(start, image);
    const l1Bytes = Buffer.alloc(sectors(header.l1Count * 8));
    if (header.l1At + header.l1Count * 8 > sectors(below.sizeBytes)) {
      throw new Qcow2Error(image, 'l1_table_offset', `is ${header.l1At}, outside the file`);
    }
    await readPast(below, header.l1At, l1Bytes);
    const l1 = new SectorTable(below, header.l1At, l1Bytes);
    return new Qcow2Image(below, header, start.subarray(0, SECTOR_BYTES), l1);
  }

  get isDirty(): boolean {
    return this.#isDirty;
  }

  get isWritable(): boolean {
    return this.#clusters !== null;
  }

  get clusters(): Clusters {
    assert(this.#clusters !== null, 'only a writable image allocates');
    return this.#clusters;
  }

  /**
   * Counts all references, so that clusters can be allocated. An image that was left dirty is clean
   * again when its owner has written to it and finished.
   * @throws Qcow2Error: something points where it must not.
   */
  async makeWritable(): Promise<void> {
    const { below, header, barrier } = this;
    if (this.#clusters !== null) return;
    if (header.version === 2) {
      const text = 'is 2, which has no dirty bit to write safely: qemu-img amend -o compat=1.1 it';
      throw new Qcow2Error(below.description, 'version', text);
    }
    const { refcounts, end, refcountBlocks } = await walkImage(below, header, this.tables);
    this.#refcountBlocks = refcountBlocks;
    const { clusterBytes, refcountOrder } = header;
    const options = { below, barrier, clusterBytes, refcountOrder, refcounts, end };
    this.#clusters = new Clusters(options);
    if (this.#isDirty) await this.change();
  }

  /** Before the first change, once: the file says, durably, that refcounts mean nothing. */
  change(): Promise<void> {
    this.#dirty ??= this.#begin().catch((error: unknown) => {
      this.#dirty = null;
      throw error;
    });
    return this.#dirty;
  }

  /** A field of the header's first sector, durably. */
  async writeHeader(edit: (start: Buffer) => void): Promise<void> {
    const next = Buffer.from(this.#start);
    edit(next);
    await this.below.write(0, next, false);
    next.copy(this.#start);
    await this.barrier.sync();
  }

  /** Another name for what is below; in an image that we made. */
  async setBackingName(backing: Backing | null): Promise<void> {
    const start = Buffer.alloc(this.header.clusterBytes);
    await readPast(this.below, 0, start);
    this.#start.copy(start);
    nameBacking(start, backing);
    await this.below.write(0, start, false);
    start.copy(this.#start, 0, 0, SECTOR_BYTES);
    await this.barrier.sync();
    this.backingName = backing?.name ?? null;
  }

  /** The L1 table has entries for so large a disk: a larger one in another place, durably. */
  async growL1(sizeBytes: number): Promise<void> {
    const { tables, below, header, barrier } = this;
    const count = l1CountFor(header, sizeBytes);
    if (count <= this.#l1Count) return;
    const clusters = Math.ceil((count * 8) / header.clusterBytes);
    const at = await this.clusters.allocateRun(clusters);
    const bytes = Buffer.alloc(clusters * header.clusterBytes);
    tables.l1.bytes.copy(bytes, 0, 0, this.#l1Count * 8);
    await below.write(at, bytes, false);
    await barrier.sync();
    await this.writeHeader((start) => {
      start.writeUInt32BE(count, AT_L1);
      start.writeBigUInt64BE(BigInt(at), AT_L1 + 4);
    });
    this.clusters.release(tables.l1.at, this.#l1Count * 8);
    tables.l1 = new SectorTable(below, at, bytes);
    this.#l1Count = count;
  }

  /** Everything is in the file and durable, refcounts as well; the next change begins anew. */
  async finish(): Promise<void> {
    if (this.#clusters === null || this.#dirty === null) return;
    await this.tables.settle();
    await this.#clusters.settle();
    const { below, header, barrier } = this;
    const blocks = this.#refcountBlocks;
    const table = this.#refcountTable;
    const place = await writeRefcounts(below, header, this.#clusters, blocks, table);
    await barrier.sync();
    await this.writeHeader((start) => {
      start.writeBigUInt64BE(BigInt(place.at), AT_REFCOUNT_TABLE);
      start.writeUInt32BE(place.clusters, AT_REFCOUNT_TABLE + 8);
      const low = start.readUInt32BE(AT_INCOMPATIBLE + 4);
      start.writeUInt32BE((low & ~INCOMPAT_DIRTY) >>> 0, AT_INCOMPATIBLE + 4);
    });
    this.#refcountTable = place;
    this.#dirty = null;
    this.#isDirty = false;
    await this.#clusters.settle();
    await this.#clusters.trim();
    await barrier.sync();
    await this.#clusters.settle();
  }

  /** For an image whose file is removed next: nothing is made durable. */
  async abandon(): Promise<void> {
    await this.#clusters?.settle();
  }

  async #begin(): Promise<void> {
    const clusters = this.clusters;
    await this.writeHeader((start) => {
      const low = start.readUInt32BE(AT_INCOMPATIBLE + 4);
      start.writeUInt32BE((low | INCOMPAT_DIRTY) >>> 0, AT_INCOMPATIBLE + 4);
      // What we do not keep up, such as bitmaps, is no longer true.
      start.writeBigUInt64BE(0n, AT_AUTOCLEAR);
    });
    this.#isDirty = true;
    await clusters.trim();
  }
}

function sectors(bytes: number): number {
  return Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES;
}
