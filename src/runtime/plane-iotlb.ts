import type { AddressMap } from '../memory/address-map.ts';
import { Iotlb } from '../memory/index.ts';
import { setAddressMap } from '../virtqueue/device-queue.ts';
import type { PlaneEvent, VringAttach } from './data-plane.ts';
import type { PlaneVring } from './plane-vring.ts';

/** What the session asks for at once. */
const PAGE_BYTES = 4096;

/**
 * The translations of a device whose guest sits behind a virtual IOMMU, and what is missing. A
 * plane holds no chain when it calls `update` or `invalidate`: one that is taken is translated, and
 * given back or used before.
 */
export class PlaneIotlb<Vring extends PlaneVring> {
  readonly #device: number;
  readonly #vrings: readonly (Vring | null)[];
  readonly #emit: (event: PlaneEvent) => void;
  /** Null until a ring needs it. */
  #iotlb: Iotlb | null = null;

  constructor(
    device: number,
    vrings: readonly (Vring | null)[],
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
      if (vring === null || vring === undefined || vring.queue.iotlb === 0) continue;
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
  }

  /**
   * Asks for what the ring's last `takeChains` lacked, once per translation that we are told: not
   * for the next address of a driver that changes what it has made available, which would keep the
   * main thread, and so every other session, as busy as it likes.
   */
  report(vring: Vring): void {
    const { missed, missedAt } = vring.queue;
    if (missed === 0 || vring.missed !== -1) return;
    vring.missed = missedAt[0];
    this.missing(vring);
    const [iova, write] = [missedAt[0], missed === 2];
    this.#emit({ kind: 'iotlb-miss', device: this.#device, index: vring.index, iova, write });
  }

  /** The ring begins to wait for a translation. */
  protected missing(_vring: Vring): void {}

  /** The ring that waited has another map, and may ask again. */
  protected changed(_vring: Vring): void {}

  /** All rings see the new columns. */
  #spread(): void {
    const map: AddressMap = (this.#iotlb as Iotlb).map();
    for (const vring of this.#vrings) {
      if (vring === null || vring === undefined || vring.queue.iotlb === 0) continue;
      setAddressMap(vring.queue, map);
      const waited = vring.missed !== -1;
      vring.missed = -1;
      if (waited) this.changed(vring);
    }
  }
}
