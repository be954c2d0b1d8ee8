import { Iotlb } from '../../memory/index.ts';
import type { AddressMap } from '../../memory/address-map.ts';
import type { PlaneEvent, VringAttach } from '../../runtime/data-plane.ts';
import { ChainBatch } from '../../virtqueue/chain-batch.ts';
import { setAddressMap } from '../../virtqueue/device-queue.ts';
import { takeChains, untakeChains } from '../../virtqueue/device.hot.ts';
import type { NetVring } from './net-vring.ts';

/** Frames for which a receive queue is looked ahead in after a miss; see `lookAhead`. */
const LOOK_AHEAD_FRAMES = 4096;

/** What the session asks for at once. */
const PAGE_BYTES = 4096;

/**
 * The translations of a port whose guest sits behind a virtual IOMMU, and what is missing. Chains
 * are translated when they are taken and given back or used in the same round, so a translation
 * that is forgotten between two rounds is nowhere in use.
 */
export class PortIotlb {
  readonly #device: number;
  readonly #vrings: readonly (NetVring | null)[];
  readonly #emit: (event: PlaneEvent) => void;
  /** Null until a ring needs it. */
  #iotlb: Iotlb | null = null;
  #ahead: ChainBatch | null = null;

  constructor(
    device: number,
    vrings: readonly (NetVring | null)[],
    emit: (event: PlaneEvent) => void,
  ) {
    this.#device = device;
    this.#vrings = vrings;
    this.#emit = emit;
  }

  /** A ring comes with what the session knows by now, which is all that counts. */
  attach(attach: Pick<VringAttach, 'iotlb' | 'map'>): void {
    if (!attach.iotlb) return;
    this.#iotlb ??= new Iotlb();
    this.#iotlb.replace(attach.map);
    this.#spread();
  }

  update(entry: Parameters<Iotlb['update']>[0]): void {
    if (this.#iotlb === null) return; // no ring: the next one comes with it
    this.#iotlb.update(entry);
    this.#spread();
  }

  invalidate(iova: number, sizeBytes: number): void {
    if (this.#iotlb === null) return;
    this.#iotlb.invalidate(iova, sizeBytes);
    const map = this.#iotlb.map();
    for (const vring of this.#vrings) {
      if (vring === null || vring.queue.iotlb === 0) continue;
      // A ring that waits goes on waiting, but asks again for what the session takes as settled.
      const { missed } = vring.queue;
      setAddressMap(vring.queue, map);
      vring.queue.missed = missed;
      const page = vring.missed - (vring.missed % PAGE_BYTES);
      if (vring.missed < 0 || page >= iova + sizeBytes || page + PAGE_BYTES <= iova) continue;
      vring.missed = -1;
      this.report(vring);
    }
  }

  reset(): void {
    this.#iotlb = null;
    this.#ahead = null;
  }

  /**
   * Asks for what the ring's last `takeChains` lacked, once per translation that we are told: not
   * for the next address of a driver that changes what it has made available, which would keep the
   * main thread, and so every other session, as busy as it likes.
   */
  report(vring: NetVring): void {
    const { missed, missedAt } = vring.queue;
    if (missed === 0 || vring.missed !== -1) return;
    vring.missed = missedAt[0];
    vring.lookAhead = LOOK_AHEAD_FRAMES;
    const [iova, write] = [missedAt[0], missed === 2];
    this.#emit({ kind: 'iotlb-miss', device: this.#device, index: vring.index, iova, write });
  }

  /**
   * Asks for the next buffers of a receive queue before there are frames for them: a frame that
   * meets an unknown buffer is lost. Only for a while after a miss; a guest with lasting mappings
   * pays nothing.
   */
  lookAhead(vring: NetVring): void {
    if (vring.queue.iotlb === 0 || !vring.usable) return;
    const batch = (this.#ahead ??= new ChainBatch());
    // A fault is found again, and handled, by whoever wants the buffers.
    if (takeChains(vring.queue, batch, batch.capacity) > 0) untakeChains(vring.queue, batch, 0);
    this.report(vring);
  }

  /** All rings see the new columns, and a ring that waited may ask again. */
  #spread(): void {
    const map = (this.#iotlb as Iotlb).map();
    for (const vring of this.#vrings) {
      if (vring === null || vring.queue.iotlb === 0) continue;
      this.#look(vring, map);
    }
  }

  #look(vring: NetVring, map: AddressMap): void {
    setAddressMap(vring.queue, map);
    const waited = vring.missed !== -1;
    vring.missed = -1;
    if (waited && vring.index % 2 === 0 && vring.lookAhead > 0) this.lookAhead(vring);
  }
}
