/**
 * The log of dirty pages (specification, "Migration"): a bitmap in shared memory, one bit for
 * each 4096 bytes of guest-physical memory. The session maps it and says which ring logs where;
 * the rings do the marking (virtqueue). It is written only while VHOST_F_LOG_ALL is acked.
 */
import { ProtocolError } from '../base/errors.ts';
import type { AddressMap } from '../memory/address-map.ts';
import { ringAreas } from './ring-addresses.ts';
import type { SharedArea } from './session-area.ts';
import type { VringLog } from './target.ts';

/** VHOST_LOG_PAGE: what one bit stands for. */
const LOG_PAGE_BYTES = 4096;

const REQUEST = 'VHOST_USER_SET_LOG_BASE';

/** First address behind the highest range of a map. */
export function mapEnd(map: AddressMap): number {
  return map.count === 0 ? 0 : map.end[map.count - 1]!;
}

/** Guest-physical address of an arena offset, or -1: the map read backwards. */
export function addressOf(map: AddressMap, offset: number): number {
  for (let i = 0; i < map.count; i++) {
    const address = offset - map.delta[i]!;
    if (address >= map.start[i]! && address < map.end[i]!) return address;
  }
  return -1;
}

/** @throws ProtocolError ERR_VRING_LOG_SIZE: a page below `end` has no bit in the log. */
export function checkLogCovers(log: SharedArea, end: number, what: string): void {
  const covered = log.sizeBytes * 8 * LOG_PAGE_BYTES;
  if (end <= covered) return;
  const need = Math.ceil(end / (8 * LOG_PAGE_BYTES));
  const problem =
    `${log.sizeBytes} bytes cover addresses up to 0x${covered.toString(16)}, but ${what} ends ` +
    `at 0x${end.toString(16)}; expected at least ${need} bytes`;
  throw new ProtocolError('ERR_VRING_LOG_SIZE', REQUEST, 'log.size', problem);
}

export type LoggedRing = {
  readonly index: number;
  readonly size: number;
  readonly features: bigint;
  readonly usedOffset: number;
  /** VHOST_VRING_F_LOG: the used ring's writes are logged too. */
  readonly logsUsed: boolean;
  /** As SET_VRING_ADDR had it. */
  readonly logGpa: bigint;
  /**
   * With an IOTLB front-ends give the used ring's I/O virtual address, which is no page of the
   * log: then where the used ring really is counts.
   */
  readonly iotlb: boolean;
};

/** @throws ProtocolError ERR_VRING_LOG_SIZE. */
export function ringLog(log: SharedArea, gpa: AddressMap, ring: LoggedRing): VringLog {
  checkLogCovers(log, mapEnd(gpa), 'guest memory');
  let usedGpa = -1;
  if (ring.logsUsed) {
    usedGpa = ring.iotlb ? addressOf(gpa, ring.usedOffset) : Number(ring.logGpa);
    const used = ringAreas(ring.size, ring.features)[2]!;
    checkLogCovers(log, usedGpa + used.bytes, `the used ring of vring ${ring.index}`);
  }
  const { offset, sizeBytes, handle } = log;
  return { offset, sizeBytes, handle, usedGpa, gpa };
}
