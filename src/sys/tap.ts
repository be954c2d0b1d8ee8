/** TAP interfaces, and the little of interface configuration that they need. */
import { VringError } from '../base/errors.ts';
import * as linux from '../wire/linux.ts';
import { EBADFD, EINVAL, check } from './errors.ts';
import { Fd, openFd } from './fd.ts';
import { native } from './native.ts';
import { tapProblem } from './tap-problem.ts';

export type TapOptions = {
  /** Every frame is preceded by a struct virtio_net_hdr_v1. */
  vnetHdrBytes: 12;
  /** Several fds may open the same interface, a queue each. */
  multiQueue?: boolean;
};

/** What the receiver of frames read from the TAP completes itself. */
export type TapOffloads = {
  csum: boolean;
  tso4: boolean;
  tso6: boolean;
  ecn: boolean;
  ufo: boolean;
  uso: boolean;
};

/**
 * Creates or opens a TAP interface, non-blocking. `name` may be empty or a pattern (`tap%d`); the
 * real name is returned. Without persistence it goes when the last fd is closed.
 * @throws VringError ERR_VRING_INTERFACE: no name, no TAP, or one of another number of queues;
 * ERR_VRING_INTERFACE_PERMISSION: no CAP_NET_ADMIN; ERR_VRING_INTERFACE_BUSY: somebody has it;
 * ERR_VRING_DEVICE_MISSING: no /dev/net/tun.
 * @syscalls open ioctl close
 */
export function openTap(name: string, options: TapOptions): { fd: Fd; name: string } {
  const request = interfaceRequest(name);
  const multiQueue = options.multiQueue === true ? linux.IFF_MULTI_QUEUE : 0;
  const flags = linux.IFF_TAP | linux.IFF_NO_PI | linux.IFF_VNET_HDR | multiQueue;
  request.view.setInt16(linux.IFREQ_UNION_AT, flags, true);
  const opened = attachTap(request, name, multiQueue !== 0);
  try {
    setTapHeader(opened.number, options.vnetHdrBytes);
    const actual = nameOf(request);
    return { fd: new Fd(opened.take(), `tap ${actual}`), name: actual };
  } catch (error) {
    opened.close();
    throw error;
  }
}

function attachTap(request: InterfaceRequest, name: string, multiQueue: boolean): Fd {
  let opened: Fd | null = null;
  try {
    opened = openFd('/dev/net/tun', linux.O_RDWR | linux.O_NONBLOCK);
    const done = native.ioctlBytes(opened.number, linux.TUNSETIFF, request.bytes);
    check('ioctl(TUNSETIFF)', done, () => name);
    return opened;
  } catch (error) {
    opened?.close();
    throw tapProblem(name, multiQueue, error);
  }
}

export type TapState = {
  readonly name: string;
  /** Every frame is preceded by a virtio-net header. */
  readonly vnetHdr: boolean;
  readonly multiQueue: boolean;
};

/**
 * What an open TAP fd leads to, such as one that somebody else opened. Null: its interface was
 * deleted, for good.
 * @throws SysError EBADFD never (that is null), ENOTTY: no TAP.
 * @syscalls ioctl
 */
export function tapState(fd: number): TapState | null {
  const request = interfaceRequest('');
  const result = native.ioctlBytes(fd, linux.TUNGETIFF, request.bytes);
  if (result === -EBADFD) return null;
  check('ioctl(TUNGETIFF)', result, () => `fd ${fd} is no TAP`);
  const flags = request.view.getUint16(linux.IFREQ_UNION_AT, true);
  return {
    name: nameOf(request),
    vnetHdr: (flags & linux.IFF_VNET_HDR) !== 0,
    multiQueue: (flags & linux.IFF_MULTI_QUEUE) !== 0,
  };
}

/**
 * The header in front of every frame: `bytes` long, little-endian.
 * @throws SysError EINVAL, EBADFD (the interface is gone).
 * @syscalls ioctl
 */
export function setTapHeader(fd: number, bytes: 12): void {
  setInt(fd, 'TUNSETVNETHDRSZ', linux.TUNSETVNETHDRSZ, bytes);
  setInt(fd, 'TUNSETVNETLE', linux.TUNSETVNETLE, 1);
}

/**
 * Says which unfinished frames the reader of the TAP takes. Kernels before 6.2 know no USO: there
 * it is left out, and the kernel segments before we see the frame. Returns what is in effect.
 * @throws SysError EINVAL, EBADF.
 * @syscalls ioctl
 */
export function setTapOffloads(fd: number, offloads: TapOffloads): TapOffloads {
  let bits = 0;
  if (offloads.csum) {
    bits |= linux.TUN_F_CSUM; // the kernel refuses the others without it
    if (offloads.tso4) bits |= linux.TUN_F_TSO4;
    if (offloads.tso6) bits |= linux.TUN_F_TSO6;
    if (offloads.ecn && (offloads.tso4 || offloads.tso6)) bits |= linux.TUN_F_TSO_ECN;
    if (offloads.ufo) bits |= linux.TUN_F_UFO;
    if (offloads.uso) bits |= linux.TUN_F_USO4 | linux.TUN_F_USO6;
  }
  const uso = linux.TUN_F_USO4 | linux.TUN_F_USO6;
  let result = native.ioctlValue(fd, linux.TUNSETOFFLOAD, bits);
  if (result === -EINVAL && (bits & uso) !== 0) {
    bits &= ~uso;
    result = native.ioctlValue(fd, linux.TUNSETOFFLOAD, bits);
  }
  check('ioctl(TUNSETOFFLOAD)', result, () => `offload bits 0x${bits.toString(16)}`);
  return {
    csum: (bits & linux.TUN_F_CSUM) !== 0,
    tso4: (bits & linux.TUN_F_TSO4) !== 0,
    tso6: (bits & linux.TUN_F_TSO6) !== 0,
    ecn: (bits & linux.TUN_F_TSO_ECN) !== 0,
    ufo: (bits & linux.TUN_F_UFO) !== 0,
    uso: (bits & uso) !== 0,
  };
}

/**
 * @throws SysError ENODEV, EPERM.
 * @syscalls socket ioctl close
 */
export function setInterfaceUp(name: string, up: boolean): void {
  const request = interfaceRequest(name);
  interfaceIoctl(linux.AF_INET, 'SIOCGIFFLAGS', linux.SIOCGIFFLAGS, request, name);
  const flags = request.view.getUint16(linux.IFREQ_UNION_AT, true);
  const wanted = up ? flags | linux.IFF_UP : flags & ~linux.IFF_UP;
  request.view.setUint16(linux.IFREQ_UNION_AT, wanted, true);
  interfaceIoctl(linux.AF_INET, 'SIOCSIFFLAGS', linux.SIOCSIFFLAGS, request, name);
}

/**
 * @throws SysError EINVAL when the interface cannot carry it, ENODEV, EPERM.
 * @syscalls socket ioctl close
 */
export function setInterfaceMtu(name: string, mtu: number): void {
  const request = interfaceRequest(name);
  request.view.setInt32(linux.IFREQ_UNION_AT, mtu, true);
  interfaceIoctl(linux.AF_INET, 'SIOCSIFMTU', linux.SIOCSIFMTU, request, `${name} to ${mtu}`);
}

/**
 * The interface's own address, `52:54:00:12:34:56`.
 * @syscalls socket ioctl close
 */
export function interfaceMac(name: string): string {
  const request = interfaceRequest(name);
  interfaceIoctl(linux.AF_INET, 'SIOCGIFHWADDR', linux.SIOCGIFHWADDR, request, name);
  const at = linux.IFREQ_UNION_AT + 2; // behind sa_family
  const octets = Array.from(request.bytes.subarray(at, at + 6));
  return octets.map((octet) => octet.toString(16).padStart(2, '0')).join(':');
}

/**
 * Gives the interface its IPv4 address, replacing the one it has: `10.0.0.1/24`.
 * @throws VringError ERR_VRING_INTERFACE when the text is no such address; SysError.
 * @syscalls socket ioctl close
 */
export function addInterfaceAddress(name: string, address: string): void {
  const { octets, prefix } = parseAddress(address);
  const request = interfaceRequest(name);
  request.view.setUint16(linux.IFREQ_UNION_AT, linux.AF_INET, true);
  const at = linux.IFREQ_UNION_AT + linux.SOCKADDR_IN_ADDR_AT;
  request.bytes.set(octets, at);
  const detail = `${name} ${address}`;
  interfaceIoctl(linux.AF_INET, 'SIOCSIFADDR', linux.SIOCSIFADDR, request, detail);
  request.view.setUint32(at, prefix === 0 ? 0 : (-1 << (32 - prefix)) >>> 0, false);
  request.view.setUint16(linux.IFREQ_UNION_AT, linux.AF_INET, true);
  interfaceIoctl(linux.AF_INET, 'SIOCSIFNETMASK', linux.SIOCSIFNETMASK, request, detail);
}

function parseAddress(address: string): { octets: number[]; prefix: number } {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\/(\d{1,2})$/.exec(address);
  const numbers = match === null ? [] : match.slice(1).map(Number);
  const octets = numbers.slice(0, 4);
  const prefix = numbers[4] ?? -1;
  if (match === null || octets.some((octet) => octet > 255) || prefix > 32) {
    const text = `${JSON.stringify(address)} is no IPv4 address with prefix, such as 10.0.0.1/24`;
    throw new VringError('ERR_VRING_INTERFACE', text);
  }
  return { octets, prefix };
}

export type InterfaceRequest = { bytes: Uint8Array; view: DataView };

/** A struct ifreq with its name filled in. */
export function interfaceRequest(name: string): InterfaceRequest {
  const encoded = new TextEncoder().encode(name);
  if (encoded.length >= linux.IFNAMSIZ || /[\s/\0]/.test(name)) {
    const text = `${JSON.stringify(name)} is no interface name: up to 15 bytes, no space or slash`;
    throw new VringError('ERR_VRING_INTERFACE', text);
  }
  const bytes = new Uint8Array(linux.IFREQ_BYTES);
  bytes.set(encoded);
  return { bytes, view: new DataView(bytes.buffer) };
}

function nameOf({ bytes }: InterfaceRequest): string {
  return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
}

/** One request on a socket made for it. */
export function interfaceIoctl(
  family: number,
  name: string,
  request: number,
  argument: InterfaceRequest,
  detail: string,
): void {
  const number = native.socket(family, linux.SOCK_DGRAM, 0);
  using fd = new Fd(
    check('socket', number, () => detail),
    'interface control',
  );
  const result = native.ioctlBytes(fd.number, request, argument.bytes);
  check(`ioctl(${name})`, result, () => detail);
}

function setInt(fd: number, name: string, request: number, value: number): void {
  const argument = new Uint8Array(Int32Array.of(value).buffer);
  check(`ioctl(${name})`, native.ioctlBytes(fd, request, argument), () => String(value));
}
