import { BATCH, MAX_FRAME_BYTES } from '../../base/limits.ts';
import type { FrameBatch } from '../../switch/frame-batch.ts';
import type { PortPlane } from '../../switch/port-plane.ts';
import { type CopyPlan, arena, claimFaults, regionFaults } from '../../sys/arena.ts';
import { signalCall } from '../../sys/vring-call.ts';
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';
import { orderUsed, putUsed, takeChains } from '../../virtqueue/device.hot.ts';
import { FAULT_MEMORY_GONE, FAULT_NOTIFY_BLOCKED } from '../../virtqueue/faults.ts';
import { lockRing, unlockRing } from '../../virtqueue/shared-ring.hot.ts';
import * as net from '../../wire/virtio-net.ts';
import { VIRTIO_F_VERSION_1, hasFeature } from '../../wire/virtio.ts';
import type { CallHold } from './call-hold.ts';
import { ControlQueue } from './control-queue.ts';
import { NetDevice } from './net-device.ts';
import { readParts } from './direct-parts.hot.ts';
import { readDirect } from './direct-read.hot.ts';
import { spreadFlows } from './flow-hash.hot.ts';
import type { NetPlaneState } from './net-state.ts';
import type { NetPortOptions } from './net-port-options.ts';
import { NetVring } from './net-vring.ts';
import { ParkedFrames } from './parked-frames.ts';
import { PortIotlb } from './port-iotlb.ts';
import { PortScratch } from './port-scratch.ts';
import { acceptedOffloadsOf, hostOffloadsOf } from './net-offloads.ts';
import { copyHeaders, readFrames } from './read-frames.hot.ts';
import { queuesOf } from './receive-queues.ts';
import { ReceiveFilter } from './receive-filter.ts';
import { type WriteResult, writeFrames } from './write-frames.hot.ts';

const ETHERNET_BYTES = 14; // a tag comes on top, as the switch counts
/** Batches that may be of parts, after one that met a chain of another shape. */
const DIRECT_PAUSE = 8;

/**
 * A virtio-net device as a port of the switch: the data half. `receive` takes frames from the
 * driver's transmit queues, `transmit` puts frames into its receive queues. The names follow the
 * switch; the queues are named by the driver's view, as in the specification: queue pair n has
 * receiveq at index 2n and transmitq at 2n + 1.
 */
export class NetPort implements PortPlane {
  accepts = 0;
  maxFrameBytes: number;
  ready = false;
  /** Transmit queue that the next `receive` reads; set by the worker's round. */
  selected = 0;
  /** Where calls wait for more; null: they are made when the round ends. */
  callHold: CallHold<NetVring> | null = null;
  /** Calls are made when a batch is written, before the round ends. */
  callsAtOnce = false;

  readonly counters = {
    /** Frames whose header asks for an offload that was not negotiated. */
    rxDropBadHeader: 0,
    /** Frames of a queue that is started but not enabled, or while the link is down. */
    rxDropDisabled: 0,
    /** The driver had posted no buffer. */
    txDropNoBuffer: 0,
    /** Longer than the driver's buffer. */
    txDropBufferTooShort: 0,
    /** Not wanted: the receive mode or VLAN table that the driver set. */
    txDropFiltered: 0,
    /** A queue broke, or there was none to deliver to. */
    txDropBroken: 0,
    faults: 0,
  };
  readonly filter = new ReceiveFilter();
  readonly iotlb: PortIotlb;

  readonly #options: NetPortOptions;
  readonly #arena = arena();
  readonly #vrings: (NetVring | null)[];
  readonly #faults = regionFaults();
  readonly #scratch: PortScratch;
  readonly #readChains: ChainBatch;
  readonly #writeChains: ChainBatch;
  readonly #controlChains: ChainBatch;
  readonly #plan: CopyPlan;
  readonly #result: WriteResult;
  readonly #lists: Int32Array[]; //     frames per queue of #usable, where there are several
  readonly #filtered: Int32Array;
  readonly #control: ControlQueue;
  #listCounts: Int32Array;
  /** Receive queues that frames may go to. */
  #usable: readonly NetVring[] = [];
  #linkUp: boolean;
  /** Pairs that the driver may use: one without VIRTIO_NET_F_MQ, whose next queue is another. */
  #pairs = 1;
  #hdrLen = net.NET_HEADER_BYTES;
  #hostOffloads = 0;
  #mergeable = false;
  #flagMask = 0;
  #receiving: NetVring | null = null;
  /** Null where no guest is behind an IOMMU. */
  readonly #parked: ParkedFrames | null;
  /** A ring with an IOTLB was taken away, and the session goes on: it may only miss something. */
  #ringAwaited = false;

  constructor(options: NetPortOptions) {
    this.#options = options;
    const scratch = options.scratch ?? new PortScratch();
    this.#scratch = scratch;
    this.#readChains = scratch.readChains;
    this.#writeChains = scratch.writeChains;
    this.#controlChains = scratch.controlChains;
    this.#plan = scratch.plan;
    this.#result = scratch.result;
    this.#filtered = scratch.filtered;
    this.filter.setInitialAddress(options.mac);
    this.#linkUp = options.linkUp;
    this.maxFrameBytes = Math.min(options.mtu + ETHERNET_BYTES, MAX_FRAME_BYTES);
    this.#vrings = Array.from({ length: 2 * options.queuePairs + 1 }, () => null);
    const { parkedAt = -1 } = options;
    this.#parked = parkedAt < 0 ? null : new ParkedFrames(this.#arena.buffer, parkedAt);
    this.iotlb = new PortIotlb(options.device, this.#vrings, options.emit);
    this.#lists = Array.from({ length: options.queuePairs }, () => new Int32Array(BATCH));
    this.#listCounts = new Int32Array(options.queuePairs);
    this.#control = new ControlQueue(this.filter, options.queuePairs, () => this.#update());
  }

  /** What the virtqueue of that index is for a driver that acknowledged `features` (5.1.2). */
  kindOf(index: number, features: bigint): 'receiveq' | 'transmitq' | 'control' {
    if (index === NetDevice.controlQueueIndex(features, this.#options.queuePairs)) return 'control';
    return index % 2 === 0 ? 'receiveq' : 'transmitq';
  }

  vring(index: number): NetVring | null {
    return this.#vrings[index] ?? null;
  }

  attach(vring: NetVring, features: bigint): void {
    this.#negotiated(features);
    this.#vrings[vring.index] = vring;
    vring.start(false);
    this.#update();
  }

  /** Returns the base of the ring, which is not touched afterwards. */
  detach(index: number): number {
    const vring = this.#vrings[index];
    if (vring === null || vring === undefined) return 0;
    if (vring.touched) this.call(vring); // held: nobody looks at this ring again
    this.#vrings[index] = null;
    if (index % 2 === 0 && vring.queue.iotlb !== 0 && vring.started) this.#ringAwaited = true;
    this.#update();
    return vring.detach();
  }

  /** Another call descriptor: signalled at once, it may have missed what the old one was told. */
  setCallFd(vring: NetVring, callFd: number): void {
    vring.callFd = callFd;
    if (callFd >= 0 && signalCall(callFd, vring.injectedQueue) < 0) {
      this.#break(vring, FAULT_NOTIFY_BLOCKED);
    }
  }

  /** The session is over: the next driver starts with nothing set. */
  reset(): void {
    this.filter.reset();
    this.#control.reset();
    this.iotlb.reset();
    this.#ringAwaited = false;
    this.counters.txDropNoBuffer += this.#parked?.clear() ?? 0;
    this.#update();
  }

  /** A ring is back, or a translation: what waited for it goes on. */
  unpark(): void {
    const parked = this.#parked;
    if (parked === null || parked.count === 0 || this.#usable.length === 0) return;
    if (parked.isTooOld(performance.now())) {
      this.counters.txDropNoBuffer += parked.clear();
      return;
    }
    const list = parked.list.slice(0, parked.count);
    parked.count = 0;
    this.#distribute(parked.batch, list, list.length);
    this.flush();
  }

  /** What the driver set and what was counted, for a successor. */
  saveState(): NetPlaneState {
    const { activePairs } = this.#control;
    return { filter: this.filter.save(), activePairs, counters: { ...this.counters } };
  }

  /** Counters are raised to what the predecessor counted, where that is more. */
  loadState(state: NetPlaneState): void {
    this.filter.load(state.filter);
    this.#control.activePairs = Math.min(state.activePairs, this.#options.queuePairs);
    for (const name of Object.keys(this.counters) as (keyof typeof this.counters)[]) {
      this.counters[name] = Math.max(this.counters[name], state.counters[name] ?? 0);
    }
    this.#update();
  }

  /** A kick arrived, or the ring's `enabled` changed. */
  changed(vring: NetVring, kicked: boolean): void {
    vring.start(kicked);
    this.#update();
    if (vring.index % 2 === 0) this.iotlb.lookAhead(vring);
  }

  set linkUp(up: boolean) {
    this.#linkUp = up;
    this.#update();
  }

  set mtu(mtu: number) {
    this.maxFrameBytes = Math.min(mtu + ETHERNET_BYTES, MAX_FRAME_BYTES);
  }

  /** Requests of the control queue; returns how many were answered. */
  control(vring: NetVring): number {
    const done = this.#control.process(vring, this.#controlChains, this.#arena.view);
    if (done < 0) this.#break(vring, done);
    else this.#notify(vring);
    if (vring.queue.missed !== 0) this.iotlb.report(vring);
    return done < 0 ? 0 : done;
  }

  receive(batch: FrameBatch): number {
    batch.count = 0;
    this.#receiving = null;
    const vring = this.#vrings[2 * this.selected + 1];
    if (vring === null || vring === undefined || !vring.started || vring.fault !== 0) return 0;
    const chains = this.#readChains;
    const direct = this.#readDirect(vring, batch);
    if (direct === 0) return 0;
    const taken = direct > 0 ? direct : takeChains(vring.queue, chains, BATCH);
    if (vring.queue.missed !== 0) this.iotlb.report(vring);
    if (taken <= 0) {
      if (taken < 0) this.#break(vring, taken);
      return 0;
    }
    vring.chains += taken;
    this.#receiving = vring;
    if (!vring.enabled || !this.#linkUp) {
      this.counters.rxDropDisabled += taken;
      this.#plan.count = 0;
      batch.count = 0;
      this.release();
      this.#notify(vring);
      return 0;
    }
    const frames =
      direct > 0
        ? copyHeaders(this.#plan, batch, direct, this.#hdrLen, this.#hostOffloads)
        : readFrames(chains, this.#plan, batch, this.#hdrLen, this.#hostOffloads);
    if (frames < 0) {
      batch.count = 0;
      this.#receiving = null;
      this.#break(vring, frames);
      return 0;
    }
    this.counters.rxDropBadHeader += taken - frames;
    if (frames === 0) {
      this.release();
      this.#notify(vring); // the switch flushes only ports that sent something
    }
    return frames;
  }

  /** Frames in the shape that nearly all have, 0 for none at all, -1: look at the ring as usual. */
  #readDirect(vring: NetVring, batch: FrameBatch): number {
    if (vring.direct === 0 || this.#hdrLen !== net.NET_HEADER_BYTES) return -1;
    if (vring.queue.fault !== 0) return -1;
    if (vring.directAfter > 0) {
      vring.directAfter--;
      return this.#readParts(vring, batch);
    }
    batch.plain = 1;
    const frames = readDirect(vring.queue, this.#readChains, this.#plan, batch);
    if (frames >= 0) return frames;
    // A driver that mixes shapes would get a batch for each change between them.
    vring.directAfter = DIRECT_PAUSE;
    return frames === -1 ? this.#readParts(vring, batch) : ~frames;
  }

  /** As `#readDirect`, also of chains that are lists and tables. */
  #readParts(vring: NetVring, batch: FrameBatch): number {
    const frames = readParts(vring.queue, this.#readChains, this.#plan, batch);
    return frames < -1 ? ~frames : frames;
  }

  release(): void {
    const vring = this.#receiving;
    if (vring === null) return;
    this.#receiving = null;
    if (vring.fault !== 0) return; // broken since `receive`, by a call to its own driver
    const chains = this.#readChains;
    putUsed(vring.queue, chains, 0, chains.count);
    vring.touched = true;
  }

  transmit(batch: FrameBatch, list: Int32Array, count: number): number {
    if (this.filter.active) {
      const kept = this.filter.apply(batch, list, count, this.#filtered);
      this.counters.txDropFiltered += count - kept;
      if (kept === 0) return 0;
      list = this.#filtered;
      count = kept;
    }
    const parked = this.#parked;
    if (parked !== null && parked.count > 0) {
      this.unpark();
      if (parked.count > 0) return this.#park(batch, list, 0, count);
    }
    return this.#distribute(batch, list, count);
  }

  #distribute(batch: FrameBatch, list: Int32Array, count: number): number {
    const usable = this.#usable; // a queue that breaks meanwhile leaves a new array behind
    const queues = usable.length;
    if (queues === 1) return this.#write(usable[0], batch, list, count);
    if (queues === 0) {
      if (this.#ringAwaited) return this.#park(batch, list, 0, count);
      this.counters.txDropBroken += count;
      return 0;
    }
    const counts = this.#listCounts;
    spreadFlows(batch, list, count, queues, this.#lists, counts);
    let delivered = 0;
    for (let q = 0; q < queues; q++) {
      if (counts[q] > 0) delivered += this.#write(usable[q], batch, this.#lists[q], counts[q]);
    }
    return delivered;
  }

  flush(): void {
    const pairs = this.#options.queuePairs * 2;
    let ordered = false;
    for (let index = 0; index < pairs; index++) {
      const vring = this.#vrings[index];
      if (vring === null || !vring.touched) continue;
      if (this.#memoryGone(vring)) return;
      if (this.callHold !== null && this.callHold.holds(vring, this)) continue;
      if (!ordered) orderUsed(vring.queue);
      ordered = true;
      if (!vring.notifyOrdered()) this.#break(vring, FAULT_NOTIFY_BLOCKED);
    }
  }

  /** A call that did not wait for the end of the round, or waited longer. */
  call(vring: NetVring): void {
    if (!this.#memoryGone(vring)) this.#notify(vring);
  }

  status(): { index: number; started: boolean; counters: Record<string, number> }[] {
    return this.#vrings
      .filter((vring) => vring !== null)
      .map((v) => ({ index: v.index, started: v.started, counters: v.counters() }));
  }

  #write(vring: NetVring, batch: FrameBatch, list: Int32Array, count: number): number {
    const scratch = this.#scratch;
    if (scratch.isShared) {
      // Between `spread` and `settle` chains are out, which a ring of several workers never has,
      // and nobody can be called; nor are translations looked for ahead.
      if (
        vring.shared === null &&
        !this.callsAtOnce &&
        vring.lookAhead === 0 &&
        scratch.spread(vring, batch, list, count, this.#hdrLen, this.#flagMask)
      ) {
        vring.chains += count;
        vring.touched = true;
        return count;
      }
      scratch.settle();
    }
    const { shared } = vring;
    if (shared !== null) {
      lockRing(vring.queue, shared);
      if (vring.queue.fault !== 0) return this.#brokeElsewhere(vring, shared, count);
    }
    const result = this.#result;
    result.delivered = 0;
    result.noBuffers = 0;
    result.tooLong = 0;
    const fault = writeFrames(
      vring.queue,
      this.#writeChains,
      this.#plan,
      batch,
      list,
      count,
      this.#hdrLen,
      this.#mergeable,
      this.#flagMask,
      vring.direct !== 0,
      result,
    );
    if (shared !== null) {
      if (fault < 0) vring.queue.fault = fault;
      unlockRing(vring.queue, shared);
    }
    const { noBuffers } = result;
    this.counters.txDropBufferTooShort += result.tooLong;
    this.counters.txDropBroken += count - result.delivered - noBuffers - result.tooLong;
    if (fault < 0) this.#break(vring, fault);
    vring.chains += result.delivered;
    let parked = 0;
    if (noBuffers > 0 && vring.queue.missed !== 0) {
      parked = this.#park(batch, list, count - noBuffers, count);
    } else this.counters.txDropNoBuffer += noBuffers;
    if (result.delivered > 0) {
      vring.touched = true;
      if (this.callsAtOnce) this.call(vring);
    }
    if (vring.queue.missed !== 0) this.iotlb.report(vring);
    if (vring.lookAhead > 0) {
      vring.lookAhead = Math.max(0, vring.lookAhead - count);
      this.iotlb.lookAhead(vring);
    }
    return result.delivered + parked;
  }

  /** Another worker broke the ring, and has said so to everybody else. */
  #brokeElsewhere(vring: NetVring, shared: Int32Array, count: number): number {
    vring.fault = vring.queue.fault;
    unlockRing(vring.queue, shared);
    this.counters.txDropBroken += count;
    this.#update();
    return 0;
  }

  /** Frames `list[from .. count)` wait for a translation; returns how many can. */
  #park(batch: FrameBatch, list: Int32Array, from: number, count: number): number {
    const parked = this.#parked;
    let taken = 0;
    if (parked !== null && batch === parked.batch) {
      parked.keep(list, from, count);
      return 0; // counted when they came
    }
    if (parked !== null) taken = parked.add(batch, list, from, count, performance.now());
    this.counters.txDropNoBuffer += count - from - taken;
    return taken;
  }

  /** The owner of the memory truncated it: everything that was read from it is void. */
  #memoryGone(vring: NetVring): boolean {
    for (const region of vring.regions) {
      if (this.#faults[region] === 0) continue;
      for (const other of this.#vrings) {
        if (other === null) continue;
        other.break(FAULT_MEMORY_GONE);
        other.touched = false; // a call that is held is not made, nor this found once more
      }
      this.#update();
      if (!claimFaults(region)) return true; // another worker has said so
      this.counters.faults++;
      const { device } = this.#options;
      this.#options.emit({ kind: 'fault', device, index: -1, code: FAULT_MEMORY_GONE });
      return true;
    }
    return false;
  }

  #notify(vring: NetVring): void {
    if (!vring.notify()) this.#break(vring, FAULT_NOTIFY_BLOCKED);
  }

  #break(vring: NetVring, code: number): void {
    if (vring.fault !== 0 || this.#memoryGone(vring)) return;
    vring.break(code);
    this.counters.faults++;
    this.#update();
    this.#options.emit({ kind: 'fault', device: this.#options.device, index: vring.index, code });
  }

  #update(): void {
    const usable: NetVring[] = [];
    const pairs = Math.min(this.#pairs, this.#control.activePairs);
    for (let pair = 0; pair < pairs; pair++) {
      const vring = this.#vrings[2 * pair];
      if (vring === null || !vring.usable) continue;
      vring.pauseKicks(); // buffers are looked for when there are frames for them
      usable.push(vring);
    }
    const { worker = 0, workers = 1 } = this.#options;
    this.#usable = queuesOf(usable, worker, workers);
    if (usable.length > 0) this.#ringAwaited = false;
    const waits = this.#ringAwaited && this.#parked !== null;
    this.ready = this.#linkUp && (usable.length > 0 || waits);
  }

  #negotiated(features: bigint): void {
    const has = (feature: number): boolean => hasFeature(features, feature);
    this.#pairs = has(net.VIRTIO_NET_F_MQ) ? this.#options.queuePairs : 1;
    this.#mergeable = has(net.VIRTIO_NET_F_MRG_RXBUF);
    this.#hdrLen =
      this.#mergeable || has(VIRTIO_F_VERSION_1)
        ? net.NET_HEADER_BYTES
        : net.NET_HEADER_LEGACY_BYTES;
    this.#hostOffloads = hostOffloadsOf(features);
    this.accepts = acceptedOffloadsOf(features);
    this.#flagMask = has(net.VIRTIO_NET_F_GUEST_CSUM) ? 3 : 0;
  }
}
