import { assert } from '../base/assert.ts';
import { releaseRegion, retainRegion } from '../sys/arena.ts';
import { signalEventfd } from '../sys/eventfd.ts';
import { signalCall } from '../sys/vring-call.ts';
import { DeviceQueue, ringBase } from '../virtqueue/device-queue.ts';
import {
  disableKicks,
  enableKicks,
  hasAvailable,
  needsCallOrdered,
  orderUsed,
} from '../virtqueue/device.hot.ts';
import { resumePacked } from '../virtqueue/recover-packed.ts';
import { lockRing, unlockRing } from '../virtqueue/shared-ring.hot.ts';
import type { ResumedVring, VringAttach } from './data-plane.ts';

/**
 * One virtqueue of a device as its worker sees it: the ring and the four states around it.
 * A ring is *attached* (the front-end configured it), *enabled* (SET_VRING_ENABLE), *started*
 * (the driver kicked, or buffers were found in it, which heals a kick that was lost while nobody
 * listened) and, after a fault, *broken* until it is attached anew.
 */
export class PlaneVring {
  readonly index: number;
  readonly queue: DeviceQueue;
  readonly regions: readonly number[];
  readonly kickFd: number;
  callFd: number;
  readonly injectedQueue: number;
  errFd: number;
  enabled: boolean;
  started = false;
  /** FAULT_* code, 0 while sound. */
  fault = 0;
  /** The I/O address that the ring asked for and waits for (`PlaneIotlb.report`); -1: none. */
  missed = -1;
  /** Something was published since the driver was last notified. */
  touched = false;
  /** Positions and lock of a ring that other workers write, too; null: it is ours alone. */
  readonly shared: Int32Array | null;

  kicks = 0;
  calls = 0;
  callsSuppressed = 0;
  chains = 0;

  /** `inRingOrder`: the device uses chains in the order in which it takes them. */
  constructor(attach: VringAttach, arenaBuffer: ArrayBuffer, inRingOrder: boolean) {
    this.index = attach.index;
    this.queue = new DeviceQueue(attach.config, attach.map, arenaBuffer, attach);
    this.shared = attach.shared ?? null;
    if (attach.resumed !== undefined) this.#resume(attach.resumed);
    else if (inRingOrder && attach.inflight === null) resumePacked(this.queue);
    this.regions = attach.regions;
    this.kickFd = attach.kickFd;
    this.callFd = attach.callFd;
    this.injectedQueue = attach.injectedQueue;
    this.errFd = attach.errFd;
    this.enabled = attach.enabled;
    for (const region of this.regions) retainRegion(region);
  }

  /** May be processed: frames move only while this holds. */
  get usable(): boolean {
    return this.enabled && this.started && this.fault === 0;
  }

  /** A kick arrived, or the ring was enabled: is there a reason to run? */
  start(kicked: boolean): void {
    if (this.fault !== 0) return;
    if (kicked) this.kicks++;
    if (!this.started && (kicked || this.#hasAvailable())) this.started = true;
  }

  /** Polled from now on: the driver need not kick. */
  pauseKicks(): void {
    if (this.fault === 0) disableKicks(this.queue);
  }

  /** Going to sleep: the driver shall kick. True: more has become available meanwhile. */
  requestKicks(): boolean {
    if (this.fault !== 0) return false;
    const { queue, shared } = this;
    if (shared === null) return enableKicks(queue);
    lockRing(queue, shared);
    const more = enableKicks(queue);
    unlockRing(queue, shared);
    return more;
  }

  /** Broken from now on; the front-end hears of it, if it gave a descriptor for that. */
  break(code: number): void {
    this.fault = code;
    if (this.shared !== null) this.#spreadFault(this.shared);
    if (this.errFd >= 0) signalEventfd(this.errFd);
  }

  /**
   * Notifies the driver if something was published and it asked to hear of it. False: the call was
   * held, the front-end means us ill.
   */
  notify(): boolean {
    orderUsed(this.queue);
    return this.notifyOrdered();
  }

  /** `notify`, where `orderUsed` was called for this or another queue since it was touched. */
  notifyOrdered(): boolean {
    if (!this.touched) return true;
    this.touched = false;
    const { queue, shared } = this;
    if (shared !== null) lockRing(queue, shared);
    const needs = needsCallOrdered(queue);
    if (shared !== null) unlockRing(queue, shared);
    if (!needs) {
      this.callsSuppressed++;
    } else if (this.callFd >= 0) {
      this.calls++;
      return signalCall(this.callFd, this.injectedQueue) >= 0;
    }
    return true;
  }

  /** Lets go of the ring and of the memory under it; returns where a successor continues. */
  detach(): number {
    assert(this.index >= 0);
    if (this.shared !== null) {
      lockRing(this.queue, this.shared);
      unlockRing(this.queue, this.shared);
    }
    const base = ringBase(this.queue);
    for (const region of this.regions) releaseRegion(region);
    return base;
  }

  #hasAvailable(): boolean {
    const { queue, shared } = this;
    if (shared === null) return hasAvailable(queue);
    lockRing(queue, shared);
    const has = hasAvailable(queue);
    unlockRing(queue, shared);
    return has;
  }

  /** The other workers meet the fault when they lock the ring. */
  #spreadFault(shared: Int32Array): void {
    lockRing(this.queue, shared);
    this.queue.fault = this.fault;
    unlockRing(this.queue, shared);
  }

  /** Another worker had the ring until now, and nothing of it is out. */
  #resume({ started, counters }: ResumedVring): void {
    this.started = started;
    this.chains = counters.chains ?? 0;
    this.kicks = counters.kicks ?? 0;
    this.calls = counters.calls ?? 0;
    this.callsSuppressed = counters.callsSuppressed ?? 0;
  }

  counters(): Record<string, number> {
    return {
      chains: this.chains,
      kicks: this.kicks,
      calls: this.calls,
      callsSuppressed: this.callsSuppressed,
      // Pages that were written and that the dirty log has no bit for: never in a log that covers
      // the guest's memory, which the session demands.
      ...(this.queue.log.outside > 0 && { unloggedPages: this.queue.log.outside }),
    };
  }
}
