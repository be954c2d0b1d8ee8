/**
 * The arena: one address range that the process reserves once, and in which everything lies that
 * the data plane touches. An offset in it, a plain number, names any byte of any guest.
 *
 * The range is wrapped once per thread as one ArrayBuffer. What is not mapped reads as a fault,
 * which the native handler turns into zeros and a count: see `regionFaults`.
 */
import { assert } from '../base/assert.ts';
import { check, sysError } from './errors.ts';
import { fdStat } from './fd.ts';
import { native } from './native.ts';

export type Arena = {
  readonly buffer: ArrayBuffer;
  readonly view: DataView;
  readonly bytes: Uint8Array;
  readonly sizeBytes: number;
};

/** Number of a mapped region, process-wide; can be posted to other threads. Never 0. */
export type RegionHandle = number;

/** Index in `regionFaults()` for faults in arena memory that no region covers: our own bugs. */
export const STRAY_FAULTS = 0;

const FAULTS_CLAIMED = 0x8000_0000;
const SYSTEM_PAGE_BYTES = 4096; // mmap of the arena's own zeros; larger system pages refuse it

let ours: Arena | null = null;
let faults: Uint32Array | null = null;

/**
 * This thread's wrap of the arena, made at the first call (some milliseconds).
 * @throws SysError ENOMEM when not even 64 GiB of addresses can be reserved (RLIMIT_AS).
 * @syscalls mmap munmap madvise rt_sigaction
 */
export function arena(): Arena {
  if (ours !== null) return ours;
  const buffer = native.arenaWrap();
  if (typeof buffer === 'number') {
    throw sysError('mmap', buffer, 'reserving address space for the arena (see ulimit -v)');
  }
  ours = {
    buffer,
    view: new DataView(buffer),
    bytes: new Uint8Array(buffer),
    sizeBytes: buffer.byteLength,
  };
  return ours;
}

/**
 * Where this process has the arena: offset 0 as the kernel knows it, for calls that speak of
 * addresses, such as userfaultfd.
 */
export function arenaHostAddress(): bigint {
  return BigInt(check('mmap', native.arenaAddress(), () => 'the arena'));
}

/**
 * Maps a file, shared, at an arena offset. The fd is not needed afterwards. Offset and fdOffset
 * must be multiples of the fd's page size; the size is rounded up to it. The region starts with
 * one reference and is guarded: if the file is truncated later, its memory reads as zeros.
 * @throws SysError EACCES (fd not writable), EEXIST (overlaps a region), EINVAL, ENOMEM, ENODEV.
 * @syscalls fstat fstatfs mmap madvise
 */
export function mapRegionAt(
  offset: number,
  sizeBytes: number,
  fd: number,
  fdOffset: number,
): RegionHandle {
  const page = fdStat(fd).pageSizeBytes;
  return check('mmap', native.regionMap(offset, sizeBytes, fd, fdOffset, page), () => {
    return `${sizeBytes} bytes of fd ${fd} from ${fdOffset} on, at arena offset ${offset}`;
  });
}

/**
 * Maps zeros of our own at an arena offset.
 * @throws SysError as `mapRegionAt`.
 * @syscalls mmap madvise
 */
export function mapPrivateAt(offset: number, sizeBytes: number): RegionHandle {
  const result = native.regionMap(offset, sizeBytes, -1, 0, SYSTEM_PAGE_BYTES);
  return check('mmap', result, () => `${sizeBytes} private bytes at arena offset ${offset}`);
}

/** One more user of a region; any thread may call it while the region is alive. */
export function retainRegion(handle: RegionHandle): void {
  const left = native.regionRetain(handle);
  assert(left > 0, () => `region ${handle} is not mapped`);
}

/**
 * One user less. The last one unmaps: the addresses fault again and the handle is free.
 * @syscalls mmap madvise
 */
export function releaseRegion(handle: RegionHandle): void {
  const left = native.regionRelease(handle);
  assert(left >= 0, () => `region ${handle} is not mapped, or unmapping failed (${left})`);
}

/** How often this handle was freed: tells a region from a later one with the same handle. */
export function regionGeneration(handle: RegionHandle): number {
  return native.regionGeneration(handle);
}

/**
 * Faults per RegionHandle, live and shared by all threads (read with `Atomics.load`). Not 0 means
 * that the memory was truncated by its owner and is zeros of our own now; entry STRAY_FAULTS
 * counts accesses outside of every region. A handle starts at 0 when it is mapped. The topmost bit
 * belongs to `claimFaults`.
 */
export function regionFaults(): Uint32Array {
  if (faults !== null) return faults;
  const buffer = native.faultsWrap();
  assert(typeof buffer === 'object');
  faults = new Uint32Array(buffer);
  return faults;
}

/** True for the first of all threads that find faults of a region: it counts and tells them. */
export function claimFaults(handle: RegionHandle): boolean {
  return Atomics.or(regionFaults(), handle, FAULTS_CLAIMED) < FAULTS_CLAIMED;
}

/**
 * Copies between arena ranges, collected in columns and done by one native call: memmove is five
 * times faster than JavaScript for long ranges, and the call is shared by the batch.
 */
export class CopyPlan {
  readonly capacity: number;
  /** The columns below, one behind the other, `capacity` apart: one base pointer for a loop. */
  readonly ranges: Float64Array<ArrayBuffer>;
  /** Arena offsets; lengths in bytes. Written by the caller, [0, count). */
  readonly source: Float64Array;
  readonly target: Float64Array;
  readonly length: Float64Array;
  count = 0;
  readonly #columns: ArrayBuffer;

  constructor(capacity: number) {
    this.capacity = capacity | 0; // a boxed double would make the field one
    this.ranges = new Float64Array(3 * capacity);
    this.#columns = this.ranges.buffer;
    this.source = this.ranges.subarray(0, capacity);
    this.target = this.ranges.subarray(capacity, 2 * capacity);
    this.length = this.ranges.subarray(2 * capacity);
  }

  /** Copies the ranges in order and empties the plan. A range outside of the arena is our bug. */
  run(): void {
    if (this.count === 0) return;
    const refused = native.copyRanges(this.#columns, this.capacity, this.count);
    this.count = 0;
    if (refused !== 0) assert(false, `${refused} ranges of a copy lie outside of the arena`);
  }
}

/**
 * Writes arena ranges [first, first + count) as one message: bytes, or -errno. Up to 1024 ranges.
 * Hot: throws and allocates nothing.
 * @syscalls writev
 */
export const writevArena: (
  fd: number,
  offsets: Float64Array,
  lengths: Int32Array,
  first: number,
  count: number,
) => number = native.writevArena;

/**
 * Reads into the arena: bytes, or -errno. Hot: throws and allocates nothing.
 * @syscalls read
 */
export const readArena: (fd: number, offset: number, sizeBytes: number) => number =
  native.readArena;
