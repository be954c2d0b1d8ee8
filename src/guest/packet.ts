/**
 * Builds the frames that the stack sends, in one scratch buffer that is reused: a link takes a
 * copy. The payload is written behind its headers first, then the headers around it.
 */
import {
  ARP_BYTES,
  ARP_HLEN,
  ARP_HTYPE,
  ARP_HTYPE_ETHERNET,
  ARP_OPER,
  ARP_PLEN,
  ARP_PTYPE,
  ARP_SHA,
  ARP_SPA,
  ARP_THA,
  ARP_TPA,
  ETHERTYPE_ARP,
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
  ETHERTYPE_VLAN,
  ETH_DST,
  ETH_HEADER_BYTES,
  ETH_SRC,
  ETH_TYPE,
  VLAN_TAG_BYTES,
  VLAN_TCI,
  VLAN_TPID,
} from '../wire/ethernet.ts';
import {
  IPPROTO_ICMPV6,
  IPPROTO_UDP,
  IPV4_CHECKSUM,
  IPV4_DF,
  IPV4_DST,
  IPV4_FLAGS_FRAGMENT,
  IPV4_HEADER_BYTES,
  IPV4_ID,
  IPV4_PROTOCOL,
  IPV4_SRC,
  IPV4_TOTAL_LENGTH,
  IPV4_TTL,
  IPV6_DST,
  IPV6_HEADER_BYTES,
  IPV6_HOP_LIMIT,
  IPV6_NEXT_HEADER,
  IPV6_PAYLOAD_LENGTH,
  IPV6_SRC,
  UDP_CHECKSUM,
  UDP_DST_PORT,
  UDP_HEADER_BYTES,
  UDP_LENGTH,
  UDP_SRC_PORT,
  checksumAdd,
  checksumFinish,
  pseudoHeaderSum4,
  pseudoHeaderSum6,
} from '../wire/ip.ts';
import type { IpAddress } from './ip-address.ts';
import type { FrameOffload } from './link.ts';

/** Longest frame that can be built: 64 KiB of IP, Ethernet header, one tag. */
export const SCRATCH_BYTES = 65535 + ETH_HEADER_BYTES + VLAN_TAG_BYTES;

const DEFAULT_TTL = 64;
/** Neighbour discovery is valid with this hop limit only: it cannot have crossed a router. */
export const ND_HOP_LIMIT = 255;

/** A packet under judgement: where its layers start. */
export type Packet = {
  readonly frame: Uint8Array;
  readonly view: DataView;
  readonly offload: FrameOffload;
  readonly family: 4 | 6;
  readonly networkAt: number;
  readonly transportAt: number;
  readonly transportBytes: number;
  readonly from: IpAddress;
};

export class PacketBuilder {
  readonly bytes = new Uint8Array(SCRATCH_BYTES);
  readonly view = new DataView(this.bytes.buffer);
  /** Where the network header starts: behind Ethernet and, with a VLAN, its tag. */
  readonly networkAt: number;
  readonly #mac: Uint8Array;
  readonly #vlan: number | null;
  #ipId = 1;

  constructor(mac: Uint8Array, vlan: number | null) {
    this.#mac = mac;
    this.#vlan = vlan;
    this.networkAt = ETH_HEADER_BYTES + (vlan === null ? 0 : VLAN_TAG_BYTES);
  }

  /** Where the payload of IP starts, for a packet of this family. */
  transportAt(family: 4 | 6): number {
    return this.networkAt + (family === 4 ? IPV4_HEADER_BYTES : IPV6_HEADER_BYTES);
  }

  /** A whole ARP frame. `targetMac` null: a request, to everybody. */
  arp(oper: number, ours: IpAddress, target: Uint8Array, targetMac: Uint8Array | null): Uint8Array {
    const at = this.networkAt;
    const { view, bytes } = this;
    view.setUint16(at + ARP_HTYPE, ARP_HTYPE_ETHERNET);
    view.setUint16(at + ARP_PTYPE, ETHERTYPE_IPV4);
    view.setUint8(at + ARP_HLEN, 6);
    view.setUint8(at + ARP_PLEN, 4);
    view.setUint16(at + ARP_OPER, oper);
    bytes.set(this.#mac, at + ARP_SHA);
    bytes.set(ours.bytes, at + ARP_SPA);
    if (targetMac === null) bytes.fill(0, at + ARP_THA, at + ARP_THA + 6);
    else bytes.set(targetMac, at + ARP_THA);
    bytes.set(target, at + ARP_TPA);
    this.#ethernet(targetMac ?? BROADCAST_MAC, ETHERTYPE_ARP);
    return bytes.subarray(0, at + ARP_BYTES);
  }

  /** Ethernet and IP around the `lenBytes` that stand at `transportAt`. Returns the frame. */
  ip(
    mac: Uint8Array,
    from: IpAddress,
    to: IpAddress,
    protocol: number,
    lenBytes: number,
    hopLimit = DEFAULT_TTL,
  ): Uint8Array {
    const { view, bytes, networkAt: at } = this;
    if (from.family === 4) {
      view.setUint16(at, 0x4500); // version 4, five words; no DSCP
      view.setUint16(at + IPV4_TOTAL_LENGTH, IPV4_HEADER_BYTES + lenBytes);
      view.setUint16(at + IPV4_ID, this.#ipId++ & 0xffff);
      view.setUint16(at + IPV4_FLAGS_FRAGMENT, IPV4_DF);
      view.setUint8(at + IPV4_TTL, hopLimit);
      view.setUint8(at + IPV4_PROTOCOL, protocol);
      view.setUint16(at + IPV4_CHECKSUM, 0);
      bytes.set(from.bytes, at + IPV4_SRC);
      bytes.set(to.bytes, at + IPV4_DST);
      const sum = checksumFinish(checksumAdd(0, bytes, at, IPV4_HEADER_BYTES));
      view.setUint16(at + IPV4_CHECKSUM, sum);
    } else {
      view.setUint32(at, 0x6000_0000); // version 6, no class, no flow label
      view.setUint16(at + IPV6_PAYLOAD_LENGTH, lenBytes);
      view.setUint8(at + IPV6_NEXT_HEADER, protocol);
      view.setUint8(at + IPV6_HOP_LIMIT, hopLimit);
      bytes.set(from.bytes, at + IPV6_SRC);
      bytes.set(to.bytes, at + IPV6_DST);
    }
    this.#ethernet(mac, from.family === 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6);
    return bytes.subarray(0, this.transportAt(from.family) + lenBytes);
  }

  /** Fills in the ICMP or ICMPv6 checksum; the addresses must stand in the IP header already. */
  icmpChecksum(family: 4 | 6, lenBytes: number): void {
    const at = this.transportAt(family);
    this.view.setUint16(at + 2, 0);
    const pseudo =
      family === 4 ? 0 : pseudoHeaderSum6(this.bytes, this.networkAt, IPPROTO_ICMPV6, lenBytes);
    this.view.setUint16(at + 2, checksumFinish(checksumAdd(pseudo, this.bytes, at, lenBytes)));
  }

  /**
   * The UDP header in front of a payload that stands behind it. The checksum is computed, or
   * left to the link: then the field holds the pseudo header's sum, as virtio 5.1.6.2 wants it.
   */
  udpHeader(
    family: 4 | 6,
    fromPort: number,
    toPort: number,
    payloadBytes: number,
    partialCsum: boolean,
  ): void {
    const { view, bytes, networkAt } = this;
    const at = this.transportAt(family);
    const lenBytes = UDP_HEADER_BYTES + payloadBytes;
    view.setUint16(at + UDP_SRC_PORT, fromPort);
    view.setUint16(at + UDP_DST_PORT, toPort);
    view.setUint16(at + UDP_LENGTH, lenBytes);
    view.setUint16(at + UDP_CHECKSUM, 0);
    const pseudo = family === 4 ? pseudoHeaderSum4 : pseudoHeaderSum6;
    const sum = pseudo(bytes, networkAt, IPPROTO_UDP, lenBytes);
    if (partialCsum) {
      view.setUint16(at + UDP_CHECKSUM, ~checksumFinish(sum) & 0xffff);
      return;
    }
    const whole = checksumFinish(checksumAdd(sum, bytes, at, lenBytes));
    view.setUint16(at + UDP_CHECKSUM, whole === 0 ? 0xffff : whole);
  }

  #ethernet(destination: Uint8Array, type: number): void {
    this.bytes.set(destination, ETH_DST);
    this.bytes.set(this.#mac, ETH_SRC);
    if (this.#vlan !== null) {
      this.view.setUint16(VLAN_TPID, ETHERTYPE_VLAN);
      this.view.setUint16(VLAN_TCI, this.#vlan);
    }
    this.view.setUint16(this.networkAt - ETH_HEADER_BYTES + ETH_TYPE, type);
  }
}

export const BROADCAST_MAC: Uint8Array = new Uint8Array(6).fill(0xff);

/** The Ethernet group of an IPv6 multicast address: 33:33 and its last four bytes. */
export function multicastMac6(group: Uint8Array): Uint8Array {
  return Uint8Array.of(0x33, 0x33, group[12], group[13], group[14], group[15]);
}

/** ff02::1 */
export const ALL_NODES: Uint8Array = new Uint8Array(16);
ALL_NODES.set([0xff, 2]);
ALL_NODES[15] = 1;

export function sameBytes(
  a: Uint8Array,
  aAt: number,
  b: Uint8Array,
  bAt: number,
  lenBytes: number,
): boolean {
  for (let i = 0; i < lenBytes; i++) if (a[aAt + i] !== b[bAt + i]) return false;
  return true;
}

/** The sender's MAC address of a frame, copied. */
export function senderMac(frame: Uint8Array): Uint8Array {
  return frame.slice(ETH_SRC, ETH_SRC + 6);
}
