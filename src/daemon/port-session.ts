/** What a port offers to sessions, shows of them, and ends them for. */
import { VringError } from '../base/errors.ts';
import type { SessionState } from '../vhost-user/index.ts';
import { FAULT_MEMORY_GONE, FAULT_NOTIFY_BLOCKED } from '../virtqueue/faults.ts';
import * as protocol from '../wire/vhost-user.ts';
import { featureNames, featureSet, VIRTIO_ID_NET } from '../wire/virtio.ts';
import type { PortStatus, VhostUserPortConfig } from './switch-types.ts';

/**
 * Protocol features of every port; the session offers those that it implements. INFLIGHT_SHMFD is
 * not among them: a net device finishes every chain in the round that took it, so there is nothing
 * to recover, and the record would cost every frame.
 */
const PROTOCOL_FEATURES = featureSet(
  protocol.VHOST_USER_PROTOCOL_F_MQ,
  protocol.VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  protocol.VHOST_USER_PROTOCOL_F_RARP,
  protocol.VHOST_USER_PROTOCOL_F_REPLY_ACK,
  protocol.VHOST_USER_PROTOCOL_F_MTU,
  protocol.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  protocol.VHOST_USER_PROTOCOL_F_CONFIG,
  protocol.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  protocol.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  protocol.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  protocol.VHOST_USER_PROTOCOL_F_STATUS,
  protocol.VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  protocol.VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
);

/**
 * Protocol features of one port. Postcopy puts the worker to sleep in the kernel until the
 * front-end brings a page, and with it every port of that worker: only a front-end that is
 * trusted with that may have it. Of several workers none knows what another has noted in an
 * inflight region; a net device needs none: its rings say where it stands.
 */
export function protocolFeaturesOf(config: VhostUserPortConfig, workers: number): bigint {
  const postcopy = featureSet(protocol.VHOST_USER_PROTOCOL_F_PAGEFAULT);
  const inflight = featureSet(
    protocol.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
    protocol.VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
  );
  const features = workers > 1 ? PROTOCOL_FEATURES & ~inflight : PROTOCOL_FEATURES;
  return config.postcopy ? features | postcopy : features;
}

/** What status displays see of a session; null: there is none. */
export function sessionStatus(
  state: SessionState | null,
): Pick<PortStatus, 'features' | 'protocolFeatures' | 'memory' | 'session'> {
  if (state === null)
    return { features: null, protocolFeatures: null, memory: null, session: null };
  const { features, protocolFeatures, messages, refusals, log, iotlb, channel, postcopy } = state;
  return {
    features: features === null ? null : named(features, featureNames(features, VIRTIO_ID_NET)),
    protocolFeatures:
      protocolFeatures === null
        ? null
        : named(protocolFeatures, protocol.protocolFeatureNames(protocolFeatures)),
    memory: state.memory,
    session: {
      messages,
      refusals,
      log,
      iotlb: iotlb && {
        entries: iotlb.entries,
        misses: iotlb.misses,
        updates: iotlb.updates,
        invalidations: iotlb.invalidations,
      },
      channel: channel && { requests: channel.requests },
      postcopy,
    },
  };
}

function named(bits: bigint, names: readonly string[]) {
  return { bits: `0x${bits.toString(16)}`, names };
}

/** What a front-end, not its guest, does to us: it ends the session, and not just a queue. */
const OFFENCES: ReadonlyMap<number, readonly [code: string, did: string]> = new Map([
  [FAULT_MEMORY_GONE, ['ERR_VRING_MEMORY_GONE', 'truncated the memory that it shared']],
  [FAULT_NOTIFY_BLOCKED, ['ERR_VRING_NOTIFY_BLOCKED', 'made its call eventfd block us']],
]);

/** The reason to end the session for, or null: the fault is the guest's, and of one queue. */
export function offenceOf(fault: number): VringError | null {
  const offence = OFFENCES.get(fault);
  if (offence === undefined) return null;
  const [code, did] = offence;
  const message = `the front-end ${did}; its session was ended, reconnect it`;
  return new VringError(code, message, { recovery: 'reconnect' });
}
