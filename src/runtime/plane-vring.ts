import { assert } from '../base/assert.ts';
import { releaseRegion, retainRegion } from '../sys/arena.ts';
import { signalEventfd } from '../sys/eventfd.ts';
import { signalCall } from '../sys/vring-call.ts';
import { DeviceQueue, ringBase } from '../virtqueue/device-queue.ts';
import { disableKicks, enableKicks, hasAvailable, needsCall } from '../virtqueue/device.hot.ts';
import { resumePacked } from '../virtqueue/recover-packed.ts';
import type { VringAttach } from './data-plane.ts';

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

  kicks = 0;
  calls = 0;
  callsSuppressed = 0;
  chains = 0;

  /** `inRingOrder`: the device uses chains in the order in which it takes them. */
  constructor(attach: VringAttach, arenaBuffer: ArrayBuffer, inRingOrder: boolean) {
    this.index = attach.index;
    this.queue = new DeviceQueue(attach.config, attach.map, arenaBuffer, attach);
    if (inRingOrder && attach.inflight === null) resumePacked(this.queue);
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
    if (!this.started && (kicked || hasAvailable(this.queue))) this.started = true;
  }

  /** Polled from now on: the driver need not kick. */
  pauseKicks(): void {
    if (this.fault === 0) disableKicks(this.queue);
  }

  /** Going to sleep: the driver shall kick. True: more has become available meanwhile. */
  requestKicks(): boolean {
    return this.fault === 0 && enableKicks(this.queue);
  }

  /** Broken from now on; the front-end hears of it, if it gave a descriptor for that. */
  break(code: number): void {
    this.fault = code;
    if (this.errFd >= 0) signalEventfd(this.errFd);
  }

  /**
   * Notifies the driver if something was published and it asked to hear of it. False: the call was
   * held, the front-end means us ill.
   */
  notify(): boolean {
    if (!this.touched) return true;
    this.touched = false;
    if (!needsCall(this.queue)) {
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
    const base = ringBase(this.queue);
    for (const region of this.regions) releaseRegion(region);
    return base;
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
