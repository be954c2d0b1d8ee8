/** What a LUKS2 header may ask for. Whoever wrote the disk wrote the header. */

/** Sizes that a header copy may have, binary part and JSON: LUKS2 on-disk format 1.0.0, table 1. */
export const HEADER_SIZES: readonly number[] = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096].map(
  (kib) => kib * 1024,
);

/** LUKS2_KEYSLOTS_MAX of cryptsetup; digests and segments are no more. */
export const MAX_KEYSLOTS = 32;

/** What cryptsetup writes; the area of a slot is this many keys large. */
export const AF_STRIPES = 4000;

/**
 * cryptsetup aims at two seconds for one slot: some ten million rounds of SHA-256 on the fastest
 * machines of today. This is half a minute on ours.
 */
export const MAX_PBKDF2_ITERATIONS = 100_000_000;

/** cryptsetup itself takes at most 1 GiB unless it is told to take more. */
export const MAX_ARGON2_KIB = 1024 * 1024;

/** Passes times memory: a gibibyte ten times over, some fifteen seconds on one core here. */
export const MAX_ARGON2_KIB_PASSES = 10 * MAX_ARGON2_KIB;

/** cryptsetup writes at most 4. */
export const MAX_ARGON2_LANES = 16;

/** As cryptsetup: 8192 KiB of a key file. */
export const MAX_KEY_FILE_BYTES = 8192 * 1024;
