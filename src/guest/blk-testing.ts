/**
 * A disk for tests of the block guest: a vhost-user-blk back-end in this process and thread, slow
 * and plain, whose bytes can be looked at and whose answers can be made wrong.
 */
import { arena, drainEventfd, pollFd, signalEventfd, socketPair, type Fd } from '../sys/index.ts';
import {
  BackendSession,
  VhostUserFrontend,
  type BackendTarget,
  type StartVring,
} from '../vhost-user/index.ts';
import {
  ChainBatch,
  DeviceQueue,
  enableKicks,
  keepChain,
  needsCall,
  putUsed,
  ringBase,
  takeChains,
} from '../virtqueue/index.ts';
import {
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../wire/vhost-user.ts';
import {
  BlkConfig,
  BlkRange,
  BlkRequestHeader,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_SECTOR_BYTES,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from '../wire/virtio-blk.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_BLOCK,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  featureSet,
  hasFeature,
} from '../wire/virtio.ts';
import type { ReconnectOptions } from './attach.ts';
import { BlkGuest, type BlkGuestOptions } from './blk-driver.ts';

export type ToyRequest = { readonly type: number; readonly sector: number; readonly queue: number };

export type ToyDiskOptions = {
  readonly sizeBytes?: number;
  readonly queues?: number;
  readonly features?: bigint;
  readonly config?: Partial<BlkConfig>;
  /** INFLIGHT_SHMFD. */
  readonly inflight?: boolean;
  /** So many requests are held for a millisecond (Infinity: for good); last in, first out. */
  readonly holds?: number;
  /** Instead of the work: a status, or null for what is right. */
  readonly onRequest?: (request: ToyRequest) => number | null;
  /** Called before each answer is published. */
  readonly sabotage?: (queue: DeviceQueue, batch: ChainBatch) => void;
};

type Ring = {
  readonly queue: DeviceQueue;
  readonly held: ChainBatch[];
  readonly kick: Fd | null;
  readonly poll: { close(): void } | null;
  call: Fd | null;
};

/** All ring and block features that the toy knows, but RO. */
export const TOY_FEATURES: bigint = featureSet(
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_RING_F_INDIRECT_DESC,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_F_RING_PACKED,
);

const PROTOCOL_FEATURES: readonly number[] = [
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_STATUS,
];

/** The bytes outlive the back-end: give them to the next one. */
export class ToyDisk implements BackendTarget {
  readonly deviceId = VIRTIO_ID_BLOCK;
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly queueCount: number;
  readonly bytes: Uint8Array;
  /** Writes are not done any more, but acknowledged: what a broken cache does. */
  forgets = false;
  answered = 0;
  readonly #options: ToyDiskOptions;
  readonly #rings = new Map<number, Ring>();
  #status = 0;

  constructor(options: ToyDiskOptions = {}, bytes?: Uint8Array) {
    this.#options = options;
    this.features = options.features ?? TOY_FEATURES;
    const inflight = options.inflight === true ? [VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD] : [];
    this.protocolFeatures = featureSet(...PROTOCOL_FEATURES, ...inflight);
    this.queueCount = options.queues ?? 1;
    this.bytes = bytes ?? new Uint8Array(options.sizeBytes ?? 1 << 20);
  }

  setFeatures(): void {}
  setProtocolFeatures(): void {}
  async setMemTable(): Promise<void> {}

  async startVring(index: number, vring: StartVring): Promise<void> {
    const has = (bit: number): boolean => hasFeature(vring.features, bit);
    const config = {
      ...vring,
      eventIdx: has(VIRTIO_RING_F_EVENT_IDX),
      indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
      inOrder: has(VIRTIO_F_IN_ORDER),
    };
    const extras = { inflight: vring.inflight };
    const queue = new DeviceQueue(config, vring.map, arena().buffer, extras);
    const { kick, call } = vring;
    const kicked = (): void => {
      if (kick !== null) drainEventfd(kick.number);
      this.#work(index);
    };
    const poll = kick === null ? null : pollFd(kick.number, { read: true }, kicked);
    this.#rings.set(index, { queue, held: [], kick, call, poll });
    this.#work(index);
  }

  async stopVring(index: number): Promise<number> {
    const ring = this.#rings.get(index);
    if (ring === undefined) return 0;
    this.#answer(ring, index, 0);
    return this.#drop(index);
  }

  async setVringEnabled(index: number): Promise<void> {
    this.#work(index);
  }

  async setVringCall(index: number, fd: Fd | null): Promise<void> {
    const ring = this.#rings.get(index);
    if (ring !== undefined) ring.call = fd;
  }

  async setVringErr(): Promise<void> {}

  getConfig(offset: number, sizeBytes: number): Uint8Array | null {
    const config = BlkConfig.decode(new Uint8Array(BlkConfig.size));
    const bytes = BlkConfig.encode({
      ...config,
      capacity: BigInt(this.bytes.length / VIRTIO_BLK_SECTOR_BYTES),
      segMax: 126,
      blkSize: 512,
      numQueues: this.queueCount,
      maxDiscardSectors: 1024,
      maxDiscardSeg: 1,
      discardSectorAlignment: 8,
      maxWriteZeroesSectors: 1024,
      maxWriteZeroesSeg: 1,
      ...this.#options.config,
    });
    return offset + sizeBytes > bytes.length ? null : bytes.slice(offset, offset + sizeBytes);
  }

  setConfig(): boolean {
    return false;
  }

  async setStatus(status: number): Promise<void> {
    this.#status = status;
  }

  getStatus(): number {
    return this.#status;
  }

  setMtu(): boolean {
    return false;
  }

  /** As a killed process: what is held is not answered. */
  async sessionClosed(): Promise<void> {
    for (const index of this.#rings.keys()) this.#drop(index);
  }

  #drop(index: number): number {
    const ring = this.#rings.get(index)!;
    this.#rings.delete(index);
    ring.poll?.close();
    return ringBase(ring.queue);
  }

  #work(index: number): void {
    const ring = this.#rings.get(index);
    if (ring === undefined) return;
    const taken = new ChainBatch();
    do {
      for (;;) {
        const count = takeChains(ring.queue, taken, taken.capacity);
        if (count <= 0) break;
        for (let i = 0; i < count; i++) {
          const chain = new ChainBatch(1, 256);
          keepChain(taken, i, chain);
          ring.held.push(chain);
        }
      }
    } while (enableKicks(ring.queue));
    const { holds = 0 } = this.#options;
    this.#answer(ring, index, holds);
    if (ring.held.length > 0 && holds !== Infinity) setTimeout(() => this.#release(ring, index), 1);
  }

  #release(ring: Ring, index: number): void {
    if (this.#rings.get(index) === ring) this.#answer(ring, index, 0);
  }

  /** All but `keep` requests, the last one first. */
  #answer(ring: Ring, index: number, keep: number): void {
    while (ring.held.length > keep) {
      const chain = ring.held.pop()!;
      this.#serve(chain, index);
      this.#options.sabotage?.(ring.queue, chain);
      putUsed(ring.queue, chain, 0, 1);
      this.answered++;
    }
    if (needsCall(ring.queue) && ring.call !== null) signalEventfd(ring.call.number);
  }

  #serve(chain: ChainBatch, index: number): void {
    const readable = gather(chain);
    const header = BlkRequestHeader.decode(readable);
    const sector = Number(header.sector);
    const request = { type: header.type, sector, queue: index };
    const room = chain.writeBytes[0]! - 1;
    const asked = this.#options.onRequest?.(request) ?? null;
    let answer: Uint8Array = new Uint8Array(0);
    let status = asked;
    if (status === null) {
      [status, answer] = this.#execute(request, readable.subarray(BlkRequestHeader.size), room);
    }
    chain.written[0] = scatter(chain, answer, status, room);
  }

  #execute(
    { type, sector }: ToyRequest,
    data: Uint8Array,
    room: number,
  ): [status: number, answer: Uint8Array] {
    const none = new Uint8Array(0);
    const at = sector * VIRTIO_BLK_SECTOR_BYTES;
    const end = at + (type === VIRTIO_BLK_T_IN ? room : data.length);
    const isReadOnly = hasFeature(this.features, VIRTIO_BLK_F_RO);
    switch (type) {
      case VIRTIO_BLK_T_IN:
        if (end > this.bytes.length) return [VIRTIO_BLK_S_IOERR, none];
        return [VIRTIO_BLK_S_OK, this.bytes.slice(at, end)];
      case VIRTIO_BLK_T_OUT:
        if (end > this.bytes.length || isReadOnly) return [VIRTIO_BLK_S_IOERR, none];
        if (!this.forgets) this.bytes.set(data, at);
        return [VIRTIO_BLK_S_OK, none];
      case VIRTIO_BLK_T_FLUSH:
        return [VIRTIO_BLK_S_OK, none];
      case VIRTIO_BLK_T_GET_ID:
        return [VIRTIO_BLK_S_OK, Buffer.from('toy\0'.padEnd(20, '\0'))];
      case VIRTIO_BLK_T_DISCARD:
      case VIRTIO_BLK_T_WRITE_ZEROES: {
        const range = BlkRange.decode(data);
        const from = Number(range.sector) * VIRTIO_BLK_SECTOR_BYTES;
        const to = from + range.numSectors * VIRTIO_BLK_SECTOR_BYTES;
        if (to > this.bytes.length) return [VIRTIO_BLK_S_IOERR, none];
        this.bytes.fill(type === VIRTIO_BLK_T_DISCARD ? 0xd1 : 0, from, to);
        return [VIRTIO_BLK_S_OK, none];
      }
      default:
        return [VIRTIO_BLK_S_UNSUPP, none];
    }
  }
}

/** The readable bytes of a chain. */
function gather(chain: ChainBatch): Uint8Array {
  const bytes = new Uint8Array(chain.readBytes[0]!);
  let at = 0;
  for (let s = 0; s < chain.readSegs[0]!; s++) {
    const from = chain.segOffset[s]!;
    bytes.set(arena().bytes.subarray(from, from + chain.segLen[s]!), at);
    at += chain.segLen[s]!;
  }
  return bytes;
}

/** The answer, and the status in the last byte. Returns what `used.len` has to say. */
function scatter(chain: ChainBatch, answer: Uint8Array, status: number, room: number): number {
  const last = chain.readSegs[0]! + chain.writeSegs[0]! - 1;
  let done = 0;
  for (let s = chain.readSegs[0]!; s < last && done < answer.length; s++) {
    const piece = answer.subarray(done, done + chain.segLen[s]!);
    arena().bytes.set(piece, chain.segOffset[s]!);
    done += piece.length;
  }
  arena().bytes[chain.segOffset[last]! + chain.segLen[last]! - 1] = status;
  return status === VIRTIO_BLK_S_OK ? room + 1 : 1;
}

export type ToyGuest = {
  readonly guest: BlkGuest;
  /** The disk of now. */
  readonly disk: ToyDisk;
  /** Ends the session as a killed back-end does; the guest finds the next one with its bytes. */
  kill(): void;
  close(): Promise<void>;
};

/** A guest on a disk, joined by socket pairs. With `comesBack` a killed disk is replaced. */
export async function startToyGuest(
  options: ToyDiskOptions = {},
  guestOptions: BlkGuestOptions = {},
  comesBack = false,
): Promise<ToyGuest> {
  let disk = new ToyDisk(options);
  let session: BackendSession | null = null;
  const connect = async (): Promise<VhostUserFrontend> => {
    const [ours, theirs] = socketPair();
    disk = new ToyDisk(options, disk.bytes);
    session = new BackendSession(theirs, disk, {});
    return VhostUserFrontend.attach(ours, 'vhost-user:toy');
  };
  const reconnect: ReconnectOptions | null = comesBack ? { connect } : null;
  const frontend = await connect();
  const guest = await BlkGuest.start(frontend, guestOptions, reconnect).catch(async (error) => {
    await session?.closed;
    throw error;
  });
  return {
    guest,
    get disk() {
      return disk;
    },
    kill: () => session?.close(),
    async close() {
      await guest.close();
      await session?.closed;
    },
  };
}
