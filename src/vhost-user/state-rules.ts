/**
 * When a message is legal, as far as that depends on what was said before. Each rule has a name,
 * and a message that breaks one is refused with it; the conformance runner and docs/protocol.md
 * show the same rules.
 *
 * There are few, because the protocol allows nearly every order: protocol features before
 * features, enable before features, memory at any time. Two states that know nothing of each
 * other belong to each vring: enabled or disabled (SET_VRING_ENABLE), and started or stopped.
 */
import {
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from '../wire/vhost-user.ts';

/** What a rule may ask of a session: what has been said so far. */
export type ProtocolState = {
  /** Acked virtio features, null before SET_FEATURES. */
  readonly features: bigint | null;
  readonly protocolFeatures: bigint | null;
  /** Started: the target has the ring. An index beyond the device's is not running. */
  isRunning(index: number): boolean;
  /** What SET_VRING_NUM, _BASE and _ENDIAN said last; null beyond the device's. */
  vringSetup(index: number): VringSetup | null;
  readonly runningVrings: number;
  readonly postcopy: 'none' | 'advised' | 'listening';
  /** SET_DEVICE_STATE_FD came and CHECK_DEVICE_STATE did not, yet. */
  readonly stateTransfer: boolean;
};

export type VringSetup = {
  readonly size: number;
  readonly base: number | null;
  readonly bigEndian: boolean;
};

export type StateRule<T = unknown> = {
  /** Stable name: part of the error, the report and the documentation. */
  readonly id: string;
  /** A sentence of ours; the text of the specification is cited by `section`. */
  readonly says: string;
  readonly section: string;
  holds(state: ProtocolState, value: T): boolean;
};

const has = (bits: bigint, bit: number): boolean => ((bits >> BigInt(bit)) & 1n) === 1n;

export const inbandNeedsChannel: StateRule<bigint> = {
  id: 'inband-needs-channel',
  says: 'INBAND_NOTIFICATIONS is acked only together with BACKEND_REQ and REPLY_ACK',
  section: 'In-band notifications',
  holds: (_state, bits) =>
    !has(bits, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) ||
    (has(bits, VHOST_USER_PROTOCOL_F_BACKEND_REQ) && has(bits, VHOST_USER_PROTOCOL_F_REPLY_ACK)),
};

export const baseInflightNeedsRegion: StateRule<bigint> = {
  id: 'base-inflight-needs-region',
  says: 'GET_VRING_BASE_INFLIGHT is acked only together with INFLIGHT_SHMFD',
  section: 'Suspended device state',
  holds: (_state, bits) =>
    !has(bits, VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT) ||
    has(bits, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD),
};

type RingValue = { readonly index: number };

/** What a running ring has may be said again: front-ends do, and nothing changes by it. */
function whileStopped<T extends RingValue>(
  repeats: (setup: VringSetup, value: T) => boolean,
): StateRule<T> {
  return {
    id: 'vring-stopped',
    says: 'size, base and byte order change while the vring is stopped; GET_VRING_BASE stops it',
    section: 'Ring states',
    holds(state, value) {
      if (!state.isRunning(value.index)) return true;
      const setup = state.vringSetup(value.index);
      return setup !== null && repeats(setup, value);
    },
  };
}

export const sizeWhileStopped = whileStopped<RingValue & { readonly num: number }>(
  ({ size }, { num }) => size === num,
);
export const baseWhileStopped = whileStopped<RingValue & { readonly num: number }>(
  ({ base }, { num }) => base === num,
);
export const endianWhileStopped = whileStopped<RingValue & { readonly bigEndian: boolean }>(
  ({ bigEndian }, value) => bigEndian === value.bigEndian,
);

export const allVringsStopped: StateRule = {
  id: 'all-vrings-stopped',
  says: 'the device is suspended: every vring was stopped by GET_VRING_BASE',
  section: 'Suspended device state',
  holds: (state) => state.runningVrings === 0,
};

export const postcopyAdvised: StateRule = {
  id: 'postcopy-advised',
  says: 'POSTCOPY_ADVISE comes before POSTCOPY_LISTEN and POSTCOPY_END',
  section: 'Front-end message types',
  holds: (state) => state.postcopy !== 'none',
};

export const stateTransferBegun: StateRule = {
  id: 'state-transfer-begun',
  says: 'CHECK_DEVICE_STATE asks for the result of a transfer that SET_DEVICE_STATE_FD began',
  section: 'Migrating back-end state',
  holds: (state) => state.stateTransfer,
};

export const STATE_RULES: readonly StateRule<never>[] = [
  inbandNeedsChannel,
  baseInflightNeedsRegion,
  sizeWhileStopped,
  allVringsStopped,
  postcopyAdvised,
  stateTransferBegun,
];
