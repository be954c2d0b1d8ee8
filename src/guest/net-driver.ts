/**
 * The software guest's virtio-net driver: a front-end with memory and driver-side rings of its own.
 *
 * Theory of operation: `start` negotiates, lays out one memfd (rings, indirect tables, buffers of
 * every queue), hands all to the back-end in the order of real ones, and is then a `FrameLink`:
 * `send` copies a frame into a slot of a transmit ring, received frames go to `onFrame`. They are
 * noticed by the call eventfd ('interrupt') or by looking every turn of the event loop ('poll').
 * With notify 'manual' nobody looks: the caller works on `rx` and `tx` with the functions of
 * net-driver.hot.ts, as `traffic.ts` does.
 *
 * A back-end that breaks virtio ends the guest: `failure` is set, `closed` resolves with it, `send`
 * returns false from then on. So does one that goes away, unless `reconnect` says how to find it
 * again: then rings and memory stay as they are, frames wait in the transmit rings, and whoever
 * answers next gets everything from where it was (attach.ts, ring-recovery.ts).
 */
import type { VhostBackend } from '../base/vhost-backend.ts';
import type { GuestMemory } from '../memory/index.ts';
import { drainEventfd, pollFd, signalEventfd, type Poll } from '../sys/index.ts';
import { startVring, stopVring } from '../vhost-user/index.ts';
import { disableCalls, enableCalls, needsKick } from '../virtqueue/driver/index.ts';
import { NetHeader, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF } from '../wire/virtio-net.ts';
import { VIRTIO_F_ACCESS_PLATFORM, VIRTIO_ID_NET, hasFeature } from '../wire/virtio.ts';
import { introduceAgain, RUNNING, type DriverSetup, type ReconnectOptions } from './attach.ts';
import { BackendKeeper } from './backend-keeper.ts';
import { takeCalls, waitForCalls } from './call-wait.ts';
import type { ControlQueue } from './control-queue.ts';
import type { DeviceConfig } from './device-config.ts';
import { NO_CHOICE } from './features.ts';
import type { GuestQueue } from './guest-queue.ts';
import { DIRECT, type AddressSpace } from './iommu.ts';
import {
  NO_OFFLOAD,
  type FrameHandler,
  type FrameLink,
  type FrameOffload,
  type LinkOffloads,
} from './link.ts';
import { reapRx, reclaimTx, refillRx, releaseRx, sendSlots } from './net-driver.hot.ts';
import { announceFrame, decodeOffload, encodeOffload, macToBytes, randomMac } from './net-frame.ts';
import type { LinkEvent, NetGuestLink, NetGuestOptions } from './net-options.ts';
import { faultError, NetQueues, type MemoryCopy } from './net-queues.ts';
import { agree, type Agreement } from './net-start.ts';
import type { RxFrames } from './rx-frames.ts';

export type { LinkEvent, NetGuestLink, NetGuestOptions } from './net-options.ts';

const HEADER_BYTES = NetHeader.size;
const BATCHES_PER_TURN = 8; // of received frames, per turn of the event loop

export class NetGuest implements FrameLink {
  readonly offered: bigint;
  readonly features: bigint;
  readonly config: DeviceConfig | null;
  readonly mac: string;
  readonly mtu: number;
  readonly offloads: LinkOffloads;
  readonly packed: boolean;
  readonly mergeable: boolean;
  readonly headerApart: boolean;
  readonly rx: readonly GuestQueue[];
  readonly tx: readonly GuestQueue[];
  readonly rxFrames: readonly RxFrames[];
  /** Null unless CTRL_VQ was negotiated (features `+ctrl_vq`). */
  readonly control: ControlQueue | null;
  onFrame: FrameHandler | null = null;
  onLink: ((event: LinkEvent) => void) | null = null;
  /** For 'manual': takes what was received, before rings go on with another back-end. */
  onReap: (() => void) | null = null;
  /** Whether a stop is a pause of a migration. */
  moving = false;
  /** Why the guest does not run any more. */
  failure: Error | null = null;
  /** Resolves with `failure`, or null after `close`. */
  readonly closed: Promise<Error | null>;

  /** Frames of the link; the data plane of `traffic.ts` counts by itself. */
  readonly counters = { rxFrames: 0, rxBytes: 0, txFrames: 0, txBytes: 0, txFull: 0 };

  readonly #notify: 'interrupt' | 'poll' | 'manual';
  readonly #queues: NetQueues;
  readonly #keeper: BackendKeeper;
  readonly #end = Promise.withResolvers<Error | null>();
  readonly #polls: Poll[] = [];
  #bases: number[] = [];
  #running = false;
  /** Whether the back-end has the rings. */
  #attached = false;
  /** A back-end that was stopped as a whole, and has to be told everything once more. */
  #stoppedWhole: VhostBackend | null = null;
  /** Whether the next back-end got the rings already. */
  #handed = false;
  #ended = false;
  #turn: NodeJS.Immediate | null = null;
  /** Ends a `waitForFrames` before its time. */
  #wake: (() => void) | null = null;

  /**
   * Negotiates with the back-end and starts the rings. The back-end becomes the guest's: it is
   * closed with it, also when this throws.
   * @throws VringError ERR_VRING_GUEST_FEATURE, ERR_VRING_GUEST_QUEUES; what the back-end throws.
   */
  static async start(
    backend: VhostBackend,
    options: NetGuestOptions = {},
    link: NetGuestLink = {},
  ): Promise<NetGuest> {
    let guest: NetGuest | null = null;
    try {
      const choice = options.features ?? NO_CHOICE;
      const platform = link.addressSpace?.platform === true ? [VIRTIO_F_ACCESS_PLATFORM] : [];
      const agreement = await agree(backend, {
        choice: { on: [...choice.on, ...platform], off: choice.off },
        packed: options.packed ?? false,
        queuePairs: options.queuePairs ?? 1,
      });
      guest = new NetGuest(backend, options, link, agreement);
      await guest.#begin(agreement.maxPairs);
      return guest;
    } catch (error) {
      if (guest !== null) await guest.close();
      else await backend.close();
      throw error;
    }
  }

  private constructor(
    backend: VhostBackend,
    options: NetGuestOptions,
    link: NetGuestLink,
    { offered, features, config }: Agreement,
  ) {
    this.offered = offered;
    this.features = features;
    this.config = config;
    const deviceMac = hasFeature(features, VIRTIO_NET_F_MAC) ? config?.mac : null;
    this.mac = (options.mac ?? deviceMac ?? randomMac()).toLowerCase();
    this.mtu = options.mtu ?? config?.mtu ?? 1500;
    this.packed = options.packed ?? false;
    this.mergeable = hasFeature(features, VIRTIO_NET_F_MRG_RXBUF);
    this.headerApart = options.headerApart ?? false;
    this.#notify = options.notify ?? 'interrupt';
    this.#queues = new NetQueues({
      features,
      queuePairs: options.queuePairs ?? 1,
      ringSize: options.ringSize ?? 256,
      mtu: this.mtu,
      maxTxFrameBytes: options.maxTxFrameBytes ?? null,
      hugePages: options.hugePages ?? false,
      space: link.addressSpace ?? DIRECT,
      onFault: (error) => this.#fail(error),
    });
    const { rx, tx, rxFrames, control } = this.#queues;
    this.rx = rx;
    this.tx = tx;
    this.rxFrames = rxFrames;
    this.control = control;
    this.offloads = this.#queues.offloads;
    this.closed = this.#end.promise;
    this.#keeper = new BackendKeeper(backend, link.reconnect ?? null, {
      setup: () => this.setup,
      lost: (reason) => {
        this.#attached = false;
        this.onLink?.({ kind: 'lost', reason });
      },
      restored: (milliseconds) => this.#restored(milliseconds),
      failed: (error) => this.#fail(error),
    });
  }

  get backend(): VhostBackend {
    return this.#keeper.backend;
  }

  get reconnects(): number {
    return this.#keeper.reconnects;
  }

  get queues(): readonly GuestQueue[] {
    return this.#queues.all;
  }

  get memory(): GuestMemory {
    return this.#queues.memory;
  }

  get restartedRings(): number {
    return this.#queues.restarted;
  }

  /** Whether the back-end takes guest-physical addresses where others take user addresses. */
  get gpaAddresses(): boolean {
    return this.#keeper.gpaAddresses;
  }

  get addressSpace(): AddressSpace {
    return this.#queues.space;
  }

  /** False before the rings start, between `stop` and `resume`, and after the end. */
  get running(): boolean {
    return this.#running;
  }

  get queuePairs(): number {
    return this.rx.length;
  }

  send(frame: Uint8Array, offload: FrameOffload): boolean {
    const queue = this.tx[0];
    const lenBytes = HEADER_BYTES + frame.length;
    if (!this.#running || lenBytes > queue.slotBytes) return false;
    const reclaimed = reclaimTx(queue);
    if (reclaimed < 0) return this.#broken(queue, reclaimed);
    if (queue.freeCount === 0) return this.#full();
    const offset = queue.slotOffset[queue.freeSlots[queue.freeCount - 1]];
    const bytes = new Uint8Array(queue.arena.buffer, offset, lenBytes);
    bytes.set(encodeOffload(offload));
    bytes.set(frame, HEADER_BYTES);
    if (sendSlots(queue, 1, lenBytes, this.headerApart) === 0) return this.#full();
    this.kickIfWanted(queue);
    this.counters.txFrames++;
    this.counters.txBytes += frame.length;
    return true;
  }

  kickIfWanted(queue: GuestQueue): void {
    if (!needsKick(queue.ring)) return;
    queue.kicks++;
    this.#kick(queue);
  }

  /**
   * For 'manual', between two rounds: a device in this thread works on what came from elsewhere,
   * and does so only when it is called.
   */
  yieldToDevice(): void {
    this.backend.inThread?.turn();
  }

  /**
   * A broadcast RARP frame from our MAC address, as QEMU sends it after a migration: switches
   * learn where we are.
   */
  announce(): boolean {
    return this.send(announceFrame(macToBytes(this.mac)), NO_OFFLOAD);
  }

  /** A fault of queue `queue`; ends the guest. */
  reportFault(queue: GuestQueue, fault: number): void {
    this.#broken(queue, fault);
  }

  /** For 'manual': asks for calls and resolves when one comes, or after `timeoutMs`. */
  async waitForFrames(timeoutMs: number): Promise<void> {
    if (!this.#running) return;
    await waitForCalls(this.rx, timeoutMs, (wake) => (this.#wake = wake));
    if (!this.#ended) takeCalls(this.rx);
  }

  /**
   * Stops all rings: GET_VRING_BASE of each. What was in them stays in them; `resume` goes on.
   * Returns the bases.
   */
  async stop(): Promise<number[]> {
    if (!this.#running) return this.#bases;
    if (!this.#attached) this.#bases = this.#recoverBases();
    this.#running = false;
    this.#stopPolling();
    if (!this.#attached) return this.#bases;
    this.#attached = false;
    const bases: number[] = [];
    for (const queue of this.queues) bases.push(await stopVring(this.backend, queue.index));
    this.#bases = bases;
    if (this.backend.restartsWhole) this.#stoppedWhole = this.backend;
    return bases;
  }

  /** Starts the rings where `stop` found them; with nobody there, as soon as somebody is. */
  async resume(): Promise<void> {
    if (this.#running || this.#ended) return;
    if (this.#keeper.searching) {
      this.#running = true;
      this.#startPolling();
      return;
    }
    const again = this.#stoppedWhole === this.backend;
    if (again) await introduceAgain(this.backend, this.setup);
    this.#stoppedWhole = null;
    await this.#startRings();
    if (again) await this.control?.restore();
  }

  /** Idempotent. Stops the rings if somebody still answers, and releases everything. */
  async close(): Promise<void> {
    if (this.#ended && this.failure === null) return;
    this.#keeper.abort();
    try {
      if (this.failure === null && this.#attached) await this.stop();
    } catch {
      // The back-end went away: nothing of ours runs there any more.
    }
    this.#ended = true;
    this.#running = false;
    this.#stopPolling();
    await this.#keeper.close();
    this.#queues.close();
    this.#end.resolve(this.failure);
  }

  /** What another back-end must offer and be told to go on with this guest. */
  get setup(): DriverSetup {
    const { protocolFeatures, gpaAddresses } = this.#keeper;
    return {
      deviceId: VIRTIO_ID_NET,
      features: this.features,
      protocolFeatures,
      vrings: this.#queues.vrings,
      regions: () => [this.memory.backendRegion()],
      rings: () => {
        this.#handed = this.#running;
        return this.#running ? this.#queues.rings(this.#recoverBases(), gpaAddresses) : [];
      },
      settle: () => this.addressSpace.settle(),
      inflight: this.#queues.inflight,
    };
  }

  /**
   * After `stop`: goes on in a copy of the memory and with another back-end, which knows everything
   * but the rings; `resume` starts them. The old back-end and the old memory are the caller's.
   */
  moveTo(
    backend: VhostBackend,
    connect: ReconnectOptions['connect'],
    copy: MemoryCopy,
  ): GuestMemory {
    this.#keeper.replace(backend, connect);
    return this.#queues.moveTo(copy);
  }

  /** After `stop`: hands over what was received, so that nothing of it is in the rings. */
  reapAll(): void {
    if (this.#notify === 'manual') this.onReap?.();
    const limit = this.rx[0].plan.size;
    for (let i = 0; this.#notify !== 'manual' && i < this.rx.length; i++) {
      for (let n = 0; n < limit && this.failure === null; n++) {
        if (this.#receiveBatch(i) === 0) break;
      }
    }
  }

  async #begin(maxPairs: number): Promise<void> {
    await this.backend.setMemTable([this.memory.backendRegion()]);
    await this.addressSpace.settle();
    await this.#queues.makeInflight(this.backend);
    this.#bases = this.#queues.begin(maxPairs);
    await this.#startRings();
    if (this.control !== null && this.queuePairs > 1) await this.control.setPairs(this.queuePairs);
  }

  async #startRings(): Promise<void> {
    for (const queue of this.queues) disableCalls(queue.ring);
    this.#running = true;
    try {
      const { gpaAddresses } = this.#keeper;
      for (const { index, vring } of this.#queues.rings(this.#bases, gpaAddresses)) {
        await startVring(this.backend, index, vring);
      }
      await this.backend.setStatus(RUNNING);
    } catch (error) {
      this.#running = false;
      throw error;
    }
    this.#attached = true;
    this.#startPolling();
    this.#kickAll();
  }

  /** The back-end may have said "no kick" before it looked, or died: one kick each to begin. */
  #kickAll(): void {
    for (const queue of this.queues) this.#kick(queue);
    if (this.#notify !== 'interrupt') return;
    for (let i = 0; i < this.rx.length; i++) this.#drain(i); // a call may be lost, too
  }

  #kick(queue: GuestQueue): void {
    const device = this.backend.inThread;
    if (device === undefined) signalEventfd(queue.kick.number);
    else device.kicked(queue.index);
  }

  #startPolling(): void {
    this.#stopPolling();
    if (this.#notify === 'poll') this.#pollTurn();
    if (this.#notify !== 'interrupt') return;
    for (const [i, queue] of this.rx.entries()) {
      this.#polls.push(pollFd(queue.call.number, { read: true }, () => this.#called(i)));
    }
  }

  async #restored(milliseconds: number): Promise<void> {
    await this.#settle();
    this.onLink?.({ kind: 'restored', milliseconds });
    await this.control?.restore();
  }

  /** After a search, during which the guest may have been stopped or resumed. */
  async #settle(): Promise<void> {
    this.#attached = this.#handed;
    if (this.#running && this.#handed) this.#kickAll();
    else if (this.#running) {
      this.#bases = this.#recoverBases();
      await this.#startRings();
    } else if (this.#handed) {
      this.#running = true;
      await this.stop();
    }
  }

  #recoverBases(): number[] {
    if (this.#running) this.reapAll();
    return this.#queues.recoverBases();
  }

  #called(index: number): void {
    const queue = this.rx[index];
    queue.calls += drainEventfd(queue.call.number) > 0 ? 1 : 0;
    this.#drain(index);
  }

  /** Works through what has come; asks for a call when there is no more. */
  #drain(index: number): void {
    const queue = this.rx[index];
    for (let i = 0; this.#running && i < BATCHES_PER_TURN; i++) {
      if (this.#receiveBatch(index) > 0) continue;
      if (!this.#running || !enableCalls(queue.ring)) return;
    }
    if (this.#running) setImmediate(() => this.#drain(index));
  }

  #pollTurn(): void {
    for (let i = 0; this.#running && i < this.rx.length; i++) this.#receiveBatch(i);
    if (this.#running) this.#turn = setImmediate(() => this.#pollTurn());
  }

  /** Frames of one batch to `onFrame`. Returns how many buffers came back. */
  #receiveBatch(index: number): number {
    const queue = this.rx[index];
    const frames = this.rxFrames[index];
    const count = reapRx(queue, frames, this.mergeable);
    if (count < 0) {
      this.#broken(queue, count);
      return 0;
    }
    const buffers = frames.slotCount;
    if (buffers === 0) return 0;
    for (let i = 0; i < count; i++) {
      const bytes = new Uint8Array(queue.arena.buffer, frames.offset[i], frames.len[i]);
      this.counters.rxFrames++;
      this.counters.rxBytes += bytes.length;
      this.onFrame?.(bytes, decodeOffload(queue.arena, frames.offset[i] - HEADER_BYTES));
      if (this.#ended) return 0; // the handler closed us
    }
    releaseRx(queue, frames);
    refillRx(queue);
    this.kickIfWanted(queue);
    return buffers;
  }

  #full(): false {
    this.counters.txFull++;
    return false;
  }

  #broken(queue: GuestQueue, fault: number): false {
    this.#fail(faultError(this.backend, queue, fault));
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
    if (this.#turn !== null) clearImmediate(this.#turn);
    this.#turn = null;
    this.#wake?.();
  }
}
