/**
 * Netlink messages: the header, attributes, acknowledgements with the kernel's own words, and the
 * generic family that others hang below. linux/netlink.h, linux/genetlink.h. Pure.
 */
import { struct, u16, u32, u8 } from './struct.ts';

export const AF_NETLINK = 16;
export const NETLINK_GENERIC = 16;
export const SOL_NETLINK = 270;
export const NETLINK_CAP_ACK = 10;
export const NETLINK_EXT_ACK = 11;

export const NLM_F_REQUEST = 0x01;
export const NLM_F_MULTI = 0x02;
export const NLM_F_ACK = 0x04;
/** Of answers: the request is not repeated, and attributes follow. */
export const NLM_F_CAPPED = 0x100;
export const NLM_F_ACK_TLVS = 0x200;
/** Of requests: NLM_F_ROOT | NLM_F_MATCH. */
export const NLM_F_DUMP = 0x300;

export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;

export const NLMSGERR_ATTR_MSG = 1;

export const GENL_ID_CTRL = 0x10;
export const CTRL_CMD_GETFAMILY = 3;
export const CTRL_ATTR_FAMILY_ID = 1;
export const CTRL_ATTR_FAMILY_NAME = 2;
export const CTRL_ATTR_VERSION = 3;

export const NetlinkHeader = struct('nlmsghdr', 16, {
  nlmsgLen: u32(0), // with the header
  nlmsgType: u16(4),
  nlmsgFlags: u16(6),
  nlmsgSeq: u32(8),
  nlmsgPid: u32(12),
});

export const GenericHeader = struct('genlmsghdr', 4, {
  cmd: u8(0),
  version: u8(1),
  reserved: u16(2),
});
export const AttributeHeader = struct('nlattr', 4, { nlaLen: u16(0), nlaType: u16(2) });

/** Flags in the upper bits of an attribute's type: nested, network byte order. */
const ATTRIBUTE_TYPE = 0x3fff;
const ALIGN = 4;

export type GenericRequest = {
  readonly family: number;
  readonly flags: number;
  readonly sequence: number;
  readonly command: number;
  readonly version: number;
  readonly attributes: readonly Uint8Array[];
};

export type NetlinkMessage =
  /** `body`: attributes. */
  | { readonly kind: 'data'; readonly sequence: number; readonly body: Uint8Array }
  | { readonly kind: 'done'; readonly sequence: number; readonly errno: number }
  /** `errno` 0: an acknowledgement. `text` is the kernel's, or empty. */
  | { kind: 'error'; sequence: number; errno: number; text: string };

const aligned = (bytes: number): number => Math.ceil(bytes / ALIGN) * ALIGN;

export function encodeGeneric(request: GenericRequest): Uint8Array {
  const { family, flags, sequence, command, version, attributes } = request;
  const head = NetlinkHeader.size + GenericHeader.size;
  const nlmsgLen = attributes.reduce((sum, attribute) => sum + attribute.length, head);
  const message = new Uint8Array(nlmsgLen);
  const view = new DataView(message.buffer);
  NetlinkHeader.write(view, 0, {
    nlmsgLen,
    nlmsgType: family,
    nlmsgFlags: flags | NLM_F_REQUEST,
    nlmsgSeq: sequence,
    nlmsgPid: 0,
  });
  GenericHeader.write(view, NetlinkHeader.size, { cmd: command, version, reserved: 0 });
  let at = head;
  for (const attribute of attributes) {
    message.set(attribute, at);
    at += attribute.length;
  }
  return message;
}

/** One attribute, padded. */
export function attribute(nlaType: number, value: Uint8Array): Uint8Array {
  const nlaLen = AttributeHeader.size + value.length;
  const bytes = new Uint8Array(aligned(nlaLen));
  AttributeHeader.write(new DataView(bytes.buffer), 0, { nlaLen, nlaType });
  bytes.set(value, AttributeHeader.size);
  return bytes;
}

/** With its NUL. */
export function stringAttribute(type: number, text: string): Uint8Array {
  return attribute(type, new TextEncoder().encode(`${text}\0`));
}

export function numberAttribute(type: number, sizeBytes: 2 | 4 | 8, value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return attribute(type, bytes.subarray(0, sizeBytes));
}

export function textOf(value: Uint8Array | undefined): string {
  if (value === undefined) return '';
  const end = value.indexOf(0);
  return new TextDecoder().decode(end < 0 ? value : value.subarray(0, end));
}

/** Of 1, 2, 4 or 8 bytes; null without the attribute. */
export function numberOf(value: Uint8Array | undefined): bigint | null {
  if (value === undefined) return null;
  const bytes = new Uint8Array(8);
  bytes.set(value.subarray(0, 8));
  return new DataView(bytes.buffer).getBigUint64(0, true);
}

/**
 * The messages of one datagram of the generic family. What is cut short ends the list: the kernel
 * sends whole messages.
 */
export function decodeMessages(datagram: Uint8Array): NetlinkMessage[] {
  const found: NetlinkMessage[] = [];
  let at = 0;
  while (at + NetlinkHeader.size <= datagram.length) {
    const { nlmsgLen, nlmsgType, nlmsgFlags, nlmsgSeq } = NetlinkHeader.decode(datagram, at);
    if (nlmsgLen < NetlinkHeader.size || at + nlmsgLen > datagram.length) break;
    const body = datagram.subarray(at + NetlinkHeader.size, at + nlmsgLen);
    found.push(decodeMessage(nlmsgType, nlmsgFlags, nlmsgSeq, body));
    at += aligned(nlmsgLen);
  }
  return found;
}

function decodeMessage(
  type: number,
  flags: number,
  sequence: number,
  body: Uint8Array,
): NetlinkMessage {
  if (type === NLMSG_ERROR || type === NLMSG_DONE) {
    const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
    const errno = body.length >= 4 ? Math.abs(view.getInt32(0, true)) : 0;
    if (type === NLMSG_DONE) return { kind: 'done', sequence, errno };
    return { kind: 'error', sequence, errno, text: acknowledgementText(flags, body) };
  }
  return { kind: 'data', sequence, body: body.slice(GenericHeader.size) };
}

/** Behind the error: the request, all of it or its header, then attributes. */
function acknowledgementText(flags: number, body: Uint8Array): string {
  if ((flags & NLM_F_ACK_TLVS) === 0 || body.length < 4 + NetlinkHeader.size) return '';
  const { nlmsgLen } = NetlinkHeader.decode(body, 4);
  const request = (flags & NLM_F_CAPPED) === 0 ? aligned(nlmsgLen) : NetlinkHeader.size;
  return textOf(attributesOf(body.subarray(4 + request), NLMSGERR_ATTR_MSG)[0]);
}

/** Values of one type of attribute, which may stand several times, in their order. */
export function attributesOf(bytes: Uint8Array, type: number): Uint8Array[] {
  const found: Uint8Array[] = [];
  let at = 0;
  while (at + AttributeHeader.size <= bytes.length) {
    const { nlaLen, nlaType } = AttributeHeader.decode(bytes, at);
    if (nlaLen < AttributeHeader.size || at + nlaLen > bytes.length) break;
    if ((nlaType & ATTRIBUTE_TYPE) === type) {
      found.push(bytes.slice(at + AttributeHeader.size, at + nlaLen));
    }
    at += aligned(nlaLen);
  }
  return found;
}
