/**
 * IPv4 and IPv6 addresses of the guest's stack: text to bytes and back, and prefixes. Control
 * plane: clarity first.
 */
import { isIPv4, isIPv6 } from 'node:net';
import { ConfigError } from '../base/errors.ts';

/** One address. `text` is canonical (RFC 5952 for IPv6), so equal addresses have equal texts. */
export type IpAddress = {
  readonly family: 4 | 6;
  readonly bytes: Uint8Array;
  readonly text: string;
};

/** An address and the length of its network's prefix: `10.0.0.1/24`. */
export type IpPrefix = { readonly address: IpAddress; readonly prefixBits: number };

/** Parses either family. Null when the text is no address; zones (`%eth0`) are not taken. */
export function parseIp(text: string): IpAddress | null {
  if (isIPv4(text)) return ipFromBytes(Uint8Array.from(text.split('.'), Number));
  if (!isIPv6(text) || text.includes('%')) return null;
  return ipFromBytes(parseIpv6Bytes(text));
}

/** The address whose 4 or 16 bytes are given; the bytes are kept, not copied. */
export function ipFromBytes(bytes: Uint8Array): IpAddress {
  if (bytes.length === 4) return { family: 4, bytes, text: bytes.join('.') };
  return { family: 6, bytes, text: formatIpv6(bytes) };
}

/**
 * Parses `10.0.0.1/24` or `fd00::1/64`; without a length the whole address is the prefix.
 * @throws ConfigError with `path` as its place.
 */
export function parsePrefix(text: string, family: 4 | 6, path: string): IpPrefix {
  const [addressText, bitsText, ...rest] = text.split('/');
  const address = parseIp(addressText);
  const most = family === 4 ? 32 : 128;
  const prefixBits = bitsText === undefined ? most : Number(bitsText);
  const wellFormed = rest.length === 0 && (bitsText === undefined || /^\d{1,3}$/.test(bitsText));
  if (address === null || address.family !== family || !wellFormed || prefixBits > most) {
    const example = family === 4 ? '10.0.0.1/24' : 'fd00::1/64';
    throw new ConfigError(path, `"${text}" is no IPv${family} address like ${example}`);
  }
  return { address, prefixBits };
}

/** True when `address` lies in the prefix's network. */
export function prefixHas(prefix: IpPrefix, address: IpAddress): boolean {
  if (prefix.address.family !== address.family) return false;
  const whole = prefix.prefixBits >> 3;
  for (let i = 0; i < whole; i++) {
    if (prefix.address.bytes[i] !== address.bytes[i]) return false;
  }
  const left = prefix.prefixBits & 7;
  if (left === 0) return true;
  const mask = (0xff00 >> left) & 0xff;
  return ((prefix.address.bytes[whole] ^ address.bytes[whole]) & mask) === 0;
}

/** The solicited-node multicast address `ff02::1:ffXX:XXXX` of RFC 4291, 2.7.1. */
export function solicitedNode(address: Uint8Array): Uint8Array {
  const group = new Uint8Array(16);
  group.set([0xff, 0x02]);
  group.set([0x01, 0xff, address[13], address[14], address[15]], 11);
  return group;
}

function parseIpv6Bytes(text: string): Uint8Array {
  const [head, tail] = text.split('::');
  const front = groups(head);
  const back = tail === undefined ? [] : groups(tail);
  const bytes = new Uint8Array(16);
  bytes.set(front);
  bytes.set(back, 16 - back.length);
  return bytes;
}

/** Bytes of `1:2:3` or of `ffff:10.0.0.1`. */
function groups(text: string): number[] {
  if (text === '') return [];
  return text.split(':').flatMap((group) => {
    if (group.includes('.')) return group.split('.').map(Number);
    const value = Number.parseInt(group, 16);
    return [value >> 8, value & 0xff];
  });
}

/** RFC 5952: lower case, no leading zeros, the longest run of two and more zero groups as `::`. */
function formatIpv6(bytes: Uint8Array): string {
  const words = Array.from({ length: 8 }, (_, i) => (bytes[2 * i] << 8) | bytes[2 * i + 1]);
  let runAt = -1;
  let runLength = 1;
  for (let i = 0; i < 8; i++) {
    let end = i;
    while (end < 8 && words[end] === 0) end++;
    if (end - i > runLength) {
      runAt = i;
      runLength = end - i;
    }
  }
  const hex = (part: number[]): string => part.map((word) => word.toString(16)).join(':');
  if (runAt < 0) return hex(words);
  return `${hex(words.slice(0, runAt))}::${hex(words.slice(runAt + runLength))}`;
}
