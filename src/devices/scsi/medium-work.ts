/**
 * For commands that read the medium and go by what they find (VERIFY with data, COMPARE AND WRITE)
 * or that write what is not in the guest's memory (WRITE SAME): requests one after the other, each
 * waited for. The worker does nothing else meanwhile, which is what makes COMPARE AND WRITE atomic;
 * what such a command may move at once is bounded by WORK_BYTES, and what it may move at all by
 * limits.ts.
 */
import { arena, releaseRegion, retainRegion } from '../../sys/index.ts';
import { IO_FUA, IO_READ, IO_WRITE, IoBatch } from '../../storage/index.ts';
import { WORK_BYTES } from './limits.ts';
import type { Lun } from './lun.ts';

/** WORK_MEMORY_BYTES of private memory, made by the main thread, which alone can. */
export type WorkMemory = { readonly offset: number; readonly handle: number };

/** Id of engine requests that belong to no row; rows have ids from 0 on. */
export const WORK_ID = -1;

export class MediumWork {
  /** WORK_BYTES; what the medium has. */
  readonly bytes: Uint8Array;
  readonly offset: number;
  readonly #handle: number;
  readonly #io = new IoBatch(1, 256);
  readonly #complete: (lun: Lun) => void;
  #status = 0;
  #isDone = false;

  /** `complete` takes what an engine has completed, and tells `done` of WORK_ID. */
  constructor({ offset, handle }: WorkMemory, complete: (lun: Lun) => void) {
    this.offset = offset;
    this.#handle = handle;
    retainRegion(handle);
    this.bytes = arena().bytes.subarray(this.offset, this.offset + WORK_BYTES);
    this.#complete = complete;
  }

  /** Into `bytes`. Returns 0 or -errno. */
  read(lun: Lun, at: number, sizeBytes: number): number {
    return this.#run(lun, IO_READ, at, sizeBytes, [[this.offset, sizeBytes]], 0);
  }

  /** From `bytes`; from their begin on again when they are too few. */
  write(lun: Lun, at: number, sizeBytes: number, isDurable: boolean): number {
    return this.#run(
      lun,
      IO_WRITE,
      at,
      sizeBytes,
      repeated(this.offset, sizeBytes),
      isDurable ? IO_FUA : 0,
    );
  }

  /**
   * Somewhere for data to go that nobody wants. Not `bytes`: a read that is not waited for would
   * put its data among those of a command that goes by them.
   */
  sink(sizeBytes: number): [number, number][] {
    return repeated(this.offset + WORK_BYTES, sizeBytes);
  }

  done(status: number): void {
    this.#status = status;
    this.#isDone = true;
  }

  close(): void {
    releaseRegion(this.#handle);
  }

  #run(
    lun: Lun,
    op: number,
    at: number,
    sizeBytes: number,
    segments: readonly (readonly [number, number])[],
    flags: number,
  ): number {
    const io = this.#io;
    io.clear();
    io.id[io.add(op, at, sizeBytes, segments, flags)] = WORK_ID;
    this.#isDone = false;
    while (lun.engine.submit(io, 0) === 0) {
      lun.engine.settle();
      this.#complete(lun);
    }
    while (!this.#isDone) {
      this.#complete(lun);
      if (this.#isDone) break;
      lun.engine.settle();
    }
    return this.#status;
  }
}

/** WORK_BYTES at `offset`, as often as they fit. */
function repeated(offset: number, sizeBytes: number): [number, number][] {
  const list: [number, number][] = [];
  for (let left = sizeBytes; left > 0; left -= WORK_BYTES) {
    list.push([offset, Math.min(left, WORK_BYTES)]);
  }
  return list;
}
