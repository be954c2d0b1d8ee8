/**
 * One disk in its worker: an engine, and the rings whose requests it carries out.
 *
 * A batch of chains becomes a *flight*: its requests go to the engine, and each of its rows is used
 * as soon as the engine is done with it, in whatever order. With an engine that completes within
 * `submit` a flight lands in the round in which it started, and nothing is out between two rounds.
 */
import { assert } from '../../base/assert.ts';
import type { VringAttach } from '../../runtime/data-plane.ts';
import { type Engine, IoBatch, IoDone, type ZoneShape } from '../../storage/index.ts';
import { takeChains } from '../../virtqueue/device.hot.ts';
import { startOrderAt } from '../../virtqueue/inflight-order.ts';
import { FAULT_CHAIN_SHORT } from '../../virtqueue/faults.ts';
import {
  BlkLifetime,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_F_ZONED,
} from '../../wire/virtio-blk.ts';
import { hasFeature } from '../../wire/virtio.ts';
import { keepFailing } from '../disk/failed-flush.ts';
import { firstId, flightOfId, type Flight, ringOfId } from '../disk/flight.ts';
import { RequestDevice, type RequestDeviceOptions } from '../disk/request-device.ts';
import { CACHE_WRITEBACK } from './blk-device.ts';
import { BlkVring } from './blk-vring.ts';
import { noteDone, useRows } from './finish-requests.hot.ts';
import { REQUESTS_PER_BATCH } from './limits.ts';
import { readRequests } from './read-requests.hot.ts';
import { RequestRules } from './request-rules.ts';
import { tagRequests } from './tag-requests.ts';

/**
 * Requests to a zoned disk are numbered from the time on, so that no number is ever used again:
 * what a process that died had appended is known by it. A ring would have to take a million a
 * second for as long as it runs to get ahead of its successor's.
 */
const ORDERS_PER_MS = 1024;

export type DiskPlaneOptions = RequestDeviceOptions & {
  readonly engine: Engine;
  /** At most 20 bytes. */
  readonly serial: string;
  /** As `BlkDeviceOptions.lifetime`. */
  readonly lifetime?: BlkLifetime | null;
  /** `AddDisk.zones`. */
  readonly zones?: ZoneShape | null;
  /** `BlkDevice.cache`. */
  readonly cache: Int32Array;
  /** `AddDisk.failedFlush`. */
  readonly failedFlush?: number;
};

export class DiskPlane extends RequestDevice<Flight, BlkVring> {
  readonly engine: Engine;
  readonly #options: DiskPlaneOptions;
  readonly #rules = new RequestRules();
  readonly #io = new IoBatch();
  readonly #done = new IoDone();
  /** Rows of `#io` that the engine has taken; the rest waits for room, and so do the rings. */
  #submitted = 0;
  #flushes = false;
  readonly #isZoned: boolean;

  constructor(options: DiskPlaneOptions) {
    super(options);
    const { engine, serial } = options;
    this.#options = options;
    this.engine = engine;
    this.failedFlush = options.failedFlush ?? 0;
    this.#rules.readOnly = engine.readOnly ? 1 : 0;
    const { zones = null } = options;
    this.#isZoned = zones !== null;
    if (zones !== null) this.#rules.maxAppendBytes = zones.maxAppendBytes;
    this.#rules.setSize(engine.sizeBytes);
    new TextEncoder().encodeInto(serial, this.#rules.serial);
    const { lifetime = null } = options;
    if (lifetime !== null) this.#rules.lifetime.set(BlkLifetime.encode(lifetime));
  }

  /** Requests wait for room in the engine. */
  get isCongested(): boolean {
    return this.#submitted < this.#io.count;
  }

  waits(vring: BlkVring): boolean {
    return this.isCongested || vring.isFull;
  }

  attach(attach: VringAttach): BlkVring {
    const { index, features } = attach;
    assert(this.vrings[index] === null, () => `vring ${index} of a disk is attached`);
    const vring = new BlkVring(attach, this.arena.buffer, this.engine.inOrder);
    this.vrings[index] = vring;
    this.#rules.discards = hasFeature(features, VIRTIO_BLK_F_DISCARD) ? 1 : 0;
    this.#rules.zeroes = hasFeature(features, VIRTIO_BLK_F_WRITE_ZEROES) ? 1 : 0;
    this.#rules.erases = hasFeature(features, VIRTIO_BLK_F_SECURE_ERASE) ? 1 : 0;
    this.#rules.lifetimes = hasFeature(features, VIRTIO_BLK_F_LIFETIME) ? 1 : 0;
    if (this.#isZoned) this.#attachZoned(vring, hasFeature(features, VIRTIO_BLK_F_ZONED));
    this.#flushes = hasFeature(features, VIRTIO_BLK_F_FLUSH);
    this.iotlb.attach(attach);
    vring.start(false);
    return vring;
  }

  /** The session is over: the next driver finds the cache as a new device has it. */
  reset(): void {
    Atomics.store(this.#options.cache, CACHE_WRITEBACK, 1);
    this.iotlb.reset();
  }

  /** Of a smaller disk nothing is under way any more: a write would make its file larger again. */
  resize(sizeBytes: number): void {
    if (sizeBytes < this.engine.sizeBytes) this.settle();
    this.engine.resize(sizeBytes);
    this.#rules.setSize(sizeBytes);
  }

  /** One batch of the ring. Returns how many requests were taken. */
  work(vring: BlkVring, nowMs: number): number {
    if (!vring.usable || vring.dueFault !== 0 || vring.draining || this.isCongested) return 0;
    const flight = vring.board();
    if (flight === null) return 0;
    const taken = takeChains(vring.queue, flight.chains, REQUESTS_PER_BATCH);
    if (taken <= 0) {
      vring.land(flight);
      if (taken < 0) vring.dueFault = taken;
      if (vring.busy === 0) this.breakDue(vring);
      if (vring.queue.missed !== 0) this.iotlb.report(vring);
      return 0;
    }
    vring.chains += taken;
    flight.takenMs = nowMs;
    this.#start(vring, flight, taken);
    if (vring.queue.missed !== 0) this.iotlb.report(vring);
    return taken;
  }

  /** Uses what the engine has completed, and gives it what waits. Returns how many requests. */
  complete(): number {
    let completed = 0;
    for (let progress = true; progress;) {
      const reaped = this.#reap();
      completed += reaped;
      progress = (this.isCongested && this.#submit()) || reaped === this.#done.capacity;
    }
    return completed;
  }

  /** When it returns no request is under way, and no address of a ring is in use. */
  settle(): void {
    while (this.engine.pending > 0 || this.isCongested) {
      this.engine.settle();
      this.complete();
    }
  }

  protected override hurry(): void {
    this.engine.hurry?.();
    if (this.isCongested) this.complete();
  }

  #start(vring: BlkVring, flight: Flight, taken: number): void {
    const io = this.#io;
    io.clear();
    this.#submitted = 0;
    const durable = !this.#flushes || Atomics.load(this.#options.cache, CACHE_WRITEBACK) === 0;
    this.#rules.fua = durable ? 1 : 0;
    const base = firstId(vring.index, flight.number);
    const count = readRequests(flight, io, this.#rules, this.arena.view, base);
    flight.count = flight.left = count;
    flight.touched = true;
    if (count < taken) vring.dueFault = FAULT_CHAIN_SHORT;
    if (this.#isZoned) tagRequests(vring.queue, flight, io);
    // What was read from memory that is gone by now must not reach the medium.
    if (this.memoryGone(vring)) {
      for (let row = 0; row < count; row++) flight.pending[row] = 0;
      io.clear();
    }
    this.#submit();
    this.complete();
    if (flight.touched) this.land(vring, flight); // rows that needed no engine
  }

  /** A driver that knows nothing of zones reads at most: virtio 1.3, 5.2.5 wants no such driver. */
  #attachZoned(vring: BlkVring, isNegotiated: boolean): void {
    this.#rules.zones = isNegotiated ? 1 : 0;
    this.#rules.readOnly = this.engine.readOnly || !isNegotiated ? 1 : 0;
    startOrderAt(vring.queue, Date.now() * ORDERS_PER_MS);
  }

  /** False: the engine had no room. */
  #submit(): boolean {
    const accepted = this.engine.submit(this.#io, this.#submitted);
    this.#submitted += accepted;
    return accepted > 0;
  }

  #reap(): number {
    const done = this.#done;
    const count = this.engine.reap(done);
    if (this.failedFlush !== 0) {
      const inherits = (this.#options.failedFlush ?? 0) !== 0;
      keepFailing(done, this, inherits, this.#rules.fua !== 0);
    }
    for (let i = 0; i < count; i++) {
      const id = done.id[i]!;
      const vring = this.vrings[ringOfId(id)] as BlkVring;
      if (noteDone(done, i, vring.flights[flightOfId(id)]!) !== 0) this.failed(vring, done, i);
    }
    for (let i = 0; i < count; i++) {
      const id = done.id[i]!;
      const vring = this.vrings[ringOfId(id)] as BlkVring;
      const flight = vring.flights[flightOfId(id)]!;
      if (flight.touched) this.land(vring, flight);
    }
    return count;
  }

  protected use(vring: BlkVring, flight: Flight): number {
    const tookMs = performance.now() - flight.takenMs;
    return useRows(vring, flight, this.arena.view, this.latency, tookMs);
  }
}
