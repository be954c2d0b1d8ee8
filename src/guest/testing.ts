/**
 * Helpers for tests, public as part of `vring/guest`: a tiny in-process back-end, slow and plain,
 * that reflects frames or hands them to another one; and guests that speak through it.
 */
import type { AddressMap } from '../memory/index.ts';
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
  needsCall,
  putUsed,
  ringBase,
  takeChains,
  untakeChains,
} from '../virtqueue/index.ts';
import {
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../wire/vhost-user.ts';
import {
  NetConfig,
  NetControlHeader,
  NetHeader,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_STATUS,
} from '../wire/virtio-net.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  featureSet,
  hasFeature,
} from '../wire/virtio.ts';
import { parsePrefix } from './ip-address.ts';
import { NetGuest, type NetGuestOptions } from './net-driver.ts';
import { NetStack } from './stack.ts';

/** Offset of `numBuffers` in the virtio-net header. */
const NUM_BUFFERS = 10;

type Ring = {
  readonly index: number;
  readonly queue: DeviceQueue;
  readonly vring: StartVring;
  call: Fd | null;
  readonly poll: { close(): void } | null;
};

export type TestBackendOptions = {
  readonly features: bigint;
  readonly queuePairs?: number;
  readonly protocolFeatures?: bigint;
  readonly config?: Partial<{ mac: Uint8Array; mtu: number; status: number }>;
  /** A frame that the guest sent, header in front; default: nothing. */
  readonly onFrame?: (packet: Uint8Array, queuePair: number) => void;
  /** Called for each control command; what it returns is the answer. */
  readonly onControl?: (commandClass: number, command: number, data: Uint8Array) => number;
  /** To be hostile: edits a ring after each round of work. */
  readonly sabotage?: (queue: DeviceQueue, index: number) => void;
};

/** All ring and net features that the guest knows of. */
export const TEST_FEATURES: bigint = featureSet(
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_RING_F_INDIRECT_DESC,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_F_VERSION_1,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_IN_ORDER,
);

export const TEST_PROTOCOL_FEATURES: bigint = featureSet(
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_STATUS,
);

/** A vhost-user-net back-end in this process and thread. Frames are copied at every step. */
export class TestBackend implements BackendTarget {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly queueCount: number;
  readonly queueNum: number;
  acked = 0n;
  /** Frames for which the guest had no buffer. */
  dropped = 0;
  readonly #options: TestBackendOptions;
  readonly #rings = new Map<number, Ring>();
  readonly #enabled = new Map<number, boolean>();
  readonly #batch = new ChainBatch();
  #status = 0;

  constructor(options: TestBackendOptions) {
    this.#options = options;
    this.features = options.features;
    this.protocolFeatures = options.protocolFeatures ?? TEST_PROTOCOL_FEATURES;
    this.queueNum = options.queuePairs ?? 1;
    this.queueCount = 2 * this.queueNum + 1;
  }

  setFeatures(acked: bigint): void {
    this.acked = acked;
  }
  setProtocolFeatures(): void {}
  async setMemTable(): Promise<void> {}
  async startVring(index: number, vring: StartVring): Promise<void> {
    const has = (bit: number): boolean => hasFeature(vring.features, bit);
    const queue = new DeviceQueue(
      {
        ...vring,
        packed: has(VIRTIO_F_RING_PACKED),
        eventIdx: has(VIRTIO_RING_F_EVENT_IDX),
        indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
        inOrder: has(VIRTIO_F_IN_ORDER),
      },
      vring.map satisfies AddressMap,
      arena().buffer,
    );
    const kick = vring.kick?.number ?? -1;
    const kicked = (): void => {
      drainEventfd(kick);
      this.#work(index);
    };
    const poll = kick < 0 ? null : pollFd(kick, { read: true }, kicked);
    this.#rings.set(index, { index, queue, vring, call: vring.call, poll });
    this.#enabled.set(index, vring.enabled);
    this.#work(index);
  }
  async stopVring(index: number): Promise<number> {
    const ring = this.#rings.get(index);
    this.#rings.delete(index);
    ring?.poll?.close();
    return ring === undefined ? 0 : ringBase(ring.queue);
  }
  async setVringEnabled(index: number, enabled: boolean): Promise<void> {
    this.#enabled.set(index, enabled);
    this.#work(index);
  }
  async setVringCall(index: number, fd: Fd | null): Promise<void> {
    const ring = this.#rings.get(index);
    if (ring !== undefined) ring.call = fd;
  }
  async setVringErr(): Promise<void> {}
  getConfig(offset: number, sizeBytes: number): Uint8Array | null {
    const bytes = NetConfig.encode({
      mac: this.#options.config?.mac ?? Uint8Array.of(2, 0, 0, 0, 0, 0x42),
      status: this.#options.config?.status ?? 1,
      maxVirtqueuePairs: this.queueNum,
      mtu: this.#options.config?.mtu ?? 1500,
      speed: 0,
      duplex: 0,
      rssMaxKeySize: 0,
      rssMaxIndirectionTableLength: 0,
      supportedHashTypes: 0,
      supportedTunnelTypes: 0,
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
    return true;
  }
  async sessionClosed(): Promise<void> {
    for (const index of this.#rings.keys()) await this.stopVring(index);
  }

  /** Gives a packet (header in front) to the guest. False: no room, it is dropped. */
  deliver(packet: Uint8Array, queuePair = 0): boolean {
    const ring = this.#rings.get(2 * queuePair);
    if (ring === undefined || this.#enabled.get(ring.index) !== true) return this.#drop();
    const batch = this.#batch;
    const most = hasFeature(this.acked, VIRTIO_NET_F_MRG_RXBUF) ? batch.capacity : 1;
    const taken = takeChains(ring.queue, batch, most);
    let chains = 0;
    let room = 0;
    while (chains < taken && room < packet.length) room += batch.writeBytes[chains++];
    untakeChains(ring.queue, batch, room < packet.length ? 0 : chains);
    if (room < packet.length) return this.#drop();
    let done = 0;
    for (let i = 0; i < chains; i++) {
      const before = done;
      const first = batch.segFirst[i] + batch.readSegs[i];
      for (let s = first; s < first + batch.writeSegs[i] && done < packet.length; s++) {
        const bytes = Math.min(packet.length - done, batch.segLen[s]);
        arena().bytes.set(packet.subarray(done, done + bytes), batch.segOffset[s]);
        done += bytes;
      }
      batch.written[i] = done - before;
    }
    const headerAt = batch.segOffset[batch.segFirst[0] + batch.readSegs[0]];
    arena().view.setUint16(headerAt + NUM_BUFFERS, chains, true);
    putUsed(ring.queue, batch, 0, chains);
    this.#options.sabotage?.(ring.queue, ring.index);
    this.#notify(ring);
    return true;
  }

  #drop(): false {
    this.dropped++;
    return false;
  }

  #work(index: number): void {
    const ring = this.#rings.get(index);
    const isControl = index === 2 * this.queueNum;
    if (ring === undefined || (index % 2 === 0 && !isControl)) return;
    if (this.#enabled.get(index) !== true) return;
    const batch = this.#batch;
    for (;;) {
      // One by one: delivering uses the same batch.
      if (takeChains(ring.queue, batch, 1) <= 0) {
        if (!enableKicks(ring.queue)) break;
        continue;
      }
      const packet = this.#gather();
      batch.written[0] = isControl ? this.#control(packet) : 0;
      putUsed(ring.queue, batch, 0, 1);
      this.#options.sabotage?.(ring.queue, index);
      this.#notify(ring);
      if (!isControl) this.#options.onFrame?.(packet, index >> 1);
    }
  }

  /** The readable bytes of the chain in the batch. */
  #gather(): Uint8Array {
    const batch = this.#batch;
    const packet = new Uint8Array(batch.readBytes[0]);
    let at = 0;
    for (let s = 0; s < batch.readSegs[0]; s++) {
      const from = batch.segOffset[batch.segFirst[0] + s];
      const len = batch.segLen[batch.segFirst[0] + s];
      packet.set(arena().bytes.subarray(from, from + len), at);
      at += len;
    }
    return packet;
  }

  #control(packet: Uint8Array): number {
    const batch = this.#batch;
    const header = NetControlHeader.decode(packet);
    const data = packet.subarray(NetControlHeader.size);
    const answer = this.#options.onControl?.(header.class, header.command, data) ?? 1;
    arena().bytes[batch.segOffset[batch.segFirst[0] + batch.readSegs[0]]] = answer;
    return 1;
  }

  #notify(ring: Ring): void {
    if (needsCall(ring.queue) && ring.call !== null) signalEventfd(ring.call.number);
  }
}

export type TestGuest = {
  readonly guest: NetGuest;
  readonly backend: TestBackend;
  readonly session: BackendSession;
  close(): Promise<void>;
};

/** A guest on a back-end of its own, joined by a socket pair. */
export async function startTestGuest(
  backend: TestBackend,
  options: NetGuestOptions = {},
): Promise<TestGuest> {
  const [ours, theirs] = socketPair();
  const session = new BackendSession(theirs, backend, {});
  const frontend = await VhostUserFrontend.attach(ours, 'vhost-user:test', { vringsPerQueue: 2 });
  const guest = await NetGuest.start(frontend, options);
  return {
    guest,
    backend,
    session,
    async close() {
      await guest.close();
      await session.closed;
    },
  };
}

/** Two guests whose back-ends hand each other every frame: 10.0.0.1, fd00::1 and 10.0.0.2, ... */
export async function startGuestPair(options: NetGuestOptions = {}, features = TEST_FEATURES) {
  const backends: TestBackend[] = [];
  for (const self of [0, 1]) {
    const onFrame = (packet: Uint8Array, pair: number): void =>
      void backends[1 - self].deliver(packet, pair);
    const mac = Uint8Array.of(2, 0, 0, 0, 0, self + 1);
    backends.push(
      new TestBackend({ features, config: { mac }, onFrame, queuePairs: options.queuePairs ?? 1 }),
    );
  }
  const guests = [
    await startTestGuest(backends[0], options),
    await startTestGuest(backends[1], options),
  ];
  const stacks = guests.map(
    ({ guest }, i) =>
      new NetStack({
        link: guest,
        ip: parsePrefix(`10.0.0.${i + 1}/24`, 4, '--ip'),
        ip6: parsePrefix(`fd00::${i + 1}/64`, 6, '--ip6'),
      }),
  );
  const close = async (): Promise<void> => {
    for (const stack of stacks) stack.close();
    for (const guest of guests) await guest.close();
  };
  return { guests, stacks, close };
}

/** A packet for `deliver`: a virtio-net header without offloads and the frame. */
export function packetOf(frame: Uint8Array): Uint8Array {
  const packet = new Uint8Array(NetHeader.size + frame.length);
  packet.set(frame, NetHeader.size);
  return packet;
}

/** Offers the control queue, too. */
export const TEST_CONTROL_FEATURES: bigint =
  TEST_FEATURES |
  featureSet(
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
  );
