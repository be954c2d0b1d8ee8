/**
 * Limits that we chose, with their reasons. Limits that a specification sets live in `wire/`.
 * Everything that can grow has one; over the limit we refuse or drop, count, and go on.
 */
import { assert } from './assert.ts';

/** Regions of one memory table. What libvhost-user and rust-vmm offer; DPDK stops at 8. */
export const MAX_MEM_SLOTS = 509;

/** Largest ring: virtio 1.2, 2.6: "Queue Size value is at most 32768". */
export const MAX_RING_SIZE = 32768;

/** Virtqueues of one session: 64 queue pairs of net and its control queue. */
export const MAX_VRINGS = 129;

/**
 * Descriptors of one chain, indirect ones included. Linux drivers use at most
 * MAX_SKB_FRAGS + 2 = 19 for net and 130 for blk; a longer chain is the fault `CHAIN_TOO_LONG`.
 */
export const MAX_CHAIN_DESCRIPTORS = 256;

/** Chains that a queue hands over in one batch; also frames in a batch of the switch. */
export const BATCH = 64;

/** Segments that one batch can describe: every chain of a batch may use several. */
export const BATCH_SEGMENTS = 1024;

/**
 * Bytes of a frame's start that we copy before judging them, and that are written to the
 * destination from our copy. One cache line: Ethernet, a VLAN tag, IPv4/IPv6 and most of TCP.
 */
export const HEADER_COPY_BYTES = 64;

/** Largest Ethernet frame that crosses the switch: 64 KiB of IP, Ethernet header, one tag. */
export const MAX_FRAME_BYTES = 65535 + 14 + 4;

/** Smallest Ethernet frame that the switch looks at: two addresses and a type. */
export const MIN_FRAME_BYTES = 14;

/**
 * Entries of one device's IOTLB, neighbours joined. A guest that maps every packet (Linux with a
 * strict vIOMMU) keeps a page or two per posted buffer: 4096 hold two full queue pairs of 1024.
 * DPDK holds 2048. Over it the oldest goes, and costs a miss when it is wanted again.
 */
export const MAX_IOTLB_ENTRIES = 4096;

/**
 * So much of a dirty log is used, and mapped: the pages of the first 8 TiB, numbered in 31 bits. A
 * sparse file costs its owner nothing, and the arena's addresses are shared by all sessions.
 */
export const MAX_LOG_BYTES = 2 ** 28 - 1;

/** Ports of one switch: port sets are bit sets of this many bits. */
export const MAX_PORTS = 256;

/** Workers of one switch: each has a table of all ports, and each receive queue a turn for each. */
export const MAX_WORKERS = 16;

/** Disks of one storage target: each has a thread of its own, and perhaps one for its layers. */
export const MAX_DISKS = 64;

/** Units of all SCSI adapters of one storage target: each may have a thread for its layers. */
export const MAX_UNITS = 256;

assert(BATCH_SEGMENTS >= MAX_CHAIN_DESCRIPTORS, 'one legal chain always fits a batch');
assert(HEADER_COPY_BYTES % 8 === 0, 'headers are copied in words of eight bytes');
