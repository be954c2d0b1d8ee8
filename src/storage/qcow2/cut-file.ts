/**
 * For tests: a file in memory that loses its power. What was not flushed is there or not, sector by
 * sector, in any order; lengths change in order. Requests take random time and may be cut within.
 */
import { LayerError } from '../layer/layer.ts';
import { SourceLayer } from '../layer/source-layer.ts';

const SECTOR = 512;
const EIO = 5;

type Op =
  | { readonly kind: 'write'; readonly sector: number; readonly bytes: Buffer }
  | { readonly kind: 'resize'; readonly sizeBytes: number };

export class CutFile extends SourceLayer {
  readonly description = 'file:cut';
  readonly readOnly = false;
  readonly #random: (below: number) => number;
  /** What everybody reads. */
  #now: Buffer;
  #sizeBytes: number;
  /** What is on the disk for certain. */
  #durable: Buffer;
  #pending: Op[] = [];
  isCut = false;
  /** Called at every step; the test cuts in one of them. */
  onStep: () => void = () => undefined;

  constructor(bytes: Uint8Array, random: (below: number) => number) {
    super();
    this.#random = random;
    this.#sizeBytes = bytes.length;
    this.#now = padded(bytes);
    this.#durable = Buffer.from(this.#now);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    await this.#step();
    into.set(this.#now.subarray(at, at + into.length));
    await this.#step();
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    await this.#step();
    if (at % SECTOR !== 0 || from.length % SECTOR !== 0 || at + from.length > this.#now.length) {
      throw new LayerError(EIO, `a write of ${from.length} bytes at ${at}`);
    }
    const bytes = Buffer.from(from);
    this.#now.set(bytes, at);
    this.#pending.push({ kind: 'write', sector: at / SECTOR, bytes });
    await this.#step();
  }

  async flush(): Promise<void> {
    await this.#step();
    const count = this.#pending.length;
    const durable = Buffer.alloc(this.#now.length);
    durable.set(this.#now);
    const size = this.#sizeBytes;
    await this.#step();
    this.#pending = this.#pending.slice(count);
    this.#durable = durable.subarray(0, Math.ceil(size / SECTOR) * SECTOR);
    await this.#step();
  }

  discard(at: number, sizeBytes: number): Promise<void> {
    return this.write(at, Buffer.alloc(sizeBytes));
  }

  zero(at: number, sizeBytes: number): Promise<void> {
    return this.write(at, Buffer.alloc(sizeBytes));
  }

  override async resize(sizeBytes: number): Promise<void> {
    await this.#step();
    this.#now = resized(this.#now, sizeBytes);
    this.#sizeBytes = sizeBytes;
    this.#pending.push({ kind: 'resize', sizeBytes });
    await this.#step();
  }

  /** The process is killed: what was written is there. */
  kill(): Buffer {
    this.isCut = true;
    return Buffer.from(this.#now);
  }

  /** What a disk holds after a cut, one of many possibilities. */
  cut(): Buffer {
    this.isCut = true;
    const resizes = this.#pending.filter(({ kind }) => kind === 'resize').length;
    let resizesLeft = this.#random(resizes + 1);
    // A share of the writes, from none to all, reaches the disk.
    const share = this.#random(101);
    let disk = Buffer.from(this.#durable);
    for (const op of this.#pending) {
      if (op.kind === 'resize') {
        if (resizesLeft-- > 0) disk = resized(disk, op.sizeBytes);
        continue;
      }
      const isWhole = this.#random(3) > 0;
      const isWritten = this.#random(100) < share;
      for (let i = 0; i < op.bytes.length / SECTOR; i++) {
        const at = (op.sector + i) * SECTOR;
        if (at >= disk.length) break; // the file is not so long
        if (isWhole ? !isWritten : this.#random(100) >= share) continue;
        op.bytes.copy(disk, at, i * SECTOR, (i + 1) * SECTOR);
      }
    }
    return disk;
  }

  async #step(): Promise<void> {
    for (let n = this.#random(3); n > 0; n--) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    if (!this.isCut) this.onStep();
    if (this.isCut) throw new LayerError(EIO, 'the power is cut');
  }
}

function padded(bytes: Uint8Array): Buffer {
  const whole = Buffer.alloc(Math.ceil(bytes.length / SECTOR) * SECTOR);
  whole.set(bytes);
  return whole;
}

function resized(bytes: Buffer, sizeBytes: number): Buffer<ArrayBuffer> {
  const next = Buffer.alloc(Math.ceil(sizeBytes / SECTOR) * SECTOR);
  bytes.copy(next, 0, 0, Math.min(bytes.length, next.length));
  return next;
}
