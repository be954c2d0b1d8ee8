/**
 * A disk in a qcow2 image. The layer below holds the file and grows with it; another may be the
 * backing file. README.md says what is read, what is written, and what a crash may find.
 */
import { constants } from 'node:os';
import { VringError } from '../../base/errors.ts';
import { SECTOR_BYTES } from '../disk-image.ts';
import {
  type Extent,
  type Layer,
  LayerError,
  MAX_EXTENTS,
  type ZeroOptions,
} from '../layer/layer.ts';
import type { Backing } from './create.ts';
import { MAX_L1_BYTES, l1CountFor } from './format.ts';
import { Qcow2Image } from './image.ts';
import { RangeLock } from './range-lock.ts';
import { mapRange, type Piece, readRange } from './reader.ts';
import { Qcow2Writer } from './writer.ts';

export type Qcow2LayerOptions = {
  /** The image's file; the layer's from now on. */
  readonly below: Layer;
  /** What the image reads as where it has nothing. The layer's as well, unless `keepBacking`. */
  readonly backing: Layer | null;
  readonly readOnly: boolean;
  readonly keepBacking?: boolean;
};

export class Qcow2Layer implements Layer {
  readonly #image: Qcow2Image;
  readonly #keepBacking: boolean;
  readonly #locks = new RangeLock();
  #backing: Layer | null;
  #writer: Qcow2Writer;
  #isFrozen: boolean;

  private constructor(image: Qcow2Image, options: Qcow2LayerOptions) {
    this.#image = image;
    this.#backing = options.backing;
    this.#keepBacking = options.keepBacking ?? false;
    this.#writer = new Qcow2Writer(image, options.backing);
    this.#isFrozen = options.readOnly;
  }

  /**
   * Opens `options.below`. Whoever calls still owns it, and the backing layer, when this fails.
   * @throws Qcow2Error naming image, field and value.
   */
  static async open(options: Qcow2LayerOptions): Promise<Qcow2Layer> {
    const image = await Qcow2Image.open(options.below);
    if (!options.readOnly) await image.makeWritable();
    return new Qcow2Layer(image, options);
  }

  get description(): string {
    return `qcow2 over ${this.#image.below.description}`;
  }

  get sizeBytes(): number {
    return this.#image.sizeBytes;
  }

  get readOnly(): boolean {
    return this.#isFrozen;
  }

  /** The name that the image gives its backing file. */
  get backingName(): string | null {
    return this.#image.backingName;
  }

  /** Nothing may be under way. */
  setBackingName(backing: Backing | null): Promise<void> {
    return this.#image.setBackingName(backing);
  }

  get backing(): Layer | null {
    return this.#backing;
  }

  /** What is below is another from now on, and reads the same. Nothing may be under way. */
  set backing(backing: Layer | null) {
    this.#backing = backing;
    this.#writer = new Qcow2Writer(this.#image, backing);
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    const release = await this.#lock(at, into.length, false);
    try {
      await readRange(this.#image, this.#backing, at, into);
    } finally {
      release();
    }
  }

  async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    this.#checkWritable();
    let release = await this.#lock(at, from.length, false);
    let isDone = false;
    try {
      isDone = await this.#writer.writeInPlace(at, from);
    } finally {
      release();
    }
    if (!isDone) {
      release = await this.#lock(at, from.length, true);
      try {
        await this.#writer.writeRange(at, from);
      } finally {
        release();
      }
    }
    if (fua) await this.flush();
  }

  async flush(): Promise<void> {
    await this.#image.tables.settle();
    await this.#image.barrier.sync();
  }

  async discard(at: number, sizeBytes: number): Promise<void> {
    this.#checkWritable();
    await this.#alone(at, sizeBytes, () => this.#writer.discardRange(at, sizeBytes));
  }

  async zero(at: number, sizeBytes: number, { unmap, fua }: ZeroOptions): Promise<void> {
    this.#checkWritable();
    await this.#alone(at, sizeBytes, () => this.#writer.zeroRange(at, sizeBytes, unmap));
    if (fua) await this.flush();
  }

  async extents(at: number, sizeBytes: number): Promise<Extent[]> {
    const release = await this.#lock(at, sizeBytes, false);
    try {
      const extents: Extent[] = [];
      for (const piece of await this.ownPieces(at, sizeBytes)) {
        if (piece.kind === 'none') await this.#addBacking(extents, piece);
        else addExtent(extents, piece, piece.kind === 'zero' ? 'zero' : 'data');
        if (extents.length >= MAX_EXTENTS) break;
      }
      return extents.slice(0, MAX_EXTENTS);
    } finally {
      release();
    }
  }

  /** What this image itself has of a range; `none`: its backing file's. May end before it. */
  ownPieces(at: number, sizeBytes: number): Promise<Piece[]> {
    return mapRange(this.#image, at, sizeBytes, MAX_EXTENTS);
  }

  async measure(): Promise<number> {
    return this.#image.sizeBytes;
  }

  /** Larger only. */
  async resize(sizeBytes: number): Promise<void> {
    const old = this.#image.sizeBytes;
    if (sizeBytes === old) return;
    this.#checkWritable();
    const isWhole = sizeBytes % SECTOR_BYTES === 0;
    const isFit = l1CountFor(this.#image.header, sizeBytes) * 8 <= MAX_L1_BYTES;
    if (sizeBytes < old || !isWhole || !isFit) {
      const expected = 'expected is a larger size in sectors of 512 bytes, within what L1 can map';
      const wanted = `${sizeBytes} were wanted: ${expected}`;
      const text = `${this.description} keeps its ${old} bytes, ${wanted}`;
      throw new VringError('ERR_VRING_DISK_RESIZE', text);
    }
    await this.#alone(0, Number.MAX_SAFE_INTEGER, () => this.#writer.growTo(sizeBytes));
  }

  async control(name: string, payload: unknown): Promise<unknown> {
    return this.#image.below.control(name, payload);
  }

  hurry(isHurried: boolean): void {
    this.#backing?.hurry(isHurried);
    this.#image.below.hurry(isHurried);
  }

  counters(): Record<string, number> {
    const own = this.#image.isWritable ? this.#image.clusters.counters() : {};
    return {
      ...this.#backing?.counters(),
      ...this.#image.below.counters(),
      ...own,
      qcow2_allocations: this.#writer.allocations,
      qcow2_copies: this.#writer.copies,
      qcow2_flushes: this.#image.barrier.flushes,
    };
  }

  /** Clean, durable and read-only from now on. Nothing may be under way. */
  async freeze(): Promise<void> {
    await this.#image.finish();
    this.#isFrozen = true;
  }

  /** Writable again. */
  async thaw(): Promise<void> {
    await this.#image.makeWritable();
    this.#isFrozen = false;
  }

  /** Closes an image whose file is removed next. */
  async abandon(): Promise<void> {
    await this.#image.abandon();
    await this.#image.below.close();
  }

  async close(): Promise<void> {
    try {
      await this.#image.finish();
    } finally {
      try {
        await this.#image.below.close();
      } finally {
        if (!this.#keepBacking) await this.#backing?.close();
      }
    }
  }

  async #addBacking(extents: Extent[], { at, sizeBytes }: Piece): Promise<void> {
    const backing = this.#backing;
    const there = backing === null ? 0 : Math.min(sizeBytes, Math.max(0, backing.sizeBytes - at));
    let end = at;
    while (end < at + there && extents.length < MAX_EXTENTS) {
      for (const extent of await backing!.extents(end, at + there - end)) {
        addExtent(extents, extent, extent.kind);
        end = extent.at + extent.sizeBytes;
      }
    }
    if (end === at + there && there < sizeBytes) {
      addExtent(extents, { at: at + there, sizeBytes: sizeBytes - there }, 'hole');
    }
  }

  async #alone(at: number, sizeBytes: number, change: () => Promise<void>): Promise<void> {
    const release = await this.#lock(at, sizeBytes, true);
    try {
      await change();
    } finally {
      release();
    }
  }

  /** By cluster. */
  #lock(at: number, sizeBytes: number, isExclusive: boolean): Promise<() => void> {
    const { clusterBytes } = this.#image.header;
    const first = Math.floor(at / clusterBytes);
    const last = Math.floor((at + Math.max(1, sizeBytes) - 1) / clusterBytes);
    return this.#locks.acquire(first, last, isExclusive);
  }

  #checkWritable(): void {
    if (!this.#isFrozen) return;
    throw new LayerError(constants.errno.EROFS, `${this.description} is read-only`);
  }
}

function addExtent(
  extents: Extent[],
  { at, sizeBytes }: { readonly at: number; readonly sizeBytes: number },
  kind: Extent['kind'],
): void {
  const last = extents.at(-1);
  if (last?.kind !== kind) extents.push({ at, sizeBytes, kind });
  else extents[extents.length - 1] = { ...last, sizeBytes: last.sizeBytes + sizeBytes };
}
