/**
 * The data plane of the guest: sends numbered test frames, checks what comes, or returns it, as
 * fast as one thread can. A guest started with notify 'manual' is driven from here.
 *
 * Theory of operation: rounds over all queue pairs, each round one batch per queue: take received
 * frames, check or return them, refill; take sent slots back, number the free ones, send. Rounds
 * go on for SLICE_MS, then the event loop has its turn (signals, the back-end's socket). A guest
 * that only receives and has had nothing to do for IDLE_SLICES sleeps until the back-end calls.
 */
import { assert } from '../base/assert.ts';
import { VringError } from '../base/errors.ts';
import { BATCH } from '../base/limits.ts';
import { CopyPlan, processCpuSeconds, yieldThread } from '../sys/index.ts';
import { disableCalls } from '../virtqueue/driver/index.ts';
import { parseMac } from '../wire/ethernet.ts';
import {
  NET_FEATURE_NAMES,
  NetHeader,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
} from '../wire/virtio-net.ts';
import { hasFeature } from '../wire/virtio.ts';
import { stampFrames } from './generator.hot.ts';
import type { GuestQueue } from './guest-queue.ts';
import type { NetGuest } from './net-driver.ts';
import {
  reapRx,
  reclaimTx,
  refillRx,
  reflectFrames,
  releaseRx,
  sendSlots,
} from './net-driver.hot.ts';
import {
  SINK_BYTES,
  SINK_CORRUPT,
  SINK_COUNTERS,
  SINK_FOREIGN,
  SINK_FRAMES,
  SINK_LATENCY_COUNT,
  SINK_LATENCY_MAX,
  SINK_LATENCY_SUM,
  SINK_LOST,
  SINK_RECORDS,
  SINK_REORDERED,
  SINK_REPEATED,
  SINK_STALE,
  SINK_VERIFIED,
  SINK_WINDOW,
  checkFrames,
} from './sink.hot.ts';
import { MAX_FLOWS, buildTestFrame, type GsoKind, type TestFrame } from './test-frame.ts';

const SLICE_MS = 2;
const IDLE_SLICES = 25;
const IDLE_WAIT_MS = 100;
/** After the last frame was sent: how long what is under way may take, and when it is over. */
const DRAIN_MS = 500;
const DRAIN_QUIET_MS = 50;
/** A full window from which nothing came back for so long counts as lost, and opens again. */
const WINDOW_LOST_MS = 500;

export type GenerateOptions = {
  readonly sizeBytes: number;
  readonly targetMac: string;
  readonly flows?: number;
  readonly firstFlow?: number;
  readonly vlan?: number | null;
  /** Frames per second; null for as many as go. */
  readonly rate?: number | null;
  readonly gso?: GsoKind;
  readonly gsoSize?: number;
  /** End after so many frames. */
  readonly frames?: number;
  /**
   * Through a port that reflects: frames under way at most. With a window below the ring's size
   * nothing is lost for want of buffers, however busy the machine is.
   */
  readonly window?: number | null;
};

export type TrafficOptions = {
  readonly guest: NetGuest;
  readonly generate?: GenerateOptions | null;
  /** Return what comes, MAC addresses swapped. */
  readonly echo?: boolean;
  readonly seconds?: number | null;
  readonly signal?: AbortSignal;
  /** Compare the whole pattern of one record in so many; 0 never, default 16. */
  readonly verifyEvery?: number;
};

export type TrafficReport = {
  /** From the first to the last sent frame; without a generator from first to last received. */
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly sent: Rate;
  readonly received: Rate;
  /** Records: one per frame, or one per segment. Counted by number and flow. */
  readonly records: {
    readonly sent: number;
    readonly good: number;
    readonly lost: number;
    readonly reordered: number;
    readonly repeated: number;
    readonly stale: number;
    readonly corrupt: number;
    /** Received frames that are none of ours. */
    readonly foreign: number;
    /** Compared byte by byte. */
    readonly verified: number;
  };
  /** One way, of the verified records; null when none carried a stamp of this machine. */
  readonly latency: { readonly averageUs: number; readonly maxUs: number } | null;
  /** Echo: frames that found no room in the transmit queue. */
  readonly echoDropped: number;
  readonly kicks: number;
  readonly calls: number;
};

export type Rate = {
  readonly frames: number;
  readonly bytes: number;
  readonly mpps: number;
  readonly gbitPerSecond: number;
};

/** The feature that lets the back-end segment frames of a kind. */
const GSO_FEATURE: Readonly<Record<GsoKind, number | null>> = {
  none: null,
  tcp4: VIRTIO_NET_F_HOST_TSO4,
  tcp6: VIRTIO_NET_F_HOST_TSO6,
  udp4: VIRTIO_NET_F_HOST_USO,
  udp6: VIRTIO_NET_F_HOST_USO,
};

/**
 * Runs until the time is over, `signal` aborts, the guest is stopped or closed, or it fails (then
 * this throws).
 */
export async function runTraffic(options: TrafficOptions): Promise<TrafficReport> {
  return new TrafficRun(options).run();
}

type Sender = {
  readonly queue: GuestQueue;
  readonly slotFlow: Uint16Array;
  /** Descriptors that one frame needs. */
  readonly descriptors: number;
};

class TrafficRun {
  readonly #options: TrafficOptions;
  readonly #guest: NetGuest;
  readonly #frame: TestFrame | null;
  readonly #senders: Sender[] = [];
  readonly #nextSequence = new Uint32Array(MAX_FLOWS);
  readonly #flowRun = new Int32Array(MAX_FLOWS).fill(-1);
  readonly #flowNext = new Uint32Array(MAX_FLOWS);
  readonly #flowSeen = new Int32Array((MAX_FLOWS * SINK_WINDOW) / 32);
  readonly #sink = new Float64Array(SINK_COUNTERS);
  readonly #plan = new CopyPlan(BATCH);
  readonly #clockOffset =
    process.hrtime()[0] * 1000 + process.hrtime()[1] / 1e6 - performance.now();
  #sentFrames = 0;
  #sentBytes = 0;
  #echoDropped = 0;
  #givenUp = 0;
  #lastSentAt = 0;
  #startedAt = 0;
  #sendingEndedAt = 0;
  #firstReceivedAt = 0;
  #lastReceivedAt = 0;

  constructor(options: TrafficOptions) {
    this.#options = options;
    this.#guest = options.guest;
    this.#frame = options.generate ? this.#prepare(options.generate) : null;
  }

  async run(): Promise<TrafficReport> {
    const guest = this.#guest;
    for (const queue of [...guest.rx, ...guest.tx]) disableCalls(queue.ring);
    guest.onReap = () => this.#reapAll();
    const cpuBefore = processCpuSeconds();
    this.#startedAt = performance.now();
    await this.#sending();
    this.#sendingEndedAt = performance.now();
    const cpuSeconds = processCpuSeconds() - cpuBefore;
    if (this.#frame !== null) await this.#draining();
    guest.onReap = null;
    if (guest.failure !== null) throw guest.failure;
    return this.#report(cpuSeconds);
  }

  /** What was received so far, for a guest whose rings are about to move. */
  #reapAll(): void {
    const rounds = this.#guest.rx[0].plan.size;
    for (let i = 0; i < rounds && this.#receiveRound() > 0; i++);
  }

  async #sending(): Promise<void> {
    const { seconds, signal, generate } = this.#options;
    const end = seconds == null ? Infinity : this.#startedAt + seconds * 1000;
    const limit = generate?.frames ?? Infinity;
    const sleeps = this.#frame === null;
    let idle = 0;
    while (this.#guest.running || this.#guest.moving) {
      if (!this.#guest.running) {
        await new Promise((resolve) => setTimeout(resolve, 1)); // nobody may touch the rings now
        continue;
      }
      const work = this.#slice(end, limit);
      const now = performance.now();
      if (now >= end || signal?.aborted === true || this.#guest.failure !== null) return;
      if (this.#sentFrames >= limit) return;
      idle = work > 0 ? 0 : idle + 1;
      if (!sleeps || idle < IDLE_SLICES) {
        await new Promise((resolve) => setImmediate(resolve));
        continue;
      }
      await this.#guest.waitForFrames(Math.min(IDLE_WAIT_MS, end - now));
    }
  }

  async #draining(): Promise<void> {
    const end = performance.now() + DRAIN_MS;
    let quietSince = performance.now();
    while (this.#guest.running) {
      if (this.#receiveRound() > 0) quietSince = performance.now();
      const now = performance.now();
      if (now > end || now - quietSince > DRAIN_QUIET_MS || this.#guest.failure !== null) return;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Rounds until the slice is over. Returns how many frames were moved. */
  #slice(end: number, limit: number): number {
    const sliceEnd = Math.min(performance.now() + SLICE_MS, end);
    let work = 0;
    do {
      const before = work;
      // The clock is read once in a few rounds: it costs as much as some frames.
      for (let i = 0; i < 8; i++) {
        work += this.#receiveRound();
        work += this.#sendRound(limit);
        if (this.#guest.failure !== null) return work;
      }
      this.#guest.yieldToDevice();
      // What we wait for may wait for our processor: two guests and a switch on two cores.
      if (work === before) yieldThread();
    } while (performance.now() < sliceEnd);
    return work;
  }

  #receiveRound(): number {
    const guest = this.#guest;
    let total = 0;
    for (let i = 0; i < guest.rx.length; i++) {
      const queue = guest.rx[i];
      const frames = guest.rxFrames[i];
      const count = reapRx(queue, frames, guest.mergeable);
      if (count < 0) {
        guest.reportFault(queue, count);
        return total;
      }
      if (frames.slotCount === 0) continue;
      this.#lastReceivedAt = performance.now();
      if (this.#sink[SINK_FRAMES] === 0) this.#firstReceivedAt = this.#lastReceivedAt;
      checkFrames(
        queue.arena,
        frames.offset,
        frames.len,
        count,
        this.#flowRun,
        this.#flowNext,
        this.#flowSeen,
        this.#sink,
        this.#options.verifyEvery ?? 16,
        this.#stamp(this.#lastReceivedAt),
      );
      if (this.#options.echo === true) this.#echo(guest.tx[i], i, count);
      releaseRx(queue, frames);
      refillRx(queue);
      guest.kickIfWanted(queue);
      total += count;
    }
    return total;
  }

  #echo(tx: GuestQueue, index: number, count: number): void {
    const reclaimed = reclaimTx(tx);
    if (reclaimed < 0) return this.#guest.reportFault(tx, reclaimed);
    const frames = this.#guest.rxFrames[index];
    const sent = reflectFrames(tx, frames, 0, count, this.#plan);
    for (let i = 0; i < sent; i++) this.#sentBytes += frames.len[i];
    this.#sentFrames += sent;
    this.#echoDropped += count - sent;
    if (sent > 0) this.#guest.kickIfWanted(tx);
  }

  #sendRound(limit: number): number {
    const frame = this.#frame;
    if (frame === null) return 0;
    let total = 0;
    for (const sender of this.#senders) {
      const { queue } = sender;
      const reclaimed = reclaimTx(queue);
      if (reclaimed < 0) {
        this.#guest.reportFault(queue, reclaimed);
        return total;
      }
      const room = Math.floor(queue.ring.free / sender.descriptors);
      const now = performance.now();
      const count = Math.min(
        BATCH,
        queue.freeCount,
        room,
        this.#due(now),
        limit - this.#sentFrames,
      );
      if (count <= 0) continue;
      stampFrames(
        queue.arena,
        queue.slotOffset,
        sender.slotFlow,
        queue.freeSlots,
        queue.freeCount,
        count,
        frame.recordAt,
        frame.recordBytes,
        frame.records,
        this.#nextSequence,
        this.#stamp(now),
      );
      const sent = sendSlots(queue, count, frame.bytes.length, this.#guest.headerApart);
      this.#guest.kickIfWanted(queue);
      this.#lastSentAt = now;
      this.#sentFrames += sent;
      this.#sentBytes += sent * (frame.bytes.length - NetHeader.size);
      total += sent;
    }
    return total;
  }

  /** Frames that the rate limit and the window allow now. */
  #due(now: number): number {
    const { rate, window } = this.#options.generate ?? {};
    let due = BATCH;
    if (rate != null) {
      due = Math.min(due, Math.floor(((now - this.#startedAt) / 1000) * rate) - this.#sentFrames);
    }
    if (window == null) return due;
    const underWay = this.#sentFrames - this.#sink[SINK_FRAMES] - this.#givenUp;
    if (underWay < window) return Math.min(due, window - underWay);
    if (now - Math.max(this.#lastReceivedAt, this.#lastSentAt) > WINDOW_LOST_MS) {
      this.#givenUp += underWay;
    }
    return 0;
  }

  /** Microseconds of the machine's monotonic clock: the same for all processes. */
  #stamp(now: number): number {
    return (Math.floor((now + this.#clockOffset) * 1000) % 4294967296) | 0;
  }

  /** Writes the frame of its flow into every transmit slot. */
  #prepare(generate: GenerateOptions): TestFrame {
    const guest = this.#guest;
    this.#checkFits(generate);
    const flows = Math.min(generate.flows ?? 1, MAX_FLOWS - (generate.firstFlow ?? 0));
    const run = 1 + Math.floor(Math.random() * 0xfffe);
    let frame: TestFrame | null = null;
    for (const [q, queue] of guest.tx.entries()) {
      // A flow stays in one queue, so that nothing changes its order.
      const all = Array.from({ length: flows }, (_, i) => i);
      const own = all.filter((i) => i % guest.tx.length === q);
      if (own.length === 0) continue;
      const frames = own.map((i) =>
        buildTestFrame({
          sizeBytes: generate.sizeBytes,
          sourceMac: parseMac(guest.mac) ?? new Uint8Array(6),
          targetMac: parseMac(generate.targetMac) ?? new Uint8Array(6),
          flow: i + (generate.firstFlow ?? 0),
          run,
          vlan: generate.vlan ?? null,
          gso: generate.gso ?? 'none',
          gsoSize: generate.gsoSize ?? 1400,
        }),
      );
      frame = frames[0];
      const slotFlow = new Uint16Array(queue.plan.slots);
      for (let slot = 0; slot < slotFlow.length; slot++) {
        const which = slot % own.length;
        slotFlow[slot] = own[which];
        const target = new Uint8Array(queue.arena.buffer, queue.slotOffset[slot], queue.slotBytes);
        target.set(frames[which].bytes);
      }
      this.#senders.push({ queue, slotFlow, descriptors: this.#descriptors(queue, frame) });
    }
    assert(frame !== null, 'there is at least one flow');
    return frame;
  }

  #checkFits(generate: GenerateOptions): void {
    const feature = GSO_FEATURE[generate.gso ?? 'none'];
    if (feature !== null && !hasFeature(this.#guest.features, feature)) {
      const name = NET_FEATURE_NAMES[feature];
      throw new VringError('ERR_VRING_GUEST_FEATURE', `${generate.gso}: ${name} is not negotiated`);
    }
    const room = this.#guest.tx[0].slotBytes - NetHeader.size;
    if (generate.sizeBytes <= room) return;
    throw new VringError(
      'ERR_VRING_GUEST_FRAME_SIZE',
      `a frame of ${generate.sizeBytes} bytes; the guest was started for ${room} at most`,
    );
  }

  #descriptors(queue: GuestQueue, frame: TestFrame): number {
    const apart = this.#guest.headerApart ? NetHeader.size : 0;
    if (queue.plan.indirect) return 1;
    return Math.ceil((frame.bytes.length - apart) / queue.segmentBytes) + (apart > 0 ? 1 : 0);
  }

  #report(cpuSeconds: number): TrafficReport {
    const sink = this.#sink;
    const seconds =
      this.#frame !== null
        ? (this.#sendingEndedAt - this.#startedAt) / 1000
        : (this.#lastReceivedAt - this.#firstReceivedAt) / 1000;
    const rate = (frames: number, bytes: number): Rate => ({
      frames,
      bytes,
      mpps: seconds > 0 ? frames / seconds / 1e6 : 0,
      gbitPerSecond: seconds > 0 ? (bytes * 8) / seconds / 1e9 : 0,
    });
    const count = sink[SINK_LATENCY_COUNT];
    const latency =
      count > 0
        ? { averageUs: sink[SINK_LATENCY_SUM] / count, maxUs: sink[SINK_LATENCY_MAX] }
        : null;
    const queues = [...this.#guest.rx, ...this.#guest.tx];
    return {
      seconds,
      cpuSeconds,
      sent: rate(this.#sentFrames, this.#sentBytes),
      received: rate(sink[SINK_FRAMES], sink[SINK_BYTES]),
      records: {
        sent: this.#sentFrames * (this.#frame?.records ?? 0),
        good: sink[SINK_RECORDS],
        lost: sink[SINK_LOST],
        reordered: sink[SINK_REORDERED],
        repeated: sink[SINK_REPEATED],
        stale: sink[SINK_STALE],
        corrupt: sink[SINK_CORRUPT],
        foreign: sink[SINK_FOREIGN],
        verified: sink[SINK_VERIFIED],
      },
      latency,
      echoDropped: this.#echoDropped,
      kicks: queues.reduce((sum, queue) => sum + queue.kicks, 0),
      calls: queues.reduce((sum, queue) => sum + queue.calls, 0),
    };
  }
}
