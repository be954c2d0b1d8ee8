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
} from '../virtqueue/index.ts';
import {
  NetConfig,
  NetControlHeader,
  NetHeader,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../wire/virtio-net.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  featureSet,
  hasFeature,
} from '../wire/virtio.ts';
import { parsePrefix } from './ip-address.ts';
import { NetGuest, type NetGuestOptions } from './net-driver.ts';
import { NetStack } from './stack.ts';

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
  ...[0, 1, 3, 5, 7, 8, 11, 12, 15, 16, 22, 32, 35, 54, 55, 56],
  VIRTIO_RING_F_INDIRECT_DESC,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_F_RING_PACKED,
);

/** MQ, REPLY_ACK, MTU, CONFIG, STATUS. */
export const TEST_PROTOCOL_FEATURES: bigint = featureSet(0, 3, 4, 9, 16);

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
    for (const index of [...this.#rings.keys()]) await this.stopVring(index);
  }

  /** Gives a packet (header in front) to the guest. False: no room, it is dropped. */
  deliver(packet: Uint8Array, queuePair = 0): boolean {
    const ring = this.#rings.get(2 * queuePair);
    if (ring === undefined || this.#enabled.get(ring.index) !== true) return this.#drop();
    const batch = this.#batch;
    const mergeable = hasFeature(this.acked, VIRTIO_NET_F_MRG_RXBUF);
    const chains: { bytes: number; at: number }[] = [];
    let left = packet.length;
    // Chains are put to use at once: a packet that does not fit was looked at before.
    const view = arena().bytes;
    const start = packet.slice();
    const used: number[] = [];
    let at = 0;
    while (left > 0) {
      if (takeChains(ring.queue, batch, 1) !== 1) return this.#drop();
      const room = batch.writeBytes[0];
      const first = batch.segFirst[0] + batch.readSegs[0];
      let written = 0;
      for (let s = first; s < first + batch.writeSegs[0] && left > 0; s++) {
        const bytes = Math.min(left, batch.segLen[s]);
        view.set(start.subarray(at, at + bytes), batch.segOffset[s]);
        if (at === 0) used.push(batch.segOffset[s]);
        at += bytes;
        left -= bytes;
        written += bytes;
      }
      chains.push({ bytes: room, at });
      batch.written[0] = written;
      if (left > 0 && !mergeable) left = 0; // cut: the guest will notice
      if (left === 0) arena().view.setUint16(used[0] + 10, chains.length, true);
      putUsed(ring.queue, batch, 0, 1);
    }
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
    const onFrame = (packet: Uint8Array): void => void backends[1 - self].deliver(packet);
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
  TEST_FEATURES | featureSet(VIRTIO_NET_F_CTRL_VQ, 18, 19, 21, 23);
