/**
 * Ethernet II, IEEE 802.1Q tags and ARP: offsets in bytes from the start of each header. All
 * multi-byte fields are big-endian.
 */

/** Ethernet header: destination, source, type. */
export const ETH_DST = 0;
export const ETH_SRC = 6;
export const ETH_TYPE = 12;
export const ETH_HEADER_BYTES = 14;
export const ETH_ADDRESS_BYTES = 6;

export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;
export const ETHERTYPE_IPV6 = 0x86dd;
/** IEEE 802.1Q customer tag (C-TAG). */
export const ETHERTYPE_VLAN = 0x8100;
/** IEEE 802.1ad service tag (S-TAG), the outer one of QinQ. */
export const ETHERTYPE_QINQ = 0x88a8;
/** IEEE 802 local experimental EtherType 1: for frames of tests and generators. */
export const ETHERTYPE_LOCAL_EXPERIMENT = 0x88b5;

/** First octet, bit 0: group address. Broadcast is the group address of all ones. */
export const ETH_GROUP_BIT = 0x01;
/** First octet, bit 1: locally administered. */
export const ETH_LOCAL_BIT = 0x02;
export const ETH_BROADCAST = 'ff:ff:ff:ff:ff:ff';

/** An 802.1Q tag stands between the source address and the type: TPID, then TCI. */
export const VLAN_TAG_BYTES = 4;
export const VLAN_TPID = 12; //       in the frame
export const VLAN_TCI = 14; //        in the frame
export const VLAN_INNER_TYPE = 16; // in the frame: the type behind the tag
export const TCI_VID_MASK = 0x0fff;
export const TCI_DEI = 0x1000;
export const TCI_PCP_SHIFT = 13;
/** VID 0 tags priority only; 4095 is reserved. */
export const VID_PRIORITY = 0;
export const VID_MIN = 1;
export const VID_MAX = 4094;

/** ARP for IPv4 over Ethernet, RFC 826; offsets from the start of the ARP packet. */
export const ARP_HTYPE = 0; //  u16, ARP_HTYPE_ETHERNET
export const ARP_PTYPE = 2; //  u16, ETHERTYPE_IPV4
export const ARP_HLEN = 4; //   u8, 6
export const ARP_PLEN = 5; //   u8, 4
export const ARP_OPER = 6; //   u16, ARP_REQUEST or ARP_REPLY
export const ARP_SHA = 8; //    sender hardware address, 6 bytes
export const ARP_SPA = 14; //   sender protocol address, 4 bytes
export const ARP_THA = 18; //   target hardware address, 6 bytes
export const ARP_TPA = 24; //   target protocol address, 4 bytes
export const ARP_BYTES = 28;
export const ARP_HTYPE_ETHERNET = 1;
export const ARP_REQUEST = 1;
export const ARP_REPLY = 2;

const MAC_TEXT = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i;

/** True for `52:54:00:12:34:56`, in either case. */
export function isMacText(text: string): boolean {
  return MAC_TEXT.test(text);
}

/** Six bytes of `02:00:00:00:00:01`. Null when the text is not a MAC address. */
export function parseMac(text: string): Uint8Array | null {
  if (!MAC_TEXT.test(text)) return null;
  return Uint8Array.from(text.split(':'), (byte) => Number.parseInt(byte, 16));
}

/** Two digits of each byte: tables of 100 000 addresses are listed. */
const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'));

/** Lower-case text of the six bytes at `at`. */
export function formatMac(bytes: Uint8Array, at = 0): string {
  const first = `${HEX[bytes[at]]}:${HEX[bytes[at + 1]]}:${HEX[bytes[at + 2]]}`;
  return `${first}:${HEX[bytes[at + 3]]}:${HEX[bytes[at + 4]]}:${HEX[bytes[at + 5]]}`;
}
