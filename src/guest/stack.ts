/**
 * The guest's small network stack: Ethernet, one VLAN tag, ARP, IPv4, IPv6 with neighbour
 * discovery, ICMP echo and UDP. Static addresses, no fragments, no TCP.
 *
 * Theory of operation: everything that arrives enters by `#input`, one frame at a time, and is
 * judged header by header; what is wrong is counted by reason and dropped. Answers (ARP, ND, echo)
 * are sent from there. What leaves is built in one scratch buffer, of which the link takes a copy.
 */
import { VringError } from '../base/errors.ts';
import {
  ARP_BYTES,
  ARP_HTYPE,
  ARP_HTYPE_ETHERNET,
  ARP_OPER,
  ARP_PTYPE,
  ARP_REPLY,
  ARP_REQUEST,
  ARP_SHA,
  ARP_SPA,
  ARP_TPA,
  ETHERTYPE_ARP,
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
  ETHERTYPE_VLAN,
  ETH_GROUP_BIT,
  ETH_HEADER_BYTES,
  ETH_TYPE,
  TCI_VID_MASK,
  VLAN_INNER_TYPE,
  VLAN_TAG_BYTES,
  VLAN_TCI,
  parseMac,
} from '../wire/ethernet.ts';
import {
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  IPPROTO_UDP,
  IPV4_DST,
  IPV4_FLAGS_FRAGMENT,
  IPV4_FRAGMENT_MASK,
  IPV4_HEADER_BYTES,
  IPV4_MF,
  IPV4_PROTOCOL,
  IPV4_SRC,
  IPV4_TOTAL_LENGTH,
  IPV6_DST,
  IPV6_HEADER_BYTES,
  IPV6_NEXT_HEADER,
  IPV6_PAYLOAD_LENGTH,
  IPV6_SRC,
  checksumAdd,
  checksumFinish,
} from '../wire/ip.ts';
import { Icmp, type PingOptions, type PingResult } from './icmp.ts';
import {
  ipFromBytes,
  prefixHas,
  solicitedNode,
  type IpAddress,
  type IpPrefix,
} from './ip-address.ts';
import { NO_OFFLOAD, type FrameLink, type FrameOffload } from './link.ts';
import { NeighbourTable } from './neighbours.ts';
import { ALL_NODES, PacketBuilder, sameBytes, type Packet } from './packet.ts';
import { Udp } from './udp.ts';

export type StackOptions = {
  readonly link: FrameLink;
  readonly ip?: IpPrefix | null;
  readonly ip6?: IpPrefix | null;
  readonly vlan?: number | null;
  /** Next hop for addresses outside our network. */
  readonly gateway?: IpAddress | null;
  readonly resolveRetryMs?: number;
};

export function emptyStackCounters() {
  return {
    rxFrames: 0,
    txFrames: 0,
    txDropped: 0,
    rxOtherMac: 0,
    rxOtherVlan: 0,
    rxOtherType: 0,
    rxOtherAddress: 0,
    rxMalformed: 0,
    rxFragments: 0,
    rxBadIpChecksum: 0,
    rxBadChecksum: 0,
    rxNoPort: 0,
    rxUdp: 0,
    rxUdpSegmented: 0,
    txUdp: 0,
    arpRequestsIn: 0,
    echoRequestsIn: 0,
    echoRepliesIn: 0,
    solicitationsIn: 0,
  };
}
export type StackCounters = ReturnType<typeof emptyStackCounters>;

export class NetStack {
  readonly link: FrameLink;
  readonly ip: IpPrefix | null;
  readonly ip6: IpPrefix | null;
  readonly counters: StackCounters = emptyStackCounters();
  readonly neighbours: NeighbourTable;
  readonly builder: PacketBuilder;
  readonly mac: Uint8Array;
  readonly udp: Udp;
  readonly #vlan: number | null;
  readonly #gateway: IpAddress | null;
  readonly #icmp: Icmp;

  constructor(options: StackOptions) {
    const mac = parseMac(options.link.mac);
    if (mac === null) throw new VringError('ERR_VRING_GUEST_MAC', `bad MAC ${options.link.mac}`);
    this.link = options.link;
    this.mac = mac;
    this.ip = options.ip ?? null;
    this.ip6 = options.ip6 ?? null;
    this.#vlan = options.vlan ?? null;
    this.#gateway = options.gateway ?? null;
    this.builder = new PacketBuilder(mac, this.#vlan);
    this.udp = new Udp(this);
    this.#icmp = new Icmp(this);
    this.neighbours = new NeighbourTable({
      solicit: (address) => this.#solicit(address),
      retryMs: options.resolveRetryMs ?? 1000,
      attempts: 3,
    });
    this.link.onFrame = (frame, offload) => this.#input(frame, offload);
  }

  close(): void {
    this.link.onFrame = null;
    this.neighbours.close();
    this.#icmp.close();
    this.udp.close();
  }

  /** One echo request. Resolves with null when no answer comes in time. */
  ping(address: IpAddress, options: PingOptions): Promise<PingResult | null> {
    return this.#icmp.ping(address, options);
  }

  /** The MAC address of the next hop to `address`, asked for if it is not known yet. */
  async resolve(address: IpAddress): Promise<Uint8Array> {
    return this.neighbours.resolve(this.nextHop(address));
  }

  /** Who is to be asked for the MAC address: a neighbour, the gateway, or null for no way. */
  route(address: IpAddress): IpAddress | null {
    const own = address.family === 4 ? this.ip : this.ip6;
    if (own === null) return null;
    if (prefixHas(own, address)) return address;
    return this.#gateway?.family === address.family ? this.#gateway : null;
  }

  /** @throws VringError ERR_VRING_GUEST_NO_ROUTE: no own address, or outside the network. */
  nextHop(address: IpAddress): IpAddress {
    const hop = this.route(address);
    if (hop !== null) return hop;
    const own = address.family === 4 ? this.ip : this.ip6;
    throw new VringError(
      'ERR_VRING_GUEST_NO_ROUTE',
      own === null
        ? `no IPv${address.family} address to reach ${address.text} from`
        : `${address.text} is outside ${own.address.text}/${own.prefixBits} and no gateway is set`,
    );
  }

  /** Our address of a family; the caller made sure that there is one. */
  ownAddress(family: 4 | 6): IpAddress {
    const own = family === 4 ? this.ip : this.ip6;
    if (own === null) {
      throw new VringError('ERR_VRING_GUEST_NO_ROUTE', `the stack has no IPv${family} address`);
    }
    return own.address;
  }

  /** Hands a frame to the link and counts. */
  send(frame: Uint8Array, offload: FrameOffload): boolean {
    const sent = this.link.send(frame, offload);
    if (sent) this.counters.txFrames++;
    else this.counters.txDropped++;
    return sent;
  }

  /** Tells switches and neighbours where we are: a gratuitous ARP, an unsolicited advertisement. */
  announce(): void {
    if (this.ip !== null) {
      const own = this.ip.address;
      this.send(this.builder.arp(ARP_REQUEST, own, own.bytes, null), NO_OFFLOAD);
    }
    if (this.ip6 !== null) this.#icmp.advertise(this.ip6.address, null);
  }

  #solicit(address: IpAddress): void {
    if (address.family === 6) return this.#icmp.solicit(address);
    const frame = this.builder.arp(ARP_REQUEST, this.ownAddress(4), address.bytes, null);
    this.send(frame, NO_OFFLOAD);
  }

  #input(frame: Uint8Array, offload: FrameOffload): void {
    const counters = this.counters;
    counters.rxFrames++;
    if (frame.length < ETH_HEADER_BYTES) return void counters.rxMalformed++;
    const group = (frame[0] & ETH_GROUP_BIT) !== 0;
    if (!group && !sameBytes(frame, 0, this.mac, 0, 6)) return void counters.rxOtherMac++;

    const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
    let type = view.getUint16(ETH_TYPE);
    let networkAt = ETH_HEADER_BYTES;
    let vlan: number | null = null;
    if (type === ETHERTYPE_VLAN && frame.length >= ETH_HEADER_BYTES + VLAN_TAG_BYTES) {
      const vid = view.getUint16(VLAN_TCI) & TCI_VID_MASK;
      if (vid !== 0) vlan = vid; // VID 0 carries a priority only
      type = view.getUint16(VLAN_INNER_TYPE);
      networkAt += VLAN_TAG_BYTES;
    }
    if (vlan !== this.#vlan) return void counters.rxOtherVlan++;

    if (type === ETHERTYPE_ARP) this.#arp(frame, view, networkAt);
    else if (type === ETHERTYPE_IPV4) this.#ipv4(frame, view, networkAt, offload);
    else if (type === ETHERTYPE_IPV6) this.#ipv6(frame, view, networkAt, offload);
    else counters.rxOtherType++;
  }

  #arp(frame: Uint8Array, view: DataView, at: number): void {
    if (frame.length < at + ARP_BYTES) return void this.counters.rxMalformed++;
    const forUs =
      view.getUint16(at + ARP_HTYPE) === ARP_HTYPE_ETHERNET &&
      view.getUint16(at + ARP_PTYPE) === ETHERTYPE_IPV4 &&
      this.ip !== null &&
      sameBytes(frame, at + ARP_TPA, this.ip.address.bytes, 0, 4);
    const sender = ipFromBytes(frame.slice(at + ARP_SPA, at + ARP_SPA + 4));
    const mac = frame.slice(at + ARP_SHA, at + ARP_SHA + 6);
    // RFC 826: who we know is updated by any packet; a stranger is kept when it spoke to us.
    this.neighbours.learn(sender, mac, forUs);
    if (!forUs || view.getUint16(at + ARP_OPER) !== ARP_REQUEST) return;
    this.counters.arpRequestsIn++;
    const reply = this.builder.arp(ARP_REPLY, this.ownAddress(4), sender.bytes, mac);
    this.send(reply, NO_OFFLOAD);
  }

  #ipv4(frame: Uint8Array, view: DataView, at: number, offload: FrameOffload): void {
    const counters = this.counters;
    const headerBytes = (frame[at] & 0x0f) * 4;
    const wellFormed =
      frame.length >= at + IPV4_HEADER_BYTES &&
      frame[at] >> 4 === 4 &&
      headerBytes >= IPV4_HEADER_BYTES &&
      view.getUint16(at + IPV4_TOTAL_LENGTH) >= headerBytes &&
      frame.length >= at + view.getUint16(at + IPV4_TOTAL_LENGTH);
    if (!wellFormed) return void counters.rxMalformed++;
    if (checksumFinish(checksumAdd(0, frame, at, headerBytes)) !== 0) {
      return void counters.rxBadIpChecksum++;
    }
    if ((view.getUint16(at + IPV4_FLAGS_FRAGMENT) & (IPV4_MF | IPV4_FRAGMENT_MASK)) !== 0) {
      return void counters.rxFragments++;
    }
    const own = this.ip;
    if (own === null || !sameBytes(frame, at + IPV4_DST, own.address.bytes, 0, 4)) {
      return void counters.rxOtherAddress++;
    }
    const packet: Packet = {
      frame,
      view,
      offload,
      family: 4,
      networkAt: at,
      transportAt: at + headerBytes,
      transportBytes: view.getUint16(at + IPV4_TOTAL_LENGTH) - headerBytes,
      from: ipFromBytes(frame.slice(at + IPV4_SRC, at + IPV4_SRC + 4)),
    };
    const protocol = frame[at + IPV4_PROTOCOL];
    if (protocol === IPPROTO_ICMP) this.#icmp.input4(packet);
    else if (protocol === IPPROTO_UDP) this.udp.input(packet);
    else counters.rxOtherType++;
  }

  #ipv6(frame: Uint8Array, view: DataView, at: number, offload: FrameOffload): void {
    const counters = this.counters;
    const wellFormed =
      frame.length >= at + IPV6_HEADER_BYTES &&
      frame[at] >> 4 === 6 &&
      frame.length >= at + IPV6_HEADER_BYTES + view.getUint16(at + IPV6_PAYLOAD_LENGTH);
    if (!wellFormed) return void counters.rxMalformed++;
    if (!this.#isOurs6(frame, at + IPV6_DST)) return void counters.rxOtherAddress++;
    const packet: Packet = {
      frame,
      view,
      offload,
      family: 6,
      networkAt: at,
      transportAt: at + IPV6_HEADER_BYTES,
      transportBytes: view.getUint16(at + IPV6_PAYLOAD_LENGTH),
      from: ipFromBytes(frame.slice(at + IPV6_SRC, at + IPV6_SRC + 16)),
    };
    const protocol = frame[at + IPV6_NEXT_HEADER];
    if (protocol === IPPROTO_ICMPV6) this.#icmp.input6(packet);
    else if (protocol === IPPROTO_UDP) this.udp.input(packet);
    else counters.rxOtherType++;
  }

  /** Our address, its solicited-node group, or all nodes (ff02::1). */
  #isOurs6(frame: Uint8Array, at: number): boolean {
    if (this.ip6 === null) return false;
    const own = this.ip6.address.bytes;
    return (
      sameBytes(frame, at, own, 0, 16) ||
      sameBytes(frame, at, solicitedNode(own), 0, 16) ||
      sameBytes(frame, at, ALL_NODES, 0, 16)
    );
  }
}
