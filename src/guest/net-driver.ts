/**
 * The software guest's virtio-net driver: a front-end with its own memory and driver-side rings,
 * over any `VhostBackend`.
 *
 * Theory of operation: `start` negotiates, lays out one memfd (rings, indirect tables, buffers of
 * every queue), fills the receive rings, hands everything to the back-end in the order of real
 * front-ends, and is then a `FrameLink`: `send` copies a frame into a slot of a transmit ring,
 * received frames go to `onFrame`. Received frames are noticed by the call eventfd ('interrupt')
 * or by looking every turn of the event loop ('poll'). With notify 'manual' nobody looks: the
 * caller works on `rx` and `tx` with the functions of net-driver.hot.ts, as `traffic.ts` does.
 *
 * A back-end that breaks virtio, or goes away, ends the guest: `failure` is set, `closed`
 * resolves with it, `send` returns false from then on.
 */
import { VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { GuestMemory } from '../memory/index.ts';
import { drainEventfd, pollFd, signalEventfd, type Poll } from '../sys/index.ts';
import { startVring, stopVring } from '../vhost-user/index.ts';
import { faultName } from '../virtqueue/index.ts';
import { disableCalls, enableCalls, needsKick } from '../virtqueue/driver/index.ts';
import { formatMac } from '../wire/ethernet.ts';
import {
  NetHeader,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_HDR_F_DATA_VALID,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
} from '../wire/virtio-net.ts';
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  hasFeature,
  PACKED_BASE_FRESH,
} from '../wire/virtio.ts';
import { ControlQueue } from './control-queue.ts';
import { readDeviceConfig, type DeviceConfig } from './device-config.ts';
import { NO_CHOICE, chooseFeatures, type FeatureChoice } from './features.ts';
import { GuestQueue, queueBytes } from './guest-queue.ts';
import {
  NO_OFFLOAD,
  type FrameHandler,
  type FrameLink,
  type FrameOffload,
  type LinkOffloads,
} from './link.ts';
import { reapRx, reclaimTx, refillRx, releaseRx, sendSlots } from './net-driver.hot.ts';
import { planQueues } from './queue-plan.ts';
import { RxFrames } from './rx-frames.ts';

export type NetGuestOptions = {
  readonly queuePairs?: number;
  /** Descriptors of each data ring; default 256. */
  readonly ringSize?: number;
  readonly packed?: boolean;
  readonly features?: FeatureChoice;
  /** Default: the device's, or one made up. */
  readonly mac?: string | null;
  /** Bytes of IP in a frame. Default: what the device says, or 1500. */
  readonly mtu?: number | null;
  readonly hugePages?: boolean;
  readonly notify?: 'interrupt' | 'poll' | 'manual';
  /**
   * Longest frame that is sent, header excluded. Default: one MTU, or 64 KiB where the back-end
   * segments.
   */
  readonly maxTxFrameBytes?: number;
  /** Test knob: the virtio-net header in a descriptor of its own. */
  readonly headerApart?: boolean;
};

const HEADER_BYTES = NetHeader.size;
/** Received batches per turn of the event loop, so that timers and signals get their turn. */
const BATCHES_PER_TURN = 8;
const BASE_GPA = 0x4000_0000;

export class NetGuest implements FrameLink {
  readonly backend: VhostBackend;
  readonly offered: bigint;
  readonly features: bigint;
  readonly config: DeviceConfig | null;
  readonly mac: string;
  readonly mtu: number;
  readonly offloads: LinkOffloads;
  readonly packed: boolean;
  readonly mergeable: boolean;
  readonly headerApart: boolean;
  readonly rx: GuestQueue[] = [];
  readonly tx: GuestQueue[] = [];
  readonly rxFrames: RxFrames[] = [];
  /** Null unless CTRL_VQ was negotiated (features `+ctrl_vq`). */
  readonly control: ControlQueue | null = null;
  onFrame: FrameHandler | null = null;
  /** Why the guest does not run any more. */
  failure: Error | null = null;
  /** Resolves with `failure`, or null after `close`. */
  readonly closed: Promise<Error | null>;

  /** Frames of the link; the data plane of `traffic.ts` counts by itself. */
  readonly counters = { rxFrames: 0, rxBytes: 0, txFrames: 0, txBytes: 0, txFull: 0 };

  readonly #notify: 'interrupt' | 'poll' | 'manual';
  readonly #memory: GuestMemory;
  readonly #end = Promise.withResolvers<Error | null>();
  readonly #polls: Poll[] = [];
  #bases: number[] = [];
  #running = false;
  #ended = false;
  #turn: NodeJS.Immediate | null = null;
  /** Ends a `waitForFrames` before its time. */
  #wake: (() => void) | null = null;

  /**
   * Negotiates with the back-end and starts the rings. The back-end becomes the guest's: it is
   * closed with it, also when this throws.
   * @throws VringError ERR_VRING_GUEST_FEATURE, ERR_VRING_GUEST_QUEUES; what the back-end throws.
   */
  static async start(backend: VhostBackend, options: NetGuestOptions = {}): Promise<NetGuest> {
    let guest: NetGuest | null = null;
    try {
      const queuePairs = options.queuePairs ?? 1;
      const offered = await backend.getFeatures();
      await backend.setOwner();
      const vrings = await backend.getQueueNum();
      if (2 * queuePairs > vrings) {
        throw new VringError(
          'ERR_VRING_GUEST_QUEUES',
          `${queuePairs} queue pairs are wanted; ${backend.description} has ${vrings >> 1}`,
        );
      }
      const features = chooseFeatures(offered, {
        choice: options.features ?? NO_CHOICE,
        packed: options.packed ?? false,
        queuePairs,
      });
      await backend.setStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
      const config = await readDeviceConfig(backend, features);
      await backend.setFeatures(features);
      await confirmFeatures(backend);
      guest = new NetGuest(backend, options, offered, features, config);
      await guest.#begin(config?.maxVirtqueuePairs ?? vrings >> 1);
      return guest;
    } catch (error) {
      if (guest !== null) await guest.close();
      else await backend.close();
      throw error;
    }
  }

  /** Use `start`. */
  private constructor(
    backend: VhostBackend,
    options: NetGuestOptions,
    offered: bigint,
    features: bigint,
    config: DeviceConfig | null,
  ) {
    this.backend = backend;
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
    const plans = planQueues(features, {
      queuePairs: options.queuePairs ?? 1,
      ringSize: options.ringSize ?? 256,
      mtu: this.mtu,
      maxTxFrameBytes: options.maxTxFrameBytes ?? null,
    });
    const big = plans.maxTxFrameBytes >= 65535;
    this.offloads = {
      csum: hasFeature(features, VIRTIO_NET_F_CSUM),
      uso: big && hasFeature(features, VIRTIO_NET_F_HOST_USO),
    };
    const hasControl = hasFeature(features, VIRTIO_NET_F_CTRL_VQ);
    const all = [...plans.queues, ...(hasControl ? [plans.control] : [])];
    const bytes = all.reduce((sum, plan) => sum + queueBytes(plan), 0);
    this.#memory = GuestMemory.create(bytes, {
      hugePages: options.hugePages ?? false,
      baseGpa: BASE_GPA,
    });
    let at = 0;
    for (const plan of all) {
      const queue = new GuestQueue(plan, this.#memory, at);
      at += queueBytes(plan);
      if (plan === plans.control)
        this.control = new ControlQueue(queue, (error) => this.#fail(error));
      else (plan.index % 2 === 0 ? this.rx : this.tx).push(queue);
    }
    for (const queue of this.rx) {
      this.rxFrames.push(new RxFrames(this.mergeable ? queue.slotBytes : 0));
    }
    this.closed = this.#end.promise;
    void backend.closed.then((reason) => {
      if (this.#ended) return;
      const why = reason === null ? 'the back-end closed the connection' : reason.message;
      this.#fail(
        new VringError('ERR_VRING_GUEST_BACKEND_GONE', `${backend.description}: ${why}`, {
          recovery: 'reconnect',
          cause: reason,
        }),
      );
    });
  }

  /** False before the rings start, between `stop` and `resume`, and after the end. */
  get running(): boolean {
    return this.#running;
  }

  get queuePairs(): number {
    return this.rx.length;
  }

  /** FrameLink: copies the frame into the first transmit queue's ring. */
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

  /** After publishing: notifies the back-end if it asked for it. */
  kickIfWanted(queue: GuestQueue): void {
    if (!needsKick(queue.ring)) return;
    queue.kicks++;
    signalEventfd(queue.kick.number);
  }

  /**
   * A broadcast RARP frame from our MAC address, as QEMU sends it after a migration: switches
   * learn where we are.
   */
  announce(): boolean {
    const frame = new Uint8Array(60);
    const view = new DataView(frame.buffer);
    const mac = Uint8Array.from(this.mac.split(':'), (byte) => Number.parseInt(byte, 16));
    frame.fill(0xff, 0, 6);
    frame.set(mac, 6);
    view.setUint16(12, 0x8035); // RARP, RFC 903: same packet as ARP, operation 3
    view.setUint16(14, 1);
    view.setUint16(16, 0x0800);
    view.setUint16(18, 0x0604);
    view.setUint16(20, 3);
    frame.set(mac, 22);
    frame.set(mac, 32);
    return this.send(frame, NO_OFFLOAD);
  }

  /** For the data plane: a fault of queue `queue`; ends the guest. */
  reportFault(queue: GuestQueue, fault: number): void {
    this.#broken(queue, fault);
  }

  /** For 'manual': asks for calls and resolves when one comes, or after `timeoutMs`. */
  async waitForFrames(timeoutMs: number): Promise<void> {
    if (!this.#running) return;
    const polls: Poll[] = [];
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, timeoutMs);
      const wake = (): void => {
        clearTimeout(timer);
        resolve();
      };
      this.#wake = wake;
      for (const queue of this.rx) {
        polls.push(pollFd(queue.call.number, { read: true }, wake));
        if (enableCalls(queue.ring)) wake();
      }
    });
    this.#wake = null;
    for (const poll of polls) poll.close();
    if (this.#ended) return;
    for (const queue of this.rx) {
      if (drainEventfd(queue.call.number) > 0) queue.calls++;
      disableCalls(queue.ring);
    }
  }

  /**
   * Stops all rings: GET_VRING_BASE of each. What was in them stays in them; `resume` goes on.
   * Returns the bases.
   */
  async stop(): Promise<number[]> {
    if (!this.#running) return this.#bases;
    this.#running = false;
    this.#stopPolling();
    const bases: number[] = [];
    for (const queue of this.#queues()) bases.push(await stopVring(this.backend, queue.index));
    this.#bases = bases;
    return bases;
  }

  /** Starts the rings again where `stop` found them. */
  async resume(): Promise<void> {
    if (this.#running || this.#ended) return;
    await this.#startRings();
  }

  /** Idempotent. Stops the rings if the back-end still answers, and releases everything. */
  async close(): Promise<void> {
    if (this.#ended && this.failure === null) return;
    try {
      if (this.failure === null) await this.stop();
    } catch {
      // The back-end went away meanwhile: nothing of ours runs there any more.
    }
    this.#ended = true;
    this.#running = false;
    this.#stopPolling();
    await this.backend.close();
    this.control?.close();
    for (const queue of this.#queues()) queue.close();
    for (const frames of this.rxFrames) frames.close();
    this.#memory.close();
    this.#end.resolve(this.failure);
  }

  async #begin(maxPairs: number): Promise<void> {
    this.control?.setIndex(hasFeature(this.features, VIRTIO_NET_F_MQ) ? 2 * maxPairs : 2);
    await this.backend.setMemTable([this.#memory.backendRegion()]);
    this.#bases = this.#queues().map(() => (this.packed ? PACKED_BASE_FRESH : 0));
    for (const queue of this.rx) refillRx(queue);
    await this.#startRings();
    await this.backend.setStatus(
      VIRTIO_CONFIG_S_ACKNOWLEDGE |
        VIRTIO_CONFIG_S_DRIVER |
        VIRTIO_CONFIG_S_FEATURES_OK |
        VIRTIO_CONFIG_S_DRIVER_OK,
    );
    if (this.control !== null && this.queuePairs > 1) await this.control.setPairs(this.queuePairs);
  }

  async #startRings(): Promise<void> {
    const queues = this.#queues();
    for (const queue of queues) disableCalls(queue.ring);
    for (const [i, queue] of queues.entries()) {
      await startVring(this.backend, queue.index, queue.vring(this.#bases[i]));
    }
    this.#running = true;
    // The back-end may have said "no kick" before it looked: one kick each to begin with.
    for (const queue of queues) signalEventfd(queue.kick.number);
    if (this.#notify === 'poll') this.#pollTurn();
    if (this.#notify !== 'interrupt') return;
    for (const [i, queue] of this.rx.entries()) {
      this.#polls.push(pollFd(queue.call.number, { read: true }, () => this.#called(i)));
      this.#drain(i);
    }
  }

  #queues(): GuestQueue[] {
    const data = this.rx.flatMap((queue, i) => [queue, this.tx[i]]);
    return this.control === null ? data : [...data, this.control.queue];
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
      if (!this.#running) return 0; // the handler closed us
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
    const name = faultName(fault);
    this.#fail(
      new VringError(
        `ERR_VRING_GUEST_${name}`,
        `${this.backend.description} broke virtio in ${queue.plan.name}: ${name}`,
        { recovery: 'reset' },
      ),
    );
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

/** 3.1.1, step 6: the device may refuse the set of features. */
async function confirmFeatures(backend: VhostBackend): Promise<void> {
  const wanted = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
  await backend.setStatus(wanted);
  const status = await backend.getStatus();
  if ((status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) return;
  throw new VringError(
    'ERR_VRING_GUEST_FEATURE',
    `${backend.description} refused the negotiated features (status 0x${status.toString(16)})`,
  );
}

function encodeOffload(offload: FrameOffload): Uint8Array {
  return NetHeader.encode({
    flags: offload.needsCsum ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0,
    gsoType: offload.gsoType,
    hdrLen: offload.headerBytes,
    gsoSize: offload.gsoSize,
    csumStart: offload.csumStart,
    csumOffset: offload.csumOffset,
    numBuffers: 0,
  });
}

function decodeOffload(arena: DataView, at: number): FrameOffload {
  const header = NetHeader.read(arena, at);
  return {
    needsCsum: (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) !== 0,
    dataValid: (header.flags & VIRTIO_NET_HDR_F_DATA_VALID) !== 0,
    csumStart: header.csumStart,
    csumOffset: header.csumOffset,
    gsoType: header.gsoType,
    gsoSize: header.gsoSize,
    headerBytes: header.hdrLen,
  };
}

/** Locally administered, unicast. */
function randomMac(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  bytes[0] = (bytes[0] & 0xfc) | 0x02;
  return formatMac(bytes);
}
