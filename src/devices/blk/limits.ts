/** Limits that this device sets, and offers to its driver. */
import { MAX_IO_RANGES, SECTOR_BYTES } from '../../storage/index.ts';

/** Queues of one disk; Linux takes one per CPU at most. */
export const MAX_BLK_QUEUES = 64;

/** A queue of 128 holds one request of so many segments without an indirect table, as in QEMU. */
export const BLK_SEG_MAX = 126;

/** Largest segment; with BLK_SEG_MAX this bounds what one request holds a worker up with. */
export const BLK_SIZE_MAX = 512 * 1024;

/** More than SEG_MAX segments of SIZE_MAX is no legal request; it gets an IOERR. */
export const MAX_REQUEST_BYTES = 64 * 1024 * 1024;

/** Ranges of one DISCARD or WRITE_ZEROES. */
export const MAX_RANGES = MAX_IO_RANGES;

/** One range: where holes are made this takes no time. */
export const MAX_DISCARD_SECTORS = (1024 * 1024 * 1024) / SECTOR_BYTES;

/** One range: zeros may have to be written, while other requests wait. */
export const MAX_ZEROES_SECTORS = (32 * 1024 * 1024) / SECTOR_BYTES;

/**
 * Requests that are taken from a ring at once. Fewer than a driver has under way, so that it works
 * on the first of them while we work on the rest: with all 32 of a driver in one batch the two
 * sides take turns (null engine, depth 32: 1.7 against 2.6 million requests a second; depth 128:
 * 5.6 against 5.3).
 */
export const REQUESTS_PER_BATCH = 16;

/** Batches of one ring that an engine works on at once; more wait in the ring. */
export const MAX_FLIGHTS = 64;
