/** Interfaces that are there already: what they are like, and news of them. */
import * as linux from '../wire/linux.ts';
import { AF_NETLINK } from '../wire/netlink.ts';
import { arena, arenaHostAddress } from './arena.ts';
import { check, EOPNOTSUPP } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';
import { pollFd } from './poll.ts';
import { interfaceIoctl, interfaceRequest } from './tap.ts';
import { SysError } from '../base/errors.ts';

export type InterfaceState = {
  /** Another one with the same name has another index. */
  readonly index: number;
  readonly up: boolean;
  /** The host speaks to itself by it. */
  readonly loopback: boolean;
  readonly mtu: number;
};

/**
 * Null: there is no interface of that name in this process's network namespace.
 * @throws VringError ERR_VRING_INTERFACE: no interface name.
 * @syscalls socket ioctl close
 */
export function interfaceState(name: string): InterfaceState | null {
  const ask = (call: string, number: number): DataView => {
    const request = interfaceRequest(name);
    interfaceIoctl(linux.AF_INET, call, number, request, name);
    return request.view;
  };
  try {
    const index = ask('SIOCGIFINDEX', linux.SIOCGIFINDEX).getInt32(linux.IFREQ_UNION_AT, true);
    const flags = ask('SIOCGIFFLAGS', linux.SIOCGIFFLAGS).getUint16(linux.IFREQ_UNION_AT, true);
    const mtu = ask('SIOCGIFMTU', linux.SIOCGIFMTU).getInt32(linux.IFREQ_UNION_AT, true);
    const wanted = linux.IFF_UP | linux.IFF_RUNNING;
    const loopback = (flags & linux.IFF_LOOPBACK) !== 0;
    return { index, up: (flags & wanted) === wanted, loopback, mtu };
  } catch (error) {
    if (error instanceof SysError && error.errnoName === 'ENODEV') return null;
    throw error;
  }
}

/**
 * Receive queues of the interface; 1 where its driver does not say. `scratchAt`: arena memory for
 * the request, ETHTOOL_CHANNELS_BYTES of it.
 * @throws SysError ENODEV.
 * @syscalls socket ioctl close
 */
export function interfaceQueues(name: string, scratchAt: number): number {
  const { view } = arena();
  for (let i = 0; i < linux.ETHTOOL_CHANNELS_BYTES; i++) view.setUint8(scratchAt + i, 0);
  view.setUint32(scratchAt, linux.ETHTOOL_GCHANNELS, true);
  const request = interfaceRequest(name);
  const address = arenaHostAddress() + BigInt(scratchAt);
  request.view.setBigUint64(linux.IFREQ_UNION_AT, address, true); // ifr_data
  try {
    interfaceIoctl(linux.AF_INET, 'SIOCETHTOOL', linux.SIOCETHTOOL, request, name);
  } catch (error) {
    if (error instanceof SysError && error.errno === EOPNOTSUPP) return 1;
    throw error;
  }
  const rx = view.getUint32(scratchAt + linux.ETHTOOL_CHANNELS_RX_AT, true);
  const combined = view.getUint32(scratchAt + linux.ETHTOOL_CHANNELS_COMBINED_AT, true);
  return Math.max(1, rx + combined);
}

/**
 * Calls `onNews` whenever an interface of this network namespace changed, came or went; which one
 * is for the caller to find out. The event loop is kept alive until `close()`.
 * @throws SysError.
 * @syscalls socket bind recvfrom epoll_ctl close
 */
export function watchInterfaces(onNews: () => void): { close(): void } {
  const what = 'news of interfaces';
  const number = native.socket(AF_NETLINK, linux.SOCK_DGRAM, linux.NETLINK_ROUTE);
  const fd = new Fd(
    check('socket', number, () => what),
    what,
  );
  try {
    const address = new Uint8Array(linux.SOCKADDR_NL_BYTES);
    const view = new DataView(address.buffer);
    view.setUint16(0, AF_NETLINK, true);
    view.setUint32(linux.SOCKADDR_NL_GROUPS_AT, linux.RTMGRP_LINK, true);
    check('bind', native.bindBytes(fd.number, address), () => what);
    const datagram = new Uint8Array(8192); // what does not fit is cut off, and not needed
    const poll = pollFd(fd.number, { read: true }, () => {
      // ENOBUFS: news were lost. That is news.
      while (native.readNow(fd.number, datagram) > 0);
      poll.update({ read: true });
      onNews();
    });
    return {
      close() {
        poll.close();
        fd.close();
      },
    };
  } catch (error) {
    fd.close();
    throw error;
  }
}
