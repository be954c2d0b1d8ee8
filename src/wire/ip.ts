/**
 * IPv4, IPv6, TCP, UDP and ICMP: offsets in bytes from the start of each header, and the Internet
 * checksum. All multi-byte fields are big-endian.
 */

/** IPv4, RFC 791. */
export const IPV4_VERSION_IHL = 0; // u8: version 4 in the high nibble, header words in the low one
export const IPV4_TOS = 1; //         u8: DSCP and ECN
export const IPV4_TOTAL_LENGTH = 2; // u16: header and payload
export const IPV4_ID = 4; //          u16
export const IPV4_FLAGS_FRAGMENT = 6; // u16: flags and fragment offset in units of 8 bytes
export const IPV4_TTL = 8; //         u8
export const IPV4_PROTOCOL = 9; //    u8, IPPROTO_*
export const IPV4_CHECKSUM = 10; //   u16, over the header
export const IPV4_SRC = 12; //        4 bytes
export const IPV4_DST = 16; //        4 bytes
export const IPV4_HEADER_BYTES = 20; // without options
export const IPV4_HEADER_BYTES_MAX = 60;
export const IPV4_DF = 0x4000; //     do not fragment
export const IPV4_MF = 0x2000; //     more fragments
export const IPV4_FRAGMENT_MASK = 0x1fff;

/** IPv6, RFC 8200. */
export const IPV6_VERSION_CLASS_FLOW = 0; // u32: version 6 in the highest nibble
export const IPV6_PAYLOAD_LENGTH = 4; // u16: everything behind the 40 bytes
export const IPV6_NEXT_HEADER = 6; // u8, IPPROTO_*
export const IPV6_HOP_LIMIT = 7; //   u8
export const IPV6_SRC = 8; //         16 bytes
export const IPV6_DST = 24; //        16 bytes
export const IPV6_HEADER_BYTES = 40;

export const IPPROTO_HOPOPTS = 0;
export const IPPROTO_ICMP = 1;
export const IPPROTO_TCP = 6;
export const IPPROTO_UDP = 17;
export const IPPROTO_ROUTING = 43;
export const IPPROTO_FRAGMENT = 44;
export const IPPROTO_ICMPV6 = 58;
export const IPPROTO_NONE = 59;
export const IPPROTO_DSTOPTS = 60;

/** TCP, RFC 9293. */
export const TCP_SRC_PORT = 0; //  u16
export const TCP_DST_PORT = 2; //  u16
export const TCP_SEQ = 4; //       u32
export const TCP_ACK = 8; //       u32
export const TCP_DATA_OFFSET = 12; // u8: header words in the high nibble
export const TCP_FLAGS = 13; //    u8
export const TCP_WINDOW = 14; //   u16
export const TCP_CHECKSUM = 16; // u16, over pseudo header, header and payload
export const TCP_URGENT = 18; //   u16
export const TCP_HEADER_BYTES = 20; // without options
export const TCP_HEADER_BYTES_MAX = 60;
export const TCP_FIN = 0x01;
export const TCP_SYN = 0x02;
export const TCP_RST = 0x04;
export const TCP_PSH = 0x08;
export const TCP_ACK_FLAG = 0x10;
export const TCP_URG = 0x20;
export const TCP_ECE = 0x40;
export const TCP_CWR = 0x80;

/** UDP, RFC 768. */
export const UDP_SRC_PORT = 0; //  u16
export const UDP_DST_PORT = 2; //  u16
export const UDP_LENGTH = 4; //    u16: header and payload
export const UDP_CHECKSUM = 6; //  u16; 0 means none (IPv4 only), a computed 0 is sent as 0xffff
export const UDP_HEADER_BYTES = 8;

/** ICMP echo, RFC 792; the ICMPv6 echo of RFC 4443 has the same shape. */
export const ICMP_TYPE = 0; //     u8
export const ICMP_CODE = 1; //     u8
export const ICMP_CHECKSUM = 2; // u16; ICMPv6: with the pseudo header
export const ICMP_ECHO_ID = 4; //  u16
export const ICMP_ECHO_SEQ = 6; // u16
export const ICMP_HEADER_BYTES = 8;
export const ICMP_ECHO_REPLY = 0;
export const ICMP_ECHO_REQUEST = 8;
export const ICMPV6_ECHO_REQUEST = 128;
export const ICMPV6_ECHO_REPLY = 129;
export const ICMPV6_NEIGHBOR_SOLICITATION = 135;
export const ICMPV6_NEIGHBOR_ADVERTISEMENT = 136;

/**
 * Adds `lenBytes` bytes as big-endian 16-bit words to a one's complement sum (RFC 1071); an odd
 * last byte counts as the high half of a word. Start with 0; at most 64 KiB per call and a few
 * calls before `checksumFinish`, which keeps the sum well below 2^53.
 */
export function checksumAdd(sum: number, bytes: Uint8Array, at: number, lenBytes: number): number {
  const end = at + lenBytes;
  let i = at;
  for (; i + 1 < end; i += 2) sum += (bytes[i] << 8) | bytes[i + 1];
  if (i < end) sum += bytes[i] << 8;
  return sum;
}

/** Folds the sum to 16 bits and complements it: the value of the checksum field. */
export function checksumFinish(sum: number): number {
  while (sum > 0xffff) sum = Math.floor(sum / 0x10000) + (sum % 0x10000);
  return ~sum & 0xffff;
}

/** The pseudo header of TCP and UDP over IPv4: addresses (from the IP header), protocol, length. */
export function pseudoHeaderSum4(
  bytes: Uint8Array,
  ipAt: number,
  protocol: number,
  lenBytes: number,
): number {
  return checksumAdd(0, bytes, ipAt + IPV4_SRC, 8) + protocol + lenBytes;
}

/** The pseudo header of TCP, UDP and ICMPv6 over IPv6, RFC 8200, 8.1. */
export function pseudoHeaderSum6(
  bytes: Uint8Array,
  ipAt: number,
  protocol: number,
  lenBytes: number,
): number {
  return checksumAdd(0, bytes, ipAt + IPV6_SRC, 32) + protocol + lenBytes;
}
