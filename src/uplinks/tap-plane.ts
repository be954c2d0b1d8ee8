import { MAX_FRAME_BYTES } from '../base/limits.ts';
import {
  ACCEPT_CSUM,
  ACCEPT_ECN,
  ACCEPT_TSO4,
  ACCEPT_TSO6,
  ACCEPT_USO,
  type FrameBatch,
} from '../switch/index.ts';
import { arena, readArena, writevArena } from '../sys/arena.ts';
import { ETH_HEADER_BYTES } from '../wire/ethernet.ts';
import { appendRead, gatherWrite, queueOf } from './tap.hot.ts';
import { newUplinkCounters, type UplinkPlane } from './uplink-plane.ts';

const VNET_BYTES = 12;
/** Frames that one round reads: a TAP costs one system call per frame. */
const READ_FRAMES = 32;
/** The longest frame with its tag and vnet header, rounded up to cache lines. */
const READ_SLOT_BYTES = Math.ceil((VNET_BYTES + MAX_FRAME_BYTES + 4) / 64) * 64;
/** Room in front of the slots for the header of a frame that is written. */
const WRITE_HEAD_BYTES = 128;
/** Ranges of one writev: UIO_MAXIOV of Linux. */
const WRITE_RANGES = 1024;

/** Private arena memory that a TapPlane needs: allocated by the main thread. */
export const TAP_SCRATCH_BYTES = WRITE_HEAD_BYTES + READ_FRAMES * READ_SLOT_BYTES;

const EIO = 5;
const EAGAIN = 11;
const EINVAL = 22;
const ENOBUFS = 105;

export type TapPlaneOptions = {
  /** Of `openTap`, non-blocking, one per queue; stay the caller's. */
  readonly fds: readonly number[];
  /** Bytes of IP that fit one frame. */
  readonly mtu: number;
  readonly linkUp: boolean;
  /** Arena offset of TAP_SCRATCH_BYTES. */
  readonly scratchAt: number;
  /** ACCEPT_* bits: what the kernel completes of frames that we write. */
  readonly accepts?: number;
};

/** What every kernel takes; ACCEPT_USO needs 6.2 (`setTapOffloads` tells). */
export const TAP_ACCEPTS = ACCEPT_CSUM | ACCEPT_TSO4 | ACCEPT_TSO6 | ACCEPT_ECN;
export const TAP_ACCEPTS_USO = TAP_ACCEPTS | ACCEPT_USO;

/**
 * A TAP interface as a port of the switch: what the host sends out of it is received here.
 *
 * One read(2) or writev(2) per frame. Frames are read into scratch slots of our own, so that
 * `release` has nothing to give back; a written frame's header is put together in scratch, the
 * rest is written from where the source has it. Nothing waits: what the kernel does not take now
 * is dropped and counted. The worker watches `fds`; after `receive` returned nothing, the kernel
 * has no more. Of several queues the kernel chooses by flow, and learns from ours: an answer comes
 * to the queue that its flow was written to.
 */
export class TapPlane implements UplinkPlane {
  readonly fds: readonly number[];
  readonly accepts: number;
  /** A look costs a system call per queue. */
  readonly spins = false;
  readonly counters = newUplinkCounters();
  linkUp: boolean;
  mtu: number;

  readonly #arena = arena();
  readonly #headAt: number;
  readonly #slotsAt: number;
  readonly #offsets = new Float64Array(WRITE_RANGES);
  readonly #lengths = new Int32Array(WRITE_RANGES);
  /** The fd of a TAP with one queue, else -1. */
  readonly #only: number;
  /** The queue that the next `receive` looks at first. */
  #next = 0;
  #closed = false;

  constructor(options: TapPlaneOptions) {
    this.fds = options.fds;
    this.#only = options.fds.length === 1 ? options.fds[0] : -1;
    this.mtu = options.mtu;
    this.linkUp = options.linkUp;
    this.accepts = options.accepts ?? TAP_ACCEPTS;
    this.#headAt = options.scratchAt;
    this.#slotsAt = options.scratchAt + WRITE_HEAD_BYTES;
  }

  get ready(): boolean {
    return this.linkUp && !this.#closed;
  }

  get maxFrameBytes(): number {
    return this.mtu + ETH_HEADER_BYTES;
  }

  receive(batch: FrameBatch): number {
    batch.count = 0;
    batch.segments = 0;
    if (this.#closed) return 0;
    const { length } = this.fds;
    for (let tried = 0; tried < length && batch.count === 0; tried++) {
      this.#receiveFrom(this.fds[this.#next], batch);
      this.#next = this.#next + 1 === length ? 0 : this.#next + 1;
    }
    return batch.count;
  }

  #receiveFrom(fd: number, batch: FrameBatch): void {
    const most = batch.capacity < READ_FRAMES ? batch.capacity : READ_FRAMES;
    for (let n = 0; n < most; n++) {
      const at = this.#slotsAt + n * READ_SLOT_BYTES;
      const got = readArena(fd, at, READ_SLOT_BYTES);
      if (got === -EAGAIN || got === 0) break;
      if (got <= VNET_BYTES) {
        this.counters.rxErrors++;
        break; // EIO, EBADFD: the interface went away; the worker is told by epoll
      }
      if (this.linkUp) appendRead(batch, this.#arena.view, at, got);
      else this.counters.rxDropDisabled++;
    }
  }

  release(_batch: FrameBatch): void {}

  transmit(batch: FrameBatch, list: Int32Array, count: number): number {
    let delivered = 0;
    for (let k = 0; k < count; k++) {
      const i = list[k];
      const { view } = this.#arena;
      const ranges = gatherWrite(batch, i, view, this.#headAt, this.#offsets, this.#lengths);
      const fd = this.#only >= 0 ? this.#only : this.fds[queueOf(batch, i, this.fds.length)];
      const result =
        ranges === 0 ? -EINVAL : writevArena(fd, this.#offsets, this.#lengths, 0, ranges);
      if (result >= 0) delivered++;
      else if (this.#refused(-result, count - k)) break;
    }
    return delivered;
  }

  flush(): void {}

  readKernelCounters(): void {}

  /** Idempotent. The fd is its owner's to close. */
  close(): void {
    this.#closed = true;
  }

  /** Counts a failed write; true when the `left` frames from this one on are lost with it. */
  #refused(errno: number, left: number): boolean {
    if (errno === EINVAL) {
      this.counters.txDropRefused++;
      return false;
    }
    if (errno === EAGAIN || errno === ENOBUFS) this.counters.txDropBusy += left;
    else if (errno === EIO) this.counters.txDropDown += left;
    else this.counters.txDropError += left;
    return true;
  }
}
