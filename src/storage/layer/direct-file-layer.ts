/**
 * A file past the page cache, for who uses it beside a data plane that goes past it, too. Linux
 * keeps both coherent one after the other, not at the same time (file/uring-engine.ts): a page that
 * was read while a block device was written directly stays as it was.
 *
 * Data goes through aligned memory. What is read may begin and end anywhere; a write of less than
 * the file's blocks is refused, since whoever read, changed and wrote the rest of a block would
 * undo what others write there meanwhile.
 */
import { arena, EINVAL, EIO } from '../../sys/index.ts';
import { BOUNCE_BYTES, type FileBounce } from '../file-engine.ts';
import { Slots } from '../slots.ts';
import { FileLayer, type FileLayerOptions } from './file-layer.ts';
import { LayerError } from './layer.ts';

/** What goes to the file at once; larger requests go in several. */
const PIECE_BYTES = 2 ** 18;

const PIECES = BOUNCE_BYTES / PIECE_BYTES;

export class DirectFileLayer extends FileLayer {
  override readonly blockBytes: number;
  readonly #slots = new Slots(PIECES);
  readonly #free: Uint8Array[];

  /** `file` is open with O_DIRECT. */
  constructor(options: FileLayerOptions, { at, positionBytes }: FileBounce) {
    super(options);
    this.blockBytes = positionBytes;
    this.#free = Array.from({ length: PIECES }, (_, i) => {
      const start = at + i * PIECE_BYTES;
      return arena().bytes.subarray(start, start + PIECE_BYTES);
    });
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    await this.#each(at, into, (from, part, bounce) => this.#readPiece(from, part, bounce));
  }

  override async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    const { blockBytes } = this;
    if (at % blockBytes !== 0 || from.length % blockBytes !== 0) {
      const text = `${this.description}: write of ${from.length} bytes at byte ${at}`;
      throw new LayerError(EINVAL, `${text}: it has blocks of ${blockBytes} (direct=off has none)`);
    }
    await this.#each(at, from, async (to, part, bounce) => {
      bounce.set(part);
      for (let done = 0; done < part.length;) {
        done += await this.transfer('write', bounce.subarray(0, part.length), done, to);
      }
    });
    if (fua) await this.flush();
  }

  /** All pieces have ended when it settles. */
  async #each(
    at: number,
    bytes: Uint8Array,
    work: (at: number, part: Uint8Array, bounce: Uint8Array) => Promise<void>,
  ): Promise<void> {
    const pieces: Promise<void>[] = [];
    const end = at + bytes.length;
    for (let next = at; next < end;) {
      const pieceEnd = Math.min(end, Math.floor(next / PIECE_BYTES + 1) * PIECE_BYTES);
      pieces.push(this.#piece(next, bytes.subarray(next - at, pieceEnd - at), work));
      next = pieceEnd;
    }
    for (const result of await Promise.allSettled(pieces)) {
      if (result.status === 'rejected') throw result.reason;
    }
  }

  async #piece(
    at: number,
    part: Uint8Array,
    work: (at: number, part: Uint8Array, bounce: Uint8Array) => Promise<void>,
  ): Promise<void> {
    const release = await this.#slots.acquire();
    const bounce = this.#free.pop()!;
    try {
      await work(at, part, bounce);
    } finally {
      this.#free.push(bounce);
      release();
    }
  }

  /** Whole blocks around it; those of the last one that the file does not have are not missed. */
  async #readPiece(at: number, into: Uint8Array, bounce: Uint8Array): Promise<void> {
    const { blockBytes } = this;
    const start = Math.floor(at / blockBytes) * blockBytes;
    const needed = at + into.length - start;
    const whole = bounce.subarray(0, Math.ceil(needed / blockBytes) * blockBytes);
    for (let done = 0; done < needed;) {
      const count = await this.transfer('read', whole, done, start);
      done += count;
      if (done < needed && (count === 0 || count % blockBytes !== 0)) {
        throw new LayerError(EIO, `${this.description} ends at byte ${start + done}`);
      }
    }
    into.set(whole.subarray(at - start, needed));
  }
}
