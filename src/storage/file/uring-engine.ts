/**
 * A disk in a regular file or on a block device, through io_uring: a batch is one system call, and
 * what takes time (the medium, a flush, a hole) takes it while the thread goes on.
 *
 * Theory of operation: a request gets a slot and a *stage*, what the kernel does for it now; a
 * completion ends the request or begins the next stage. A short transfer goes on where it stopped,
 * a range that the file system cannot zero is tried another way, a discard that must be durable is
 * followed by a flush.
 *
 *   transfer ─ done     sync ─ done     punch ┬─ (sync) ─ done
 *                                       zero ─┼─ (sync) ─ done
 *                                       fill ─┘
 *
 * What goes to the page cache and would make a kernel thread of the ring busy is done by a system
 * call, as in FileEngine, where that is faster: `bufferedWrites`. Whoever waits for a flush has
 * seen its writes complete, so a flush never waits for another entry of the ring; when its success
 * may be told is in durable-order.ts.
 *
 * With O_DIRECT, what is not aligned goes to the page cache by the second descriptor. One after the
 * other that is coherent: the kernel writes the range back before a direct read or write, and drops
 * it before a direct write (mm/filemap.c, generic_file_direct_write). At the same time it is not:
 * of a block device nothing is dropped after an asynchronous direct write, so that a page that was
 * read meanwhile stays as it was, and a page of which one half is written through the cache, the
 * other one directly, is written back with the old other half. So while a direct write is under way
 * nothing goes to the page cache, and the other way round. A bounce buffer would have to read,
 * change and write a block as one, under a lock, which the page cache has.
 */
import { assert } from '../../base/assert.ts';
import {
  drainEventfd,
  signalEventfd,
  EAGAIN,
  EINTR,
  EINVAL,
  EIO,
  enterUring,
  EOPNOTSUPP,
} from '../../sys/index.ts';
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  RWF_DSYNC,
} from '../../wire/linux.ts';
import { IORING_CQ_EVENTFD_DISABLED, IORING_ENTER_GETEVENTS } from '../../wire/io-uring.ts';
import {
  FILE_ENGINE_ZERO_BYTES,
  FileEngine,
  type FileEngineSpec,
  type UringFileSpec,
} from '../file-engine.ts';
import {
  IO_DISCARD,
  IO_ERASE,
  IO_EXTENTS,
  IO_FLUSH,
  IO_FUA,
  IO_READ,
  IO_UNMAP,
  IO_WRITE,
  IO_ZEROES,
  type IoBatch,
  type IoDone,
} from '../io-batch.ts';
import {
  harvest,
  hasCompleted,
  mustEnter,
  publishEntries,
  pushAllocate,
  pushSync,
  pushTransfer,
  skipMoved,
  writeVectors,
} from './uring.hot.ts';
import { DurableOrder } from './durable-order.ts';
import { Uring, URING_SEGMENTS, URING_SLOTS } from './uring.ts';

const STAGE_TRANSFER = 0;
const STAGE_SYNC = 1;
const STAGE_PUNCH = 2;
const STAGE_ZERO = 3;
const STAGE_FILL = 4;

/** How a request gets at the bytes; 0: it moves none. */
const BY_CACHE = 1;
const DIRECT_READ = 2;
const DIRECT_WRITE = 3;

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

/** As in file-engine.ts: what is interrupted is begun again so often. */
const INTERRUPTIONS_MAX = 1000;

export class UringEngine extends FileEngine {
  override readonly inOrder = false;
  override readonly completionFd: number;
  readonly #ring: Uring;
  readonly #fd: number;
  readonly #zerosAt: number;
  readonly #directFd: number;
  readonly #bufferedReads: boolean;
  readonly #bufferedWrites: boolean;
  /** Alignment of memory and positions; 0: nothing goes past the page cache. */
  readonly #memoryBytes: number;
  readonly #positionBytes: number;

  readonly #id = new Int32Array(URING_SLOTS);
  readonly #op = new Uint8Array(URING_SLOTS);
  readonly #flags = new Uint8Array(URING_SLOTS);
  readonly #at = new Float64Array(URING_SLOTS);
  readonly #stage = new Uint8Array(URING_SLOTS);
  readonly #way = new Uint8Array(URING_SLOTS);
  /** By way: requests that are under way. */
  readonly #underWay = new Int32Array(4);
  readonly #status = new Int32Array(URING_SLOTS);
  readonly #tries = new Int32Array(URING_SLOTS);
  readonly #free = Int32Array.from({ length: URING_SLOTS }, (_, i) => i);
  #freeCount = URING_SLOTS;
  readonly #durable = new DurableOrder(URING_SLOTS);
  readonly #finishDurable = (slot: number): void => this.#finish(slot, this.lost);
  /** Slots that have completed, oldest first, from `#finishedAt` on. */
  readonly #finished = new Int32Array(URING_SLOTS);
  #finishedAt = 0;
  #finishedCount = 0;
  /** `completionFd` is signalled; whoever calls `arm` lets it be silent meanwhile. */
  #armed = true;
  #managed = false;

  /** @throws SysError: no ring. */
  constructor(spec: FileEngineSpec, options: UringFileSpec) {
    super(spec);
    this.#fd = spec.fd;
    this.#zerosAt = spec.zerosAt;
    this.#directFd = options.direct?.fd ?? -1;
    this.#bufferedReads = options.bufferedReads;
    this.#bufferedWrites = options.bufferedWrites;
    this.#memoryBytes = options.direct?.memoryBytes ?? 0;
    this.#positionBytes = options.direct?.positionBytes ?? 0;
    this.#ring = new Uring(options.at);
    this.completionFd = this.#ring.completion.number;
  }

  override get pending(): number {
    return URING_SLOTS - this.#freeCount;
  }

  override submit(batch: IoBatch, first: number): number {
    const free = this.#free;
    let row = first;
    for (; row < batch.count && this.#freeCount > 0; row++) {
      const way = this.#wayOf(batch, row);
      if (this.#mustWait(way)) break;
      const slot = free[--this.#freeCount]!;
      this.#way[slot] = way;
      this.#underWay[way]!++;
      this.#id[slot] = batch.id[row]!;
      this.#op[slot] = batch.op[row]!;
      this.#flags[slot] = batch.flags[row]!;
      this.#at[slot] = batch.at[row]!;
      this.#tries[slot] = 0;
      const refusal = this.refusal(batch, row);
      if (refusal !== 0) this.#finish(slot, refusal);
      else this.#begin(batch, row, slot);
    }
    this.#enter();
    return row - first;
  }

  override reap(into: IoDone): number {
    if (this.#armed) this.#disableSignals();
    this.#harvest();
    const count = Math.min(this.#finishedCount, into.capacity);
    for (let i = 0; i < count; i++) {
      const slot = this.#finished[this.#finishedAt]!;
      this.#finishedAt = (this.#finishedAt + 1) & (URING_SLOTS - 1);
      into.id[i] = this.#id[slot]!;
      into.status[i] = this.#status[slot]!;
      into.op[i] = this.#op[slot]!;
      into.at[i] = this.#at[slot]!;
      this.#free[this.#freeCount++] = slot;
    }
    this.#finishedCount -= count;
    into.count = count;
    if (!this.#managed && this.#enableSignals()) signalEventfd(this.#ring.completion.number);
    return count;
  }

  arm(): boolean {
    this.#managed = true;
    return this.#enableSignals();
  }

  override settle(): void {
    const ring = this.#ring;
    for (;;) {
      this.#harvest();
      if (this.pending === this.#finishedCount) return;
      publishEntries(ring);
      const result = enterUring(ring.number, ring.unsubmitted, 1, IORING_ENTER_GETEVENTS);
      if (result > 0) ring.unsubmitted -= result;
      else checkEntered(result);
    }
  }

  override close(): void {
    assert(this.pending === 0, 'an engine that is closed has nothing pending');
    super.close();
    this.#ring.close();
  }

  #begin(batch: IoBatch, row: number, slot: number): void {
    const op = batch.op[row]!;
    if (op === IO_READ || op === IO_WRITE) return this.#beginTransfer(batch, row, slot);
    const ring = this.#ring;
    ring.fd[slot] = this.#fd;
    ring.position[slot] = batch.at[row]!;
    ring.left[slot] = batch.size[row]!;
    if (op === IO_FLUSH) this.#sync(slot);
    else if (batch.size[row] === 0) this.#finishRange(slot);
    else if (op === IO_DISCARD && !this.punches) this.#finishRange(slot);
    else if (op === IO_DISCARD || op === IO_ZEROES) this.#beginRange(slot);
    else if (op === IO_ERASE) this.#erase(slot);
    else if (op === IO_EXTENTS) this.#finish(slot, this.execute(batch, row));
    else this.#finish(slot, -EOPNOTSUPP);
  }

  /** By writing, never by what the file system could do with the range. */
  #erase(slot: number): void {
    this.#flags[slot]! |= IO_FUA;
    this.#fill(slot);
  }

  #beginTransfer(batch: IoBatch, row: number, slot: number): void {
    const ring = this.#ring;
    const isWrite = batch.op[row] === IO_WRITE;
    const isDurable = isWrite && (batch.flags[row]! & IO_FUA) !== 0;
    const hasDirect = this.#directFd >= 0;
    const toMedium = this.#way[slot]! >= DIRECT_READ;
    const buffered =
      isDurable || hasDirect || (isWrite ? this.#bufferedWrites : this.#bufferedReads);
    if (batch.size[row] === 0) return this.#finish(slot, 0);
    if (batch.segCount[row]! > URING_SEGMENTS || !(toMedium || buffered)) {
      return this.#transferByCall(batch, row, slot);
    }
    ring.fd[slot] = toMedium ? this.#directFd : this.#fd;
    ring.isWrite[slot] = isWrite ? 1 : 0;
    ring.rwFlags[slot] = isDurable ? RWF_DSYNC : 0;
    this.#stage[slot] = STAGE_TRANSFER;
    writeVectors(ring, batch, row, slot);
    pushTransfer(ring, slot);
    if (isDurable) this.#durable.begin(slot);
  }

  /** What is to be durable is so by a flush of the ring, which knows of the others. */
  #transferByCall(batch: IoBatch, row: number, slot: number): void {
    const flags = batch.flags[row]!;
    batch.flags[row] = 0;
    const status = this.execute(batch, row);
    batch.flags[row] = flags;
    this.#ring.fd[slot] = this.#fd;
    if (status !== 0 || batch.op[row] === IO_READ) this.#finish(slot, status);
    else this.#finishRange(slot);
  }

  #wayOf(batch: IoBatch, row: number): number {
    const op = batch.op[row]!;
    if (op === IO_READ || op === IO_WRITE) {
      if (this.#directFd < 0 || batch.segCount[row]! > URING_SEGMENTS) return BY_CACHE;
      if (!this.#isAligned(batch, row)) return BY_CACHE;
      return op === IO_READ ? DIRECT_READ : DIRECT_WRITE;
    }
    return op === IO_ERASE || (op === IO_ZEROES && !this.zeroes) ? BY_CACHE : 0;
  }

  /** Others are under way that it must not meet; it is offered again when they have ended. */
  #mustWait(way: number): boolean {
    if (way === BY_CACHE) return this.#underWay[DIRECT_WRITE]! > 0;
    return way === DIRECT_WRITE && this.#underWay[BY_CACHE]! > 0;
  }

  #isAligned(batch: IoBatch, row: number): boolean {
    const position = this.#positionBytes;
    const memory = this.#memoryBytes;
    if (batch.at[row]! % position !== 0 || batch.size[row]! % position !== 0) return false;
    const first = batch.segFirst[row]!;
    const end = first + batch.segCount[row]!;
    for (let s = first; s < end; s++) {
      if (batch.segOffset[s]! % memory !== 0 || batch.segLen[s]! % position !== 0) return false;
    }
    return true;
  }

  #beginRange(slot: number): void {
    const punches = this.#op[slot] === IO_DISCARD || (this.#flags[slot]! & IO_UNMAP) !== 0;
    if (punches && this.punches) this.#allocate(slot, STAGE_PUNCH);
    else if (this.zeroes) this.#allocate(slot, STAGE_ZERO);
    else this.#fill(slot);
  }

  #allocate(slot: number, stage: number): void {
    this.#stage[slot] = stage;
    pushAllocate(this.#ring, slot, stage === STAGE_PUNCH ? PUNCH : ZERO);
  }

  /** Zeros are written: as many at once as a slot has vectors. */
  #fill(slot: number): void {
    const ring = this.#ring;
    const address = ring.arenaAddress + this.#zerosAt;
    const first = slot * URING_SEGMENTS;
    let count = 0;
    for (let left = ring.left[slot]!; left > 0 && count < URING_SEGMENTS; count++) {
      const at = 4 * (first + count);
      ring.vectors[at] = address | 0;
      ring.vectors[at + 1] = address / 2 ** 32;
      ring.vectors[at + 2] = Math.min(left, FILE_ENGINE_ZERO_BYTES);
      ring.vectors[at + 3] = 0;
      left -= FILE_ENGINE_ZERO_BYTES;
    }
    ring.vecFirst[slot] = first;
    ring.vecCount[slot] = count;
    ring.isWrite[slot] = 1;
    ring.rwFlags[slot] = 0;
    this.#stage[slot] = STAGE_FILL;
    pushTransfer(ring, slot);
  }

  #sync(slot: number): void {
    if (this.lost !== 0) return this.#finish(slot, this.lost);
    this.#stage[slot] = STAGE_SYNC;
    this.#durable.begin(slot);
    pushSync(this.#ring, slot);
  }

  /** It is as it was asked for; durable, if that was asked for as well. */
  #finishRange(slot: number): void {
    if ((this.#flags[slot]! & IO_FUA) !== 0) this.#sync(slot);
    else this.#finish(slot, 0);
  }

  #finish(slot: number, status: number): void {
    this.#underWay[this.#way[slot]!]!--;
    this.#status[slot] = status;
    this.#finished[(this.#finishedAt + this.#finishedCount) & (URING_SLOTS - 1)] = slot;
    this.#finishedCount++;
  }

  /** Tells the kernel what was pushed. What it has no room for now, it is told again. */
  #enter(): void {
    const ring = this.#ring;
    if (ring.unsubmitted === 0) return;
    publishEntries(ring);
    while (ring.unsubmitted > 0) {
      const result = enterUring(ring.number, ring.unsubmitted, 0, IORING_ENTER_GETEVENTS);
      if (result > 0) ring.unsubmitted -= result;
      else if (!checkEntered(result)) return;
    }
  }

  #harvest(): void {
    const ring = this.#ring;
    if (ring.unsubmitted > 0) this.#enter();
    else if (mustEnter(ring)) checkEntered(enterUring(ring.number, 0, 0, IORING_ENTER_GETEVENTS));
    for (let count = harvest(ring); count > 0; count = harvest(ring)) {
      for (let i = 0; i < count; i++) this.#advance(ring.doneSlot[i]!, ring.doneResult[i]!);
      this.#durable.release(this.#finishDurable);
      this.#enter();
    }
  }

  #advance(slot: number, result: number): void {
    const stage = this.#stage[slot]!;
    if (stage === STAGE_TRANSFER && result === this.#ring.left[slot]) {
      if (this.#ring.rwFlags[slot] === 0) this.#finish(slot, 0);
      else this.#durable.end(slot, true);
    } else if (result === -EINTR || result === -EAGAIN) {
      if (++this.#tries[slot]! < INTERRUPTIONS_MAX) this.#repeat(slot);
      else this.#fail(slot, -EIO);
    } else if (stage === STAGE_TRANSFER) {
      this.#resume(slot, result);
    } else if (stage === STAGE_SYNC) {
      if (result < 0) this.#fail(slot, result);
      else this.#durable.end(slot, true);
    } else if (stage === STAGE_FILL) {
      this.#goOnFilling(slot, result);
    } else if (result === -EOPNOTSUPP) {
      this.#tryAnotherWay(slot, stage);
    } else if (result < 0) {
      this.#finish(slot, result);
    } else {
      this.#finishRange(slot);
    }
  }

  #repeat(slot: number): void {
    const stage = this.#stage[slot]!;
    if (stage === STAGE_SYNC) pushSync(this.#ring, slot);
    else if (stage === STAGE_PUNCH || stage === STAGE_ZERO) this.#allocate(slot, stage);
    else pushTransfer(this.#ring, slot);
  }

  /**
   * A part was moved, or nothing: the end of the file, a medium that is full or bad. Whatever
   * O_DIRECT refuses, and what is left of it, goes through the page cache.
   */
  #resume(slot: number, result: number): void {
    const ring = this.#ring;
    const wasDirect = ring.fd[slot] !== this.#fd;
    if (result <= 0 && !(wasDirect && (result === -EINVAL || result === 0))) {
      return this.#fail(slot, result === 0 ? -EIO : result);
    }
    if (result > 0) skipMoved(ring, slot, result);
    ring.fd[slot] = this.#fd;
    pushTransfer(ring, slot);
  }

  #fail(slot: number, status: number): void {
    const isSync = this.#stage[slot] === STAGE_SYNC;
    const isDurable = this.#stage[slot] === STAGE_TRANSFER && this.#ring.rwFlags[slot] !== 0;
    if (isSync || isDurable) this.#durable.end(slot, false);
    if (isDurable) this.judgeDurable(status);
    else if (isSync && this.lost === 0) this.lost = status;
    this.#finish(slot, isSync ? this.lost : status);
  }

  #goOnFilling(slot: number, result: number): void {
    const ring = this.#ring;
    if (result <= 0) return this.#finish(slot, result === 0 ? -EIO : result);
    ring.position[slot]! += result;
    ring.left[slot]! -= result;
    if (ring.left[slot]! > 0) this.#fill(slot);
    else this.#finishRange(slot);
  }

  /** The file system cannot: advice is not followed then, zeros are made some other way. */
  #tryAnotherWay(slot: number, stage: number): void {
    if (stage === STAGE_PUNCH) this.punches = false;
    else this.zeroes = false;
    if (this.#op[slot] === IO_DISCARD) this.#finishRange(slot);
    else this.#beginRange(slot);
  }

  /** True: there is something already, which is not signalled. */
  #enableSignals(): boolean {
    const ring = this.#ring;
    this.#armed = true;
    Atomics.and(ring.ring, ring.cqFlags, ~IORING_CQ_EVENTFD_DISABLED);
    return this.#finishedCount > 0 || ring.unsubmitted > 0 || hasCompleted(ring);
  }

  /** A completion that we enter the kernel for would signal again. */
  #disableSignals(): void {
    const ring = this.#ring;
    this.#armed = false;
    Atomics.or(ring.ring, ring.cqFlags, IORING_CQ_EVENTFD_DISABLED);
    drainEventfd(ring.completion.number);
  }
}

/** True: to be entered again at once. False: later, when completions have made room. */
function checkEntered(result: number): boolean {
  if (result >= 0) return false;
  if (result === -EINTR) return true;
  const isBusy = result === -EAGAIN || result === -16; // EBUSY: completions wait for us
  assert(isBusy, () => `io_uring_enter of a ring that was set up: ${result}`);
  return false;
}
