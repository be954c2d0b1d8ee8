/**
 * The frames of the generator: an IPv4 or IPv6 packet with UDP (or TCP, for TSO) whose payload is
 * one or more *records*. Each record names its flow and number, so that the sink finds losses,
 * repetitions, changes of order and damage, also when somebody segmented the frame on the way.
 *
 *     record: magic u16, bytes u16 (of the whole record), flow u16, run u16,
 *             sequence u32, stamp u32 (us), check u32, then a pattern
 *
 * All little-endian. The hot halves, `generator.hot.ts` and `sink.hot.ts`, repeat the offsets.
 */
import { VringError } from '../base/errors.ts';
import { ETH_HEADER_BYTES, VLAN_TAG_BYTES } from '../wire/ethernet.ts';
import {
  IPPROTO_TCP,
  IPPROTO_UDP,
  IPV4_HEADER_BYTES,
  TCP_ACK_FLAG,
  TCP_CHECKSUM,
  TCP_DATA_OFFSET,
  TCP_FLAGS,
  TCP_HEADER_BYTES,
  UDP_CHECKSUM,
  UDP_HEADER_BYTES,
  UDP_LENGTH,
  checksumAdd,
  checksumFinish,
  pseudoHeaderSum4,
  pseudoHeaderSum6,
} from '../wire/ip.ts';
import { NetHeader } from '../wire/virtio-net.ts';
import { ipFromBytes } from './ip-address.ts';
import { PacketBuilder } from './packet.ts';

export const RECORD_MAGIC = 0x5256; // "VR"
export const RECORD_BYTES = 20;
/** Flows that a sink tells apart; numbers above are foreign. */
export const MAX_FLOWS = 1024;

export type GsoKind = 'none' | 'tcp4' | 'tcp6' | 'udp4' | 'udp6';

const GSO_TYPES: Readonly<Record<GsoKind, number>> = {
  none: 0,
  tcp4: 1,
  tcp6: 4,
  udp4: 5,
  udp6: 5,
};

export type TestFrameOptions = {
  /** Bytes of the frame from the Ethernet header on, without FCS (as DPDK counts). */
  readonly sizeBytes: number;
  readonly sourceMac: Uint8Array;
  readonly targetMac: Uint8Array;
  readonly flow: number;
  readonly run: number;
  readonly vlan: number | null;
  readonly gso: GsoKind;
  /** Payload bytes per segment, and thereby of a record; without GSO the frame is one record. */
  readonly gsoSize: number;
};

/** A virtio-net header and a frame, ready but for sequence, stamp and check of each record. */
export type TestFrame = {
  readonly bytes: Uint8Array;
  /** From the start of `bytes` to the first record. */
  readonly recordAt: number;
  readonly recordBytes: number;
  readonly records: number;
};

/** Smallest frame that holds a record. */
export function smallestTestFrame(vlan: boolean): number {
  const tag = vlan ? VLAN_TAG_BYTES : 0;
  return ETH_HEADER_BYTES + tag + IPV4_HEADER_BYTES + UDP_HEADER_BYTES + RECORD_BYTES;
}

/** @throws VringError ERR_VRING_GUEST_FRAME_SIZE when a record does not fit. */
export function buildTestFrame(options: TestFrameOptions): TestFrame {
  const { sizeBytes, gso } = options;
  const builder = new PacketBuilder(options.sourceMac, options.vlan);
  const family = gso === 'tcp6' || gso === 'udp6' ? 6 : 4;
  const tcp = gso === 'tcp4' || gso === 'tcp6';
  const transportAt = builder.transportAt(family);
  const payloadAt = transportAt + (tcp ? TCP_HEADER_BYTES : UDP_HEADER_BYTES);
  const payloadBytes = sizeBytes - payloadAt;
  const recordBytes = gso === 'none' ? payloadBytes : options.gsoSize;
  const networkBytes = sizeBytes - builder.networkAt;
  if (recordBytes < RECORD_BYTES || recordBytes > payloadBytes || networkBytes > 65535) {
    throw new VringError(
      'ERR_VRING_GUEST_FRAME_SIZE',
      `a frame of ${sizeBytes} bytes cannot hold records of ${recordBytes}; the smallest frame ` +
        `here has ${payloadAt + RECORD_BYTES} bytes`,
    );
  }
  // A rest that is too short for a record is left out: each segment must be one record.
  const rest = payloadBytes % recordBytes;
  const usedPayload = rest < RECORD_BYTES ? payloadBytes - rest : payloadBytes;
  const records = Math.ceil(usedPayload / recordBytes);
  for (let i = 0; i < records; i++) {
    const at = payloadAt + i * recordBytes;
    const bytes = Math.min(recordBytes, usedPayload - i * recordBytes);
    writeRecordTemplate(builder.view, at, bytes, options);
  }
  const frame = finishHeaders(builder, family, tcp, transportAt, usedPayload, options);
  const bytes = new Uint8Array(NetHeader.size + frame.length);
  bytes.set(frame, NetHeader.size);
  if (gso !== 'none') writeGsoHeader(bytes, transportAt, payloadAt, tcp, options);
  return { bytes, recordAt: NetHeader.size + payloadAt, recordBytes, records };
}

/** Byte `i` of a record's pattern, behind its 20 bytes. */
export function patternByte(i: number): number {
  return (i * 7 + 13) & 0xff;
}

function writeRecordTemplate(
  view: DataView,
  at: number,
  bytes: number,
  options: TestFrameOptions,
): void {
  view.setUint16(at, RECORD_MAGIC, true);
  view.setUint16(at + 2, bytes, true);
  view.setUint16(at + 4, options.flow, true);
  view.setUint16(at + 6, options.run, true);
  for (let i = RECORD_BYTES; i < bytes; i++) view.setUint8(at + i, patternByte(i));
}

/** Addresses 198.18.0.0/15 and 2001:2::/48 are for benchmarks: RFC 2544, RFC 5180. */
function finishHeaders(
  builder: PacketBuilder,
  family: 4 | 6,
  tcp: boolean,
  transportAt: number,
  payloadBytes: number,
  options: TestFrameOptions,
): Uint8Array {
  const host = (n: number): Uint8Array =>
    family === 4
      ? Uint8Array.of(198, 18, n, options.flow & 0xff)
      : Uint8Array.of(0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, n, 0, options.flow & 0xff);
  const headerBytes = tcp ? TCP_HEADER_BYTES : UDP_HEADER_BYTES;
  const protocol = tcp ? IPPROTO_TCP : IPPROTO_UDP;
  const { view, bytes } = builder;
  const frame = builder.ip(
    options.targetMac,
    ipFromBytes(host(1)),
    ipFromBytes(host(2)),
    protocol,
    headerBytes + payloadBytes,
  );
  bytes.fill(0, transportAt, transportAt + headerBytes);
  view.setUint16(transportAt, 9000 + options.flow);
  view.setUint16(transportAt + 2, 9); // discard
  if (tcp) {
    view.setUint8(transportAt + TCP_DATA_OFFSET, (TCP_HEADER_BYTES / 4) << 4);
    view.setUint8(transportAt + TCP_FLAGS, TCP_ACK_FLAG);
  } else {
    view.setUint16(transportAt + UDP_LENGTH, headerBytes + payloadBytes);
  }
  if (options.gso !== 'none') {
    // 5.1.6.2.1: the field holds the sum of the pseudo header, the device does the rest.
    const pseudo = family === 4 ? pseudoHeaderSum4 : pseudoHeaderSum6;
    const sum = pseudo(bytes, builder.networkAt, protocol, headerBytes + payloadBytes);
    const at = transportAt + (tcp ? TCP_CHECKSUM : UDP_CHECKSUM);
    view.setUint16(at, ~checksumFinish(checksumAdd(sum, bytes, 0, 0)) & 0xffff);
  }
  return frame;
}

function writeGsoHeader(
  bytes: Uint8Array,
  transportAt: number,
  payloadAt: number,
  tcp: boolean,
  options: TestFrameOptions,
): void {
  const segmented = bytes.length - NetHeader.size - payloadAt > options.gsoSize;
  bytes.set(
    NetHeader.encode({
      flags: 1, // VIRTIO_NET_HDR_F_NEEDS_CSUM
      gsoType: segmented ? GSO_TYPES[options.gso] : 0,
      hdrLen: payloadAt,
      gsoSize: segmented ? options.gsoSize : 0,
      csumStart: transportAt,
      csumOffset: tcp ? TCP_CHECKSUM : UDP_CHECKSUM,
      numBuffers: 0,
    }),
  );
}
