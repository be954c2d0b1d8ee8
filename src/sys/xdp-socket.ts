/** XDP sockets: frames of one queue of an interface in memory of our own. */
import * as xdp from '../wire/xdp.ts';
import { arenaHostAddress } from './arena.ts';
import { check } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

export type XdpSocketOptions = {
  /** Arena offset and size of the memory for frames, whole chunks. */
  readonly umemAt: number;
  readonly umemBytes: number;
  readonly chunkBytes: number;
  /** Entries, powers of two. */
  readonly rxEntries: number;
  readonly txEntries: number;
  readonly fillEntries: number;
  readonly completionEntries: number;
};

/** Where a ring has its parts, from the start of its mapping. */
export type XdpRingLayout = {
  readonly producerAt: number;
  readonly consumerAt: number;
  readonly descAt: number;
  readonly flagsAt: number;
};

export type XdpLayout = {
  readonly rx: XdpRingLayout;
  readonly tx: XdpRingLayout;
  readonly fill: XdpRingLayout;
  readonly completion: XdpRingLayout;
};

/**
 * An XDP socket with its memory and four rings, bound to nothing yet. Mapped at XDP_PGOFF_*.
 * @throws SysError EAFNOSUPPORT (a kernel without XDP sockets), EPERM (CAP_NET_RAW), ENOMEM or
 *   ENOBUFS (RLIMIT_MEMLOCK), EINVAL.
 * @syscalls socket setsockopt getsockopt close
 */
export function openXdpSocket(options: XdpSocketOptions): { fd: Fd; layout: XdpLayout } {
  const what = 'an XDP socket';
  const fd = new Fd(
    check('socket', native.socket(xdp.AF_XDP, SOCK_RAW, 0), () => what),
    what,
  );
  try {
    const { umemAt, umemBytes, chunkBytes } = options;
    const region = xdp.XdpUmemReg.encode({
      addr: arenaHostAddress() + BigInt(umemAt),
      len: BigInt(umemBytes),
      chunkSize: chunkBytes,
      headroom: 0,
      flags: 0,
      txMetadataLen: 0,
    });
    const done = native.setSocketBytes(fd.number, xdp.SOL_XDP, xdp.XDP_UMEM_REG, region);
    check('setsockopt(XDP_UMEM_REG)', done, () => `${umemBytes} bytes`);
    setEntries(fd, 'XDP_UMEM_FILL_RING', xdp.XDP_UMEM_FILL_RING, options.fillEntries);
    const completion = xdp.XDP_UMEM_COMPLETION_RING;
    setEntries(fd, 'XDP_UMEM_COMPLETION_RING', completion, options.completionEntries);
    setEntries(fd, 'XDP_RX_RING', xdp.XDP_RX_RING, options.rxEntries);
    setEntries(fd, 'XDP_TX_RING', xdp.XDP_TX_RING, options.txEntries);
    // Younger kernels let one system call take a whole batch; others do with a call per 32.
    native.setSocketOption(fd.number, xdp.SOL_XDP, xdp.XDP_MAX_TX_SKB_BUDGET, options.txEntries);
    return { fd, layout: layoutOf(fd) };
  } catch (error) {
    fd.close();
    throw error;
  }
}

const SOCK_RAW = 3;

function setEntries(fd: Fd, name: string, option: number, entries: number): void {
  const done = native.setSocketOption(fd.number, xdp.SOL_XDP, option, entries);
  check(`setsockopt(${name})`, done, () => `${entries} entries`);
}

function layoutOf(fd: Fd): XdpLayout {
  const out = new Uint8Array(xdp.XDP_MMAP_OFFSETS_BYTES);
  const got = native.getSocketBytes(fd.number, xdp.SOL_XDP, xdp.XDP_MMAP_OFFSETS, out);
  check('getsockopt(XDP_MMAP_OFFSETS)', got, () => 'offsets of the rings');
  const ring = (at: number): XdpRingLayout => {
    const { producer, consumer, desc, flags } = xdp.XdpRingOffset.decode(out, at);
    return {
      producerAt: Number(producer),
      consumerAt: Number(consumer),
      descAt: Number(desc),
      flagsAt: Number(flags),
    };
  };
  return {
    rx: ring(xdp.XDP_MMAP_OFFSETS_RX_AT),
    tx: ring(xdp.XDP_MMAP_OFFSETS_TX_AT),
    fill: ring(xdp.XDP_MMAP_OFFSETS_FR_AT),
    completion: ring(xdp.XDP_MMAP_OFFSETS_CR_AT),
  };
}

/**
 * From here on the socket is that of the queue; a program must send it frames. `flags`: XDP_COPY,
 * XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP, XDP_USE_SG.
 * @throws SysError EBUSY (the queue has a socket), EOPNOTSUPP (no zero copy), EINVAL (no such
 *   queue, or a flag that the kernel does not know), ENODEV, ENETDOWN.
 * @syscalls bind
 */
export function bindXdpSocket(
  fd: Fd,
  interfaceIndex: number,
  queueId: number,
  flags: number,
): void {
  const address = xdp.SockaddrXdp.encode({
    family: xdp.AF_XDP,
    flags,
    ifindex: interfaceIndex,
    queueId,
    sharedUmemFd: 0,
  });
  const done = native.bindBytes(fd.number, address);
  check('bind', done, () => `queue ${queueId} of interface ${interfaceIndex}`);
}

/**
 * Does the driver put frames into our memory itself?
 * @syscalls getsockopt
 */
export function isZeroCopy(fd: Fd): boolean {
  const out = new Uint8Array(4);
  const got = native.getSocketBytes(fd.number, xdp.SOL_XDP, xdp.XDP_OPTIONS, out);
  check('getsockopt(XDP_OPTIONS)', got, () => 'zero copy or not');
  return (new DataView(out.buffer).getUint32(0, true) & xdp.XDP_OPTIONS_ZEROCOPY) !== 0;
}

const statisticsOut = new Uint8Array(xdp.XdpStatistics.size);

/**
 * What the kernel counts of the socket since it was made.
 * @syscalls getsockopt
 */
export function xdpStatistics(fd: number): {
  /** No room: the fill ring was empty, or the rx ring full. */
  readonly rxNoRoom: number;
  /** Any other frame that was lost on its way in: longer than a chunk. */
  readonly rxDropped: number;
  readonly txInvalid: number;
} | null {
  const got = native.getSocketBytes(fd, xdp.SOL_XDP, xdp.XDP_STATISTICS, statisticsOut);
  if (got < xdp.XdpStatistics.size) return null; // before Linux 5.9
  const all = xdp.XdpStatistics.decode(statisticsOut);
  return {
    rxNoRoom: Number(all.rxRingFull + all.rxFillRingEmptyDescs),
    rxDropped: Number(all.rxDropped),
    txInvalid: Number(all.txInvalidDescs),
  };
}
