import type { FrameBatch } from '../switch/index.ts';
import { arena } from '../sys/arena.ts';
import { ringReceive, ringSend } from '../sys/packet-socket.ts';
import { xdpStatistics } from '../sys/xdp-socket.ts';
import { XDP_RING_NEED_WAKEUP } from '../wire/xdp.ts';
import {
  publish,
  readDescriptors,
  reapCompletions,
  refill,
  writeDescriptors,
  XdpReceiver,
  type XdpRing,
  XdpSender,
} from './xdp.hot.ts';
import {
  XDP_RX_ENTRIES,
  XDP_TX_ENTRIES,
  type XdpQueuePlace,
  type XdpRingPlace,
} from './xdp-sockets.ts';
import { QueuedPlane } from './queued-plane.ts';

export type XdpPlaneOptions = {
  /** None: until `attach`. */
  readonly queues: readonly XdpQueuePlace[];
  /** Bytes of IP that fit one frame. */
  readonly mtu: number;
  readonly linkUp: boolean;
};

const EAGAIN = 11;
const EBUSY = 16;
const ENODEV = 19;
const ENXIO = 6;
const ENETDOWN = 100;
const ENOBUFS = 105;

/** A system call sends 32 frames at least (TX_BATCH_SIZE of net/xdp/xsk.c before Linux 6.18). */
const FRAMES_PER_SEND = 32;
const SEND_TRIES = 2 * Math.ceil(XDP_TX_ENTRIES / FRAMES_PER_SEND);

/** Flushes that leave frames before the worker may sleep with them: some milliseconds. */
const REFUSALS_MAX = 100;

/** One socket with its four rings. */
class XdpQueue {
  readonly fd: number;
  readonly rx: XdpRing;
  readonly tx: XdpRing;
  readonly fill: XdpRing;
  readonly completion: XdpRing;
  readonly receiver: XdpReceiver;
  readonly sender: XdpSender;
  /** As of the last `readKernelCounters`. */
  noRoom = 0;
  dropped = 0;
  invalid = 0;

  constructor(place: XdpQueuePlace) {
    const { umemAt, chunkBytes } = place;
    this.fd = place.fd;
    this.rx = ringOf(place.rx, XDP_RX_ENTRIES);
    this.tx = ringOf(place.tx, XDP_TX_ENTRIES);
    this.fill = ringOf(place.fill, XDP_RX_ENTRIES);
    this.completion = ringOf(place.completion, XDP_TX_ENTRIES);
    this.receiver = new XdpReceiver(umemAt, chunkBytes, XDP_RX_ENTRIES);
    // Behind the chunks for arriving frames.
    const ours = Int32Array.from(
      { length: XDP_TX_ENTRIES },
      (_, k) => (XDP_RX_ENTRIES + k) * chunkBytes,
    );
    this.sender = new XdpSender(umemAt, chunkBytes, ours);
  }
}

function ringOf(place: XdpRingPlace, entries: number): XdpRing {
  const { layout } = place;
  return {
    words: new Int32Array(arena().buffer, place.offset, place.sizeBytes >> 2),
    producerAt: layout.producerAt >> 2,
    consumerAt: layout.consumerAt >> 2,
    flagsAt: layout.flagsAt >> 2,
    descAt: layout.descAt >> 2,
    mask: entries - 1,
  };
}

/**
 * Queues of an interface by AF_XDP as a port of the switch. What arrives at them is received here
 * and nowhere else: the host's own stack does not see it.
 *
 * Theory of operation. Chunks of our memory wander through four rings: filled by us, received with
 * a frame, and back; written by us, sent, and back. Frames are forwarded from the chunk that they
 * arrived in, and `release` gives it back. There are no offloads: the switch completes checksums
 * and cuts up what is long. Frames leave by the first queue, which keeps the order of a flow.
 */
export class XdpPlane extends QueuedPlane<XdpQueuePlace, XdpQueue> {
  readonly accepts = 0;
  /** Flushes in a row after which the ring still had frames. */
  #refusals = 0;

  constructor(options: XdpPlaneOptions) {
    super(options);
    this.attach(options.queues);
  }

  protected open(place: XdpQueuePlace): XdpQueue {
    return new XdpQueue(place);
  }

  protected receiveFrom(queue: XdpQueue, batch: FrameBatch): number {
    const { rx, receiver } = queue;
    const available = (Atomics.load(rx.words, rx.producerAt) - receiver.consumer) | 0;
    if (available <= 0) return 0;
    if (!this.linkUp) {
      receiver.taken = available;
      this.counters.rxDropDisabled += available;
      this.#refill(queue);
      return 0;
    }
    const count = readDescriptors(rx, receiver, available, batch, this.plan);
    this.counters.rxErrors += receiver.errors;
    receiver.errors = 0;
    if (count > 0) this.current = queue;
    else this.#refill(queue);
    return count;
  }

  release(_batch: FrameBatch): void {
    const queue = this.current;
    this.current = null;
    if (queue !== null) this.#refill(queue);
  }

  #refill(queue: XdpQueue): void {
    const { rx, fill, receiver } = queue;
    refill(rx, fill, receiver);
    // A driver that ran out of chunks sleeps until it is told of new ones.
    if ((Atomics.load(fill.words, fill.flagsAt) & XDP_RING_NEED_WAKEUP) !== 0) {
      ringReceive(queue.fd);
    }
  }

  transmit(batch: FrameBatch, list: Int32Array, count: number): number {
    const queue = this.queues[0];
    const { tx, completion, sender } = queue;
    if (sender.freeCount < XDP_TX_ENTRIES / 2) reapCompletions(completion, sender);
    let written = writeDescriptors(tx, sender, batch, list, count, this.plan);
    if (written < count && (sender.isDirty || this.#unsent(queue) > 0)) {
      // All chunks are in use; some are free again when the kernel was told of them.
      this.#send(queue);
      reapCompletions(completion, sender);
      written += this.#writeRest(queue, batch, list, written, count);
    }
    this.counters.txDropBusy += count - written;
    return written;
  }

  /** Frames one by one: rare, and so needs no list of its own. */
  #writeRest(
    { tx, sender }: XdpQueue,
    batch: FrameBatch,
    list: Int32Array,
    from: number,
    count: number,
  ): number {
    for (let k = from; k < count; k++) {
      this.one[0] = list[k];
      if (writeDescriptors(tx, sender, batch, this.one, 1, this.plan) === 0) return k - from;
    }
    return count - from;
  }

  /** Entries of the ring cannot be taken back: the kernel is asked again until it has them. */
  get isUnsent(): boolean {
    return this.#refusals > 0 && this.#refusals < REFUSALS_MAX;
  }

  flush(): void {
    const queue = this.queues[0];
    if (queue !== undefined && queue.sender.isDirty) this.#send(queue);
  }

  readKernelCounters(): void {
    const { counters } = this;
    for (const queue of this.queues) {
      const statistics = xdpStatistics(queue.fd);
      if (statistics === null) continue;
      counters.rxDropNoRoom += statistics.rxNoRoom - queue.noRoom;
      counters.rxErrors += statistics.rxDropped - queue.dropped;
      counters.txDropRefused += statistics.txInvalid - queue.invalid;
      queue.noRoom = statistics.rxNoRoom;
      queue.dropped = statistics.rxDropped;
      queue.invalid = statistics.txInvalid;
    }
  }

  override detach(): void {
    const queue = this.queues[0];
    if (queue !== undefined) this.counters.txDropDown += this.#unsent(queue);
    this.#refusals = 0;
    super.detach();
  }

  close(): void {
    this.detach();
  }

  /** What the kernel does not take now stays in the ring, and is sent with the next flush. */
  #send(queue: XdpQueue): void {
    const { tx, sender } = queue;
    const refusals = this.#refusals;
    this.#refusals = 0;
    publish(tx, sender);
    if ((Atomics.load(tx.words, tx.flagsAt) & XDP_RING_NEED_WAKEUP) === 0) return;
    for (let tries = 0; tries < SEND_TRIES; tries++) {
      const result = ringSend(queue.fd);
      if (result >= 0) return;
      if (result === -ENETDOWN || result === -ENXIO || result === -ENODEV) return; // later
      if (result === -EAGAIN || result === -EBUSY) {
        if (this.#unsent(queue) === 0) return;
        continue;
      }
      if (result === -ENOBUFS) break;
      this.counters.txDropError++;
      sender.isDirty = true; // once more with the next frame
      return;
    }
    sender.isDirty = true;
    this.#refusals = refusals + 1;
  }

  /** Entries that the kernel did not take yet. */
  #unsent(queue: XdpQueue): number {
    const { tx, sender } = queue;
    return (sender.producer - Atomics.load(tx.words, tx.consumerAt)) | 0;
  }
}
