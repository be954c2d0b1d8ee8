/** From a socket path to a running guest: what the command line and the tests use. */
import { SysError, VringError } from '../base/errors.ts';
import {
  VhostUserFrontend,
  type FrontendEvents,
  type FrontendOptions,
} from '../vhost-user/index.ts';
import {
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
  VHOST_USER_PROTOCOL_F_MTU,
} from '../wire/vhost-user.ts';
import { GuestIommu, type IommuMode } from './iommu.ts';
import { NetGuest, type NetGuestOptions } from './net-driver.ts';

export type ConnectOptions = NetGuestOptions & {
  readonly socket: string;
  /** Listen on the socket and wait for the back-end, instead of connecting to it. */
  readonly server?: boolean;
  /** Ends the wait. */
  readonly signal?: AbortSignal;
  /** Survive a back-end that goes away: connect, or listen, again for as long as it takes. */
  readonly reconnect?: boolean;
  /** A virtual IOMMU between the device and the memory; true is `offset`. */
  readonly iommu?: boolean | IommuMode;
  /** The back-end says that the configuration space changed. */
  readonly onConfigChange?: () => void;
  /** See FrontendOptions. */
  readonly protocolFeatures?: bigint;
};

/**
 * Connects to a vhost-user-net back-end and starts a guest on it.
 * @throws VringError ERR_VRING_GUEST_NO_BACKEND when nobody listens; what `NetGuest.start` throws.
 */
export async function connectNetGuest(options: ConnectOptions): Promise<NetGuest> {
  const connector = new NetConnector(options);
  const frontend = await connector.connect(options.signal, true);
  return NetGuest.start(frontend, options, {
    ...(connector.iommu === null ? {} : { addressSpace: connector.iommu }),
    ...(options.reconnect === true
      ? { reconnect: { connect: (signal) => connector.connect(signal, false) } }
      : {}),
  });
}

/** Finds the back-end of one guest, at first and whenever it is gone. */
export class NetConnector {
  readonly iommu: GuestIommu | null;
  readonly #options: ConnectOptions;

  /** `iommu`: one that is in use already, by a guest that moves. */
  constructor(options: ConnectOptions, iommu: GuestIommu | null = null) {
    this.#options = options;
    const mode = options.iommu === true ? 'offset' : options.iommu;
    this.iommu = iommu ?? (mode ? new GuestIommu(mode) : null);
  }

  /** `explain`: for people, who have to start something; else the plain error of the attempt. */
  async connect(signal: AbortSignal | undefined, explain: boolean): Promise<VhostUserFrontend> {
    const { socket } = this.#options;
    const frontend = await this.#reach(signal, explain);
    this.iommu?.setPeer(frontend.iotlb);
    const { mtu } = this.#options;
    if (mtu == null || !frontend.has(VHOST_USER_PROTOCOL_F_MTU)) return frontend;
    try {
      await frontend.setMtu(mtu);
    } catch (cause) {
      await frontend.close();
      if ((cause as VringError).code !== 'ERR_VRING_REFUSED') throw cause;
      const text = `${socket}: the back-end refused MTU ${mtu}`;
      throw new VringError('ERR_VRING_GUEST_MTU', text, { cause });
    }
    return frontend;
  }

  async #reach(signal: AbortSignal | undefined, explain: boolean): Promise<VhostUserFrontend> {
    const { socket, server } = this.#options;
    const protocolFeatures = this.#protocolFeatures();
    const options: FrontendOptions = {
      vringsPerQueue: 2, // net back-ends count queue pairs
      ...this.#events(),
      ...(protocolFeatures === undefined ? {} : { protocolFeatures }),
    };
    if (server === true) {
      return VhostUserFrontend.listen(
        socket,
        signal === undefined ? options : { ...options, signal },
      );
    }
    try {
      return await VhostUserFrontend.connect(socket, options);
    } catch (error) {
      if (explain && error instanceof SysError) throw noBackend(socket, error);
      throw error;
    }
  }

  /** An IOMMU's translations are given as user addresses here. */
  #protocolFeatures(): bigint | undefined {
    const { protocolFeatures } = this.#options;
    if (protocolFeatures === undefined || this.iommu === null) return protocolFeatures;
    return protocolFeatures & ~(1n << BigInt(VHOST_USER_PROTOCOL_F_GPA_ADDRESSES));
  }

  /** Without anything to hear there is no need for a backend channel. */
  #events(): { events?: FrontendEvents } {
    const { iommu } = this;
    const { onConfigChange } = this.#options;
    if (iommu === null && onConfigChange === undefined) return {};
    return {
      events: {
        ...(iommu === null ? {} : { iotlbMiss: (iova, write) => iommu.missed(iova, write) }),
        ...(onConfigChange === undefined ? {} : { configChanged: onConfigChange }),
      },
    };
  }
}

function noBackend(path: string, error: SysError): VringError {
  const what =
    error.errnoName === 'ENOENT'
      ? 'there is no such socket'
      : error.errnoName === 'ECONNREFUSED'
        ? 'nobody listens on this socket'
        : error.errnoName === 'EACCES'
          ? 'no permission to connect to this socket'
          : error.message;
  const start = `start a back-end first, for example: vring switch --port p0=vhost-user:${path}`;
  return new VringError('ERR_VRING_GUEST_NO_BACKEND', `${path}: ${what}; ${start}`, {
    recovery: 'retry',
    cause: error,
  });
}
