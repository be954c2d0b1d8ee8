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

/** What a command of medium-work.ts works through at a time: what its scratch memory has. */
export const WORK_BYTES = 1024 * 1024;

/** Such commands of one unit that are under way at once; more wait. */
export const UNIT_JOBS = 2;

/**
 * Scratch memory of all units, so that one that hangs keeps it from none; and as much as one has
 * for data that nobody wants, which engines may put there at any time. It is address space: pages
 * are there while a command uses them.
 */
export const WORK_MEMORY_BYTES = (MAX_LUNS * UNIT_JOBS + 1) * WORK_BYTES;

/** Ranges of one UNMAP. */
export const MAX_UNMAP_RANGES = 16;

/** One range: zeros may have to be written where no hole can be made. */
export const MAX_UNMAP_BYTES = 64 * 1024 * 1024;

/** WRITE SAME: the same, and a pattern is written in any case. */
export const MAX_WRITE_SAME_BYTES = 32 * 1024 * 1024;

/** What WRITE BUFFER writes to and READ BUFFER reads, of each unit; the echo buffer. */
export const BUFFER_BYTES = 65536;
export const ECHO_BYTES = 4096;

/** GET LBA STATUS looks so far: a format may have to read its tables for it. */
export const MAX_STATUS_BYTES = 2 ** 30;

/** COMPARE AND WRITE: what it compares and what it writes share the scratch memory of one. */
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
