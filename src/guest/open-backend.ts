/** From what a back-end is called to an open one, with errors that say what to start or load. */
import { SysError, VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { ShadowBackend } from '../runtime/index.ts';
import { setInterfaceMtu } from '../sys/index.ts';
import { VhostNetBackend, VhostVdpaBackend } from '../vhost-kernel/index.ts';
import {
  VhostUserFrontend,
  type FrontendEvents,
  type FrontendOptions,
} from '../vhost-user/index.ts';
import {
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
  VHOST_USER_PROTOCOL_F_MTU,
} from '../wire/vhost-user.ts';
import type { BackendSpec } from './backend-spec.ts';
import { openInProcessNet } from './in-process-net.ts';

/** What the guest wants of its back-end, and can be told by it. */
export type BackendWishes = {
  readonly queuePairs: number;
  readonly mtu: number | null;
  /** The guest is behind an IOMMU, and answers. */
  readonly iotlbMiss: ((iova: bigint, write: boolean) => void) | null;
  readonly configChanged: (() => void) | null;
  /** Of vhost-user; see FrontendOptions. */
  readonly protocolFeatures?: bigint;
  /** Ends the wait of a vhost-user server. */
  readonly signal?: AbortSignal;
  /** For people, who have to start something; else the plain error of the attempt. */
  readonly explain: boolean;
};

/** @throws VringError: nobody is there, with the remedy; what the guest wants is refused. */
export async function openBackend(spec: BackendSpec, wishes: BackendWishes): Promise<VhostBackend> {
  switch (spec.kind) {
    case 'vhost-user':
      return openVhostUser(spec, wishes);
    case 'vhost-net':
      return openVhostNet(spec.tap, wishes);
    case 'vhost-vdpa':
      return openVhostVdpa(spec, wishes);
    case 'in-process':
      return openInProcessNet({
        tap: spec.tap,
        queuePairs: wishes.queuePairs,
        iommu: wishes.iotlbMiss !== null,
        events: eventsOf(wishes),
        ...(wishes.mtu === null ? {} : { mtu: wishes.mtu }),
      });
  }
}

type VdpaSpec = Extract<BackendSpec, { kind: 'vhost-vdpa' }>;

async function openVhostVdpa(spec: VdpaSpec, wishes: BackendWishes): Promise<VhostBackend> {
  const { configChanged, iotlbMiss } = wishes;
  const backend = await VhostVdpaBackend.open(spec.device, {
    iommu: iotlbMiss !== null && !spec.shadow, // a shadow is for drivers without an IOMMU
    ...(configChanged === null ? {} : { onConfigChange: configChanged }),
  });
  return spec.shadow ? new ShadowBackend(backend) : backend;
}

async function openVhostNet(tap: string, wishes: BackendWishes): Promise<VhostBackend> {
  const { queuePairs, mtu, iotlbMiss } = wishes;
  const backend = VhostNetBackend.open({
    tap,
    queuePairs,
    ...(iotlbMiss === null ? {} : { onMiss: iotlbMiss }),
  });
  try {
    // vhost-net has no word in it: the interface drops what is longer than its own MTU.
    if (mtu !== null) setInterfaceMtu(backend.interfaceName, mtu);
    return backend;
  } catch (error) {
    await backend.close();
    throw error;
  }
}

type VhostUserSpec = Extract<BackendSpec, { kind: 'vhost-user' }>;

async function openVhostUser(spec: VhostUserSpec, wishes: BackendWishes): Promise<VhostBackend> {
  const { socket } = spec;
  const frontend = await reachVhostUser(spec, wishes);
  const { mtu } = wishes;
  if (mtu === null || !frontend.has(VHOST_USER_PROTOCOL_F_MTU)) return frontend;
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

async function reachVhostUser(
  { socket, server }: VhostUserSpec,
  wishes: BackendWishes,
): Promise<VhostUserFrontend> {
  const protocolFeatures = protocolFeaturesOf(wishes);
  const events = eventsOf(wishes);
  const { signal } = wishes;
  const options: FrontendOptions = {
    vringsPerQueue: 2, // net back-ends count queue pairs
    // Without anything to hear there is no need for a backend channel.
    ...(Object.keys(events).length === 0 ? {} : { events }),
    ...(protocolFeatures === undefined ? {} : { protocolFeatures }),
  };
  if (server) {
    const waiting = signal === undefined ? options : { ...options, signal };
    return VhostUserFrontend.listen(socket, waiting);
  }
  try {
    return await VhostUserFrontend.connect(socket, options);
  } catch (error) {
    if (wishes.explain && error instanceof SysError) throw noBackend(socket, error);
    throw error;
  }
}

/** An IOMMU's translations are given as user addresses here. */
function protocolFeaturesOf(wishes: BackendWishes): bigint | undefined {
  const { protocolFeatures, iotlbMiss } = wishes;
  if (protocolFeatures === undefined || iotlbMiss === null) return protocolFeatures;
  return protocolFeatures & ~(1n << BigInt(VHOST_USER_PROTOCOL_F_GPA_ADDRESSES));
}

function eventsOf(wishes: BackendWishes): FrontendEvents {
  const { iotlbMiss, configChanged } = wishes;
  return {
    ...(iotlbMiss === null ? {} : { iotlbMiss }),
    ...(configChanged === null ? {} : { configChanged }),
  };
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
