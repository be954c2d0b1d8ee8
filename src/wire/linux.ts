/**
 * Numbers and layouts of the Linux ABI that `sys/` uses: ioctls, tun/tap, interface requests,
 * memfd, epoll. 64-bit hosts (ifreq has pointers in its union). test/abi.test.ts compares them
 * with the kernel's headers.
 */

import { bytes, struct, u32, u64, u8 } from './struct.ts';

// ---- files, memory -----------------------------------------------------------------------------

export const O_RDWR = 0o2;
export const O_CREAT = 0o100;
/** asm/fcntl.h: arm64 has a number of its own. */
export const O_DIRECT = process.arch === 'arm64' ? 0o200000 : 0o40000;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;
export const O_RDONLY = 0o0;
export const S_IFREG = 0o100000;
export const S_IFSOCK = 0o140000;
export const S_IFCHR = 0o020000;

export const MFD_CLOEXEC = 0x1;
export const MFD_ALLOW_SEALING = 0x2;
export const MFD_HUGETLB = 0x4;
export const MFD_HUGE_2MB = 0x54000000; // log2 of the page size in bits 26-31
export const F_SEAL_SEAL = 0x1;
export const F_SEAL_SHRINK = 0x2;
export const F_SEAL_GROW = 0x4;

export const FALLOC_FL_KEEP_SIZE = 0x01; // linux/falloc.h
export const FALLOC_FL_PUNCH_HOLE = 0x02;
export const FALLOC_FL_ZERO_RANGE = 0x10;
export const SEEK_END = 2; //                 linux/fs.h
export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;
export const RWF_DSYNC = 0x2; //             linux/fs.h: durable before the write returns
export const RWF_NOWAIT = 0x8; //            linux/fs.h: -EAGAIN where it would have to wait
export const BLKGETSIZE64 = 0x80081272; //   linux/fs.h: bytes of a block device, a u64
export const BLKSSZGET = 0x1268; //          linux/fs.h: its logical block, an int
export const F_RDLCK = 0; //                 asm-generic/fcntl.h
export const F_WRLCK = 1;
export const F_UNLCK = 2;

// ---- epoll, sockets, namespaces ----------------------------------------------------------------

export const EPOLLIN = 0x1;
export const EPOLLOUT = 0x4;
export const EPOLLET = 0x80000000;

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;

/** sockaddr_un.sun_path, its NUL included. */
export const UNIX_PATH_BYTES = 108;

export const CLONE_NEWNET = 0x40000000;

// ---- userfaultfd: linux/userfaultfd.h ----------------------------------------------------------

export const UFFD_API = 0xaa;
export const UFFDIO_API = 0xc018aa3f;
export const UFFDIO_REGISTER = 0xc020aa00;
export const UFFDIO_UNREGISTER = 0x8010aa01;
export const UFFDIO_WAKE = 0x8010aa02;
export const UFFDIO_COPY = 0xc028aa03;
export const UFFDIO_REGISTER_MODE_MISSING = 0x1;
export const UFFD_EVENT_PAGEFAULT = 0x12;
export const UFFD_PAGEFAULT_FLAG_WRITE = 0x1;

export const UffdioApi = struct('uffdio_api', 24, {
  api: u64(0),
  features: u64(8),
  ioctls: u64(16),
});

export const UffdioRange = struct('uffdio_range', 16, { start: u64(0), len: u64(8) });

/** `struct uffdio_register`, whose first member is a range. */
export const UffdioRegister = struct('uffdio_register', 32, {
  start: u64(0),
  len: u64(8),
  mode: u64(16),
  ioctls: u64(24),
});

export const UffdioCopy = struct('uffdio_copy', 40, {
  dst: u64(0),
  src: u64(8),
  len: u64(16),
  mode: u64(24),
  copy: u64(32), // written by the kernel: bytes, or -errno
});

/** `struct uffd_msg` of a page fault. */
export const UffdMessage = struct('uffd_msg', 32, {
  event: u8(0),
  reserved: bytes(1, 7),
  flags: u64(8),
  address: u64(16),
  features: u64(24), // the thread, where UFFD_FEATURE_THREAD_ID was asked for
});

// ---- perf_event_open: linux/perf_event.h -------------------------------------------------------

export const PERF_TYPE_TRACEPOINT = 2;
export const PERF_ATTR_SIZE_VER0 = 64;

/** `struct perf_event_attr` as its first version had it, which every kernel takes. */
export const PerfEventAttr = struct('perf_event_attr', PERF_ATTR_SIZE_VER0, {
  type: u32(0),
  size: u32(4),
  config: u64(8), // of a tracepoint: its id
  samplePeriod: u64(16),
  sampleType: u64(24),
  readFormat: u64(32),
  flags: u64(40), // bit field: PERF_ATTR_*
  wakeupEvents: u32(48),
  bpType: u32(52),
  bpAddr: u64(56),
});
/** Threads that the counted one makes are counted with it. */
export const PERF_ATTR_INHERIT = 1n << 1n;

// ---- network interfaces: linux/if.h, sys/ioctl.h -----------------------------------------------

export const IFNAMSIZ = 16;
/** struct ifreq: name, then a union of 24 bytes. */
export const IFREQ_BYTES = 40;
export const IFREQ_UNION_AT = 16;
/** struct sockaddr_in in that union: family, port, address. */
export const SOCKADDR_IN_ADDR_AT = 4;

export const SIOCGIFFLAGS = 0x8913;
export const SIOCSIFFLAGS = 0x8914;
export const SIOCSIFADDR = 0x8916;
export const SIOCSIFNETMASK = 0x891c;
export const SIOCGIFMTU = 0x8921;
export const SIOCSIFMTU = 0x8922;
export const SIOCGIFHWADDR = 0x8927;
export const SIOCGIFINDEX = 0x8933;
export const SIOCETHTOOL = 0x8946;

/** linux/ethtool.h: queues of an interface. */
export const ETHTOOL_GCHANNELS = 0x3c;
export const ETHTOOL_CHANNELS_BYTES = 36;
export const ETHTOOL_CHANNELS_RX_AT = 20;
export const ETHTOOL_CHANNELS_COMBINED_AT = 32;

/** Over net.core.wmem_max, for whoever has CAP_NET_ADMIN. asm-generic/socket.h */
export const SO_SNDBUFFORCE = 32;
export const SOL_SOCKET = 1;

/** linux/rtnetlink.h: news of interfaces. */
export const NETLINK_ROUTE = 0;
export const RTMGRP_LINK = 1;
/** struct sockaddr_nl. */
export const SOCKADDR_NL_BYTES = 12;
export const SOCKADDR_NL_GROUPS_AT = 8;

export const IFF_UP = 0x1;
export const IFF_LOOPBACK = 0x8;
export const IFF_RUNNING = 0x40;

// ---- tun/tap: linux/if_tun.h -------------------------------------------------------------------

export const IFF_TAP = 0x0002;
export const IFF_MULTI_QUEUE = 0x0100;
export const IFF_NO_PI = 0x1000;
export const IFF_VNET_HDR = 0x4000;

export const TUNSETIFF = 0x400454ca;
export const TUNGETIFF = 0x800454d2;
export const TUNSETOFFLOAD = 0x400454d0;
export const TUNSETVNETHDRSZ = 0x400454d8;
export const TUNSETVNETLE = 0x400454dc;

export const TUN_F_CSUM = 0x01;
export const TUN_F_TSO4 = 0x02;
export const TUN_F_TSO6 = 0x04;
export const TUN_F_TSO_ECN = 0x08;
export const TUN_F_UFO = 0x10;
export const TUN_F_USO4 = 0x20; // Linux 6.2
export const TUN_F_USO6 = 0x40; // Linux 6.2
