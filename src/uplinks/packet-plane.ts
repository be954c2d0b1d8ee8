import { ACCEPT_CSUM, ACCEPT_ECN, ACCEPT_TSO4, ACCEPT_TSO6 } from '../switch/index.ts';
import type { FrameBatch } from '../switch/index.ts';
import { arena } from '../sys/arena.ts';
import { ringSend, takePacketDrops } from '../sys/packet-socket.ts';
import { TP_STATUS_USER } from '../wire/packet.ts';
import {
  hasUnsent,
  PacketCursor,
  PacketSlots,
  readBlock,
  takeBack,
  writeSlots,
} from './packet.hot.ts';
import {
  PACKET_BLOCK_BYTES,
  PACKET_BLOCKS,
  PACKET_SLOTS,
  packetSlotAt,
  type PacketQueuePlace,
} from './packet-sockets.ts';
import { QueuedPlane } from './queued-plane.ts';

export type PacketPlaneOptions = {
  /** None: until `attach`. */
  readonly queues: readonly PacketQueuePlace[];
  /** Bytes of IP that fit one frame. */
  readonly mtu: number;
  readonly linkUp: boolean;
  /** ACCEPT_* bits: what the kernel completes of frames that we send. */
  readonly accepts: number;
};

/** What the kernel, or the card below it, completes. */
export const PACKET_ACCEPTS = ACCEPT_CSUM | ACCEPT_TSO4 | ACCEPT_TSO6 | ACCEPT_ECN;

const BLOCK_STATUS = 2; //  words of struct tpacket_block_desc
const BLOCK_FRAMES = 3;
const BLOCK_FIRST_AT = 4;

const EAGAIN = 11;
const ENOBUFS = 105;
const ENETDOWN = 100;
const ENXIO = 6;
const ENODEV = 19;

/** How often one flush asks again when the interface takes some frames and not all. */
const SEND_TRIES = 4;

/** One socket: its rings as words, and where we are in them. */
class PacketQueue {
  readonly fd: number;
  readonly receiveAt: number;
  readonly transmitAt: number;
  readonly rx: Int32Array;
  readonly rxHalves: Uint16Array;
  readonly tx: Int32Array;
  readonly txHalves: Uint16Array;
  readonly cursor = new PacketCursor();
  readonly slots: PacketSlots;
  block = 0;
  isOpen = false;

  constructor(place: PacketQueuePlace) {
    const { buffer } = arena();
    const receiveBytes = PACKET_BLOCK_BYTES * PACKET_BLOCKS;
    const at = Int32Array.from({ length: PACKET_SLOTS }, (_, i) => packetSlotAt(i));
    const transmitBytes = packetSlotAt(PACKET_SLOTS);
    this.fd = place.fd;
    this.receiveAt = place.receiveAt;
    this.transmitAt = place.transmitAt;
    this.rx = new Int32Array(buffer, place.receiveAt, receiveBytes / 4);
    this.rxHalves = new Uint16Array(buffer, place.receiveAt, receiveBytes / 2);
    this.tx = new Int32Array(buffer, place.transmitAt, transmitBytes / 4);
    this.txHalves = new Uint16Array(buffer, place.transmitAt, transmitBytes / 2);
    this.slots = new PacketSlots(at);
  }

  /** Opens the next block when the kernel handed it over. */
  openBlock(): boolean {
    const word = (this.block * PACKET_BLOCK_BYTES) >> 2;
    if ((Atomics.load(this.rx, word + BLOCK_STATUS) & TP_STATUS_USER) === 0) return false;
    const at = this.block * PACKET_BLOCK_BYTES;
    this.cursor.left = this.rx[word + BLOCK_FRAMES];
    this.cursor.nextAt = at + this.rx[word + BLOCK_FIRST_AT];
    this.cursor.endAt = at + PACKET_BLOCK_BYTES;
    this.isOpen = true;
    return true;
  }

  /** The block is the kernel's again: everything was read before (a store that releases). */
  closeBlock(): void {
    const word = (this.block * PACKET_BLOCK_BYTES) >> 2;
    Atomics.store(this.rx, word + BLOCK_STATUS, 0);
    this.block = this.block + 1 === PACKET_BLOCKS ? 0 : this.block + 1;
    this.isOpen = false;
  }
}

/**
 * An interface by AF_PACKET as a port of the switch. What arrives at the interface is received
 * here, beside the host's own stack; what is sent leaves it past that stack.
 *
 * Theory of operation. The kernel copies arriving frames one behind the other into a block and
 * hands the block over when it is full or a millisecond old. A batch is part of one block; its
 * frames lie in the arena until `release`, and after the last batch of a block the kernel has it
 * back. Frames to be sent are copied into slots, and one system call per flush sends them all.
 * Several sockets share what arrives; only the first one sends, which keeps the order of a flow.
 */
export class PacketPlane extends QueuedPlane<PacketQueuePlace, PacketQueue> {
  readonly accepts: number;

  constructor(options: PacketPlaneOptions) {
    super(options);
    this.accepts = options.accepts;
    this.attach(options.queues);
  }

  protected open(place: PacketQueuePlace): PacketQueue {
    return new PacketQueue(place);
  }

  /** Blocks without a frame that can be used are passed over, at most one lap of the ring. */
  protected receiveFrom(queue: PacketQueue, batch: FrameBatch): number {
    const { cursor } = queue;
    for (let blocks = 0; blocks < PACKET_BLOCKS; blocks++) {
      if (!queue.isOpen && !queue.openBlock()) return 0;
      if (this.linkUp) {
        readBlock(queue.rx, queue.rxHalves, queue.receiveAt, cursor, batch, this.plan);
        this.counters.rxErrors += cursor.errors;
        cursor.errors = 0;
      } else {
        this.counters.rxDropDisabled += cursor.left;
        cursor.left = 0;
      }
      if (batch.count > 0) {
        this.current = queue;
        return batch.count;
      }
      if (cursor.left === 0) queue.closeBlock();
    }
    return 0;
  }

  release(_batch: FrameBatch): void {
    const queue = this.current;
    this.current = null;
    if (queue !== null && queue.isOpen && queue.cursor.left === 0) queue.closeBlock();
  }

  transmit(batch: FrameBatch, list: Int32Array, count: number): number {
    const queue = this.queues[0];
    const { slots, tx, txHalves, transmitAt } = queue;
    const plan = this.plan;
    let written = writeSlots(tx, txHalves, transmitAt, slots, batch, list, count, plan);
    if (written < count && slots.pending > 0) {
      // The ring is full of what was not sent yet; what follows goes behind it, in order.
      this.#send(queue);
      written += this.#writeRest(queue, batch, list, written, count);
    }
    this.counters.txDropBusy += count - written;
    return written;
  }

  /** Frames one by one: rare, and so needs no list of its own. */
  #writeRest(
    queue: PacketQueue,
    batch: FrameBatch,
    list: Int32Array,
    from: number,
    count: number,
  ): number {
    const { slots, tx, txHalves, transmitAt } = queue;
    for (let k = from; k < count; k++) {
      this.one[0] = list[k];
      const written = writeSlots(tx, txHalves, transmitAt, slots, batch, this.one, 1, this.plan);
      if (written === 0) return k - from;
    }
    return count - from;
  }

  flush(): void {
    const queue = this.queues[0];
    if (queue !== undefined && queue.slots.pending > 0) this.#send(queue);
  }

  readKernelCounters(): void {
    for (const queue of this.queues) {
      const drops = takePacketDrops(queue.fd);
      if (drops > 0) this.counters.rxDropNoRoom += drops;
    }
  }

  close(): void {
    this.detach();
  }

  /** What the kernel does not take is dropped: nobody would have it sent, if no frame came. */
  #send(queue: PacketQueue): void {
    const { slots, tx } = queue;
    const { counters } = this;
    for (let tries = 0; tries < SEND_TRIES; tries++) {
      const result = ringSend(queue.fd);
      if (result >= 0) {
        if (hasUnsent(tx, slots)) continue; // too much is under way (sock_alloc_send_skb)
        // The kernel skips frames that it refuses (PACKET_LOSS), and does not say how many.
        if (tries === 0 && result < slots.pendingBytes) counters.txDropRefused++;
        slots.pending = 0;
        slots.pendingBytes = 0;
        return;
      }
      if (result === -ENETDOWN || result === -ENXIO || result === -ENODEV) {
        // Once after it was down, the socket says so of itself (packet_notifier, sock_error).
        if (tries === 0) continue;
        counters.txDropDown += takeBack(tx, slots);
        return;
      }
      if (result !== -EAGAIN && result !== -ENOBUFS) {
        counters.txDropError += takeBack(tx, slots);
        return;
      }
    }
    counters.txDropBusy += takeBack(tx, slots);
  }
}
