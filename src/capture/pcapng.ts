/**
 * Blocks of the pcapng format, draft-ietf-opsawg-pcapng-02. Little-endian, one section, one
 * interface; times in nanoseconds.
 */
const SECTION_HEADER_BLOCK = 0x0a0d0d0a; // 4.1
const INTERFACE_DESCRIPTION_BLOCK = 1; //   4.2
const INTERFACE_STATISTICS_BLOCK = 5; //    4.6
const ENHANCED_PACKET_BLOCK = 6; //         4.3
const BYTE_ORDER_MAGIC = 0x1a2b3c4d;
export const LINKTYPE_ETHERNET = 1;
/** For private use; docs/recorder.md says what it means in recordings of control messages. */
export const LINKTYPE_USER0 = 147;

const OPT_END = 0;
const OPT_COMMENT = 1;
const SHB_USERAPPL = 4;
const IF_NAME = 2;
const IF_TSRESOL = 9;
const EPB_FLAGS = 2;
const ISB_STARTTIME = 2;
const ISB_ENDTIME = 3;
const ISB_IFRECV = 4;
const ISB_IFDROP = 5;

/** `epb_flags`, bits 0-1, as the interface sees it. */
export const DIRECTION_INBOUND = 1; //  the port sent it
export const DIRECTION_OUTBOUND = 2; // the port got it

/** Bytes of an enhanced packet block around its frame: head, flags option, end, length. */
const EPB_HEAD_BYTES = 28;
const EPB_TAIL_BYTES = 16;

type Option = readonly [code: number, value: Buffer];

/** The block that every file starts with. */
export function sectionHeader(application: string): Buffer {
  const body = Buffer.alloc(16);
  body.writeUInt32LE(BYTE_ORDER_MAGIC, 0);
  body.writeUInt16LE(1, 4); // version 1.0
  body.writeBigInt64LE(-1n, 8); // length of the section is not known
  return block(SECTION_HEADER_BLOCK, body, [[SHB_USERAPPL, Buffer.from(application)]]);
}

/** Interface 0: by default an Ethernet port, frames cut at `snapLen` bytes. */
export function interfaceDescription(
  name: string,
  snapLen: number,
  linkType = LINKTYPE_ETHERNET,
): Buffer {
  const body = Buffer.alloc(8);
  body.writeUInt16LE(linkType, 0);
  body.writeUInt32LE(snapLen, 4);
  return block(INTERFACE_DESCRIPTION_BLOCK, body, [
    [IF_NAME, Buffer.from(name)],
    [IF_TSRESOL, Buffer.of(9)],
  ]);
}

/** Bytes of `enhancedPacket` for a frame of which `capturedBytes` are there. */
export function enhancedPacketBytes(capturedBytes: number): number {
  return EPB_HEAD_BYTES + padded(capturedBytes) + EPB_TAIL_BYTES;
}

/**
 * Writes one frame's block at `at` of zeroed bytes, all but the frame. Returns where the frame's
 * bytes go.
 */
export function putEnhancedPacket(
  into: Buffer,
  at: number,
  frame: {
    readonly time: bigint;
    readonly capturedBytes: number;
    readonly originalBytes: number;
    readonly direction: number;
  },
): number {
  const size = enhancedPacketBytes(frame.capturedBytes);
  into.writeUInt32LE(ENHANCED_PACKET_BLOCK, at);
  into.writeUInt32LE(size, at + 4);
  into.writeUInt32LE(0, at + 8); // interface
  putTime(into, at + 12, frame.time);
  into.writeUInt32LE(frame.capturedBytes, at + 20);
  into.writeUInt32LE(frame.originalBytes, at + 24);
  const options = at + EPB_HEAD_BYTES + padded(frame.capturedBytes);
  into.writeUInt16LE(EPB_FLAGS, options);
  into.writeUInt16LE(4, options + 2);
  into.writeUInt32LE(frame.direction, options + 4);
  into.writeUInt32LE(OPT_END, options + 8);
  into.writeUInt32LE(size, options + 12);
  return at + EPB_HEAD_BYTES;
}

/** One packet with a comment, which Wireshark shows; not for many per second. */
export function commentedPacket(
  time: bigint,
  bytes: Uint8Array,
  direction: number,
  comment: string,
): Buffer {
  const body = Buffer.alloc(20 + padded(bytes.length));
  putTime(body, 4, time);
  body.writeUInt32LE(bytes.length, 12);
  body.writeUInt32LE(bytes.length, 16);
  body.set(bytes, 20);
  const flags = Buffer.alloc(4);
  flags.writeUInt32LE(direction, 0);
  return block(ENHANCED_PACKET_BLOCK, body, [
    [EPB_FLAGS, flags],
    [OPT_COMMENT, Buffer.from(comment.slice(0, 1024))],
  ]);
}

/** The last block: how many frames there were, and how many are missing here. */
export function interfaceStatistics(statistics: {
  readonly startTime: bigint;
  readonly endTime: bigint;
  readonly received: bigint;
  readonly dropped: bigint;
}): Buffer {
  const body = Buffer.alloc(12);
  putTime(body, 4, statistics.endTime);
  return block(INTERFACE_STATISTICS_BLOCK, body, [
    [ISB_STARTTIME, time(statistics.startTime)],
    [ISB_ENDTIME, time(statistics.endTime)],
    [ISB_IFRECV, u64(statistics.received)],
    [ISB_IFDROP, u64(statistics.dropped)],
  ]);
}

function block(type: number, body: Buffer, options: readonly Option[]): Buffer {
  const parts = [body];
  for (const [code, value] of options) {
    const head = Buffer.alloc(4);
    head.writeUInt16LE(code, 0);
    head.writeUInt16LE(value.length, 2);
    parts.push(head, value, Buffer.alloc(padded(value.length) - value.length));
  }
  parts.push(Buffer.alloc(4)); // opt_endofopt
  const content = Buffer.concat(parts);
  const frame = Buffer.alloc(12 + content.length);
  frame.writeUInt32LE(type, 0);
  frame.writeUInt32LE(frame.length, 4);
  content.copy(frame, 8);
  frame.writeUInt32LE(frame.length, 8 + content.length);
  return frame;
}

const padded = (lenBytes: number): number => (lenBytes + 3) & ~3;

/** Times are two words, the upper one first, in either byte order. */
function putTime(into: Buffer, at: number, nanoseconds: bigint): void {
  into.writeUInt32LE(Number(nanoseconds >> 32n), at);
  into.writeUInt32LE(Number(nanoseconds & 0xffff_ffffn), at + 4);
}

function time(nanoseconds: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  putTime(bytes, 0, nanoseconds);
  return bytes;
}

function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value, 0);
  return bytes;
}
