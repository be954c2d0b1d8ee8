/**
 * The storage thread's end of a RequestRing: carries requests out on a layer, as many at once as
 * there are, and says of those that failed what and where.
 */
import { messageOf, SysError } from '../../base/errors.ts';
import {
  arena,
  drainEventfd,
  EINVAL,
  EIO,
  EOPNOTSUPP,
  EROFS,
  errnoName,
  type Poll,
  pollFd,
  signalEventfd,
} from '../../sys/index.ts';
import {
  IO_DISCARD,
  IO_FLUSH,
  IO_FUA,
  IO_READ,
  IO_UNMAP,
  IO_WRITE,
  IO_ZEROES,
  ioName,
} from '../io-batch.ts';
import { type Layer, LayerError } from '../layer/layer.ts';
import { type RequestRing, SLOT_SEGMENTS } from './request-ring.ts';

/** Bytes of requests that are under way; one that is larger than this goes alone. */
const MAX_BYTES_UNDER_WAY = 64 * 2 ** 20;

/** Errors are told so often; the others are counted. */
const PROBLEM_MS = 1000;

export type LayerRunnerOptions = {
  readonly layer: Layer;
  readonly ring: RequestRing;
  readonly submitFd: number;
  readonly completionFd: number;
  /** For people: which disk, what, where, why; at most once a second. */
  readonly onProblem: (message: string) => void;
};

export class LayerRunner {
  readonly #options: LayerRunnerOptions;
  readonly #poll: Poll;
  readonly #memory = arena().bytes;
  #underWay = 0;
  #bytesUnderWay = 0;
  #isSignalDue = false;
  #toldMs = -Infinity;
  #untold = 0;
  #idle: (() => void) | null = null;

  constructor(options: LayerRunnerOptions) {
    this.#options = options;
    this.#poll = pollFd(options.submitFd, { read: true }, () => {
      drainEventfd(options.submitFd);
      this.#take();
    });
  }

  /** When it resolves nothing is under way; nothing may be submitted any more. */
  async close(): Promise<void> {
    this.#take();
    if (this.#underWay > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
    this.#poll.close();
  }

  #take(): void {
    const { ring } = this.#options;
    for (;;) {
      const size = ring.peekSize();
      if (size < 0) return;
      if (this.#underWay > 0 && this.#bytesUnderWay + size > MAX_BYTES_UNDER_WAY) return;
      this.#underWay++;
      this.#bytesUnderWay += size;
      void this.#run(ring.take(), size);
    }
  }

  async #run(slot: number, size: number): Promise<void> {
    const { ring } = this.#options;
    let status = 0;
    try {
      await this.#carryOut(slot, ring.op[slot]!, ring.at[slot]!, size);
    } catch (error) {
      status = -errnoOf(error);
      this.#failed(slot, size, error);
    }
    ring.complete(slot, status);
    this.#underWay--;
    this.#bytesUnderWay -= size;
    this.#signal();
    this.#take(); // what waited for others to end
    if (this.#underWay === 0) this.#idle?.();
  }

  #carryOut(slot: number, op: number, at: number, size: number): Promise<void> {
    const { layer, ring } = this.#options;
    if (!(at >= 0 && size >= 0 && at <= layer.sizeBytes - size)) {
      throw new LayerError(EINVAL, `the disk has ${layer.sizeBytes} bytes`);
    }
    const flags = ring.flags[slot]!;
    if (op === IO_READ) return this.#read(slot, at, size);
    if (op === IO_FLUSH) return layer.flush();
    if (layer.readOnly) throw new LayerError(EROFS, 'the disk is read-only');
    const fua = (flags & IO_FUA) !== 0;
    switch (op) {
      case IO_WRITE:
        return size === 0 ? Promise.resolve() : layer.write(at, this.#gather(slot, size), fua);
      case IO_DISCARD:
        return fua ? this.#discardNow(at, size) : layer.discard(at, size);
      case IO_ZEROES:
        return layer.zero(at, size, { unmap: (flags & IO_UNMAP) !== 0, fua });
      default:
        throw new LayerError(EOPNOTSUPP, `no layer knows ${ioName(op)}`);
    }
  }

  async #discardNow(at: number, size: number): Promise<void> {
    await this.#options.layer.discard(at, size);
    await this.#options.layer.flush();
  }

  async #read(slot: number, at: number, size: number): Promise<void> {
    if (size === 0) return;
    const bytes = Buffer.allocUnsafeSlow(size);
    await this.#options.layer.read(at, bytes);
    const { ring } = this.#options;
    let from = 0;
    const first = slot * SLOT_SEGMENTS;
    for (let s = first; s < first + ring.segCount[slot]!; s++) {
      const len = ring.segLen[s]!;
      this.#memory.set(bytes.subarray(from, from + len), ring.segOffset[s]!);
      from += len;
    }
  }

  /** A copy: the guest may change its memory while the layers look at it. */
  #gather(slot: number, size: number): Buffer {
    const bytes = Buffer.allocUnsafeSlow(size);
    const { ring } = this.#options;
    let at = 0;
    const first = slot * SLOT_SEGMENTS;
    for (let s = first; s < first + ring.segCount[slot]!; s++) {
      const offset = ring.segOffset[s]!;
      const len = ring.segLen[s]!;
      bytes.set(this.#memory.subarray(offset, offset + len), at);
      at += len;
    }
    return bytes;
  }

  /** Once for all that completes in this turn of the event loop. */
  #signal(): void {
    if (this.#isSignalDue) return;
    this.#isSignalDue = true;
    queueMicrotask(() => {
      this.#isSignalDue = false;
      signalEventfd(this.#options.completionFd);
    });
  }

  #failed(slot: number, size: number, error: unknown): void {
    const nowMs = performance.now();
    if (nowMs - this.#toldMs < PROBLEM_MS) {
      this.#untold++;
      return;
    }
    const { ring, layer } = this.#options;
    const more = this.#untold > 0 ? `; ${this.#untold} more before it` : '';
    this.#toldMs = nowMs;
    this.#untold = 0;
    const what = `${ioName(ring.op[slot]!)} of ${size} bytes at ${ring.at[slot]}`;
    const why = `${errnoName(errnoOf(error))}: ${messageOf(error)}`;
    this.#options.onProblem(`${layer.description}: ${what} failed with ${why}${more}`);
  }
}

/** Positive. */
function errnoOf(error: unknown): number {
  if (error instanceof LayerError || error instanceof SysError) return error.errno;
  // What node:fs throws has a negative one.
  const { errno } = error as { errno?: unknown };
  return typeof errno === 'number' && errno !== 0 ? Math.abs(errno) : EIO;
}
