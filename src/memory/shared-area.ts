/**
 * Memory that a front-end shares beside its guest's: the dirty log, the inflight region. It has no
 * address in any space of the guest; rings get its place in the arena.
 */
import { SharedRegion } from './shared-region.ts';

/**
 * Maps `sizeBytes` of `fd` from `fdOffset` on. The caller owns what it returns and closes it when
 * no ring uses it any more; threads that may be later retain its handle. The fd stays the
 * caller's and may be closed afterwards. `name` begins the messages: `dirty log`.
 * @throws MemoryError with the field at fault, for everything a peer can do wrong.
 */
export function mapSharedArea(
  fd: number,
  sizeBytes: bigint,
  fdOffset: bigint,
  name: string,
): SharedRegion {
  return SharedRegion.map(fd, { guestPhysAddr: 0n, userAddr: 0n, sizeBytes, fdOffset }, name);
}
