/** Packet sockets: frames of an interface by way of rings that the kernel shares with us. */
import * as linux from '../wire/linux.ts';
import * as packet from '../wire/packet.ts';
import { arena, arenaHostAddress } from './arena.ts';
import { check } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

/** Sizes of one ring: blocks of whole pages, and frames that do not cross them. */
export type PacketRing = {
  readonly blockBytes: number;
  readonly blocks: number;
  readonly frameBytes: number;
};

export type PacketSocketOptions = {
  readonly receive: PacketRing;
  readonly transmit: PacketRing;
  /** A block that is not full is handed over after so long. */
  readonly retireMs: number;
  /** Past the interface's queueing discipline. */
  readonly qdiscBypass: boolean;
};

/**
 * A packet socket with both rings and virtio-net headers of 10 bytes, which no frame reaches yet
 * (`bindPacketSocket`). Its memory: the receive ring, then the transmit ring, from offset 0.
 * @throws SysError EPERM (CAP_NET_RAW), ENOMEM, EINVAL.
 * @syscalls socket setsockopt close
 */
export function openPacketSocket(options: PacketSocketOptions): Fd {
  const { receive, transmit } = options;
  const fd = rawSocket('a packet socket');
  try {
    const set = (name: string, option: number, value: number): void => {
      const done = native.setSocketOption(fd.number, packet.SOL_PACKET, option, value);
      check(`setsockopt(${name})`, done, () => String(value));
    };
    set('PACKET_VERSION', packet.PACKET_VERSION, packet.TPACKET_V3);
    set('PACKET_VNET_HDR', packet.PACKET_VNET_HDR, 1);
    // A frame that the kernel refuses does not stop the ring.
    set('PACKET_LOSS', packet.PACKET_LOSS, 1);
    set('PACKET_IGNORE_OUTGOING', packet.PACKET_IGNORE_OUTGOING, 1);
    set('PACKET_QDISC_BYPASS', packet.PACKET_QDISC_BYPASS, options.qdiscBypass ? 1 : 0);
    setRing(fd, 'PACKET_RX_RING', packet.PACKET_RX_RING, receive, options.retireMs);
    setRing(fd, 'PACKET_TX_RING', packet.PACKET_TX_RING, transmit, 0);
    // What is under way counts against it: some of the largest frames, whole batches of small ones.
    const room = transmit.blockBytes * transmit.blocks;
    const done = native.setSocketOption(
      fd.number,
      linux.SOL_SOCKET,
      linux.SO_SNDBUFFORCE,
      Math.min(room, 2 ** 30),
    );
    check('setsockopt(SO_SNDBUFFORCE)', done, () => `${room} bytes`);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

function setRing(fd: Fd, name: string, option: number, ring: PacketRing, retireMs: number): void {
  const perBlock = Math.floor(ring.blockBytes / ring.frameBytes);
  const request = packet.TpacketReq3.encode({
    blockSize: ring.blockBytes,
    blockNr: ring.blocks,
    frameSize: ring.frameBytes,
    frameNr: perBlock * ring.blocks,
    retireBlkTov: retireMs,
    sizeofPriv: 0,
    featureReqWord: 0,
  });
  const done = native.setSocketBytes(fd.number, packet.SOL_PACKET, option, request);
  check(`setsockopt(${name})`, done, () => `${ring.blocks} blocks of ${ring.blockBytes} bytes`);
}

/**
 * From here on every frame that arrives at the interface, whoever it is for, is in the ring.
 * @throws SysError ENODEV, ENETDOWN (the interface is down).
 * @syscalls bind
 */
export function bindPacketSocket(fd: Fd, interfaceIndex: number): void {
  const address = packet.SockaddrLl.encode({
    family: packet.AF_PACKET,
    protocol: ((packet.ETH_P_ALL & 0xff) << 8) | (packet.ETH_P_ALL >> 8),
    ifindex: interfaceIndex,
    hatype: 0,
    pkttype: 0,
    halen: 0,
    addr: new Uint8Array(8),
  });
  check('bind', native.bindBytes(fd.number, address), () => `interface ${interfaceIndex}`);
}

/**
 * Several bound sockets of one interface share its frames, flow by flow. The first one makes the
 * group and is told its number, which the others join. With `rollover` a socket whose ring is full
 * leaves frames to the others, who then have parts of its flows.
 * @throws SysError ENOSPC, EINVAL.
 * @syscalls setsockopt getsockopt
 */
export function joinFanout(fd: Fd, group: number | null, rollover: boolean): number {
  const isFirst = group === null;
  const flags =
    packet.PACKET_FANOUT_HASH |
    (rollover ? packet.PACKET_FANOUT_FLAG_ROLLOVER : 0) |
    (isFirst ? packet.PACKET_FANOUT_FLAG_UNIQUEID : 0);
  const value = ((flags << 16) | (group ?? 0)) >> 0;
  const done = native.setSocketOption(fd.number, packet.SOL_PACKET, packet.PACKET_FANOUT, value);
  check('setsockopt(PACKET_FANOUT)', done, () => `group ${group ?? 'of its own'}`);
  if (!isFirst) return group;
  const out = new Uint8Array(4);
  const got = native.getSocketBytes(fd.number, packet.SOL_PACKET, packet.PACKET_FANOUT, out);
  check('getsockopt(PACKET_FANOUT)', got, () => 'the group');
  return new DataView(out.buffer).getUint16(0, true);
}

/** Scratch of `filterPackets`. */
export const PACKET_FILTER_BYTES = 4 * packet.SockFilter.size;

/** Instructions of classic BPF: code, jump if true, jump if false, operand. */
const TAKE_NOTHING = [[packet.BPF_RET_K, 0, 0, 0]] as const;
const TAKE_ARRIVING = [
  [packet.BPF_LD_W_ABS, 0, 0, packet.SKF_AD_OFF + packet.SKF_AD_PKTTYPE],
  [packet.BPF_JMP_JEQ_K, 1, 0, packet.PACKET_OUTGOING],
  [packet.BPF_RET_K, 0, 0, 0xffffffff], // as long as it is
  [packet.BPF_RET_K, 0, 0, 0],
] as const;

/**
 * Which frames a socket takes: none, or all but those that this host sends. The latter is for a
 * group, whose hook is not that of its sockets and does not know PACKET_IGNORE_OUTGOING (fanout_add
 * in net/packet/af_packet.c). The former is for a socket that is bound and not in its group yet:
 * until then it has a copy of each frame of the others.
 * `scratchAt`: arena offset of PACKET_FILTER_BYTES.
 * @throws SysError ENOMEM.
 * @syscalls setsockopt
 */
export function filterPackets(fd: Fd, takes: 'nothing' | 'arriving', scratchAt: number): void {
  const program = takes === 'nothing' ? TAKE_NOTHING : TAKE_ARRIVING;
  const { bytes } = arena();
  for (const [i, [code, jt, jf, k]] of program.entries()) {
    const instruction = packet.SockFilter.encode({ code, jt, jf, k: k >>> 0 });
    bytes.set(instruction, scratchAt + i * packet.SockFilter.size);
  }
  const request = packet.SockFprog.encode({
    len: program.length,
    padding: new Uint8Array(6),
    filter: arenaHostAddress() + BigInt(scratchAt),
  });
  const name = packet.SO_ATTACH_FILTER;
  const done = native.setSocketBytes(fd.number, linux.SOL_SOCKET, name, request);
  check('setsockopt(SO_ATTACH_FILTER)', done, () => `frames that are taken: ${takes}`);
}

/**
 * The interface receives what is for anybody, while the socket is open: the guests' addresses are
 * not its own.
 * @throws SysError ENODEV.
 * @syscalls setsockopt
 */
export function addPromiscuous(fd: Fd, interfaceIndex: number): void {
  const request = packet.PacketMreq.encode({
    ifindex: interfaceIndex,
    type: packet.PACKET_MR_PROMISC,
    alen: 0,
    address: new Uint8Array(8),
  });
  const name = packet.PACKET_ADD_MEMBERSHIP;
  const done = native.setSocketBytes(fd.number, packet.SOL_PACKET, name, request);
  check('setsockopt(PACKET_ADD_MEMBERSHIP)', done, () => `interface ${interfaceIndex}`);
}

/**
 * A socket that does nothing but keep the interface promiscuous.
 * @throws SysError EPERM (CAP_NET_RAW), ENODEV.
 * @syscalls socket setsockopt close
 */
export function holdPromiscuous(interfaceIndex: number): Fd {
  const fd = rawSocket('promiscuous mode');
  try {
    addPromiscuous(fd, interfaceIndex);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

const SOCK_RAW = 3;

/** Protocol 0: nothing arrives before it is bound. */
function rawSocket(what: string): Fd {
  const number = check('socket', native.socket(packet.AF_PACKET, SOCK_RAW, 0), () => what);
  return new Fd(number, what);
}

const statsOut = new Uint8Array(packet.TpacketStats.size);
const statsView = new DataView(statsOut.buffer);

/**
 * Frames that found the ring full since the last call, or -errno.
 * @syscalls getsockopt
 */
export function takePacketDrops(fd: number): number {
  const { SOL_PACKET, PACKET_STATISTICS } = packet;
  const got = native.getSocketBytes(fd, SOL_PACKET, PACKET_STATISTICS, statsOut);
  return got < 0 ? got : packet.TpacketStats.fields.drops.get(statsView, 0);
}

/**
 * The kernel sends what the transmit ring has: bytes, or -errno. Hot: throws and allocates nothing.
 * @syscalls sendto
 */
export const ringSend: (fd: number) => number = native.ringSend;

/**
 * The kernel's driver looks at the fill ring of an XDP socket: 0 or -errno. Hot.
 * @syscalls recvfrom
 */
export const ringReceive: (fd: number) => number = native.ringReceive;
