/**
 * Limits of the vhost-user sessions, each with its reason. Those that the specification sets are
 * in `wire/vhost-user.ts`, those shared with other folders in `base/limits.ts`.
 */
import { totalmem } from 'node:os';
import { assert } from '../base/assert.ts';
import {
  VHOST_MEMORY_BASELINE_NREGIONS,
  VHOST_USER_MAX_SHMEM_REGIONS,
} from '../wire/vhost-user.ts';

/** Longest payload accepted or sent. The largest of today is GET_SHMEM_CONFIG's reply. */
export const MAX_PAYLOAD_BYTES = 4096;

/** fds of one message, both directions. SET_MEM_TABLE has eight; the kernel closes the excess. */
export const MAX_MESSAGE_FDS = VHOST_MEMORY_BASELINE_NREGIONS;

/** Bytes that wait to be sent before `send` refuses. A session waits for each reply anyway. */
export const MAX_QUEUED_BYTES = 64 * 1024;

/** Messages taken from one socket before the event loop gets its turn: no peer starves others. */
export const MESSAGES_PER_TURN = 32;

/**
 * Guest memory of one session: twice what the host has. A sparse file costs its owner nothing, and
 * the arena's addresses are shared by all sessions.
 */
export const MAX_SESSION_MEMORY_BYTES = 2n * BigInt(totalmem());

/** How long a front-end waits for an answer. QEMU waits forever; a VM that hangs helps nobody. */
export const CALL_TIMEOUT_MS = 5000;

/**
 * Requests of ours that wait for the front-end's answer over the backend channel. The next one is
 * refused: who asks for more than the front-end answers is not helped by a longer queue.
 */
export const MAX_CHANNEL_REQUESTS = 64;

/** IOTLB misses that wait for an update. Beyond, the oldest one is forgotten: it is asked again. */
export const MAX_IOTLB_MISSES = 1024;

/** A miss that was not answered is said again after this long, and given up after five times. */
export const IOTLB_MISS_RETRY_MS = 1000;
export const IOTLB_MISS_TRIES = 5;

/** State of a device that DEVICE_STATE moves. Switch ports have some KiB, a file system more. */
export const MAX_DEVICE_STATE_BYTES = 16 * 1024 * 1024;

/** How long CHECK_DEVICE_STATE waits for the end of a transfer that the front-end cut off. */
export const DEVICE_STATE_TIMEOUT_MS = 5000;

/**
 * How long a message may take while postcopy listens, and how long the target may leave a question
 * unanswered in between, asked twice as often. A worker that sleeps in a page fault serves nobody;
 * a front-end that does not bring the page in this time loses the session: the worker wakes.
 */
export const POSTCOPY_STALL_MS = 10_000;

/** How long a hand-over waits for the message at hand before it is called off. */
export const SUSPEND_TIMEOUT_MS = 2000;

/** Client mode: first and longest pause between attempts; it doubles in between. */
export const RECONNECT_MIN_MS = 100;
export const RECONNECT_MAX_MS = 2000;

/** Server mode: pause after accept(2) failed, for instance for want of fds. */
export const ACCEPT_RETRY_MS = 100;

/** Objects that the back-ends of one registry share, and maps of one session's shared memory. */
export const MAX_SHARED_OBJECTS = 1024;
export const MAX_SHMEM_MAPS = 1024;

assert(8 + VHOST_USER_MAX_SHMEM_REGIONS * 8 <= MAX_PAYLOAD_BYTES, 'GET_SHMEM_CONFIG fits');
