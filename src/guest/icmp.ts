/**
 * ICMP and ICMPv6 of the guest's stack: echo in both directions, and IPv6 neighbour discovery.
 */
import { VringError } from '../base/errors.ts';
import {
  ICMPV6_ECHO_REPLY,
  ICMPV6_ECHO_REQUEST,
  ICMPV6_NEIGHBOR_ADVERTISEMENT,
  ICMPV6_NEIGHBOR_SOLICITATION,
  ICMP_CHECKSUM,
  ICMP_CODE,
  ICMP_ECHO_ID,
  ICMP_ECHO_REPLY,
  ICMP_ECHO_REQUEST,
  ICMP_ECHO_SEQ,
  ICMP_HEADER_BYTES,
  ICMP_TYPE,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  IPV4_HEADER_BYTES,
  IPV6_HEADER_BYTES,
  IPV6_HOP_LIMIT,
  checksumAdd,
  checksumFinish,
  pseudoHeaderSum6,
} from '../wire/ip.ts';
import { ipFromBytes, solicitedNode, type IpAddress } from './ip-address.ts';
import { NO_OFFLOAD } from './link.ts';
import {
  ALL_NODES,
  ND_HOP_LIMIT,
  multicastMac6,
  sameBytes,
  senderMac,
  type Packet,
} from './packet.ts';
import type { NetStack } from './stack.ts';

/** Echo requests that may wait for an answer at once. */
export const MAX_PENDING_PINGS = 1024;

/** RFC 4861: target address at 8, options from 24; option 1 and 2 hold a link-layer address. */
const ND_FLAGS = 4;
const ND_TARGET = 8;
const ND_OPTIONS = 24;
const ND_BYTES = 32;
const ND_SOURCE_LINK = 1;
const ND_TARGET_LINK = 2;
const NA_SOLICITED = 0x4000_0000;
const NA_OVERRIDE = 0x2000_0000;

export type PingOptions = {
  readonly sequence: number;
  readonly identifier: number;
  readonly timeoutMs: number;
  /** Bytes behind the ICMP header. */
  readonly payloadBytes: number;
};

/** `intact` is false when the payload came back changed. */
export type PingResult = { readonly milliseconds: number; readonly intact: boolean };

type PendingPing = {
  readonly sentAt: number;
  readonly payloadBytes: number;
  readonly settle: (result: PingResult | null) => void;
};

export class Icmp {
  readonly #stack: NetStack;
  readonly #pending = new Map<string, PendingPing>();

  constructor(stack: NetStack) {
    this.#stack = stack;
  }

  /** Round trip of one echo request; the time to find the neighbour is not part of it. */
  async ping(to: IpAddress, options: PingOptions): Promise<PingResult | null> {
    const stack = this.#stack;
    const room = stack.udp.maxPayload(to.family); // the two headers are equally long
    if (options.payloadBytes > room) {
      throw new VringError(
        'ERR_VRING_GUEST_TOO_LONG',
        `an echo of ${options.payloadBytes} bytes; MTU ${stack.link.mtu} has room for ${room}`,
      );
    }
    const mac = await stack.resolve(to);
    const key = pingKey(to, options.identifier, options.sequence);
    if (this.#pending.size >= MAX_PENDING_PINGS || this.#pending.has(key)) {
      throw new VringError('ERR_VRING_GUEST_BUSY', 'too many echo requests wait for an answer');
    }
    return new Promise((resolve) => {
      const timer = setTimeout(() => settle(null), options.timeoutMs);
      const settle = (result: PingResult | null): void => {
        clearTimeout(timer);
        this.#pending.delete(key);
        resolve(result);
      };
      const sentAt = performance.now();
      this.#pending.set(key, { sentAt, payloadBytes: options.payloadBytes, settle });
      this.#sendRequest(to, mac, options);
    });
  }

  close(): void {
    for (const pending of this.#pending.values()) pending.settle(null);
  }

  input4(packet: Packet): void {
    const { frame, transportAt: at, transportBytes } = packet;
    const counters = this.#stack.counters;
    if (transportBytes < ICMP_HEADER_BYTES) return void counters.rxMalformed++;
    if (checksumFinish(checksumAdd(0, frame, at, transportBytes)) !== 0) {
      return void counters.rxBadChecksum++;
    }
    const type = frame[at + ICMP_TYPE];
    if (type === ICMP_ECHO_REQUEST) this.#reply(packet, IPPROTO_ICMP, ICMP_ECHO_REPLY);
    else if (type === ICMP_ECHO_REPLY) this.#takeReply(packet);
    else counters.rxOtherType++;
  }

  input6(packet: Packet): void {
    const { frame, transportAt: at, transportBytes } = packet;
    const counters = this.#stack.counters;
    if (transportBytes < ICMP_HEADER_BYTES) return void counters.rxMalformed++;
    const pseudo = pseudoHeaderSum6(frame, packet.networkAt, IPPROTO_ICMPV6, transportBytes);
    if (checksumFinish(checksumAdd(pseudo, frame, at, transportBytes)) !== 0) {
      return void counters.rxBadChecksum++;
    }
    const type = frame[at + ICMP_TYPE];
    if (type === ICMPV6_ECHO_REQUEST) this.#reply(packet, IPPROTO_ICMPV6, ICMPV6_ECHO_REPLY);
    else if (type === ICMPV6_ECHO_REPLY) this.#takeReply(packet);
    else if (type === ICMPV6_NEIGHBOR_SOLICITATION) this.#takeSolicitation(packet);
    else if (type === ICMPV6_NEIGHBOR_ADVERTISEMENT) this.#takeAdvertisement(packet);
    else counters.rxOtherType++;
  }

  /** Asks who has `address`. */
  solicit(address: IpAddress): void {
    const group = solicitedNode(address.bytes);
    this.#sendDiscovery(
      ICMPV6_NEIGHBOR_SOLICITATION,
      0,
      address.bytes,
      ND_SOURCE_LINK,
      multicastMac6(group),
      ipFromBytes(group),
    );
  }

  /** Says that we have `own`: to the asker, or to all nodes when there is none. */
  advertise(own: IpAddress, to: { mac: Uint8Array; address: IpAddress } | null): void {
    this.#sendDiscovery(
      ICMPV6_NEIGHBOR_ADVERTISEMENT,
      NA_OVERRIDE | (to === null ? 0 : NA_SOLICITED),
      own.bytes,
      ND_TARGET_LINK,
      to?.mac ?? multicastMac6(ALL_NODES),
      to?.address ?? ipFromBytes(ALL_NODES),
    );
  }

  #sendRequest(to: IpAddress, mac: Uint8Array, options: PingOptions): void {
    const { builder } = this.#stack;
    const at = builder.transportAt(to.family);
    const request = to.family === 4 ? ICMP_ECHO_REQUEST : ICMPV6_ECHO_REQUEST;
    builder.view.setUint8(at + ICMP_TYPE, request);
    builder.view.setUint8(at + ICMP_CODE, 0);
    builder.view.setUint16(at + ICMP_ECHO_ID, options.identifier);
    builder.view.setUint16(at + ICMP_ECHO_SEQ, options.sequence);
    const payloadAt = at + ICMP_HEADER_BYTES;
    for (let i = 0; i < options.payloadBytes; i++) {
      builder.bytes[payloadAt + i] = patternByte(options.sequence, i);
    }
    const lenBytes = ICMP_HEADER_BYTES + options.payloadBytes;
    const protocol = to.family === 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
    const own = this.#stack.ownAddress(to.family);
    const frame = builder.ip(mac, own, to, protocol, lenBytes);
    builder.icmpChecksum(to.family, lenBytes);
    this.#stack.send(frame, NO_OFFLOAD);
  }

  /** Answers an echo request with its own bytes, to the MAC address that it came from. */
  #reply(packet: Packet, protocol: number, type: number): void {
    const stack = this.#stack;
    const { builder } = stack;
    const { frame, transportAt, transportBytes } = packet;
    stack.counters.echoRequestsIn++;
    const headers = packet.family === 4 ? IPV4_HEADER_BYTES : IPV6_HEADER_BYTES;
    if (transportBytes + headers > stack.link.mtu) return void stack.counters.rxMalformed++;
    const at = builder.transportAt(packet.family);
    builder.bytes.set(frame.subarray(transportAt, transportAt + transportBytes), at);
    builder.bytes[at + ICMP_TYPE] = type;
    const own = stack.ownAddress(packet.family);
    const reply = builder.ip(senderMac(frame), own, packet.from, protocol, transportBytes);
    builder.icmpChecksum(packet.family, transportBytes);
    stack.send(reply, NO_OFFLOAD);
  }

  #takeReply(packet: Packet): void {
    const { frame, view, transportAt: at } = packet;
    this.#stack.counters.echoRepliesIn++;
    const sequence = view.getUint16(at + ICMP_ECHO_SEQ);
    const key = pingKey(packet.from, view.getUint16(at + ICMP_ECHO_ID), sequence);
    const pending = this.#pending.get(key);
    if (pending === undefined) return; // late, twice, or for somebody else
    let intact = packet.transportBytes === ICMP_HEADER_BYTES + pending.payloadBytes;
    for (let i = 0; intact && i < pending.payloadBytes; i++) {
      intact = frame[at + ICMP_HEADER_BYTES + i] === patternByte(sequence, i);
    }
    pending.settle({ milliseconds: performance.now() - pending.sentAt, intact });
  }

  #takeSolicitation(packet: Packet): void {
    const { frame, transportAt: at } = packet;
    const stack = this.#stack;
    const own = stack.ip6;
    if (!this.#discoveryOk(packet)) return void stack.counters.rxMalformed++;
    if (own === null || !sameBytes(frame, at + ND_TARGET, own.address.bytes, 0, 16)) {
      return void stack.counters.rxOtherAddress++;
    }
    stack.counters.solicitationsIn++;
    if (packet.from.text === '::') return this.advertise(own.address, null); // RFC 4861, 7.2.4
    const mac = linkOption(packet, ND_SOURCE_LINK) ?? senderMac(frame);
    stack.neighbours.learn(packet.from, mac, true);
    this.advertise(own.address, { mac, address: packet.from });
  }

  #takeAdvertisement(packet: Packet): void {
    if (!this.#discoveryOk(packet)) return void this.#stack.counters.rxMalformed++;
    const at = packet.transportAt + ND_TARGET;
    const target = ipFromBytes(packet.frame.slice(at, at + 16));
    const mac = linkOption(packet, ND_TARGET_LINK) ?? senderMac(packet.frame);
    this.#stack.neighbours.learn(target, mac, false);
  }

  #discoveryOk(packet: Packet): boolean {
    const hopLimit = packet.frame[packet.networkAt + IPV6_HOP_LIMIT];
    return hopLimit === ND_HOP_LIMIT && packet.transportBytes >= ND_OPTIONS;
  }

  #sendDiscovery(
    type: number,
    flags: number,
    target: Uint8Array,
    option: number,
    mac: Uint8Array,
    to: IpAddress,
  ): void {
    const stack = this.#stack;
    const { builder } = stack;
    const at = builder.transportAt(6);
    builder.view.setUint16(at + ICMP_TYPE, type << 8);
    builder.view.setUint16(at + ICMP_CHECKSUM, 0);
    builder.view.setUint32(at + ND_FLAGS, flags);
    builder.bytes.set(target, at + ND_TARGET);
    builder.view.setUint16(at + ND_OPTIONS, (option << 8) | 1); // one unit of eight bytes
    builder.bytes.set(stack.mac, at + ND_OPTIONS + 2);
    const own = stack.ownAddress(6);
    const frame = builder.ip(mac, own, to, IPPROTO_ICMPV6, ND_BYTES, ND_HOP_LIMIT);
    builder.icmpChecksum(6, ND_BYTES);
    stack.send(frame, NO_OFFLOAD);
  }
}

/** The link-layer address in the options of a neighbour discovery message, if it is there. */
function linkOption(packet: Packet, wanted: number): Uint8Array | null {
  const end = packet.transportAt + packet.transportBytes;
  let at = packet.transportAt + ND_OPTIONS;
  while (at + 8 <= end) {
    const units = packet.frame[at + 1];
    if (units === 0) return null; // RFC 4861, 4.6: a length of zero is invalid
    if (packet.frame[at] === wanted) return packet.frame.slice(at + 2, at + 8);
    at += units * 8;
  }
  return null;
}

function pingKey(address: IpAddress, identifier: number, sequence: number): string {
  return `${address.text}/${identifier}/${sequence}`;
}

function patternByte(sequence: number, index: number): number {
  return (sequence * 31 + index * 7) & 0xff;
}
