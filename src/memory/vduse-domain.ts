/** The memory of a VDUSE device that a kernel driver uses: the file of its IOVA domain. */
import { fdStat, fdTarget, mapRegionAt } from '../sys/index.ts';
import { reserveRange } from './arena-range.ts';
import { hex, MemoryError } from './errors.ts';
import { SharedRegion } from './shared-region.ts';

/** What the kernel calls the file: `vduse_domain_create` in drivers/vdpa/vdpa_user. */
const DOMAIN_FILE = 'anon_inode:[vduse-domain]';

/** Is it such a file? Else what VDUSE gave is memory that another process shares. */
export function isVduseDomain(fd: number): boolean {
  return fdTarget(fd) === DOMAIN_FILE;
}

/**
 * Maps the first `sizeBytes` of the domain, whose file offsets are its IOVAs. The file has no size
 * and pages come when they are touched: where the driver has mapped nothing, a touch is SIGBUS.
 * The arena's guard puts zeros there *to the end of the region* and counts, as it does for memory
 * that was cut short: the ring that led there is broken until the region is mapped anew, because
 * what the driver maps there later would not be seen through our zeros.
 * @throws MemoryError ERR_VRING_MEMORY_FD: not such a file; ERR_VRING_MEMORY_ARENA.
 */
export function mapVduseDomain(fd: number, sizeBytes: number, name: string): SharedRegion {
  const { kind, pageSizeBytes } = fdStat(fd);
  if (kind !== 'other' || !isVduseDomain(fd)) {
    const text = `${name}: its fd is ${fdTarget(fd)}, expected ${DOMAIN_FILE}`;
    throw new MemoryError('ERR_VRING_MEMORY_FD', 'fd', text);
  }
  const range = reserveRange(Math.ceil(sizeBytes / pageSizeBytes) * pageSizeBytes);
  try {
    const handle = mapRegionAt(range.offset, sizeBytes, fd, 0);
    const description = {
      guestPhysAddr: 0n,
      userAddr: 0n,
      sizeBytes: BigInt(sizeBytes),
      fdOffset: 0n,
    };
    return new SharedRegion(description, range, range.offset, handle);
  } catch (error) {
    range.close();
    const text = `${name}: ${hex(sizeBytes)} bytes cannot be mapped: ${(error as Error).message}`;
    throw new MemoryError('ERR_VRING_MEMORY_FD', 'fd', text, error);
  }
}
