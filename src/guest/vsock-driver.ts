/**
 * The guest's driver of a socket device (virtio 1.2, 5.10): packets out of one ring and into
 * another. What they mean is in vsock-stack.ts.
 *
 * The event queue is not used: neither the kernel's vhost-vsock nor a vhost-user back-end has one.
 * Its only event says that the guest was moved, and here driver and VMM are the same program: see
 * `VsockStack.reset`.
 */
import { VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { GuestMemory } from '../memory/index.ts';
import { drainEventfd, pollFd, signalEventfd, type Poll } from '../sys/index.ts';
import { startVring, stopVring } from '../vhost-user/index.ts';
import { disableCalls, enableCalls, needsKick, reapUsed } from '../virtqueue/driver/index.ts';
import { faultName } from '../virtqueue/index.ts';
import { VsockConfig, VsockHeader } from '../wire/virtio-vsock.ts';
import {
  featureNames,
  featureSet,
  hasFeature,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_VSOCK,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../wire/virtio.ts';
import { RUNNING } from './attach.ts';
import { GuestQueue, queueBytes, type QueuePlan } from './guest-queue.ts';
import { DIRECT, GuestIommu, type AddressSpace } from './iommu.ts';
import { reclaimTx, refillRx, sendSlots } from './net-driver.hot.ts';

/** Payload bytes of one packet that is sent. */
export const VSOCK_PACKET_BYTES = 16_384;

export type VsockGuestOptions = {
  /** Descriptors of each ring; default 128. */
  readonly ringSize?: number;
  /** Default: what the device's configuration space says, which then it must have. */
  readonly cid?: number;
  readonly addressSpace?: AddressSpace;
};

/** `payload` is the guest's memory and valid during the call only. */
export type PacketHandler = (header: VsockHeader, payload: Uint8Array) => void;

const BASE_GPA = 0x4000_0000;
/** A received packet with its header is one page; longer ones come in pieces. */
const RX_SLOT_BYTES = 4096;
const SEGMENT_BYTES = 4096;
const BATCHES_PER_TURN = 8;
const WANTED = featureSet(VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC);
const DRIVER = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;

export class VsockGuest {
  readonly backend: VhostBackend;
  readonly cid: number;
  readonly features: bigint;
  readonly rx: GuestQueue;
  readonly tx: GuestQueue;
  readonly memory: GuestMemory;
  onPacket: PacketHandler | null = null;
  /** There is room to send again, after `send` said that there is none. */
  onRoom: (() => void) | null = null;
  failure: Error | null = null;
  /** Resolves with `failure`, or null after `close`. */
  readonly closed: Promise<Error | null>;
  readonly counters = { rxPackets: 0, txPackets: 0, rxMalformed: 0, txFull: 0 };
  readonly #end = Promise.withResolvers<Error | null>();
  readonly #polls: Poll[] = [];
  #bases = [0, 0];
  #running = false;
  #ended = false;
  #waitsForRoom = false;

  /**
   * Negotiates and starts the rings. The back-end becomes the guest's, also when this throws.
   * @throws VringError ERR_VRING_GUEST_FEATURE; what the back-end throws.
   */
  static async start(backend: VhostBackend, options: VsockGuestOptions = {}): Promise<VsockGuest> {
    let guest: VsockGuest | null = null;
    try {
      const space = options.addressSpace ?? DIRECT;
      const platform = space.platform ? featureSet(VIRTIO_F_ACCESS_PLATFORM) : 0n;
      const offered = await backend.getFeatures();
      const features = offered & (WANTED | platform);
      const demanded = featureSet(VIRTIO_F_VERSION_1) | platform;
      if ((features & demanded) !== demanded) {
        const names = featureNames(demanded & ~features, VIRTIO_ID_VSOCK).join(' ');
        const text = `${backend.description} does not offer ${names}`;
        throw new VringError('ERR_VRING_GUEST_FEATURE', text);
      }
      await backend.setOwner();
      await backend.setStatus(DRIVER);
      const cid = options.cid ?? (await readCid(backend));
      await backend.setFeatures(features);
      await backend.setStatus(DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
      guest = new VsockGuest(backend, features, cid, options.ringSize ?? 128, space);
      await backend.setMemTable([guest.memory.backendRegion()]);
      refillRx(guest.rx);
      await guest.resume();
      await backend.setStatus(RUNNING);
      return guest;
    } catch (error) {
      if (guest !== null) await guest.close();
      else await backend.close();
      throw error;
    }
  }

  private constructor(
    backend: VhostBackend,
    features: bigint,
    cid: number,
    ringSize: number,
    space: AddressSpace,
  ) {
    this.backend = backend;
    this.features = features;
    this.cid = cid;
    this.closed = this.#end.promise;
    const plan = (index: number): QueuePlan => ({
      size: ringSize,
      packed: false,
      eventIdx: hasFeature(features, VIRTIO_RING_F_EVENT_IDX),
      indirect: hasFeature(features, VIRTIO_RING_F_INDIRECT_DESC),
      inOrder: false,
      name: index === 0 ? 'rx' : 'tx',
      index,
      slots: ringSize,
      slotBytes: index === 0 ? RX_SLOT_BYTES : VsockHeader.size + VSOCK_PACKET_BYTES,
      segmentBytes: SEGMENT_BYTES,
      deviceWrites: index === 0,
    });
    const [rx, tx] = [plan(0), plan(1)];
    this.memory = GuestMemory.create(queueBytes(rx) + queueBytes(tx), { baseGpa: BASE_GPA });
    if (space instanceof GuestIommu) space.setMemory(this.memory);
    this.rx = new GuestQueue(rx, this.memory, 0, space);
    this.tx = new GuestQueue(tx, this.memory, queueBytes(rx), space);
    void backend.closed.then((reason) => {
      const text = `${backend.description}: ${reason?.message ?? 'the back-end is gone'}`;
      this.#fail(new VringError('ERR_VRING_GUEST_BACKEND_GONE', text, { cause: reason }));
    });
  }

  /** False: the ring is full; `onRoom` follows. The header's `len` is the payload's. */
  send(header: VsockHeader, payload: Uint8Array): boolean {
    const { tx } = this;
    if (!this.#running) return false;
    const reclaimed = reclaimTx(tx);
    if (reclaimed < 0) return this.#broken(tx, reclaimed);
    if (tx.freeCount === 0) return this.#full();
    const lenBytes = VsockHeader.size + payload.length;
    const offset = tx.slotOffset[tx.freeSlots[tx.freeCount - 1]];
    const slot = new Uint8Array(tx.arena.buffer, offset, lenBytes);
    slot.set(VsockHeader.encode(header));
    slot.set(payload, VsockHeader.size);
    if (sendSlots(tx, 1, lenBytes, false) === 0) return this.#full();
    this.#kickIfWanted(tx);
    this.counters.txPackets++;
    return true;
  }

  /** Stops both rings; what is in them stays there. */
  async stop(): Promise<void> {
    if (!this.#running) return;
    this.#running = false;
    this.#stopPolling();
    this.#bases = [await stopVring(this.backend, 0), await stopVring(this.backend, 1)];
  }

  async resume(): Promise<void> {
    if (this.#running || this.#ended) return;
    disableCalls(this.tx.ring);
    this.#running = true;
    try {
      for (const [i, queue] of [this.rx, this.tx].entries()) {
        await startVring(this.backend, i, queue.vring(this.#bases[i]));
      }
    } catch (error) {
      this.#running = false;
      throw error;
    }
    this.#polls.push(
      pollFd(this.rx.call.number, { read: true }, () => this.#received()),
      pollFd(this.tx.call.number, { read: true }, () => this.#sent()),
    );
    for (const queue of [this.rx, this.tx]) signalEventfd(queue.kick.number);
    this.#received();
    this.onRoom?.();
  }

  /** Idempotent. */
  async close(): Promise<void> {
    try {
      if (this.failure === null) await this.stop();
    } catch {
      // The back-end went away: nothing of ours runs there any more.
    }
    this.#ended = true;
    this.#running = false;
    this.#stopPolling();
    await this.backend.close();
    this.rx.close();
    this.tx.close();
    this.memory.close();
    this.#end.resolve(this.failure);
  }

  #received(): void {
    const { rx } = this;
    if (drainEventfd(rx.call.number) > 0) rx.calls++;
    for (let i = 0; this.#running && i < BATCHES_PER_TURN; i++) {
      if (this.#receiveBatch() > 0) continue;
      if (!this.#running || !enableCalls(rx.ring)) return;
    }
    if (this.#running) setImmediate(() => this.#running && this.#received());
  }

  #receiveBatch(): number {
    const { rx } = this;
    const { used } = rx;
    const count = reapUsed(rx.ring, used, used.capacity);
    if (count <= 0) {
      if (count < 0) this.#broken(rx, count);
      return 0;
    }
    // The handler may send, and so cannot touch the receive ring's batch; it may also close us.
    const slots = Array.from({ length: count }, (_, i) => rx.slotOfId[used.id[i]]);
    const lengths = Array.from({ length: count }, (_, i) => used.len[i]);
    for (let i = 0; i < count && this.#running; i++) this.#packet(slots[i], lengths[i]);
    if (this.#ended) return 0;
    for (const slot of slots.toReversed()) rx.freeSlots[rx.freeCount++] = slot;
    refillRx(rx);
    this.#kickIfWanted(rx);
    return count;
  }

  /** The header is copied, the copy is judged. */
  #packet(slot: number, lenBytes: number): void {
    const { rx } = this;
    const bytes = new Uint8Array(rx.arena.buffer, rx.slotOffset[slot], RX_SLOT_BYTES);
    const header = lenBytes < VsockHeader.size ? null : VsockHeader.decode(bytes);
    const fits = header !== null && header.len + VsockHeader.size <= lenBytes;
    if (!fits || lenBytes > RX_SLOT_BYTES) return void this.counters.rxMalformed++;
    this.counters.rxPackets++;
    this.onPacket?.(header, bytes.subarray(VsockHeader.size, VsockHeader.size + header.len));
  }

  #sent(): void {
    const { tx } = this;
    if (drainEventfd(tx.call.number) > 0) tx.calls++;
    if (!this.#waitsForRoom || !this.#running) return;
    const reclaimed = reclaimTx(tx);
    if (reclaimed < 0) return void this.#broken(tx, reclaimed);
    if (tx.freeCount === 0) return this.#waitForRoom();
    this.#waitsForRoom = false;
    disableCalls(tx.ring);
    this.onRoom?.();
  }

  #full(): false {
    this.counters.txFull++;
    this.#waitForRoom();
    return false;
  }

  /** A call when the device takes something; at once where it did so meanwhile. */
  #waitForRoom(): void {
    this.#waitsForRoom = true;
    if (enableCalls(this.tx.ring)) setImmediate(() => this.#sent());
  }

  #kickIfWanted(queue: GuestQueue): void {
    if (!needsKick(queue.ring)) return;
    queue.kicks++;
    signalEventfd(queue.kick.number);
  }

  #broken(queue: GuestQueue, fault: number): false {
    const name = faultName(fault);
    const text = `${this.backend.description} broke virtio in ${queue.plan.name}: ${name}`;
    this.#fail(new VringError(`ERR_VRING_GUEST_${name}`, text, { recovery: 'reset' }));
    return false;
  }

  #fail(error: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#running = false;
    this.failure = error;
    this.#stopPolling();
    this.#end.resolve(error);
  }

  #stopPolling(): void {
    for (const poll of this.#polls.splice(0)) poll.close();
  }
}

async function readCid(backend: VhostBackend): Promise<number> {
  const bytes = await backend.getConfig(0, VsockConfig.size);
  return Number(VsockConfig.decode(bytes).guestCid & 0xffff_ffffn); // the upper half is reserved
}
