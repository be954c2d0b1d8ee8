/**
 * UDP of the guest's stack: bound ports, sending with the checksum or the segmentation left to
 * the link, and checking what arrives.
 */
import { VringError } from '../base/errors.ts';
import {
  IPPROTO_UDP,
  IPV4_HEADER_BYTES,
  IPV6_HEADER_BYTES,
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
import { NO_OFFLOAD } from './link.ts';
import type { Packet } from './packet.ts';
import type { NetStack } from './stack.ts';

/** Ports that can be bound at once. */
export const MAX_UDP_PORTS = 64;

/** VIRTIO_NET_HDR_GSO_UDP_L4: segmentation of UDP (USO). */
const GSO_UDP_L4 = 5;
/** First port of the range that `bind(0, ...)` takes from, RFC 6335. */
const DYNAMIC_PORT_FIRST = 49152;
const DYNAMIC_PORT_LAST = 65535;
/** Longest payload of a datagram that the link will segment. */
export const MAX_GSO_PAYLOAD_BYTES = 65535 - IPV6_HEADER_BYTES - UDP_HEADER_BYTES;

/** `payload` is valid during the call only. */
export type UdpHandler = (
  payload: Uint8Array,
  from: IpAddress,
  fromPort: number,
  toPort: number,
) => void;

export class Udp {
  readonly #stack: NetStack;
  readonly #ports = new Map<number, UdpHandler>();
  #other: UdpHandler | null = null;
  #nextPort = DYNAMIC_PORT_FIRST;

  constructor(stack: NetStack) {
    this.#stack = stack;
  }

  /** Bytes of payload that fit one frame. */
  maxPayload(family: 4 | 6): number {
    const network = family === 4 ? IPV4_HEADER_BYTES : IPV6_HEADER_BYTES;
    return this.#stack.link.mtu - network - UDP_HEADER_BYTES;
  }

  close(): void {
    this.#ports.clear();
    this.#other = null;
  }

  /** Hands datagrams of `port` to `handler`; port 0 takes a free one. Returns the port. */
  bind(port: number, handler: UdpHandler): number {
    if (this.#ports.size >= MAX_UDP_PORTS) {
      throw new VringError('ERR_VRING_GUEST_BUSY', `${MAX_UDP_PORTS} UDP ports are bound`);
    }
    const chosen = port === 0 ? this.#freePort() : port;
    if (this.#ports.has(chosen)) {
      throw new VringError('ERR_VRING_GUEST_PORT_IN_USE', `UDP port ${chosen} is bound already`);
    }
    this.#ports.set(chosen, handler);
    return chosen;
  }

  /** Ends, because fewer ports are bound than the range has. */
  #freePort(): number {
    for (;;) {
      const port = this.#nextPort;
      this.#nextPort = port === DYNAMIC_PORT_LAST ? DYNAMIC_PORT_FIRST : port + 1;
      if (!this.#ports.has(port)) return port;
    }
  }

  unbind(port: number): void {
    this.#ports.delete(port);
  }

  /** Takes the datagrams of all ports that nobody bound; null: they are counted and dropped. */
  bindOther(handler: UdpHandler | null): void {
    this.#other = handler;
  }

  /**
   * Sends one datagram. With `gsoSize` (the link must offer USO) the payload may be longer than
   * a frame and is cut into datagrams of `gsoSize` bytes on the way. False: no room, or the
   * neighbour is not resolved yet (`await resolve(to)` first).
   */
  send(to: IpAddress, toPort: number, fromPort: number, payload: Uint8Array, gsoSize = 0): boolean {
    const stack = this.#stack;
    const { builder } = stack;
    const hop = stack.route(to);
    const mac = hop === null ? null : stack.neighbours.lookup(hop.text);
    if (mac === null) return false; // also for addresses that a datagram made up
    const limit = gsoSize === 0 ? this.maxPayload(to.family) : MAX_GSO_PAYLOAD_BYTES;
    if (payload.length > limit) {
      throw new VringError('ERR_VRING_GUEST_TOO_LONG', `a datagram of ${payload.length} bytes`);
    }
    const at = builder.transportAt(to.family);
    builder.bytes.set(payload, at + UDP_HEADER_BYTES);
    const lenBytes = UDP_HEADER_BYTES + payload.length;
    const frame = builder.ip(mac, stack.ownAddress(to.family), to, IPPROTO_UDP, lenBytes);
    const partial = stack.link.offloads.csum || gsoSize !== 0;
    builder.udpHeader(to.family, fromPort, toPort, payload.length, partial);
    stack.counters.txUdp++;
    if (!partial) return stack.send(frame, NO_OFFLOAD);
    const segmented = gsoSize !== 0 && payload.length > gsoSize;
    return stack.send(frame, {
      needsCsum: true,
      dataValid: false,
      csumStart: at,
      csumOffset: UDP_CHECKSUM,
      gsoType: segmented ? GSO_UDP_L4 : 0,
      gsoSize: segmented ? gsoSize : 0,
      headerBytes: at + UDP_HEADER_BYTES,
    });
  }

  input(packet: Packet): void {
    const { frame, view, transportAt: at, offload } = packet;
    const counters = this.#stack.counters;
    const lenBytes = packet.transportBytes < UDP_HEADER_BYTES ? 0 : view.getUint16(at + UDP_LENGTH);
    if (lenBytes < UDP_HEADER_BYTES || lenBytes > packet.transportBytes) {
      return void counters.rxMalformed++;
    }
    if (!offload.needsCsum && !offload.dataValid && !this.#checksumOk(packet, lenBytes)) {
      return void counters.rxBadChecksum++;
    }
    const toPort = view.getUint16(at + UDP_DST_PORT);
    const handler = this.#ports.get(toPort) ?? this.#other;
    if (handler === null) return void counters.rxNoPort++;
    counters.rxUdp++;
    const fromPort = view.getUint16(at + UDP_SRC_PORT);
    const payload = frame.subarray(at + UDP_HEADER_BYTES, at + lenBytes);
    if (offload.gsoType !== GSO_UDP_L4 || offload.gsoSize === 0) {
      return handler(payload, packet.from, fromPort, toPort);
    }
    counters.rxUdpSegmented++; // several datagrams in one frame: USO from guest to guest
    for (let i = 0; i < payload.length; i += offload.gsoSize) {
      handler(payload.subarray(i, i + offload.gsoSize), packet.from, fromPort, toPort);
    }
  }

  #checksumOk(packet: Packet, lenBytes: number): boolean {
    const { frame, view, transportAt: at, networkAt } = packet;
    if (view.getUint16(at + UDP_CHECKSUM) === 0) return packet.family === 4; // IPv4: not used
    const pseudo = packet.family === 4 ? pseudoHeaderSum4 : pseudoHeaderSum6;
    const sum = pseudo(frame, networkAt, IPPROTO_UDP, lenBytes);
    return checksumFinish(checksumAdd(sum, frame, at, lenBytes)) === 0;
  }
}
