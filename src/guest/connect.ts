/** From a socket path to a running guest: what the command line and the tests use. */
import { SysError, VringError } from '../base/errors.ts';
import { VhostUserFrontend } from '../vhost-user/index.ts';
import { VHOST_USER_PROTOCOL_F_MTU } from '../wire/vhost-user.ts';
import { NetGuest, type NetGuestOptions } from './net-driver.ts';

export type ConnectOptions = NetGuestOptions & {
  readonly socket: string;
  /** Listen on the socket and wait for the back-end, instead of connecting to it. */
  readonly server?: boolean;
  /** Ends the wait. */
  readonly signal?: AbortSignal;
};

/**
 * Connects to a vhost-user-net back-end and starts a guest on it.
 * @throws VringError ERR_VRING_GUEST_NO_BACKEND when nobody listens; what `NetGuest.start` throws.
 */
export async function connectNetGuest(options: ConnectOptions): Promise<NetGuest> {
  const { socket, server, signal } = options;
  const frontend = await reach(socket, server ?? false, signal);
  const { mtu } = options;
  const takesMtu = (frontend.protocolFeatures >> BigInt(VHOST_USER_PROTOCOL_F_MTU)) & 1n;
  if (mtu != null && takesMtu === 1n) {
    try {
      await frontend.setMtu(mtu);
    } catch (error) {
      await frontend.close();
      throw new VringError('ERR_VRING_GUEST_MTU', `${socket}: the back-end refused MTU ${mtu}`, {
        cause: error,
      });
    }
  }
  return NetGuest.start(frontend, options);
}

async function reach(
  path: string,
  server: boolean,
  signal: AbortSignal | undefined,
): Promise<VhostUserFrontend> {
  // Net back-ends count queue pairs.
  const options = { vringsPerQueue: 2 };
  if (server) {
    return VhostUserFrontend.listen(path, signal === undefined ? options : { ...options, signal });
  }
  try {
    return await VhostUserFrontend.connect(path, options);
  } catch (error) {
    if (!(error instanceof SysError)) throw error;
    const what =
      error.errnoName === 'ENOENT'
        ? 'there is no such socket'
        : error.errnoName === 'ECONNREFUSED'
          ? 'nobody listens on this socket'
          : error.errnoName === 'EACCES'
            ? 'no permission to connect to this socket'
            : error.message;
    const start = `start a back-end first, for example: vring switch --port p0=vhost-user:${path}`;
    throw new VringError('ERR_VRING_GUEST_NO_BACKEND', `${path}: ${what}; ${start}`, {
      recovery: 'retry',
      cause: error,
    });
  }
}
