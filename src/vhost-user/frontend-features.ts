/**
 * Which protocol features a front-end takes: all that are implemented, less those that need a
 * handler which was not given, less those that change the meaning of other messages and were not
 * asked for.
 */
import {
  protocolFeatureNames,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ as BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD as BACKEND_SEND_FD,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT as BASE_INFLIGHT,
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES as GPA_ADDRESSES,
  VHOST_USER_PROTOCOL_F_HOST_NOTIFIER as HOST_NOTIFIER,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS as INBAND,
  VHOST_USER_PROTOCOL_F_SHARED_OBJECT as SHARED_OBJECT,
  VHOST_USER_PROTOCOL_F_SHMEM as SHMEM,
  VHOST_USER_PROTOCOL_F_XEN_MMAP as XEN_MMAP,
  PROTOCOL_FEATURE_NAMES,
} from '../wire/vhost-user.ts';
import type { FrontendEvents } from './frontend-events.ts';
import { baseInflightNeedsRegion, inbandNeedsChannel, type ProtocolState } from './state-rules.ts';

const bit = (n: number): bigint => 1n << BigInt(n);

/** Protocol features that this front-end can use: all but Xen's, whose memory is no fd. */
export const FRONTEND_PROTOCOL_FEATURES =
  ((1n << BigInt(PROTOCOL_FEATURE_NAMES.length)) - 1n) & ~bit(XEN_MMAP);

/**
 * With these other messages mean something else (kicks without eventfds, rings that are not
 * drained, guest-physical ring addresses): taken only where `protocolFeatures` names them.
 */
const ON_REQUEST = bit(INBAND) | bit(BASE_INFLIGHT) | bit(GPA_ADDRESSES);

type Need = readonly [feature: number, given: (events: FrontendEvents) => boolean];

/** What is of no use, or would be answered wrongly, without somebody who handles it. */
const NEEDS_HANDLER: readonly Need[] = [
  [BACKEND_SEND_FD, (e) => e.hostNotifier !== undefined || e.shmem !== undefined],
  [HOST_NOTIFIER, (e) => e.hostNotifier !== undefined],
  [INBAND, (e) => e.vringCall !== undefined],
  [SHARED_OBJECT, (e) => e.sharedObjects !== undefined],
  [SHMEM, (e) => e.shmem !== undefined],
];

/** Features that come over, or make sense only with, the backend channel. */
const NEEDS_CHANNEL =
  bit(BACKEND_SEND_FD) | bit(HOST_NOTIFIER) | bit(INBAND) | bit(SHARED_OBJECT) | bit(SHMEM);

/** The two rules that are asked here look at the bits alone. */
const NO_STATE = null as unknown as ProtocolState;

/**
 * What to ack out of `offered`. `wanted` is the caller's limit, undefined for the usual set.
 */
export function chooseProtocolFeatures(
  offered: bigint,
  wanted: bigint | undefined,
  events: FrontendEvents | undefined,
): bigint {
  let acked = offered & FRONTEND_PROTOCOL_FEATURES & (wanted ?? ~ON_REQUEST);
  if (events === undefined) acked &= ~bit(BACKEND_REQ);
  for (const [feature, given] of NEEDS_HANDLER) {
    if (events === undefined || !given(events)) acked &= ~bit(feature);
  }
  if ((acked & bit(BACKEND_REQ)) === 0n) acked &= ~NEEDS_CHANNEL;
  if (!inbandNeedsChannel.holds(NO_STATE, acked)) acked &= ~bit(INBAND);
  if (!baseInflightNeedsRegion.holds(NO_STATE, acked)) acked &= ~bit(BASE_INFLIGHT);
  return acked;
}

/** `VHOST_USER_PROTOCOL_F_LOG_SHMFD` for a bit. */
export function protocolFeatureName(feature: number): string {
  return `VHOST_USER_PROTOCOL_F_${protocolFeatureNames(bit(feature)).join('')}`;
}
