/**
 * One disk in its worker: an engine, and the rings whose requests it carries out.
 *
 * A batch of chains becomes a *flight*: its requests go to the engine, and each of its rows is used
 * as soon as the engine is done with it, in whatever order. With an engine that completes within
 * `submit` a flight lands in the round in which it started, and nothing is out between two rounds.
 */
import { assert } from '../../base/assert.ts';
import type { PlaneContext, VringAttach } from '../../runtime/data-plane.ts';
import { PlaneIotlb } from '../../runtime/plane-iotlb.ts';
import { type Engine, ioName, IoBatch, IoDone } from '../../storage/index.ts';
import { arena, regionFaults, signalCall } from '../../sys/index.ts';
import { takeChains } from '../../virtqueue/device.hot.ts';
import {
  FAULT_CHAIN_SHORT,
  FAULT_MEMORY_GONE,
  FAULT_NOTIFY_BLOCKED,
} from '../../virtqueue/faults.ts';
import {
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_WRITE_ZEROES,
} from '../../wire/virtio-blk.ts';
import { hasFeature } from '../../wire/virtio.ts';
import { CACHE_WRITEBACK } from './blk-device.ts';
import { BlkVring } from './blk-vring.ts';
import { noteDone, useRows } from './finish-requests.hot.ts';
import { firstId, flightOfId, type Flight, ringOfId } from './flight.ts';
import { IO_ERROR_EVENT_MS } from './limits.ts';
import { readRequests } from './read-requests.hot.ts';
import { RequestRules } from './request-rules.ts';

export type DiskPlaneOptions = {
  readonly device: number;
  readonly engine: Engine;
  readonly queues: number;
  /** At most 20 bytes. */
  readonly serial: string;
  /** `BlkDevice.cache`. */
  readonly cache: Int32Array;
  readonly emit: PlaneContext['emit'];
};

export type LastError = { readonly op: string; readonly at: number; readonly errno: number };

export class DiskPlane {
  readonly engine: Engine;
  readonly vrings: (BlkVring | null)[];
  readonly iotlb: PlaneIotlb<BlkVring>;
  /** Requests that the medium failed, and the last of them. */
  errors = 0;
  lastError: LastError | null = null;
  faults = 0;
  /** Of rings that are detached, in the names of `BlkVring.counters`. */
  readonly #past: Record<string, number> = {};

  readonly #options: DiskPlaneOptions;
  readonly #arena = arena();
  readonly #regionFaults = regionFaults();
  readonly #rules = new RequestRules();
  readonly #io = new IoBatch();
  readonly #done = new IoDone();
  /** Rows of `#io` that the engine has taken; the rest waits for room, and so do the rings. */
  #submitted = 0;
  #flushes = false;
  #toldErrorMs = -Infinity;

  constructor(options: DiskPlaneOptions) {
    const { engine, queues, device, emit, serial } = options;
    this.#options = options;
    this.engine = engine;
    this.vrings = Array.from({ length: queues }, () => null);
    this.iotlb = new PlaneIotlb(device, this.vrings, emit);
    this.#rules.readOnly = engine.readOnly ? 1 : 0;
    this.#rules.setSize(engine.sizeBytes);
    new TextEncoder().encodeInto(serial, this.#rules.serial);
  }

  /** Requests wait for room in the engine. */
  get isCongested(): boolean {
    return this.#submitted < this.#io.count;
  }

  attach(attach: VringAttach): BlkVring {
    const { index, features } = attach;
    assert(this.vrings[index] === null, () => `vring ${index} of a disk is attached`);
    const vring = new BlkVring(attach, this.#arena.buffer, this.engine.inOrder);
    this.vrings[index] = vring;
    this.#rules.discards = hasFeature(features, VIRTIO_BLK_F_DISCARD) ? 1 : 0;
    this.#rules.zeroes = hasFeature(features, VIRTIO_BLK_F_WRITE_ZEROES) ? 1 : 0;
    this.#flushes = hasFeature(features, VIRTIO_BLK_F_FLUSH);
    this.iotlb.attach(attach);
    vring.start(false);
    return vring;
  }

  /** The ring's base, or null while its requests are under way. */
  detach(index: number): number | null {
    const vring = this.vrings[index];
    if (vring === null || vring === undefined) return 0;
    vring.draining = true;
    if (vring.busy > 0) return null;
    this.vrings[index] = null;
    addCounters(this.#past, vring);
    return vring.detach();
  }

  /** What all rings have counted since the disk was added. */
  totals(): Record<string, number> {
    const totals = { ...this.#past };
    for (const vring of this.vrings) if (vring !== null) addCounters(totals, vring);
    return totals;
  }

  setCallFd(vring: BlkVring, callFd: number): void {
    vring.callFd = callFd;
    if (callFd >= 0 && signalCall(callFd, vring.injectedQueue) < 0) {
      this.#break(vring, FAULT_NOTIFY_BLOCKED);
    }
  }

  /** The session is over: the next driver finds the cache as a new device has it. */
  reset(): void {
    Atomics.store(this.#options.cache, CACHE_WRITEBACK, 1);
    this.iotlb.reset();
  }

  resize(sizeBytes: number): void {
    this.engine.resize(sizeBytes);
    this.#rules.setSize(sizeBytes);
  }

  /** One batch of the ring. Returns how many requests were taken. */
  work(vring: BlkVring): number {
    if (!vring.usable || vring.dueFault !== 0 || vring.draining || this.isCongested) return 0;
    const flight = vring.board();
    if (flight === null) return 0;
    const taken = takeChains(vring.queue, flight.chains, flight.chains.capacity);
    if (taken <= 0) {
      vring.land(flight);
      if (taken < 0) vring.dueFault = taken;
      if (vring.busy === 0) this.#breakDue(vring);
      if (vring.queue.missed !== 0) this.iotlb.report(vring);
      return 0;
    }
    vring.chains += taken;
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

  #start(vring: BlkVring, flight: Flight, taken: number): void {
    const io = this.#io;
    io.clear();
    this.#submitted = 0;
    const durable = !this.#flushes || Atomics.load(this.#options.cache, CACHE_WRITEBACK) === 0;
    this.#rules.fua = durable ? 1 : 0;
    const base = firstId(vring.index, flight.number);
    const count = readRequests(flight, io, this.#rules, this.#arena.view, base);
    flight.count = flight.left = count;
    flight.touched = true;
    if (count < taken) vring.dueFault = FAULT_CHAIN_SHORT;
    // What was read from memory that is gone by now must not reach the medium.
    if (this.#memoryGone(vring)) {
      for (let row = 0; row < count; row++) flight.pending[row] = 0;
      io.clear();
    }
    this.#submit();
    this.complete();
    if (flight.touched) this.#land(vring, flight); // rows that needed no engine
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
    for (let i = 0; i < count; i++) {
      const id = done.id[i]!;
      const vring = this.vrings[ringOfId(id)] as BlkVring;
      if (noteDone(done, i, vring.flights[flightOfId(id)]!) !== 0) this.#failed(vring, i);
    }
    for (let i = 0; i < count; i++) {
      const id = done.id[i]!;
      const vring = this.vrings[ringOfId(id)] as BlkVring;
      const flight = vring.flights[flightOfId(id)]!;
      if (flight.touched) this.#land(vring, flight);
    }
    return count;
  }

  /** Uses what has completed of a flight; with its last row it is over. */
  #land(vring: BlkVring, flight: Flight): void {
    flight.touched = false;
    if (vring.fault === 0 && !this.#memoryGone(vring)) {
      if (useRows(vring, flight, this.#arena.view) > 0) vring.touched = true;
      if (!vring.notify()) this.#break(vring, FAULT_NOTIFY_BLOCKED);
    } else {
      dropRows(flight);
    }
    if (flight.left > 0) return;
    vring.land(flight);
    if (vring.busy === 0) this.#breakDue(vring);
  }

  #failed(vring: BlkVring, row: number): void {
    const done = this.#done;
    const [op, at, errno] = [ioName(done.op[row]!), done.at[row]!, -done.status[row]!];
    this.errors++;
    this.lastError = { op, at, errno };
    const nowMs = performance.now();
    if (nowMs - this.#toldErrorMs < IO_ERROR_EVENT_MS) return;
    this.#toldErrorMs = nowMs;
    const { device, emit } = this.#options;
    emit({ kind: 'io-error', device, index: vring.index, op, at, errno, count: this.errors });
  }

  /** The owner of the memory truncated it: everything that was read from it is void. */
  #memoryGone(vring: BlkVring): boolean {
    if (vring.fault === FAULT_MEMORY_GONE) return true;
    for (const region of vring.regions) {
      if (this.#regionFaults[region] === 0) continue;
      for (const other of this.vrings) other?.break(FAULT_MEMORY_GONE);
      this.faults++;
      const { device, emit } = this.#options;
      emit({ kind: 'fault', device, index: -1, code: FAULT_MEMORY_GONE });
      return true;
    }
    return false;
  }

  /** A ring breaks when all in front of what broke it has been answered. */
  #breakDue(vring: BlkVring): void {
    if (vring.dueFault !== 0) this.#break(vring, vring.dueFault);
  }

  #break(vring: BlkVring, code: number): void {
    if (vring.fault !== 0 || this.#memoryGone(vring)) return;
    vring.break(code);
    this.faults++;
    const { device, emit } = this.#options;
    emit({ kind: 'fault', device, index: vring.index, code });
  }
}

function addCounters(to: Record<string, number>, vring: BlkVring): void {
  for (const [name, count] of Object.entries(vring.counters())) to[name] = (to[name] ?? 0) + count;
}

/** The ring is broken: its chains stay as they are, for who resets it. */
function dropRows(flight: Flight): void {
  for (let row = 0; row < flight.count; row++) {
    if (flight.pending[row] !== 0) continue;
    flight.pending[row] = -1;
    flight.left--;
  }
}
