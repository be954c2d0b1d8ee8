/**
 * Limits on an engine, in the data plane's thread: requests that may not go yet are not taken. They
 * stay with the caller, in their order, and are offered again when the timer of `completionFd`
 * says so; so nothing is copied, and a disk that is idle, or within its limits, costs no timer.
 */
import { Epoll, Timerfd } from '../../sys/index.ts';
import type { EngineSpec } from '../disk-image.ts';
import type { Engine } from '../engine.ts';
import {
  IO_ERASE,
  IO_FLUSH,
  IO_READ,
  IO_WRITE,
  IO_ZONE_APPEND,
  type IoBatch,
  type IoDone,
} from '../io-batch.ts';
import { LimitCells, LIMITED_FIRST, RateLimits } from './rate-limits.ts';

export type LimitEngineSpec = {
  readonly kind: 'limit';
  /** Of LimitCells. */
  readonly cells: SharedArrayBuffer;
  readonly inner: EngineSpec;
};

/** Longest sleep: other limits, which nobody announces, are noticed after so long. */
const MAX_WAIT_MS = 100;

export class LimitEngine implements Engine {
  readonly inOrder: boolean;
  readonly readOnly: boolean;
  /** Where the engine below has it. */
  readonly arm?: () => boolean;
  readonly #inner: Engine;
  readonly #limits: RateLimits;
  readonly #timer = new Timerfd('timer of a limit');
  readonly #epoll: Epoll | null;
  #isTimerSet = false;
  /** What is offered next goes at once, at its cost: somebody waits for it. */
  #isHurried = false;
  /** Rows that may go and for which the engine below had no room: first of what comes next. */
  #paid = 0;
  /** Rows that were refused and have not gone yet, since when. */
  #refused = 0;
  #refusedMs = 0;

  constructor(inner: Engine, cells: SharedArrayBuffer) {
    this.#inner = inner;
    this.inOrder = inner.inOrder;
    this.readOnly = inner.readOnly;
    if (inner.arm !== undefined) this.arm = () => inner.arm!();
    this.#limits = new RateLimits(new LimitCells(cells), LIMITED_FIRST);
    this.#epoll = inner.completionFd < 0 ? null : new Epoll();
    this.#epoll?.add(inner.completionFd, 0);
    this.#epoll?.add(this.#timer.fd, 0);
  }

  get sizeBytes(): number {
    return this.#inner.sizeBytes;
  }

  /** Readable as well when what waits may go. */
  get completionFd(): number {
    return this.#epoll?.fd ?? this.#timer.fd;
  }

  get pending(): number {
    return this.#inner.pending;
  }

  get failedFlush(): number {
    return this.#inner.failedFlush ?? 0;
  }

  submit(batch: IoBatch, first: number): number {
    const offered = batch.count - first;
    const nowMs = performance.now();
    const admitted = this.#admit(batch, first, nowMs);
    const { count } = batch;
    batch.count = first + admitted;
    const taken = admitted === 0 ? 0 : this.#inner.submit(batch, first);
    batch.count = count;
    this.#paid = admitted - taken;
    this.#note(offered - taken, nowMs);
    return taken;
  }

  reap(done: IoDone): number {
    return this.#inner.reap(done);
  }

  hurry(): void {
    this.#isHurried = this.#refused > 0;
    this.#inner.hurry?.();
  }

  settle(): void {
    this.hurry();
    this.#inner.settle();
  }

  resize(sizeBytes: number): void {
    this.#inner.resize(sizeBytes);
  }

  close(): void {
    this.#inner.close();
    this.#epoll?.close();
    this.#timer.close();
  }

  /** How many rows may go, from `first` on. */
  #admit(batch: IoBatch, first: number, nowMs: number): number {
    const isHurried = this.#isHurried;
    this.#isHurried = false;
    for (let row = first + this.#paid; row < batch.count; row++) {
      const op = batch.op[row]!;
      // A flush moves nothing, and is what others wait for: it goes when it is its turn.
      if (op === IO_FLUSH) continue;
      const moves = op === IO_READ || op === IO_WRITE || op === IO_ERASE || op === IO_ZONE_APPEND;
      const sizeBytes = moves ? batch.size[row]! : 0;
      if (isHurried) this.#limits.charge(sizeBytes, nowMs);
      else if (!this.#limits.admit(sizeBytes, nowMs)) return row - first;
    }
    return batch.count - first;
  }

  /** `left` rows were not taken: counts them and their time, and sets the timer. */
  #note(left: number, nowMs: number): void {
    if (this.#refused > 0) this.#limits.count(0, this.#refused * (nowMs - this.#refusedMs));
    // Who is refused comes back with the same rows before it has others.
    if (left > this.#refused) this.#limits.count(left - this.#refused, 0);
    this.#refused = left;
    this.#refusedMs = nowMs;
    const { waitMs } = this.#limits;
    if (left > 0 && waitMs > 0) {
      this.#timer.set(Math.min(waitMs, MAX_WAIT_MS));
      this.#isTimerSet = true;
    } else if (this.#isTimerSet) {
      this.#timer.clear();
      this.#isTimerSet = false;
    }
  }
}
