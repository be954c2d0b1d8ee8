/**
 * The storage thread's end of a RequestRing: carries requests out on a layer, as many at once as
 * there are, and says of those that failed what and where.
 */
import { messageOf, SysError } from '../../base/errors.ts';
import {
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
import { putExtents } from '../extent-records.ts';
import {
  IO_DISCARD,
  IO_EXTENTS,
  IO_FLUSH,
  IO_FUA,
  IO_READ,
  IO_UNMAP,
  IO_WRITE,
  IO_ZEROES,
  IO_ZONE_REPORT,
  ioName,
} from '../io-batch.ts';
import { type Layer, LayerError } from '../layer/layer.ts';
import { ZoneError } from '../zoned/zone-types.ts';
import { type RequestRing, SLOT_SEGMENTS } from './request-ring.ts';
import { SlotData } from './slot-data.ts';
import { ZONE_STATUS, ZoneRequests } from './zone-requests.ts';

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
  readonly #data: SlotData;
  readonly #zones: ZoneRequests | null;
  #underWay = 0;
  #bytesUnderWay = 0;
  #isSignalDue = false;
  #toldMs = -Infinity;
  #untold = 0;
  #idle: (() => void) | null = null;
  /** `RequestRing.hurriedTo` as it was last seen, and how many before it are not done yet. */
  #hurriedTo = 0;
  #hurriedLeft = 0;

  constructor(options: LayerRunnerOptions) {
    this.#options = options;
    const { ring, layer } = options;
    this.#data = new SlotData(ring);
    this.#zones = layer.zones === undefined ? null : new ZoneRequests(ring, layer, this.#data);
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
      this.#lookAtHurry(); // after that: what came behind it is not taken before it was seen
      if (size < 0) return;
      if (this.#underWay > 0 && this.#bytesUnderWay + size > MAX_BYTES_UNDER_WAY) return;
      this.#underWay++;
      this.#bytesUnderWay += size;
      const { position } = ring;
      void this.#run(ring.take(), size, position);
    }
  }

  /** All that is out when somebody begins to wait goes on without limits, and nothing behind it. */
  #lookAtHurry(): void {
    const { ring, layer } = this.#options;
    const { hurriedTo } = ring;
    if (hurriedTo === this.#hurriedTo) return;
    this.#hurriedTo = hurriedTo;
    const wasHurried = this.#hurriedLeft > 0;
    this.#hurriedLeft = this.#underWay + ((hurriedTo - ring.position) | 0);
    const isHurried = this.#hurriedLeft > 0;
    if (isHurried !== wasHurried) layer.hurry(isHurried);
  }

  #hurriedDone(position: number): void {
    if (this.#hurriedLeft === 0 || ((this.#hurriedTo - position) | 0) <= 0) return;
    if (--this.#hurriedLeft === 0) this.#options.layer.hurry(false);
  }

  async #run(slot: number, bytes: number, position: number): Promise<void> {
    const { ring } = this.#options;
    const size = ring.size[slot]!;
    let status = 0;
    try {
      await this.#carryOut(slot, ring.op[slot]!, ring.at[slot]!, size);
    } catch (error) {
      status = statusOf(error);
      // What the rules of zones forbid is the driver's mistake, and told to it alone.
      if (!(error instanceof ZoneError)) this.#failed(slot, size, error);
    }
    ring.complete(slot, status);
    this.#hurriedDone(position);
    this.#underWay--;
    this.#bytesUnderWay -= bytes;
    this.#signal();
    this.#take(); // what waited for others to end
    if (this.#underWay === 0) this.#idle?.();
  }

  #carryOut(slot: number, op: number, at: number, size: number): Promise<void> {
    const { layer, ring } = this.#options;
    const range = op === IO_ZONE_REPORT ? 0 : size; // whose size is that of the report
    if (!(at >= 0 && range >= 0 && at <= layer.sizeBytes - range)) {
      throw new LayerError(EINVAL, `the disk has ${layer.sizeBytes} bytes`);
    }
    const flags = ring.flags[slot]!;
    if (this.#zones?.takes(op) === true) return this.#zones.carryOut(slot, op, at, size);
    if (op === IO_READ) return this.#read(slot, at, size);
    if (op === IO_FLUSH) return layer.flush();
    if (op === IO_EXTENTS) return this.#extents(slot, at, size);
    if (layer.readOnly) throw new LayerError(EROFS, 'the disk is read-only');
    const fua = (flags & IO_FUA) !== 0;
    switch (op) {
      case IO_WRITE:
        return size === 0 ? Promise.resolve() : layer.write(at, this.#data.gather(slot, size), fua);
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

  async #extents(slot: number, at: number, size: number): Promise<void> {
    const { ring, layer } = this.#options;
    const first = slot * SLOT_SEGMENTS;
    const extents = await layer.extents(at, size);
    putExtents(ring.segOffset[first]!, ring.segLen[first]!, extents);
  }

  async #read(slot: number, at: number, size: number): Promise<void> {
    if (size === 0) return;
    const bytes = Buffer.allocUnsafeSlow(size);
    await this.#options.layer.read(at, bytes);
    this.#data.scatter(slot, bytes, 0);
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

/** For `RequestRing.status`. */
function statusOf(error: unknown): number {
  return error instanceof ZoneError ? ZONE_STATUS[error.problem] : -errnoOf(error);
}

/** Positive. */
function errnoOf(error: unknown): number {
  if (error instanceof LayerError || error instanceof SysError) return error.errno;
  // What node:fs throws has a negative one.
  const { errno } = error as { errno?: unknown };
  return typeof errno === 'number' && errno !== 0 ? Math.abs(errno) : EIO;
}
