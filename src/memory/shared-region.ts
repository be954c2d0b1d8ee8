/** One region of a guest's memory: checked, mapped, guarded against truncation. */
import {
  fdStat,
  mapRegionAt,
  type RegionHandle,
  regionFaults,
  regionGeneration,
  releaseRegion,
} from '../sys/index.ts';
import { type ArenaRange, RANGE_UNIT_BYTES, reserveRange } from './arena-range.ts';
import { hex, MemoryError } from './errors.ts';

/** A region as its owner describes it: an entry of VHOST_USER_SET_MEM_TABLE or ADD_MEM_REG. */
export type RegionDescription = {
  guestPhysAddr: bigint;
  /** Where the front-end sees it. */
  userAddr: bigint;
  sizeBytes: bigint;
  /** Where the region starts in its fd. */
  fdOffset: bigint;
};

/** Above it, numbers are no longer exact. Guest and user addresses end at 2^52 and 2^47. */
const ADDRESS_END = 2n ** 53n;

export class SharedRegion {
  readonly guestPhysAddr: number;
  readonly userAddr: number;
  readonly sizeBytes: number;
  readonly fdOffset: number;
  /** Arena offset of the region's first byte. */
  readonly offset: number;
  readonly handle: RegionHandle;
  #range: ArenaRange | null;
  #generation: number;

  /**
   * Checks a description against its fd and maps it. The fd stays the caller's and may be closed
   * afterwards. `name` begins the messages: `region 1`.
   * @throws MemoryError with the field at fault, for everything a peer can do wrong.
   */
  static map(fd: number, description: RegionDescription, name = 'region'): SharedRegion {
    checkAddresses(description, name);
    const pageSizeBytes = checkFd(fd, description, name);
    const sizeBytes = Number(description.sizeBytes);
    const fdOffset = Number(description.fdOffset);

    // The kernel maps whole pages. Keeping the file's phase within 2 MiB lets it use huge ones.
    const lead = fdOffset % pageSizeBytes;
    const phase = (fdOffset - lead) % RANGE_UNIT_BYTES;
    const pages = Math.ceil((lead + sizeBytes) / pageSizeBytes);
    const range = reserveRange(
      phase + pages * pageSizeBytes,
      Math.max(pageSizeBytes, RANGE_UNIT_BYTES),
    );
    try {
      const mapAt = range.offset + phase;
      const handle = mapRegionAt(mapAt, lead + sizeBytes, fd, fdOffset - lead);
      return new SharedRegion(description, range, mapAt + lead, handle);
    } catch (error) {
      range.close();
      const text = `${name}: its fd cannot be mapped: ${(error as Error).message}`;
      throw new MemoryError('ERR_VRING_MEMORY_FD', 'fd', text, error);
    }
  }

  /** Use `map`. */
  constructor(
    description: RegionDescription,
    range: ArenaRange,
    offset: number,
    handle: RegionHandle,
  ) {
    this.guestPhysAddr = Number(description.guestPhysAddr);
    this.userAddr = Number(description.userAddr);
    this.sizeBytes = Number(description.sizeBytes);
    this.fdOffset = Number(description.fdOffset);
    this.offset = offset;
    this.handle = handle;
    this.#range = range;
    this.#generation = regionGeneration(handle);
  }

  /** The owner cut the file short under us: what we see now are zeros of our own. */
  get truncated(): boolean {
    return this.#range !== null && Atomics.load(regionFaults(), this.handle) !== 0;
  }

  get closed(): boolean {
    return this.#range === null;
  }

  /** Idempotent. The mapping stays while another thread retains it. */
  close(): void {
    const range = this.#range;
    this.#range = null;
    if (range === null) return;
    releaseRegion(this.handle);
    range.closeAfter(this.handle, this.#generation);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function checkAddresses(description: RegionDescription, name: string): void {
  const { guestPhysAddr, userAddr, sizeBytes } = description;
  if (sizeBytes <= 0n) {
    const text = `${name}: memory_size is 0, expected at least one byte`;
    throw new MemoryError('ERR_VRING_MEMORY_SIZE', 'memory_size', text);
  }
  if (sizeBytes >= ADDRESS_END) {
    const text = `${name}: memory_size ${hex(sizeBytes)} is not below 2^53`;
    throw new MemoryError('ERR_VRING_MEMORY_SIZE', 'memory_size', text);
  }
  checkEnd(name, 'guest_phys_addr', guestPhysAddr, sizeBytes);
  checkEnd(name, 'userspace_addr', userAddr, sizeBytes);
}

function checkEnd(name: string, field: string, start: bigint, sizeBytes: bigint): void {
  if (start >= 0n && start + sizeBytes <= ADDRESS_END) return;
  const text =
    `${name}: ${field} ${hex(start)} + memory_size ${hex(sizeBytes)} ` +
    'runs over 2^53, the largest address served';
  throw new MemoryError('ERR_VRING_MEMORY_ADDRESS', field, text);
}

/** Returns the page size of the file behind the fd. */
function checkFd(fd: number, description: RegionDescription, name: string): number {
  const { sizeBytes, fdOffset } = description;
  const stat = fdStat(fd);
  if (stat.kind !== 'memfd-like') {
    // A file of a disk would make the data plane wait for that disk, or for a stranger's FUSE.
    const what = stat.kind === 'other' ? 'no regular file' : `a ${stat.kind}`;
    const text = `${name}: its fd is ${what}, expected a memfd, or a file of tmpfs or hugetlbfs`;
    throw new MemoryError('ERR_VRING_MEMORY_FD', 'fd', text);
  }
  if (fdOffset < 0n || fdOffset + sizeBytes > BigInt(stat.sizeBytes)) {
    const text =
      `${name}: memory_size ${hex(sizeBytes)} + mmap_offset ${hex(fdOffset)} ` +
      `is past the end of its fd (${stat.sizeBytes} bytes)`;
    throw new MemoryError('ERR_VRING_MEMORY_FD', 'mmap_offset', text);
  }
  return stat.pageSizeBytes;
}
