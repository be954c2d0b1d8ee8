/** Limits that this device sets, and offers to its driver. */

/** Request queues of one device; Linux takes one per CPU at most. */
export const MAX_SCSI_QUEUES = 64;

/** Logical units of one device: each has an engine, and perhaps a thread. */
export const MAX_LUNS = 256;

/** Both are one byte here: peripheral addressing reaches 256 units, and Linux scans no more. */
export const MAX_TARGET = 255;
export const MAX_LUN = 255;

/** A queue of 128 holds one command of so many segments without an indirect table, as in QEMU. */
export const SCSI_SEG_MAX = 126;

/** Commands of one unit that are under way at once; over it TASK SET FULL, and drivers wait. */
export const CMD_PER_LUN = 128;

/** Most that READ and WRITE move; announced in VPD page B0 and `max_sectors`. */
export const MAX_TRANSFER_BYTES = 16 * 1024 * 1024;

/** What rare commands work through at a time, while other requests wait. */
export const WORK_BYTES = 1024 * 1024;

/** That, and as much again for data that nobody wants, which engines may put there at any time. */
export const WORK_MEMORY_BYTES = 2 * WORK_BYTES;

/** Ranges of one UNMAP. */
export const MAX_UNMAP_RANGES = 16;

/** One range: zeros may have to be written where no hole can be made, while other requests wait. */
export const MAX_UNMAP_BYTES = 64 * 1024 * 1024;

/** WRITE SAME: the same, and a pattern is written in any case. */
export const MAX_WRITE_SAME_BYTES = 32 * 1024 * 1024;

/** COMPARE AND WRITE, which holds everything else up. */
export const MAX_COMPARE_BLOCKS = 128;

/**
 * Batches of one ring that engines work on at once; more wait in the ring. A unit that hangs holds
 * CMD_PER_LUN of them at worst, and leaves room for the others.
 */
export const MAX_FLIGHTS = 256;

/**
 * Most bytes of a CDB, and of sense data, that a driver may ask for: SPC-4 knows no longer ones.
 */
export const MAX_CDB_BYTES = 260;
export const MAX_SENSE_BYTES = 252;
