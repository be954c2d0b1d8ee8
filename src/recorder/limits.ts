/** Limits of the recorder and the replayer, each with its reason. */

/**
 * Longest payload relayed as one message; a header that announces more is taken for the end of
 * framing. Sixteen times what any message of today has, so that drafts pass as messages.
 */
export const MAX_RELAYED_PAYLOAD_BYTES = 64 * 1024;

/** fds of one sendmsg(2): SCM_MAX_FD of the kernel. All of them pass. */
export const MAX_RELAYED_FDS = 253;

/** Bytes taken at once behind the end of framing. */
export const RAW_CHUNK_BYTES = 16 * 1024;

/** Requests of one direction that wait for a reply; older ones are no longer matched. */
export const MAX_UNANSWERED = 64;

/** Backend channels of one session that are recorded; further sockets pass unrecorded. */
export const MAX_BACKEND_CHANNELS = 8;

/** Text that waits for the disk: messages are held back beyond it, ring events are dropped. */
export const MAX_BUFFERED_BYTES = 4 * 1024 * 1024;

/** How long a front-end waits for the upstream to be there, and how often it is tried. */
export const UPSTREAM_WAIT_MS = 5000;
export const UPSTREAM_RETRY_MS = 50;

/** A recording that is replayed is read as a whole. */
export const MAX_RECORDING_BYTES = 256 * 1024 * 1024;

/** Largest file that the replayer makes in place of a recorded one; sparse, but addresses cost. */
export const MAX_REPLAYED_FILE_BYTES = 2 ** 40;

/** How long the replayer waits for an answer; a session that waits longer is a difference. */
export const REPLY_TIMEOUT_MS = 5000;

/** How long it listens behind the last message for what must not come. */
export const SETTLE_MS = 100;
