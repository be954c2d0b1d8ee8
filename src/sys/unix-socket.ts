/** Unix stream sockets whose messages carry file descriptors. All are non-blocking. */
import { chmodSync, chownSync, lstatSync, rmSync } from 'node:fs';
import { VringError } from '../base/errors.ts';
import { AF_UNIX, SOCK_STREAM, UNIX_PATH_BYTES } from '../wire/linux.ts';
import { EAGAIN, ECONNREFUSED, EINTR, ENOENT, check, sysError } from './errors.ts';
import { Fd, closeFd } from './fd.ts';
import { native } from './native.ts';

/** Connections that may wait for `acceptUnix`. */
const BACKLOG = 16;
/** Most fds that one message carries: SCM_MAX_FD of the kernel. */
const MAX_FDS = 253;

export type ListenOptions = {
  /** Permission bits of the socket, set before anybody can connect: 0o660. */
  mode?: number;
  owner?: { uid: number; gid: number };
};

/**
 * Listens at a path. A socket there that nobody accepts on any more is removed first.
 * @throws VringError ERR_VRING_SOCKET_IN_USE when somebody accepts there, ERR_VRING_SOCKET_PATH
 *   when the path is too long or names something else than a socket; SysError EACCES, ENOENT...
 * The caller unlinks the path when it stops listening.
 * @syscalls socket lstat connect unlink bind chmod chown listen close
 */
export function listenUnix(path: string, options: ListenOptions = {}): Fd {
  checkPath(path);
  removeStale(path);
  const fd = unixSocket(path);
  let bound = false;
  try {
    check('bind', native.unixBind(fd.number, path), () => path);
    bound = true;
    // Until listen() a connect is refused, so nobody slips in before these.
    if (options.mode !== undefined) chmodSync(path, options.mode);
    if (options.owner !== undefined) chownSync(path, options.owner.uid, options.owner.gid);
    check('listen', native.listen(fd.number, BACKLOG), () => path);
  } catch (error) {
    fd.close();
    if (bound) rmSync(path, { force: true });
    throw error;
  }
  return fd;
}

/**
 * Connects to a path.
 * @throws SysError with recovery 'retry' where waiting helps: ENOENT, ECONNREFUSED, EAGAIN (the
 *   listener's backlog is full).
 * @syscalls socket connect close
 */
export function connectUnix(path: string): Fd {
  checkPath(path);
  const fd = unixSocket(path);
  const result = native.unixConnect(fd.number, path);
  if (result >= 0) return fd;
  fd.close();
  throw sysError('connect', result, path);
}

/**
 * The next connection of a listener, or null when none waits.
 * @syscalls accept4
 */
export function acceptUnix(listener: number): Fd | null {
  const result = native.accept(listener);
  if (result >= 0) return new Fd(result, 'accepted socket');
  if (result === -EAGAIN || result === -EINTR) return null;
  throw sysError('accept4', result, `listener fd ${listener}`);
}

/**
 * Two connected stream sockets.
 * @syscalls socketpair
 */
export function socketPair(): [Fd, Fd] {
  const out = new Int32Array(2);
  check('socketpair', native.socketPair(out), () => 'unix stream');
  return [new Fd(out[0]!, 'socket pair, first'), new Fd(out[1]!, 'socket pair, second')];
}

export type PeerCredentials = { readonly pid: number; readonly uid: number; readonly gid: number };

/**
 * Who was at the other end when the connection was made, as the kernel says.
 * @syscalls getsockopt
 */
export function peerCredentials(sock: number): PeerCredentials {
  const out = new Int32Array(3);
  check('getsockopt(SO_PEERCRED)', native.peerCredentials(sock, out), () => `fd ${sock}`);
  return { pid: out[0]!, uid: out[1]! >>> 0, gid: out[2]! >>> 0 };
}

/**
 * Sends bytes, with fds attached to the first of them; the fds stay the caller's. Returns how many
 * bytes went, 0 when the socket is full: with any byte sent, the fds are sent.
 * @throws SysError EPIPE, ECONNRESET with recovery 'reconnect'.
 * @syscalls sendmsg
 */
export function sendWithFds(sock: number, bytes: Uint8Array, fds: readonly number[]): number {
  const result = native.sendFds(sock, bytes, fds.length === 0 ? NO_FDS : Int32Array.from(fds));
  if (result >= 0) return result;
  if (result === -EAGAIN || result === -EINTR) return 0;
  throw sysError('sendmsg', result, `${bytes.length} bytes and ${fds.length} fds`);
}
const NO_FDS = new Int32Array(0);

export type Received = {
  /** 0: the peer closed. */
  bytes: number;
  /** Open, close-on-exec, and the caller's to close. */
  fds: number[];
  /** The peer sent more than `maxFds`; the others were closed. */
  fdsTruncated: boolean;
};

const received = new Int32Array(2 + MAX_FDS); // count, truncated, fds

/**
 * Receives bytes and the fds attached to them; null when nothing is there.
 * @throws SysError ECONNRESET with recovery 'reconnect'.
 * @syscalls recvmsg close
 */
export function receiveWithFds(sock: number, into: Uint8Array, maxFds: number): Received | null {
  const result = native.receiveFds(sock, into, received);
  if (result === -EAGAIN || result === -EINTR) return null;
  if (result < 0) throw sysError('recvmsg', result, `fd ${sock}`);
  const count = received[0]!;
  const kept = Math.min(count, maxFds);
  const fds = Array.from(received.subarray(2, 2 + kept));
  for (let i = kept; i < count; i++) closeFd(received[2 + i]!);
  return { bytes: result, fds, fdsTruncated: received[1] !== 0 || kept < count };
}

function unixSocket(path: string): Fd {
  return new Fd(
    check('socket', native.socket(AF_UNIX, SOCK_STREAM, 0), () => path),
    path,
  );
}

function checkPath(path: string): void {
  const bytes = Buffer.byteLength(path);
  if (bytes > 0 && bytes < UNIX_PATH_BYTES && !path.includes('\0')) return;
  const problem = bytes === 0 ? 'is empty' : `has ${bytes} bytes, at most 107 are possible`;
  const text = path.includes('\0') ? 'contains a NUL' : problem;
  throw new VringError('ERR_VRING_SOCKET_PATH', `socket path ${JSON.stringify(path)} ${text}`);
}

/** Unlinks a socket whose owner is gone; refuses everything else that exists at the path. */
function removeStale(path: string): void {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return;
  if (!stat.isSocket()) {
    const text = `${path} exists and is not a socket; remove it or choose another path`;
    throw new VringError('ERR_VRING_SOCKET_PATH', text);
  }
  using probe = unixSocket(path);
  const result = native.unixConnect(probe.number, path);
  if (result === -ECONNREFUSED) {
    rmSync(path, { force: true });
  } else if (result !== -ENOENT) {
    const text = `${path}: another process listens on this socket; end it or choose another path`;
    throw new VringError('ERR_VRING_SOCKET_IN_USE', text, { recovery: 'retry' });
  }
}
