import { PlaneIotlb } from '../../runtime/plane-iotlb.ts';
import { ChainBatch } from '../../virtqueue/chain-batch.ts';
import { takeChains, untakeChains } from '../../virtqueue/device.hot.ts';
import { lockRing, unlockRing } from '../../virtqueue/shared-ring.hot.ts';
import type { NetVring } from './net-vring.ts';

/** Frames for which a receive queue is looked ahead in after a miss; see `lookAhead`. */
const LOOK_AHEAD_FRAMES = 4096;

/**
 * The translations of a port, which asks for its next buffers before there are frames for them.
 * Chains are translated when they are taken and given back or used in the same round, so a
 * translation that is forgotten between two rounds is nowhere in use.
 */
export class PortIotlb extends PlaneIotlb<NetVring> {
  #ahead: ChainBatch | null = null;

  override reset(): void {
    super.reset();
    this.#ahead = null;
  }

  /**
   * Asks for the next buffers of a receive queue before there are frames for them: a frame that
   * meets an unknown buffer is lost. Only for a while after a miss; a guest with lasting mappings
   * pays nothing.
   */
  lookAhead(vring: NetVring): void {
    if (vring.queue.iotlb === 0 || !vring.usable) return;
    const batch = (this.#ahead ??= new ChainBatch());
    const { queue, shared } = vring;
    if (shared !== null) lockRing(queue, shared);
    const { fault } = queue;
    if (takeChains(queue, batch, batch.capacity) > 0) untakeChains(queue, batch, 0);
    queue.fault = fault; // a new one is found again, and told, by whoever wants the buffers
    if (shared !== null) unlockRing(queue, shared);
    this.report(vring);
  }

  protected override missing(vring: NetVring): void {
    vring.lookAhead = LOOK_AHEAD_FRAMES;
  }

  protected override changed(vring: NetVring): void {
    if (vring.index % 2 === 0 && vring.lookAhead > 0) this.lookAhead(vring);
  }
}
