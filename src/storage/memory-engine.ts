/** A disk in memory of this process, which lives as long as the process does. */
import { assert } from '../base/assert.ts';
import { BATCH_SEGMENTS } from '../base/limits.ts';
import { arena, CopyPlan, releaseRegion, retainRegion, zeroArenaPages } from '../sys/index.ts';
import { IO_DISCARD, IO_ERASE, IO_READ, IO_WRITE, IO_ZEROES, type IoBatch } from './io-batch.ts';
import { planCopies } from './plan-copies.hot.ts';
import { SyncEngine } from './sync-engine.ts';

const PAGE_BYTES = 4096;

export type MemoryEngineSpec = {
  readonly kind: 'memory';
  /** Arena offset and handle of private memory of at least `sizeBytes`. */
  readonly offset: number;
  readonly handle: number;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
};

export class MemoryEngine extends SyncEngine {
  readonly #plan = new CopyPlan(BATCH_SEGMENTS);
  readonly #offset: number;
  readonly #bytes = arena().bytes;
  #handle: number;

  constructor(spec: MemoryEngineSpec) {
    super(spec.sizeBytes, spec.readOnly);
    this.#offset = spec.offset;
    this.#handle = spec.handle;
    retainRegion(spec.handle);
  }

  override close(): void {
    super.close();
    if (this.#handle === 0) return;
    releaseRegion(this.#handle);
    this.#handle = 0;
  }

  protected execute(batch: IoBatch, row: number): number {
    const op = batch.op[row]!;
    const diskAt = this.#offset + batch.at[row]!;
    if (op === IO_READ || op === IO_WRITE) {
      const plan = this.#plan;
      const segments = batch.segCount[row]!;
      assert(segments <= plan.capacity, 'one request fits a plan');
      if (plan.count + segments > plan.capacity) plan.run();
      const first = batch.segFirst[row]!;
      plan.count = planCopies(
        batch.segOffset,
        batch.segLen,
        first,
        segments,
        diskAt,
        op === IO_WRITE,
        plan.ranges,
        plan.capacity,
        plan.count,
      );
    } else if (op === IO_ZEROES || op === IO_DISCARD) {
      this.#plan.run(); // what came first is done first
      return this.#zero(diskAt, batch.size[row]!);
    } else if (op === IO_ERASE) {
      this.#plan.run();
      // Not by giving pages back, which are zeroed when somebody gets them.
      this.#bytes.fill(0, diskAt, diskAt + batch.size[row]!);
    }
    return 0;
  }

  protected finish(): void {
    this.#plan.run();
  }

  /** Whole pages are given back, which makes them zeros; what is left of two more is filled. */
  #zero(at: number, sizeBytes: number): number {
    const end = at + sizeBytes;
    const pagesAt = Math.ceil(at / PAGE_BYTES) * PAGE_BYTES;
    const pagesEnd = Math.floor(end / PAGE_BYTES) * PAGE_BYTES;
    if (pagesAt >= pagesEnd) {
      this.#bytes.fill(0, at, end);
      return 0;
    }
    this.#bytes.fill(0, at, pagesAt);
    this.#bytes.fill(0, pagesEnd, end);
    return zeroArenaPages(pagesAt, pagesEnd - pagesAt);
  }
}
