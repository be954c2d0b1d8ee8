/**
 * An engine for tests that completes when it is told to, in whatever order, as one over io_uring
 * would: over another engine, which does the work then.
 */
import { assert } from '../../base/assert.ts';
import { type Engine, IoBatch, IoDone } from '../../storage/index.ts';

export class LateEngine implements Engine {
  readonly inOrder = false;
  readonly completionFd: number;
  readonly readOnly: boolean;
  /** Submitted and not carried out, each a batch of one row. */
  readonly held: IoBatch[] = [];
  readonly #inner: Engine;
  readonly #room: number;
  readonly #done = new IoDone();
  /** Requests that were carried out and wait for `reap`. */
  readonly #completed: { id: number; status: number; op: number; at: number }[] = [];
  /** Requests that were carried out. */
  carriedOut = 0;

  /** `room`: requests that it takes at once; `completionFd`: any number, nobody waits for it. */
  constructor(inner: Engine, room: number, completionFd = 1000) {
    this.#inner = inner;
    this.#room = room;
    this.completionFd = completionFd;
    this.readOnly = inner.readOnly;
  }

  get sizeBytes(): number {
    return this.#inner.sizeBytes;
  }

  get pending(): number {
    return this.held.length + this.#completed.length;
  }

  submit(batch: IoBatch, first: number): number {
    let taken = 0;
    for (let row = first; row < batch.count && this.pending < this.#room; row++, taken++) {
      const copy = new IoBatch(1);
      const from = batch.segFirst[row]!;
      const segments = Array.from({ length: batch.segCount[row]! }, (_, s): [number, number] => {
        return [batch.segOffset[from + s]!, batch.segLen[from + s]!];
      });
      const [op, at, size] = [batch.op[row]!, batch.at[row]!, batch.size[row]!];
      copy.add(op, at, size, segments, batch.flags[row]);
      copy.id[0] = batch.id[row]!;
      this.held.push(copy);
    }
    return taken;
  }

  /** Carries out the request at `index` of `held`; with `status`, fails it instead. */
  finish(index: number, status = 0): void {
    const [batch] = this.held.splice(index, 1);
    assert(batch !== undefined, 'such a request is held');
    let result = status;
    if (result === 0) {
      this.carriedOut++;
      assert(this.#inner.submit(batch, 0) === 1);
      assert(this.#inner.reap(this.#done) === 1);
      result = this.#done.status[0]!;
    }
    this.#completed.push({
      id: batch.id[0]!,
      status: result,
      op: batch.op[0]!,
      at: batch.at[0]!,
    });
  }

  reap(done: IoDone): number {
    const some = this.#completed.splice(0, done.capacity);
    for (const [i, { id, status, op, at }] of some.entries()) {
      done.id[i] = id;
      done.status[i] = status;
      done.op[i] = op;
      done.at[i] = at;
    }
    done.count = some.length;
    return some.length;
  }

  settle(): void {
    while (this.held.length > 0) this.finish(0);
  }

  resize(sizeBytes: number): void {
    this.#inner.resize(sizeBytes);
  }

  close(): void {
    assert(this.pending === 0);
    this.#inner.close();
  }
}
