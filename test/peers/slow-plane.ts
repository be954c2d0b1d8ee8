/**
 * The data half of `slow-device.ts`: takes requests, holds each for as long as it says, and
 * answers it then, so that requests finish in another order than they came.
 */
import { Iotlb } from '../../src/memory/index.ts';
import {
  type DataPlane,
  DRAINING,
  type PlaneContext,
  type VringAttach,
} from '../../src/runtime/data-plane.ts';
import { arena, releaseRegion, retainRegion, signalEventfd } from '../../src/sys/index.ts';
import type { IotlbUpdate } from '../../src/vhost-user/index.ts';
import {
  ChainBatch,
  DeviceQueue,
  disableKicks,
  enableKicks,
  keepChain,
  needsCall,
  putUsed,
  ringBase,
  setAddressMap,
  takeChains,
} from '../../src/virtqueue/index.ts';

export type SlowPlaneOptions = {
  /** Nothing is ever answered: what is taken stays out until the process is killed. */
  readonly stall: boolean;
  /** Milliseconds for a request that names none. */
  readonly holdMs: number;
};

/** A request that was taken. */
type Held = { readonly chain: ChainBatch; readonly dueMs: number };

type Ring = {
  readonly attach: VringAttach;
  readonly queue: DeviceQueue;
  readonly held: Held[];
  callFd: number;
  enabled: boolean;
  draining: boolean;
  awake: boolean;
  missed: number;
};

const REQUEST_BYTES = 8;
const REPLY_BYTES = 8;

export class SlowPlane implements DataPlane {
  readonly #context: PlaneContext;
  readonly #options: SlowPlaneOptions;
  readonly #rings: (Ring | null)[] = [];
  readonly #batch = new ChainBatch();
  readonly #view = arena().view;
  #iotlb: Iotlb | null = null;
  #answered = 0;

  constructor(context: PlaneContext) {
    this.#context = context;
    this.#options = context.options as SlowPlaneOptions;
  }

  get awake(): number {
    return this.#rings.filter((ring) => ring?.awake === true).length;
  }

  poll(nowMs: number): number {
    let work = 0;
    for (const ring of this.#rings) if (ring?.awake === true) work += this.#work(ring, nowMs);
    return work;
  }

  ready(token: number): void {
    const ring = this.#rings[token];
    if (ring !== null && ring !== undefined) ring.awake = true;
  }

  attachVring(attach: VringAttach): void {
    const queue = new DeviceQueue(attach.config, attach.map, arena().buffer, attach);
    for (const region of attach.regions) retainRegion(region);
    const { callFd, enabled, index } = attach;
    const ring = { attach, queue, held: [], callFd, enabled, draining: false, awake: true };
    this.#rings[index] = { ...ring, missed: -1 };
    if (attach.iotlb) {
      this.#iotlb ??= new Iotlb();
      this.#iotlb.replace(attach.map);
      this.#spreadIotlb();
    }
    if (attach.kickFd >= 0) this.#context.watch(attach.kickFd, index);
    // A device before us may have died between a used entry and its call.
    if (queue.tracked !== 0 && callFd >= 0) signalEventfd(callFd);
  }

  detachVring(_device: number, index: number): number {
    const ring = this.#rings[index];
    if (ring === null || ring === undefined) return 0;
    if (ring.attach.drain && !this.#options.stall && ring.held.length > 0) {
      ring.draining = ring.awake = true;
      return DRAINING;
    }
    this.#rings[index] = null;
    if (ring.attach.kickFd >= 0) this.#context.unwatch(ring.attach.kickFd);
    for (const region of ring.attach.regions) releaseRegion(region);
    return ringBase(ring.queue);
  }

  enableVring(_device: number, index: number, enabled: boolean): void {
    const ring = this.#rings[index];
    if (ring === null || ring === undefined) return;
    ring.enabled = enabled;
    ring.awake = true;
  }

  setCallFd(_device: number, index: number, callFd: number): void {
    const ring = this.#rings[index];
    if (ring === null || ring === undefined) return;
    ring.callFd = callFd;
    if (callFd >= 0) signalEventfd(callFd);
  }

  setErrFd(): void {}

  resetDevice(): void {
    this.#iotlb = null;
  }

  updateIotlb(_device: number, entry: IotlbUpdate): void {
    this.#iotlb?.update(entry);
    this.#spreadIotlb();
  }

  /** What is held has addresses of the old translation: it is answered first. */
  invalidateIotlb(_device: number, iova: number, sizeBytes: number): void {
    for (const ring of this.#rings) {
      if (ring !== null && ring !== undefined && ring.attach.iotlb) this.#answer(ring, Infinity);
    }
    this.#iotlb?.invalidate(iova, sizeBytes);
    this.#spreadIotlb();
  }

  command(name: string): unknown {
    if (name !== 'status') throw new Error(`unknown command ${name}`);
    const held = this.#rings.map((ring) => ring?.held.length ?? 0);
    return { held, answered: this.#answered };
  }

  #spreadIotlb(): void {
    const iotlb = this.#iotlb;
    if (iotlb === null) return;
    for (const ring of this.#rings) {
      if (ring === null || ring === undefined || !ring.attach.iotlb) continue;
      setAddressMap(ring.queue, iotlb.map());
      ring.missed = -1;
      ring.awake = true;
    }
  }

  #work(ring: Ring, nowMs: number): number {
    const done = (ring.draining ? 0 : this.#take(ring, nowMs)) + this.#answer(ring, nowMs);
    if (done > 0) return done;
    const waits = ring.held.length > 0 && !this.#options.stall;
    // Held requests are polled for: a worker has no timers, and this is a test.
    ring.awake = waits || (ring.queue.missed === 0 && ring.enabled && enableKicks(ring.queue));
    return 0;
  }

  #take(ring: Ring, nowMs: number): number {
    const { queue } = ring;
    if (!ring.enabled || queue.fault !== 0) return 0;
    disableKicks(queue);
    const taken = takeChains(queue, this.#batch, this.#batch.capacity);
    const { device, index } = ring.attach;
    if (queue.missed !== 0 && ring.missed !== queue.missedAt[0]) {
      ring.missed = queue.missedAt[0]!;
      const write = queue.missed === 2;
      this.#context.emit({ kind: 'iotlb-miss', device, index, iova: ring.missed, write });
    }
    if (taken < 0) this.#context.emit({ kind: 'fault', device, index, code: taken });
    for (let i = 0; i < taken; i++) {
      const chain = new ChainBatch(1, 256);
      keepChain(this.#batch, i, chain);
      ring.held.push({ chain, dueMs: nowMs + this.#holdOf(chain) });
    }
    return Math.max(0, taken);
  }

  #holdOf(chain: ChainBatch): number {
    if (chain.readBytes[0]! < REQUEST_BYTES || chain.segLen[0]! < REQUEST_BYTES) return 0;
    return this.#view.getUint32(chain.segOffset[0]! + 4, true) || this.#options.holdMs;
  }

  #answer(ring: Ring, nowMs: number): number {
    if (this.#options.stall) return 0;
    let done = 0;
    for (let i = 0; i < ring.held.length; i++) {
      const { chain, dueMs } = ring.held[i]!;
      if (dueMs > nowMs) continue;
      ring.held.splice(i--, 1);
      this.#reply(chain);
      putUsed(ring.queue, chain, 0, 1);
      done++;
    }
    this.#answered += done;
    if (done > 0 && needsCall(ring.queue) && ring.callFd >= 0) signalEventfd(ring.callFd);
    return done;
  }

  /** The request's number, and which process answered it. */
  #reply(chain: ChainBatch): void {
    const at = chain.readSegs[0]!;
    if (chain.writeSegs[0] === 0 || chain.segLen[at]! < REPLY_BYTES) return;
    const number = at > 0 ? this.#view.getUint32(chain.segOffset[0]!, true) : 0;
    this.#view.setUint32(chain.segOffset[at]!, number, true);
    this.#view.setUint32(chain.segOffset[at]! + 4, process.pid, true);
    chain.written[0] = REPLY_BYTES;
  }
}

export function createPlane(context: PlaneContext): DataPlane {
  return new SlowPlane(context);
}
