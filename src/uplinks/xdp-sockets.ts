/**
 * The control half of an AF_XDP uplink: a socket per queue with memory of our own, and the program
 * that sends it the queue's frames. The main thread owns them; the worker is told where they are.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { SysError, VringError } from '../base/errors.ts';
import { PrivateMemory } from '../memory/index.ts';
import {
  arena,
  attachXdp,
  bindXdpSocket,
  BPF_SCRATCH_BYTES,
  createXskMap,
  type Fd,
  holdPromiscuous,
  isZeroCopy,
  loadXdpProgram,
  openXdpSocket,
  updateXskMap,
  type XdpLayout,
  type XdpRingLayout,
} from '../sys/index.ts';
import * as xdp from '../wire/xdp.ts';
import { SocketRing } from './socket-ring.ts';

/**
 * Entries of the rings, and chunks: as many for each way as its ring has. 2048 frames are what a
 * fast card sends in a millisecond, and what DPDK's driver has.
 */
export const XDP_RX_ENTRIES = 2048;
export const XDP_TX_ENTRIES = 1024;
const CHUNKS = XDP_RX_ENTRIES + XDP_TX_ENTRIES;

const SMALL_CHUNK_BYTES = 2048;
const LARGE_CHUNK_BYTES = 4096;
/** Ethernet header and a tag. */
const FRAME_HEADER_BYTES = 18;

/** Queues of one port; a card may have more, whose frames then are not ours. */
export const MAX_XDP_QUEUES = 64;

export type XdpCopyMode = 'auto' | 'copy' | 'zero-copy';
export type XdpAttachMode = 'auto' | 'native' | 'generic';

export type XdpSocketsOptions = {
  readonly interfaceIndex: number;
  /** Frames of queues 0 to `queues` - 1 of the interface are ours. */
  readonly queues: number;
  /** At least so many sockets: those of further queues only send. Default: none. */
  readonly sockets?: number;
  readonly copyMode: XdpCopyMode;
  readonly attach: XdpAttachMode;
  /** Of the interface: frames of this size arrive, whatever the port sends. */
  readonly mtu: number;
};

export type XdpRingPlace = {
  /** Arena offset and size of the mapping; the parts count from there. */
  readonly offset: number;
  readonly sizeBytes: number;
  readonly layout: XdpRingLayout;
};

/** What the worker needs of one socket. */
export type XdpQueuePlace = {
  readonly fd: number;
  /** Arena offset of the chunks: those for arriving frames, then those for leaving ones. */
  readonly umemAt: number;
  readonly chunkBytes: number;
  readonly rx: XdpRingPlace;
  readonly tx: XdpRingPlace;
  readonly fill: XdpRingPlace;
  readonly completion: XdpRingPlace;
};

/**
 * A closed socket keeps its queue until the kernel gets round to it (xp_release_deferred in
 * net/xdp/xsk_buff_pool.c): some milliseconds here, after which who follows can have it.
 */
const RELEASE_PATIENCE_MS = 1000;
const RELEASE_POLL_MS = 5;

/** The interface or the kernel cannot do what was asked for. */
export const ERR_XDP = 'ERR_VRING_XDP';

export class XdpSockets {
  readonly queues: readonly XdpQueuePlace[];
  /** The driver writes into our memory itself. */
  readonly zeroCopy: boolean;
  /** Before the kernel made an skb of the frame, or after. */
  readonly attached: 'native' | 'generic';
  readonly #fds: readonly Fd[];
  readonly #rings: readonly SocketRing[];
  readonly #memory: readonly PrivateMemory[];

  /**
   * @throws VringError ERR_VRING_XDP saying what the interface cannot do; SysError EPERM
   *   (CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF), ENODEV, ENOMEM, ENOBUFS (RLIMIT_MEMLOCK).
   */
  static async open(options: XdpSocketsOptions): Promise<XdpSockets> {
    const opening = new Opening(options);
    try {
      return await opening.run();
    } catch (error) {
      opening.close();
      throw error;
    }
  }

  /** Use `open`. */
  constructor(opening: Opening, attached: 'native' | 'generic', zeroCopy: boolean) {
    this.queues = opening.queues;
    this.attached = attached;
    this.zeroCopy = zeroCopy;
    this.#fds = opening.fds;
    this.#rings = opening.rings;
    this.#memory = opening.memory;
  }

  /** Idempotent. The program goes with its link. The worker does not use the rings any more. */
  close(): void {
    closeAll(this.#fds, this.#rings, this.#memory);
  }
}

/** Several chunks per frame are needed for this MTU. */
export function needsFrags(mtu: number): boolean {
  return mtu + FRAME_HEADER_BYTES > LARGE_CHUNK_BYTES - xdp.XDP_PACKET_HEADROOM;
}

function chunkBytesFor(mtu: number): number {
  const small = mtu + FRAME_HEADER_BYTES <= SMALL_CHUNK_BYTES - xdp.XDP_PACKET_HEADROOM;
  return small ? SMALL_CHUNK_BYTES : LARGE_CHUNK_BYTES;
}

/** What `open` has made so far. */
class Opening {
  /** In the order in which they are closed: the link first, so that no frame is on its way. */
  readonly fds: Fd[] = [];
  readonly rings: SocketRing[] = [];
  readonly memory: PrivateMemory[] = [];
  readonly queues: XdpQueuePlace[] = [];
  readonly #options: XdpSocketsOptions;

  constructor(options: XdpSocketsOptions) {
    this.#options = options;
  }

  async run(): Promise<XdpSockets> {
    const { interfaceIndex, queues, sockets: least = 0, mtu } = this.#options;
    const scratch = this.#allocate(BPF_SCRATCH_BYTES);
    const map = this.#keep(createXskMap(queues));
    const program = this.#keep(loadXdpProgram(map, needsFrags(mtu), scratch.offset));
    const { link, attached } = this.#attach(program);
    this.fds.unshift(link);
    const sockets: Fd[] = [];
    const count = Math.max(queues, least);
    for (let queue = 0; queue < count; queue++) sockets.push(await this.#openQueue(queue));
    // The first frame may arrive from here on.
    for (const [queue, fd] of sockets.slice(0, queues).entries()) {
      updateXskMap(map, queue, fd, scratch.offset);
    }
    this.#keep(holdPromiscuous(interfaceIndex));
    return new XdpSockets(this, attached, isZeroCopy(sockets[0]!));
  }

  close(): void {
    closeAll(this.fds, this.rings, this.memory);
  }

  #keep(fd: Fd): Fd {
    this.fds.push(fd);
    return fd;
  }

  #allocate(sizeBytes: number): PrivateMemory {
    const memory = PrivateMemory.allocate(sizeBytes);
    this.memory.push(memory);
    return memory;
  }

  #attach(program: Fd): { link: Fd; attached: 'native' | 'generic' } {
    const { interfaceIndex, attach } = this.#options;
    let refused: SysError | null = null;
    for (const mode of ['native', 'generic'] as const) {
      if (attach !== 'auto' && attach !== mode) continue;
      const flags = mode === 'native' ? xdp.XDP_FLAGS_DRV_MODE : xdp.XDP_FLAGS_SKB_MODE;
      try {
        return { link: attachXdp(program, interfaceIndex, flags), attached: mode };
      } catch (error) {
        if (!(error instanceof SysError)) throw error;
        if (['EPERM', 'ENODEV'].includes(error.errnoName)) throw error;
        if (['EBUSY', 'EEXIST'].includes(error.errnoName)) throw busy(error);
        refused ??= error;
      }
    }
    throw new VringError(ERR_XDP, attachProblem(attach, refused!), { cause: refused });
  }

  async #openQueue(queue: number): Promise<Fd> {
    const { interfaceIndex, mtu } = this.#options;
    const chunkBytes = chunkBytesFor(mtu);
    const umemBytes = CHUNKS * chunkBytes;
    const umemAt = this.#allocate(umemBytes).offset;
    const { fd, layout } = openXdpSocket({
      umemAt,
      umemBytes,
      chunkBytes,
      rxEntries: XDP_RX_ENTRIES,
      txEntries: XDP_TX_ENTRIES,
      fillEntries: XDP_RX_ENTRIES,
      completionEntries: XDP_TX_ENTRIES,
    });
    this.#keep(fd);
    const place: XdpQueuePlace = {
      fd: fd.number,
      umemAt,
      chunkBytes,
      ...this.#mapRings(fd, layout),
    };
    giveAllChunks(place.fill, chunkBytes);
    await this.#bind(fd, queue, interfaceIndex);
    this.queues.push(place);
    return fd;
  }

  #mapRings(fd: Fd, layout: XdpLayout) {
    const map = (at: number, parts: XdpRingLayout, entries: number, entryBytes: number) => {
      const ring = SocketRing.map(fd, parts.descAt + entries * entryBytes, at);
      this.rings.push(ring);
      return { offset: ring.offset, sizeBytes: ring.sizeBytes, layout: parts };
    };
    const { rx, tx, fill, completion } = layout;
    const descBytes = xdp.XdpDesc.size;
    const addressBytes = xdp.XDP_UMEM_DESC_BYTES;
    return {
      rx: map(xdp.XDP_PGOFF_RX_RING, rx, XDP_RX_ENTRIES, descBytes),
      tx: map(xdp.XDP_PGOFF_TX_RING, tx, XDP_TX_ENTRIES, descBytes),
      fill: map(xdp.XDP_UMEM_PGOFF_FILL_RING, fill, XDP_RX_ENTRIES, addressBytes),
      completion: map(xdp.XDP_UMEM_PGOFF_COMPLETION_RING, completion, XDP_TX_ENTRIES, addressBytes),
    };
  }

  async #bind(fd: Fd, queue: number, interfaceIndex: number): Promise<void> {
    const { copyMode, mtu } = this.#options;
    const frags = needsFrags(mtu);
    let flags = xdp.XDP_USE_NEED_WAKEUP;
    if (copyMode === 'copy') flags |= xdp.XDP_COPY;
    if (copyMode === 'zero-copy') flags |= xdp.XDP_ZEROCOPY;
    if (frags) flags |= xdp.XDP_USE_SG;
    for (let waitedMs = 0; ; waitedMs += RELEASE_POLL_MS) {
      try {
        return bindXdpSocket(fd, interfaceIndex, queue, flags);
      } catch (error) {
        if (!(error instanceof SysError)) throw error;
        if (error.errnoName !== 'EBUSY' || waitedMs >= RELEASE_PATIENCE_MS) {
          throw bindProblem(error, queue, copyMode, mtu);
        }
      }
      await sleep(RELEASE_POLL_MS);
    }
  }
}

/** Every chunk for arriving frames is the kernel's, before the socket is bound. */
function giveAllChunks(fill: XdpRingPlace, chunkBytes: number): void {
  const { buffer, view } = arena();
  const { offset, sizeBytes, layout } = fill;
  for (let i = 0; i < XDP_RX_ENTRIES; i++) {
    view.setBigUint64(offset + layout.descAt + i * 8, BigInt(i * chunkBytes), true);
  }
  const words = new Int32Array(buffer, offset, sizeBytes >> 2);
  Atomics.store(words, layout.producerAt >> 2, XDP_RX_ENTRIES);
}

function busy(cause: SysError): VringError {
  const text =
    'the interface has an XDP program of somebody else; detach it first ' +
    '(ip link set dev INTERFACE xdp off), or use packet:INTERFACE';
  return new VringError(ERR_XDP, text, { cause, recovery: 'retry' });
}

function attachProblem(attach: XdpAttachMode, cause: SysError): string {
  if (attach === 'native') {
    return (
      `the driver does not take an XDP program (${cause.errnoName}): it has no XDP, the MTU is ` +
      'too large for it, or it has too few receive queues; try attach=generic'
    );
  }
  return `the interface takes no XDP program (${cause.errnoName}); use packet:INTERFACE`;
}

const NO_QUEUE = 'the interface has no such queue; lower queues, or leave it out';

function bindProblem(
  cause: SysError,
  queue: number,
  copyMode: XdpCopyMode,
  mtu: number,
): VringError {
  const { errnoName } = cause;
  const because = (text: string): VringError =>
    new VringError(ERR_XDP, `queue ${queue}: ${text}`, { cause });
  if (errnoName === 'EBUSY') {
    return because('another XDP socket has it; end whoever that is, or use fewer queues');
  }
  // Those before it were bound in the same way: it is not what the socket asks for.
  if (errnoName === 'EINVAL' && queue > 0) return because(NO_QUEUE);
  if (copyMode === 'zero-copy' && ['EOPNOTSUPP', 'ENOTSUP', 'EINVAL'].includes(errnoName)) {
    return because(
      `the driver has no zero copy (${errnoName}); use mode=copy, or mode=auto for what it has`,
    );
  }
  if (errnoName === 'EINVAL' && needsFrags(mtu)) {
    return because(`an MTU of ${mtu} needs frames of several chunks: Linux 6.6; lower the MTU`);
  }
  if (errnoName === 'EINVAL') {
    return because(NO_QUEUE);
  }
  return because(`cannot be used: ${cause.message}`);
}

function closeAll(
  fds: readonly Fd[],
  rings: readonly SocketRing[],
  memory: readonly PrivateMemory[],
): void {
  for (const fd of fds) fd.close();
  for (const ring of rings) ring.close();
  for (const each of memory) each.close();
}
