/** Packet sockets with mapped rings: linux/if_packet.h, packet(7), TPACKET_V3. */
import { bytes, struct, u16, u32, u64, u8 } from './struct.ts';

export const AF_PACKET = 17;
export const SOL_PACKET = 263;
export const ETH_P_ALL = 0x0003;

export const PACKET_ADD_MEMBERSHIP = 1;
export const PACKET_RX_RING = 5;
export const PACKET_STATISTICS = 6;
export const PACKET_VERSION = 10;
export const PACKET_TX_RING = 13;
export const PACKET_LOSS = 14;
export const PACKET_VNET_HDR = 15;
export const PACKET_FANOUT = 18;
export const PACKET_QDISC_BYPASS = 20;
export const PACKET_IGNORE_OUTGOING = 23; // Linux 4.20

export const TPACKET_V3 = 2;
export const PACKET_MR_PROMISC = 1;
export const PACKET_FANOUT_HASH = 0;
/** A socket whose ring is full leaves the frame to another one of its group. */
export const PACKET_FANOUT_FLAG_ROLLOVER = 0x1000;
/** The kernel chooses a number for the group that nobody has. */
export const PACKET_FANOUT_FLAG_UNIQUEID = 0x2000;
export const PACKET_OUTGOING = 4; // pkttype of what this host sends

/** Which frames a socket takes: linux/filter.h, linux/bpf_common.h. */
export const SO_ATTACH_FILTER = 26;
export const BPF_LD_W_ABS = 0x20; //  BPF_LD | BPF_W | BPF_ABS
export const BPF_JMP_JEQ_K = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
export const BPF_RET_K = 0x06; //     BPF_RET | BPF_K
/** Loads from here on are of what the kernel knows of a frame. */
export const SKF_AD_OFF = -0x1000;
export const SKF_AD_PKTTYPE = 4;

export const TP_STATUS_USER = 1 << 0;
export const TP_STATUS_VLAN_VALID = 1 << 4;
export const TP_STATUS_VLAN_TPID_VALID = 1 << 6;
export const TP_STATUS_AVAILABLE = 0;
export const TP_STATUS_SEND_REQUEST = 1 << 0;

/** What TPACKET_ALIGN aligns frames to, in both rings. */
export const TPACKET_ALIGNMENT = 16;

/** PACKET_VNET_HDR puts a struct virtio_net_hdr in front of a frame, in the host's byte order. */
export const PACKET_VNET_BYTES = 10;

export const SockaddrLl = struct('sockaddr_ll', 20, {
  family: u16(0),
  protocol: u16(2), // big-endian
  ifindex: u32(4),
  hatype: u16(8),
  pkttype: u8(10),
  halen: u8(11),
  addr: bytes(12, 8),
});

export const TpacketReq3 = struct('tpacket_req3', 28, {
  blockSize: u32(0),
  blockNr: u32(4),
  frameSize: u32(8),
  frameNr: u32(12),
  retireBlkTov: u32(16), // ms until a block that is not full is handed over
  sizeofPriv: u32(20),
  featureReqWord: u32(24),
});

/** In front of every frame of either ring. */
export const Tpacket3Header = struct('tpacket3_hdr', 48, {
  nextOffset: u32(0), // to the next frame of the block; 0 in the transmit ring
  sec: u32(4),
  nsec: u32(8),
  snaplen: u32(12),
  len: u32(16),
  status: u32(20),
  mac: u16(24), // where the frame starts
  net: u16(26),
  rxhash: u32(28),
  vlanTci: u32(32),
  vlanTpid: u16(36),
  padding0: u16(38),
  padding1: bytes(40, 8),
});

/** struct tpacket_block_desc with its tpacket_hdr_v1. */
export const TpacketBlock = struct('tpacket_block_desc', 48, {
  version: u32(0),
  offsetToPriv: u32(4),
  blockStatus: u32(8),
  numPkts: u32(12),
  offsetToFirstPkt: u32(16),
  blkLen: u32(20),
  seqNum: bytes(24, 8),
  firstAt: bytes(32, 8),
  lastAt: bytes(40, 8),
});

/** Read by PACKET_STATISTICS, and set to zero by that. */
export const TpacketStats = struct('tpacket_stats_v3', 12, {
  packets: u32(0),
  drops: u32(4),
  freezes: u32(8),
});

export const PacketMreq = struct('packet_mreq', 16, {
  ifindex: u32(0),
  type: u16(4),
  alen: u16(6),
  address: bytes(8, 8),
});

/** An instruction of a filter, and a filter by its address. */
export const SockFilter = struct('sock_filter', 8, {
  code: u16(0),
  jt: u8(2),
  jf: u8(3),
  k: u32(4),
});
export const SockFprog = struct('sock_fprog', 16, {
  len: u16(0), // instructions
  padding: bytes(2, 6),
  filter: u64(8),
});
