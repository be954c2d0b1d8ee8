/** XDP sockets and the few commands of bpf(2) that they need: linux/if_xdp.h, linux/bpf.h. */
import { bytes, struct, u16, u32, u64 } from './struct.ts';

export const AF_XDP = 44;
export const SOL_XDP = 283;

export const XDP_COPY = 1 << 1;
export const XDP_ZEROCOPY = 1 << 2;
export const XDP_USE_NEED_WAKEUP = 1 << 3;
/** Frames of several chunks; Linux 6.6. */
export const XDP_USE_SG = 1 << 4;

export const XDP_MMAP_OFFSETS = 1;
export const XDP_RX_RING = 2;
export const XDP_TX_RING = 3;
export const XDP_UMEM_REG = 4;
export const XDP_UMEM_FILL_RING = 5;
export const XDP_UMEM_COMPLETION_RING = 6;
export const XDP_STATISTICS = 7;
export const XDP_OPTIONS = 8;
export const XDP_OPTIONS_ZEROCOPY = 1;
/** Frames that one send() may take from the ring in copy mode; Linux 6.18. */
export const XDP_MAX_TX_SKB_BUDGET = 9;

export const XDP_PGOFF_RX_RING = 0;
export const XDP_PGOFF_TX_RING = 0x80000000;
export const XDP_UMEM_PGOFF_FILL_RING = 0x100000000;
export const XDP_UMEM_PGOFF_COMPLETION_RING = 0x180000000;

export const XDP_RING_NEED_WAKEUP = 1;
/** In a descriptor's options: the frame goes on in the next one. */
export const XDP_PKT_CONTD = 1;
/** Room that the kernel keeps at the start of a chunk for XDP programs. include/uapi/linux/bpf.h */
export const XDP_PACKET_HEADROOM = 256;

/** How a program is attached: linux/if_link.h. */
export const XDP_FLAGS_SKB_MODE = 1 << 1;
export const XDP_FLAGS_DRV_MODE = 1 << 2;

export const SockaddrXdp = struct('sockaddr_xdp', 16, {
  family: u16(0),
  flags: u16(2),
  ifindex: u32(4),
  queueId: u32(8),
  sharedUmemFd: u32(12),
});

export const XdpUmemReg = struct('xdp_umem_reg', 32, {
  addr: u64(0),
  len: u64(8),
  chunkSize: u32(16),
  headroom: u32(20),
  flags: u32(24),
  txMetadataLen: u32(28), // Linux 6.8; padding before
});

/** Where in its mapping a ring has its parts. */
export const XdpRingOffset = struct('xdp_ring_offset', 32, {
  producer: u64(0),
  consumer: u64(8),
  desc: u64(16),
  flags: u64(24),
});

/** struct xdp_mmap_offsets: four of them in this order. */
export const XDP_MMAP_OFFSETS_BYTES = 128;
export const XDP_MMAP_OFFSETS_RX_AT = 0;
export const XDP_MMAP_OFFSETS_TX_AT = 32;
export const XDP_MMAP_OFFSETS_FR_AT = 64;
export const XDP_MMAP_OFFSETS_CR_AT = 96;

/** One entry of the rx and tx rings; the fill and completion rings have addresses only. */
export const XdpDesc = struct('xdp_desc', 16, { addr: u64(0), len: u32(8), options: u32(12) });
export const XDP_UMEM_DESC_BYTES = 8;

export const XdpStatistics = struct('xdp_statistics', 48, {
  rxDropped: u64(0),
  rxInvalidDescs: u64(8),
  txInvalidDescs: u64(16),
  rxRingFull: u64(24),
  rxFillRingEmptyDescs: u64(32),
  txRingEmptyDescs: u64(40),
});

// ---- bpf(2): linux/bpf.h -----------------------------------------------------------------------

export const BPF_MAP_CREATE = 0;
export const BPF_MAP_UPDATE_ELEM = 2;
export const BPF_PROG_LOAD = 5;
export const BPF_LINK_CREATE = 28;
export const BPF_MAP_TYPE_XSKMAP = 17;
export const BPF_PROG_TYPE_XDP = 6;
export const BPF_XDP = 37; // attach type
export const BPF_F_XDP_HAS_FRAGS = 1 << 5;
export const XDP_PASS = 2;
export const BPF_FUNC_redirect_map = 51;
export const BPF_PSEUDO_MAP_FD = 1;
/** struct xdp_md: what a program is given. */
export const XDP_MD_RX_QUEUE_INDEX_AT = 16;

/** Parts of union bpf_attr, each for one command. */
export const BpfMapCreate = struct('bpf_attr', 48, {
  mapType: u32(0),
  keySize: u32(4),
  valueSize: u32(8),
  maxEntries: u32(12),
  mapFlags: u32(16),
  innerMapFd: u32(20),
  numaNode: u32(24),
  mapName: bytes(28, 16),
  mapIfindex: u32(44),
});

export const BpfMapUpdate = struct('bpf_attr', 32, {
  mapFd: u32(0),
  padding: u32(4),
  key: u64(8),
  value: u64(16),
  flags: u64(24),
});

export const BpfProgLoad = struct('bpf_attr', 72, {
  progType: u32(0),
  insnCnt: u32(4),
  insns: u64(8),
  license: u64(16),
  logLevel: u32(24),
  logSize: u32(28),
  logBuf: u64(32),
  kernVersion: u32(40),
  progFlags: u32(44),
  progName: bytes(48, 16),
  progIfindex: u32(64),
  expectedAttachType: u32(68),
});

export const BpfLinkCreate = struct('bpf_attr', 16, {
  progFd: u32(0),
  targetIfindex: u32(4),
  attachType: u32(8),
  flags: u32(12),
});

/** struct bpf_insn: code, registers (destination in the low half), offset, immediate. */
export const BPF_INSN_BYTES = 8;
export const BPF_LDX_MEM_W = 0x61; //   BPF_LDX | BPF_MEM | BPF_W
export const BPF_LD_IMM_DW = 0x18; //   BPF_LD | BPF_IMM | BPF_DW: two instructions
export const BPF_ALU64_MOV_K = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
export const BPF_JMP_CALL = 0x85;
export const BPF_JMP_EXIT = 0x95;
