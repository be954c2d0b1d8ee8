/** Judges a received segment of a test frame by its headers and checksums, and by nothing else. */
import {
  ETH_HEADER_BYTES,
  ETH_TYPE,
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
} from '../../src/wire/ethernet.ts';
import {
  IPPROTO_TCP,
  IPPROTO_UDP,
  IPV4_HEADER_BYTES,
  IPV4_PROTOCOL,
  IPV4_TOTAL_LENGTH,
  IPV6_HEADER_BYTES,
  IPV6_NEXT_HEADER,
  IPV6_PAYLOAD_LENGTH,
  TCP_CHECKSUM,
  UDP_CHECKSUM,
  UDP_LENGTH,
  checksumAdd,
  checksumFinish,
  pseudoHeaderSum4,
  pseudoHeaderSum6,
} from '../../src/wire/ip.ts';

export type SegmentKind = 'tcp4' | 'tcp6' | 'udp4' | 'udp6';

/** What is wrong with the frame, or null. `summed`: its transport checksum must be finished. */
export function checkSegment(
  frame: Uint8Array,
  expected: { readonly kind: SegmentKind; readonly summed: boolean },
): string | null {
  const v4 = expected.kind.endsWith('4');
  const tcp = expected.kind.startsWith('tcp');
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  if (view.getUint16(ETH_TYPE) !== (v4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6)) return 'ethertype';
  const ipAt = ETH_HEADER_BYTES;
  const transportAt = ipAt + (v4 ? IPV4_HEADER_BYTES : IPV6_HEADER_BYTES);
  const lenBytes = frame.length - transportAt;
  const protocol = frame[ipAt + (v4 ? IPV4_PROTOCOL : IPV6_NEXT_HEADER)];
  if (protocol !== (tcp ? IPPROTO_TCP : IPPROTO_UDP)) return `protocol ${protocol}`;
  const total = view.getUint16(ipAt + (v4 ? IPV4_TOTAL_LENGTH : IPV6_PAYLOAD_LENGTH));
  if (total !== frame.length - (v4 ? ipAt : transportAt)) return `IP length ${total}`;
  if (v4 && checksumFinish(checksumAdd(0, frame, ipAt, IPV4_HEADER_BYTES)) !== 0) {
    return 'IP header checksum';
  }
  if (!tcp && view.getUint16(transportAt + UDP_LENGTH) !== lenBytes) return 'UDP length';
  const pseudo = (v4 ? pseudoHeaderSum4 : pseudoHeaderSum6)(frame, ipAt, protocol, lenBytes);
  if (expected.summed) {
    const sum = checksumFinish(checksumAdd(pseudo, frame, transportAt, lenBytes));
    return sum === 0 ? null : 'transport checksum';
  }
  // Left to the receiver: the field holds the sum of the pseudo header, not complemented.
  const field = view.getUint16(transportAt + (tcp ? TCP_CHECKSUM : UDP_CHECKSUM));
  return field === (~checksumFinish(pseudo) & 0xffff) ? null : 'pseudo header sum';
}
