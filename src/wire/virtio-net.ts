/**
 * The network device on the wire: feature bits, frame header, configuration space and control
 * queue. Pure. Virtio 1.2, section 5.1 "Network Device"; constants are spelled as in
 * `linux/virtio_net.h`, feature constants are bit numbers.
 */
import { bytes, struct, u16, u32, u8, type Value } from './struct.ts';

// 5.1.3, "Feature bits". HOST_*: the device takes it from the driver; GUEST_*: the reverse.
export const VIRTIO_NET_F_CSUM = 0;
export const VIRTIO_NET_F_GUEST_CSUM = 1;
export const VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 2;
export const VIRTIO_NET_F_MTU = 3;
export const VIRTIO_NET_F_MAC = 5;
export const VIRTIO_NET_F_GSO = 6; // legacy, 5.1.3.2
export const VIRTIO_NET_F_GUEST_TSO4 = 7;
export const VIRTIO_NET_F_GUEST_TSO6 = 8;
export const VIRTIO_NET_F_GUEST_ECN = 9;
export const VIRTIO_NET_F_GUEST_UFO = 10;
export const VIRTIO_NET_F_HOST_TSO4 = 11;
export const VIRTIO_NET_F_HOST_TSO6 = 12;
export const VIRTIO_NET_F_HOST_ECN = 13;
export const VIRTIO_NET_F_HOST_UFO = 14;
export const VIRTIO_NET_F_MRG_RXBUF = 15;
export const VIRTIO_NET_F_STATUS = 16;
export const VIRTIO_NET_F_CTRL_VQ = 17;
export const VIRTIO_NET_F_CTRL_RX = 18;
export const VIRTIO_NET_F_CTRL_VLAN = 19;
export const VIRTIO_NET_F_CTRL_RX_EXTRA = 20;
export const VIRTIO_NET_F_GUEST_ANNOUNCE = 21;
export const VIRTIO_NET_F_MQ = 22;
export const VIRTIO_NET_F_CTRL_MAC_ADDR = 23;
export const VIRTIO_NET_F_GUEST_RSC4 = 41; // legacy, never standardised; shares ADMIN_VQ's bit
export const VIRTIO_NET_F_GUEST_RSC6 = 42;
export const VIRTIO_NET_F_DEVICE_STATS = 50;
export const VIRTIO_NET_F_HASH_TUNNEL = 51;
export const VIRTIO_NET_F_VQ_NOTF_COAL = 52;
export const VIRTIO_NET_F_NOTF_COAL = 53;
export const VIRTIO_NET_F_GUEST_USO4 = 54;
export const VIRTIO_NET_F_GUEST_USO6 = 55;
export const VIRTIO_NET_F_HOST_USO = 56;
export const VIRTIO_NET_F_HASH_REPORT = 57;
export const VIRTIO_NET_F_GUEST_HDRLEN = 59;
export const VIRTIO_NET_F_RSS = 60;
export const VIRTIO_NET_F_RSC_EXT = 61;
export const VIRTIO_NET_F_STANDBY = 62;
export const VIRTIO_NET_F_SPEED_DUPLEX = 63;
// Bits 64 and up need the 128-bit feature words of vhost; named so that they are not misread.
export const VIRTIO_NET_F_RSS_CONTEXT = 64;
export const VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO = 65;
export const VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO_CSUM = 66;
export const VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO = 67;
export const VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO_CSUM = 68;
export const VIRTIO_NET_F_OUT_NET_HEADER = 69;
export const VIRTIO_NET_F_IPSEC = 70;

/** Name of each feature bit, for status displays. */
export const NET_FEATURE_NAMES: Readonly<Record<number, string>> = {
  0: 'CSUM',
  1: 'GUEST_CSUM',
  2: 'CTRL_GUEST_OFFLOADS',
  3: 'MTU',
  5: 'MAC',
  6: 'GSO',
  7: 'GUEST_TSO4',
  8: 'GUEST_TSO6',
  9: 'GUEST_ECN',
  10: 'GUEST_UFO',
  11: 'HOST_TSO4',
  12: 'HOST_TSO6',
  13: 'HOST_ECN',
  14: 'HOST_UFO',
  15: 'MRG_RXBUF',
  16: 'STATUS',
  17: 'CTRL_VQ',
  18: 'CTRL_RX',
  19: 'CTRL_VLAN',
  20: 'CTRL_RX_EXTRA',
  21: 'GUEST_ANNOUNCE',
  22: 'MQ',
  23: 'CTRL_MAC_ADDR',
  42: 'GUEST_RSC6',
  50: 'DEVICE_STATS',
  51: 'HASH_TUNNEL',
  52: 'VQ_NOTF_COAL',
  53: 'NOTF_COAL',
  54: 'GUEST_USO4',
  55: 'GUEST_USO6',
  56: 'HOST_USO',
  57: 'HASH_REPORT',
  59: 'GUEST_HDRLEN',
  60: 'RSS',
  61: 'RSC_EXT',
  62: 'STANDBY',
  63: 'SPEED_DUPLEX',
  64: 'RSS_CONTEXT',
  65: 'GUEST_UDP_TUNNEL_GSO',
  66: 'GUEST_UDP_TUNNEL_GSO_CSUM',
  67: 'HOST_UDP_TUNNEL_GSO',
  68: 'HOST_UDP_TUNNEL_GSO_CSUM',
  69: 'OUT_NET_HEADER',
  70: 'IPSEC',
};

/**
 * 5.1.3.1, "Feature bit requirements": bit → the bits of which at least one must be there too.
 * A row may occur twice: then both alternatives must hold.
 */
export const NET_FEATURE_REQUIRES: readonly (readonly [number, readonly number[]])[] = [
  [VIRTIO_NET_F_GUEST_TSO4, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_GUEST_TSO6, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_GUEST_ECN, [VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]],
  [VIRTIO_NET_F_GUEST_UFO, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_GUEST_USO4, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_GUEST_USO6, [VIRTIO_NET_F_GUEST_CSUM]],
  [VIRTIO_NET_F_HOST_TSO4, [VIRTIO_NET_F_CSUM]],
  [VIRTIO_NET_F_HOST_TSO6, [VIRTIO_NET_F_CSUM]],
  [VIRTIO_NET_F_HOST_ECN, [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]],
  [VIRTIO_NET_F_HOST_UFO, [VIRTIO_NET_F_CSUM]],
  [VIRTIO_NET_F_HOST_USO, [VIRTIO_NET_F_CSUM]],
  [VIRTIO_NET_F_CTRL_RX, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_CTRL_VLAN, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_GUEST_ANNOUNCE, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_MQ, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_CTRL_MAC_ADDR, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_NOTF_COAL, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_VQ_NOTF_COAL, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_RSC_EXT, [VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]],
  [VIRTIO_NET_F_RSS, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_HASH_TUNNEL, [VIRTIO_NET_F_CTRL_VQ]],
  [VIRTIO_NET_F_HASH_TUNNEL, [VIRTIO_NET_F_RSS, VIRTIO_NET_F_HASH_REPORT]],
];

// 5.1.6, "Device Operation": `flags` and `gso_type` of the header.
export const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
export const VIRTIO_NET_HDR_F_DATA_VALID = 2;
export const VIRTIO_NET_HDR_F_RSC_INFO = 4;
export const VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM = 8;
export const VIRTIO_NET_HDR_GSO_NONE = 0;
export const VIRTIO_NET_HDR_GSO_TCPV4 = 1;
export const VIRTIO_NET_HDR_GSO_UDP = 3; //    UFO
export const VIRTIO_NET_HDR_GSO_TCPV6 = 4;
export const VIRTIO_NET_HDR_GSO_UDP_L4 = 5; // USO
export const VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 = 0x20;
export const VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6 = 0x40;
export const VIRTIO_NET_HDR_GSO_ECN = 0x80; // flag beside a TCP type

/** `struct virtio_net_hdr_v1`: in front of every frame with VERSION_1 or MRG_RXBUF. */
export const NetHeader = struct('virtio_net_hdr_v1', 12, {
  flags: u8(0), //       VIRTIO_NET_HDR_F_*
  gsoType: u8(1), //     VIRTIO_NET_HDR_GSO_*
  hdrLen: u16(2), //     bytes of Ethernet + IP + transport headers; a hint without GUEST_HDRLEN
  gsoSize: u16(4), //    payload bytes per segment
  csumStart: u16(6), //  where checksumming starts, from the start of the frame
  csumOffset: u16(8), // where the checksum goes, from csumStart
  numBuffers: u16(10), // mergeable buffers of this frame; device to driver only
});
export type NetHeader = Value<typeof NetHeader.fields>;

export const NET_HEADER_BYTES = 12;
/** Without VERSION_1 and without MRG_RXBUF, `numBuffers` is missing. 5.1.6.1. */
export const NET_HEADER_LEGACY_BYTES = 10;
/** `struct virtio_net_hdr_v1_hash`, with HASH_REPORT. */
export const NET_HEADER_HASH_BYTES = 20;

// 5.1.4, "Device configuration layout": bits of `status`, values of `duplex`.
export const VIRTIO_NET_S_LINK_UP = 1;
export const VIRTIO_NET_S_ANNOUNCE = 2;
export const VIRTIO_NET_DUPLEX_HALF = 0;
export const VIRTIO_NET_DUPLEX_FULL = 1;
export const VIRTIO_NET_DUPLEX_UNKNOWN = 0xff;
export const VIRTIO_NET_SPEED_UNKNOWN = 0xffff_ffff;

/** `struct virtio_net_config`; a field exists when its feature was offered. */
export const NetConfig = struct('virtio_net_config', 28, {
  mac: bytes(0, 6), //             MAC
  status: u16(6), //               STATUS; VIRTIO_NET_S_*
  maxVirtqueuePairs: u16(8), //    MQ or RSS
  mtu: u16(10), //                 MTU
  speed: u32(12), //               SPEED_DUPLEX; Mbit/s
  duplex: u8(16), //               SPEED_DUPLEX
  rssMaxKeySize: u8(17), //        RSS or HASH_REPORT
  rssMaxIndirectionTableLength: u16(18), // RSS
  supportedHashTypes: u32(20), //  RSS or HASH_REPORT
  supportedTunnelTypes: u32(24), // HASH_TUNNEL
});
export type NetConfig = Value<typeof NetConfig.fields>;

// 5.1.4.1: the driver must ignore an MTU below; 5.1.4.2 lets the device offer 68 .. 65535.
export const VIRTIO_NET_MIN_MTU = 68;
export const VIRTIO_NET_MAX_MTU = 65535;

/** 5.1.6.5, "Control Virtqueue": class and command, data, then one ack byte from the device. */
export const NetControlHeader = struct('virtio_net_ctrl_hdr', 2, { class: u8(0), command: u8(1) });
export type NetControlHeader = Value<typeof NetControlHeader.fields>;

export const VIRTIO_NET_OK = 0;
export const VIRTIO_NET_ERR = 1;

export const VIRTIO_NET_CTRL_RX = 0; // 5.1.6.5.1; one byte: off or on
export const VIRTIO_NET_CTRL_RX_PROMISC = 0;
export const VIRTIO_NET_CTRL_RX_ALLMULTI = 1;
export const VIRTIO_NET_CTRL_RX_ALLUNI = 2;
export const VIRTIO_NET_CTRL_RX_NOMULTI = 3;
export const VIRTIO_NET_CTRL_RX_NOUNI = 4;
export const VIRTIO_NET_CTRL_RX_NOBCAST = 5;

export const VIRTIO_NET_CTRL_MAC = 1; // 5.1.6.5.2
export const VIRTIO_NET_CTRL_MAC_TABLE_SET = 0; // two of {u32 entries, u8 macs[entries][6]}
export const VIRTIO_NET_CTRL_MAC_ADDR_SET = 1; //  u8 mac[6]

export const VIRTIO_NET_CTRL_VLAN = 2; // 5.1.6.5.3; u16 VLAN id
export const VIRTIO_NET_CTRL_VLAN_ADD = 0;
export const VIRTIO_NET_CTRL_VLAN_DEL = 1;

export const VIRTIO_NET_CTRL_ANNOUNCE = 3; // 5.1.6.5.4; no data
export const VIRTIO_NET_CTRL_ANNOUNCE_ACK = 0;

export const VIRTIO_NET_CTRL_MQ = 4; // 5.1.6.5.5 to 5.1.6.5.7
export const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET = 0; // u16 pairs
export const VIRTIO_NET_CTRL_MQ_RSS_CONFIG = 1;
export const VIRTIO_NET_CTRL_MQ_HASH_CONFIG = 2;
export const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN = 1;
export const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX = 0x8000;

export const VIRTIO_NET_CTRL_GUEST_OFFLOADS = 5; // 5.1.6.5.8; u64, the GUEST_* feature bits
export const VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET = 0;

export const VIRTIO_NET_CTRL_NOTF_COAL = 6; // 5.1.6.5.9
export const VIRTIO_NET_CTRL_NOTF_COAL_TX_SET = 0;
export const VIRTIO_NET_CTRL_NOTF_COAL_RX_SET = 1;
export const VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET = 2;
export const VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET = 3;

export const VIRTIO_NET_CTRL_HASH_TUNNEL = 7; // virtio 1.3
export const VIRTIO_NET_CTRL_HASH_TUNNEL_SET = 0;
export const VIRTIO_NET_CTRL_STATS = 8; //       virtio 1.3
export const VIRTIO_NET_CTRL_STATS_QUERY = 0;
export const VIRTIO_NET_CTRL_STATS_GET = 1;

// 5.1.6.4.3, "Hash calculation for incoming packets": supported and enabled types.
export const VIRTIO_NET_HASH_TYPE_IPv4 = 1 << 0;
export const VIRTIO_NET_HASH_TYPE_TCPv4 = 1 << 1;
export const VIRTIO_NET_HASH_TYPE_UDPv4 = 1 << 2;
export const VIRTIO_NET_HASH_TYPE_IPv6 = 1 << 3;
export const VIRTIO_NET_HASH_TYPE_TCPv6 = 1 << 4;
export const VIRTIO_NET_HASH_TYPE_UDPv6 = 1 << 5;
export const VIRTIO_NET_HASH_TYPE_IP_EX = 1 << 6;
export const VIRTIO_NET_HASH_TYPE_TCP_EX = 1 << 7;
export const VIRTIO_NET_HASH_TYPE_UDP_EX = 1 << 8;

/** Virtqueue names as in 5.1.2: receiveq1, transmitq1, ..., controlq behind the last pair. */
export function netQueueName(index: number, queuePairs: number): string {
  if (index === 2 * queuePairs) return 'controlq';
  return `${index % 2 === 0 ? 'receiveq' : 'transmitq'}${(index >> 1) + 1}`;
}
