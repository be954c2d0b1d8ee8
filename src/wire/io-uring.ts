/**
 * io_uring as linux/io_uring.h has it: what `storage/file` uses. test/abi.test.ts compares it with
 * the kernel's headers.
 */
import { struct, u32, u64 } from './struct.ts';

export const IORING_SETUP_CQSIZE = 1 << 3;
export const IORING_SETUP_COOP_TASKRUN = 1 << 8; //    5.19
export const IORING_SETUP_TASKRUN_FLAG = 1 << 9;
export const IORING_SETUP_SINGLE_ISSUER = 1 << 12; //  6.0
export const IORING_SETUP_DEFER_TASKRUN = 1 << 13; //  6.1

export const IORING_FEAT_SINGLE_MMAP = 1 << 0;
export const IORING_FEAT_NODROP = 1 << 1;

export const IORING_OFF_SQ_RING = 0;
export const IORING_OFF_SQES = 0x10000000;

export const IORING_OP_READV = 1;
export const IORING_OP_WRITEV = 2;
export const IORING_OP_FSYNC = 3;
export const IORING_OP_FALLOCATE = 17;
export const IORING_OP_READ = 22;
export const IORING_OP_WRITE = 23;
export const IORING_FSYNC_DATASYNC = 1;

export const IORING_ENTER_GETEVENTS = 1;

export const IORING_SQ_CQ_OVERFLOW = 1 << 1; // in the ring's flags of submission
export const IORING_SQ_TASKRUN = 1 << 2;
export const IORING_CQ_EVENTFD_DISABLED = 1; // in the ring's flags of completion

export const IORING_REGISTER_EVENTFD = 4;
export const IORING_REGISTER_PROBE = 8;
export const IO_URING_OP_SUPPORTED = 1;

/** `struct io_uring_params` with the two tables of offsets in it. */
export const UringParams = struct('io_uring_params', 120, {
  sqEntries: u32(0),
  cqEntries: u32(4),
  flags: u32(8),
  sqThreadCpu: u32(12),
  sqThreadIdle: u32(16),
  features: u32(20),
  wqFd: u32(24),
  resv0: u32(28),
  resv1: u32(32),
  resv2: u32(36),
  sqHead: u32(40),
  sqTail: u32(44),
  sqRingMask: u32(48),
  sqRingEntries: u32(52),
  sqFlags: u32(56),
  sqDropped: u32(60),
  sqArray: u32(64),
  sqResv1: u32(68),
  sqUserAddr: u64(72),
  cqHead: u32(80),
  cqTail: u32(84),
  cqRingMask: u32(88),
  cqRingEntries: u32(92),
  cqOverflow: u32(96),
  cqCqes: u32(100),
  cqFlags: u32(104),
  cqResv1: u32(108),
  cqUserAddr: u64(112),
});

export const URING_SQE_BYTES = 64;
export const URING_CQE_BYTES = 16;
