/**
 * The IOTLB of a session: what a front-end with a virtual IOMMU has told (specification, "IOMMU
 * support"). Needs VIRTIO_F_ACCESS_PLATFORM; ring addresses are I/O virtual then.
 *
 * Theory of operation. Misses, of the data plane and of rings that wait for their areas, are
 * messages that nobody answers: the answer is an update, some time. One message per page is on
 * its way at a time; a miss that nothing answers is said again a few times, because the
 * front-end may not have known the page yet, and is then forgotten until it is missed again.
 */
import { ProtocolError } from '../base/errors.ts';
import type { AddressMap } from '../memory/address-map.ts';
import { Iotlb, translate } from '../memory/index.ts';
import {
  IOTLB_ACCESS_RW,
  IOTLB_INVALIDATE,
  IOTLB_UPDATE,
  type IotlbEvent,
} from '../wire/vhost-user-parse.ts';
import { IOTLB_MISS_RETRY_MS, IOTLB_MISS_TRIES, MAX_IOTLB_MISSES } from './limits.ts';
import type { IotlbUpdate } from './target.ts';

const PAGE_BYTES = 4096;
const REQUEST = 'VHOST_USER_IOTLB_MSG';
/** All addresses there are: translations end at or below it. */
const SPACE_BYTES = Number.MAX_SAFE_INTEGER + 1;

/** `permissions`: what it was to be used for, bit 0 read, bit 1 write. */
type Miss = { permissions: number; tries: number };

export type IotlbSnapshot = {
  readonly entries: number;
  /** Misses that wait for an update. */
  readonly missing: number;
  readonly updates: number;
  readonly invalidations: number;
  /** Messages sent. */
  readonly misses: number;
};

export class IotlbControl {
  readonly iotlb = new Iotlb();
  readonly #send: (iova: number, permissions: number) => boolean;
  /** By page, oldest first. */
  readonly #misses = new Map<number, Miss>();
  #timer: NodeJS.Timeout | null = null;
  #updates = 0;
  #invalidations = 0;
  #sent = 0;
  #closed = false;
  /** Rings that still wait say what they lack; called when misses are said again. */
  onRetry: () => void = () => undefined;
  /** The data plane misses what was told: it asked before it heard, or it had no room. */
  onKnown: (entry: IotlbUpdate) => void = () => undefined;

  /** Nobody is asked for the page any more: who still waits for it must say so again. */
  onForgotten: (page: number, sizeBytes: number) => void = () => undefined;

  constructor(send: (iova: number, permissions: number) => boolean) {
    this.#send = send;
  }

  snapshot(): IotlbSnapshot {
    return {
      entries: this.iotlb.count,
      missing: this.#misses.size,
      updates: this.#updates,
      invalidations: this.#invalidations,
      misses: this.#sent,
    };
  }

  /**
   * What an update says, translated to the arena.
   * @param space where the front-end's addresses are: user addresses, or guest-physical ones.
   * @throws ProtocolError ERR_VRING_IOTLB: not inside one range of shared memory.
   */
  update(message: IotlbEvent, space: AddressMap | null): IotlbUpdate {
    const [iova, sizeBytes] = [Number(message.iova), Number(message.sizeBytes)];
    const address = Number(message.userAddr);
    const offset = space === null ? -1 : translate(space, address, sizeBytes);
    if (offset < 0) {
      const problem = `0x${address.toString(16)} + ${sizeBytes} bytes is not in shared memory`;
      throw new ProtocolError('ERR_VRING_IOTLB', REQUEST, 'iotlb.uaddr', problem);
    }
    const entry = { iova, sizeBytes, offset, permissions: message.permissions };
    this.#updates++;
    this.iotlb.update(entry);
    for (const [page, miss] of this.#misses) {
      if (page >= iova + sizeBytes || page + PAGE_BYTES <= iova) continue;
      if ((miss.permissions & ~entry.permissions) === 0) this.#misses.delete(page);
    }
    return entry;
  }

  /** What an invalidation covers: all that is below 2^53. */
  invalidate(message: IotlbEvent): { iova: number; sizeBytes: number } {
    this.#invalidations++;
    const iova = Math.min(Number(message.iova), SPACE_BYTES);
    const sizeBytes = Math.min(Number(message.sizeBytes), SPACE_BYTES - iova);
    if (sizeBytes > 0) this.iotlb.invalidate(iova, sizeBytes);
    // Nobody may be waiting for them any more: what comes to be there next is asked for anew.
    for (const page of this.#misses.keys()) {
      if (page < iova + sizeBytes && page + PAGE_BYTES > iova) this.#misses.delete(page);
    }
    return { iova, sizeBytes };
  }

  /** The memory changed: what was told leads nowhere. Returns what to tell the target. */
  clear(): { iova: number; sizeBytes: number } {
    this.iotlb.clear();
    this.#misses.clear();
    return { iova: 0, sizeBytes: SPACE_BYTES };
  }

  /** Something at `iova` is not known, or may not be used so. */
  miss(iova: number, permissions: number): void {
    if (this.#closed || !(iova >= 0 && iova < SPACE_BYTES)) return;
    const page = iova - (iova % PAGE_BYTES);
    // Asking again would be an error in the front-end if the guest has unmapped it meanwhile: QEMU
    // reports a DMA fault to its guest then.
    if (this.#tell(page, IOTLB_ACCESS_RW) || this.#tell(page, permissions)) return;
    const known = this.#misses.get(page)?.permissions ?? 0;
    if ((permissions & ~known) === 0) return;
    const wanted = known | permissions;
    this.#misses.delete(page);
    if (this.#misses.size >= MAX_IOTLB_MISSES) {
      for (const oldest of this.#misses.keys()) {
        this.#forget(oldest);
        break;
      }
    }
    this.#misses.set(page, { permissions: wanted, tries: 1 });
    if (this.#send(page, wanted)) this.#sent++;
    this.#timer ??= this.#later();
  }

  #tell(page: number, permissions: number): boolean {
    const offset = this.iotlb.translate(page, PAGE_BYTES, permissions);
    if (offset < 0) return false;
    this.onKnown({ iova: page, sizeBytes: PAGE_BYTES, offset, permissions });
    return true;
  }

  /** Every page of a range that may not be used so is missed. Returns how many. */
  missRange(iova: number, lenBytes: number, permissions: number): number {
    let count = 0;
    for (let at = iova; at < iova + lenBytes; count++) {
      const first = this.iotlb.firstMiss(at, iova + lenBytes - at, permissions);
      if (first < 0) break;
      this.miss(first, permissions);
      at = first - (first % PAGE_BYTES) + PAGE_BYTES;
    }
    return count;
  }

  /** Nobody asks for what nobody waits for: rings that are started again miss it again. */
  forgetMisses(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#misses.clear();
  }

  /** Idempotent. */
  close(): void {
    this.#closed = true;
    this.forgetMisses();
  }

  /** A miss of the data plane after the last message was taken for the one that is forgotten. */
  #forget(page: number): void {
    this.#misses.delete(page);
    this.onForgotten(page, PAGE_BYTES);
  }

  #later(): NodeJS.Timeout {
    return setTimeout(() => this.#retry(), IOTLB_MISS_RETRY_MS).unref();
  }

  #retry(): void {
    this.#timer = null;
    for (const [page, miss] of this.#misses) {
      if (miss.tries++ >= IOTLB_MISS_TRIES) this.#forget(page);
      else if (this.#send(page, miss.permissions)) this.#sent++;
    }
    this.onRetry();
    if (this.#misses.size > 0) this.#timer ??= this.#later();
  }
}

/** @throws ProtocolError ERR_VRING_MESSAGE_VALUE: what only a back-end says. */
export function checkIotlbType(message: IotlbEvent): void {
  if (message.type === IOTLB_UPDATE || message.type === IOTLB_INVALIDATE) return;
  const problem = `${message.type}, a front-end sends 2 (update) or 3 (invalidate)`;
  throw new ProtocolError('ERR_VRING_MESSAGE_VALUE', REQUEST, 'iotlb.type', problem);
}
