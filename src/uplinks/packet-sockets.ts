/**
 * The control half of an AF_PACKET uplink: sockets with mapped rings, bound to an interface. The
 * main thread owns them; the worker is told where they are.
 */
import { PrivateMemory } from '../memory/index.ts';
import {
  addPromiscuous,
  bindPacketSocket,
  type Fd,
  filterPackets,
  joinFanout,
  openPacketSocket,
  PACKET_FILTER_BYTES,
  type PacketRing,
} from '../sys/index.ts';
import { TPACKET_ALIGNMENT } from '../wire/packet.ts';
import { SocketRing } from './socket-ring.ts';

/**
 * Blocks that the kernel fills: one must hold the largest frame, and a smaller one is handed over
 * sooner. 32 of them are some 25,000 frames of 64 bytes.
 */
export const PACKET_BLOCK_BYTES = 131072;
export const PACKET_BLOCKS = 32;

/**
 * A slot holds the largest frame with its headers. An odd number of cache lines, so that the
 * starts of slots, all that small frames touch, lie in different sets of the caches.
 */
export const PACKET_SLOT_BYTES = 1033 * 64;
const SLOTS_PER_BLOCK = 15;
const SLOT_BLOCK_BYTES = 1 << 20;
const SLOT_BLOCKS = 16;
export const PACKET_SLOTS = SLOTS_PER_BLOCK * SLOT_BLOCKS;

/**
 * How long a frame may wait in a block that is not full. The kernel counts in milliseconds, with
 * a timer per socket; before Linux 6.18 it rounds up to its clock tick, 4 ms for most.
 */
const RETIRE_MS = 1;

const RECEIVE: PacketRing = {
  blockBytes: PACKET_BLOCK_BYTES,
  blocks: PACKET_BLOCKS,
  frameBytes: 2048, // only counted by the kernel: frames of a TPACKET_V3 block follow each other
};
const TRANSMIT: PacketRing = {
  blockBytes: SLOT_BLOCK_BYTES,
  blocks: SLOT_BLOCKS,
  frameBytes: PACKET_SLOT_BYTES,
};
const RECEIVE_BYTES = PACKET_BLOCK_BYTES * PACKET_BLOCKS;
const MAPPED_BYTES = RECEIVE_BYTES + SLOT_BLOCK_BYTES * SLOT_BLOCKS;

/** Offset of slot `i` in the transmit ring: slots do not cross blocks. */
export const packetSlotAt = (i: number): number =>
  Math.trunc(i / SLOTS_PER_BLOCK) * SLOT_BLOCK_BYTES + (i % SLOTS_PER_BLOCK) * PACKET_SLOT_BYTES;

/** What the worker needs of one socket. */
export type PacketQueuePlace = {
  readonly fd: number;
  /** Arena offsets. */
  readonly receiveAt: number;
  readonly transmitAt: number;
};

export type PacketSocketsOptions = {
  readonly interfaceIndex: number;
  /** Sockets that share the frames of the interface, flow by flow. */
  readonly queues: number;
  readonly qdiscBypass: boolean;
  /**
   * A socket whose ring is full leaves frames to the others (default). Where several threads read
   * them that would tear a flow apart.
   */
  readonly rollover?: boolean;
};

export class PacketSockets {
  readonly queues: readonly PacketQueuePlace[];
  readonly #fds: readonly Fd[];
  readonly #rings: readonly SocketRing[];

  /** @throws SysError EPERM (CAP_NET_RAW), ENODEV, ENETDOWN, ENOMEM. */
  static open(options: PacketSocketsOptions): PacketSockets {
    const { interfaceIndex, qdiscBypass, rollover = true } = options;
    const fds: Fd[] = [];
    const rings: SocketRing[] = [];
    using scratch = PrivateMemory.allocate(PACKET_FILTER_BYTES);
    const isGroup = options.queues > 1;
    try {
      let group: number | null = null;
      for (let i = 0; i < options.queues; i++) {
        const fd = openPacketSocket({
          receive: RECEIVE,
          transmit: TRANSMIT,
          retireMs: RETIRE_MS,
          qdiscBypass,
        });
        fds.push(fd);
        rings.push(SocketRing.map(fd, MAPPED_BYTES, 0));
        if (isGroup) filterPackets(fd, 'nothing', scratch.offset);
        bindPacketSocket(fd, interfaceIndex);
        if (isGroup) group = joinFanout(fd, group, rollover);
      }
      if (isGroup) for (const fd of fds) filterPackets(fd, 'arriving', scratch.offset);
      addPromiscuous(fds[0]!, interfaceIndex);
      return new PacketSockets(fds, rings);
    } catch (error) {
      closeAll(fds, rings);
      throw error;
    }
  }

  /** Use `open`. */
  constructor(fds: readonly Fd[], rings: readonly SocketRing[]) {
    this.#fds = fds;
    this.#rings = rings;
    this.queues = fds.map((fd, i) => {
      const { offset } = rings[i]!;
      return { fd: fd.number, receiveAt: offset, transmitAt: offset + RECEIVE_BYTES };
    });
  }

  /** Idempotent. The worker does not use them any more. */
  close(): void {
    closeAll(this.#fds, this.#rings);
  }
}

function closeAll(fds: readonly Fd[], rings: readonly SocketRing[]): void {
  for (const fd of fds) fd.close();
  for (const ring of rings) ring.close();
}

if (PACKET_SLOT_BYTES % TPACKET_ALIGNMENT !== 0) throw new Error('slots are aligned');
