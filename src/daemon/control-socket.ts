/** The Unix socket of the control API: its owner and mode, stale ones, and ones that are in use. */
import { lstatSync, mkdirSync, rmSync, unlinkSync } from 'node:fs';
import type { Server } from 'node:http';
import { connect, type ListenOptions } from 'node:net';
import { dirname } from 'node:path';
import { SysError, VringError } from '../base/errors.ts';
import { type Fd, listenUnix } from '../sys/index.ts';
import type { SwitchConfig } from './switch-types.ts';

/** A peer that accepts at all accepts at once. */
const PROBE_TIMEOUT_MS = 2000;

/**
 * Listens on `control.path`. The directory is made when it is missing. A socket that nobody
 * accepts on is replaced; anything else in its place is an error. The listener is ours and not
 * Node's, so that it can be handed over; whoever closes it removes the path, or leaves it.
 */
export async function listenControl(server: Server, control: SwitchConfig['control']): Promise<Fd> {
  const { path, mode, owner } = control;
  let listener: Fd | null = null;
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    await removeStale(path);
    listener = listenUnix(path, { mode: mode ?? 0o600, ...(owner === null ? {} : { owner }) });
    await adoptControl(server, listener);
    return listener;
  } catch (thrown) {
    if (listener !== null) rmSync(path, { force: true });
    listener?.close();
    server.close();
    throw explained(thrown, path);
  }
}

/** Serves a listener that somebody else made; it stays the caller's. */
export async function adoptControl(server: Server, listener: Fd): Promise<void> {
  await listen(server, { fd: listener.dup().take() });
}

/** Listens on a loopback address such as `127.0.0.1:9100`; port 0 takes a free one. */
export async function listenHttp(server: Server, address: string): Promise<string> {
  const at = address.lastIndexOf(':');
  const host = address.slice(0, at).replace(/^\[(.*)\]$/, '$1');
  try {
    await listen(server, { host, port: Number(address.slice(at + 1)) });
  } catch (thrown) {
    throw explained(thrown, address);
  }
  const bound = server.address();
  const port = typeof bound === 'object' && bound ? bound.port : 0;
  return `${address.slice(0, at)}:${port}`;
}

function listen(server: Server, options: ListenOptions & { fd?: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(options, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

async function removeStale(path: string): Promise<void> {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (!stat) return;
  if (!stat.isSocket()) {
    const message = `${path} exists and is not a socket; remove it, or give another --control`;
    throw new VringError('ERR_VRING_NOT_A_SOCKET', message);
  }
  if (await accepts(path)) {
    const message =
      `${path} is in use: a switch is running there; stop it, or give another --control ` +
      `(vring ports --control ${path} shows its ports)`;
    throw new VringError('ERR_VRING_SOCKET_IN_USE', message);
  }
  unlinkSync(path);
}

/** Whether anybody listens. Not being allowed to ask counts as yes. */
function accepts(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path });
    const done = (isAccepting: boolean) => {
      socket.destroy();
      resolve(isAccepting);
    };
    socket.setTimeout(PROBE_TIMEOUT_MS, () => done(true));
    socket.once('connect', () => done(true));
    socket.once('error', (error: NodeJS.ErrnoException) => {
      done(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT');
    });
  });
}

const HINTS: Readonly<Record<string, string>> = {
  EACCES: 'no permission; run as root, or give a path in a directory of yours with --control',
  EROFS: 'the file system is read-only; give another path with --control',
  ENOTDIR: 'a part of the path is no directory',
  EADDRINUSE: 'in use by another process; give another one',
  EADDRNOTAVAIL: 'this host has no such address',
};

function explained(thrown: unknown, where: string): unknown {
  if (thrown instanceof VringError && !(thrown instanceof SysError)) return thrown;
  const { errno, syscall } = thrown as NodeJS.ErrnoException;
  const name =
    thrown instanceof SysError ? thrown.errnoName : (thrown as NodeJS.ErrnoException).code;
  if (name === undefined) return thrown;
  const detail = `${where}: ${HINTS[name] ?? 'cannot listen there'}`;
  return new SysError(syscall ?? 'listen', Math.abs(errno ?? 0), name, detail, { cause: thrown });
}
