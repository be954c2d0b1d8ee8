import { EINVAL, EROFS } from '../sys/index.ts';
import { assert } from '../base/assert.ts';
import type { Engine } from './engine.ts';
import { IO_EXTENTS, IO_FLUSH, IO_READ, IoDone, type IoBatch } from './io-batch.ts';

/** What engines share that carry requests out within `submit`. */
export abstract class SyncEngine implements Engine {
  readonly readOnly: boolean;
  readonly inOrder: boolean = true;
  readonly completionFd: number = -1;
  sizeBytes: number;
  /** Completed, waiting for `reap`. */
  readonly #done = new IoDone();
  #next = 0;

  constructor(sizeBytes: number, readOnly: boolean) {
    this.sizeBytes = sizeBytes;
    this.readOnly = readOnly;
  }

  get pending(): number {
    return this.#done.count - this.#next;
  }

  submit(batch: IoBatch, first: number): number {
    const done = this.#done;
    if (this.#next === done.count) this.#next = done.count = 0;
    const room = done.capacity - done.count;
    const count = Math.min(room, batch.count - first);
    for (let i = 0; i < count; i++) {
      const row = first + i;
      const refusal = this.refusal(batch, row);
      done.id[done.count] = batch.id[row]!;
      done.op[done.count] = batch.op[row]!;
      done.at[done.count] = batch.at[row]!;
      done.status[done.count++] = refusal !== 0 ? refusal : this.execute(batch, row);
    }
    this.finish();
    return count;
  }

  reap(into: IoDone): number {
    const done = this.#done;
    const count = Math.min(this.pending, into.capacity);
    for (let i = 0; i < count; i++) {
      const from = this.#next + i;
      into.id[i] = done.id[from]!;
      into.status[i] = done.status[from]!;
      into.op[i] = done.op[from]!;
      into.at[i] = done.at[from]!;
    }
    this.#next += count;
    into.count = count;
    return count;
  }

  settle(): void {}

  resize(sizeBytes: number): void {
    this.sizeBytes = sizeBytes;
  }

  close(): void {
    assert(this.pending === 0, 'an engine that is closed has nothing pending');
  }

  /** Carries one request out, whose range is inside the disk: 0 or -errno. */
  protected abstract execute(batch: IoBatch, row: number): number;

  /** The last request of a `submit` was executed. */
  protected abstract finish(): void;

  /** Why a request is not carried out: -errno, or 0. */
  protected refusal(batch: IoBatch, row: number): number {
    const op = batch.op[row]!;
    if (this.readOnly && op !== IO_READ && op !== IO_FLUSH && op !== IO_EXTENTS) return -EROFS;
    const at = batch.at[row]!;
    const size = batch.size[row]!;
    return at >= 0 && size >= 0 && at <= this.sizeBytes - size ? 0 : -EINVAL;
  }
}
