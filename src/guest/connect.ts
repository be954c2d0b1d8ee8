/** From the name of a back-end to a running guest: what the command line and the tests use. */
import { ConfigError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { type BackendSpec, parseBackendSpec } from './backend-spec.ts';
import { GuestIommu, type IommuMode } from './iommu.ts';
import { NetGuest, type NetGuestOptions } from './net-driver.ts';
import { openBackend } from './open-backend.ts';

export type ConnectOptions = NetGuestOptions & {
  /** Which back-end: parsed, or as people write it, `vhost-net:tap0`. */
  readonly backend?: BackendSpec | string;
  /** Short for a vhost-user back-end at this path. */
  readonly socket?: string;
  /** With `socket`: listen there and wait for the back-end, instead of connecting to it. */
  readonly server?: boolean;
  /** Ends the wait. */
  readonly signal?: AbortSignal;
  /** Survive a back-end that goes away: open it, or listen, again for as long as it takes. */
  readonly reconnect?: boolean;
  /** A virtual IOMMU between the device and the memory; true is `offset`. */
  readonly iommu?: boolean | IommuMode;
  /** The back-end says that the configuration space changed. */
  readonly onConfigChange?: () => void;
  /** Of vhost-user; see FrontendOptions. */
  readonly protocolFeatures?: bigint;
};

/**
 * Opens a network back-end and starts a guest on it.
 * @throws VringError ERR_VRING_GUEST_NO_BACKEND when nobody listens; what the back-end and
 *   `NetGuest.start` throw.
 */
export async function connectNetGuest(options: ConnectOptions): Promise<NetGuest> {
  const connector = new NetConnector(options);
  const backend = await connector.connect(options.signal, true);
  return NetGuest.start(backend, options, {
    ...(connector.iommu === null ? {} : { addressSpace: connector.iommu }),
    ...(options.reconnect === true
      ? { reconnect: { connect: (signal) => connector.connect(signal, false) } }
      : {}),
  });
}

/** Finds the back-end of one guest, at first and whenever it is gone. */
export class NetConnector {
  readonly spec: BackendSpec;
  readonly iommu: GuestIommu | null;
  readonly #options: ConnectOptions;

  /**
   * `iommu`: one that is in use already, by a guest that moves.
   * @throws ConfigError: no back-end, or none that could be understood.
   */
  constructor(options: ConnectOptions, iommu: GuestIommu | null = null) {
    this.#options = options;
    this.spec = specOf(options);
    const mode = options.iommu === true ? 'offset' : options.iommu;
    this.iommu = iommu ?? (mode ? new GuestIommu(mode) : null);
  }

  /** `explain`: for people, who have to start something; else the plain error of the attempt. */
  async connect(signal: AbortSignal | undefined, explain: boolean): Promise<VhostBackend> {
    const { iommu } = this;
    const { queuePairs = 1, mtu = null, onConfigChange, protocolFeatures } = this.#options;
    const backend = await openBackend(this.spec, {
      queuePairs,
      mtu,
      iotlbMiss: iommu === null ? null : (iova, write) => iommu.missed(iova, write),
      configChanged: onConfigChange ?? null,
      explain,
      ...(protocolFeatures === undefined ? {} : { protocolFeatures }),
      ...(signal === undefined ? {} : { signal }),
    });
    iommu?.setPeer(backend.iotlb);
    return backend;
  }
}

function specOf({ backend, socket, server = false }: ConnectOptions): BackendSpec {
  if (typeof backend === 'string') return parseBackendSpec(backend, 'backend');
  if (backend !== undefined) return backend;
  if (socket !== undefined) return { kind: 'vhost-user', socket, server };
  throw new ConfigError('backend', 'no back-end is given, nor a socket');
}
