/** Which features a session offers for a target. */
import * as wire from '../wire/vhost-user.ts';
import type { BackendTarget } from './target.ts';

const bit = (n: number): bigint => 1n << BigInt(n);

/** Protocol features that need nothing of a target: they come with the session. */
export const BACKEND_PROTOCOL_FEATURES =
  bit(wire.VHOST_USER_PROTOCOL_F_MQ) |
  bit(wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD) |
  bit(wire.VHOST_USER_PROTOCOL_F_REPLY_ACK) |
  bit(wire.VHOST_USER_PROTOCOL_F_MTU) |
  bit(wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ) |
  bit(wire.VHOST_USER_PROTOCOL_F_PAGEFAULT) |
  bit(wire.VHOST_USER_PROTOCOL_F_CONFIG) |
  bit(wire.VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD) |
  bit(wire.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) |
  bit(wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) |
  bit(wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
  bit(wire.VHOST_USER_PROTOCOL_F_STATUS) |
  bit(wire.VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT) |
  bit(wire.VHOST_USER_PROTOCOL_F_GPA_ADDRESSES);

/** Protocol features that a target opts in to: the bit, and what it must have besides. */
export const OPT_IN_FEATURES: ReadonlyMap<number, (target: BackendTarget) => boolean> = new Map([
  [wire.VHOST_USER_PROTOCOL_F_RARP, (t: BackendTarget) => t.sendRarp !== undefined],
  [wire.VHOST_USER_PROTOCOL_F_CROSS_ENDIAN, () => true], // its rings must know: the bit says so
  [
    wire.VHOST_USER_PROTOCOL_F_CRYPTO_SESSION,
    (t: BackendTarget) => t.createCryptoSession !== undefined && t.closeCryptoSession !== undefined,
  ],
  [wire.VHOST_USER_PROTOCOL_F_HOST_NOTIFIER, () => true],
  [wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE, (t: BackendTarget) => t.resetDevice !== undefined],
  [wire.VHOST_USER_PROTOCOL_F_SHARED_OBJECT, (t: BackendTarget) => t.sharedObject !== undefined],
  [
    wire.VHOST_USER_PROTOCOL_F_DEVICE_STATE,
    (t: BackendTarget) => t.saveState !== undefined && t.loadState !== undefined,
  ],
  [wire.VHOST_USER_PROTOCOL_F_SHMEM, (t: BackendTarget) => t.shmemRegions !== undefined],
]);

/**
 * What GET_PROTOCOL_FEATURES answers: what the target wants and both can do.
 * @param postcopy whether this process may make a userfaultfd.
 */
export function offeredProtocolFeatures(target: BackendTarget, postcopy: boolean): bigint {
  let able = BACKEND_PROTOCOL_FEATURES;
  for (const [feature, has] of OPT_IN_FEATURES) if (has(target)) able |= bit(feature);
  if (!postcopy) able &= ~bit(wire.VHOST_USER_PROTOCOL_F_PAGEFAULT);
  return target.protocolFeatures & able;
}

/** Bits of the virtio features that are vhost-user's own; a target never sees them. */
export const SESSION_FEATURES =
  bit(wire.VHOST_USER_F_PROTOCOL_FEATURES) | bit(wire.VHOST_F_LOG_ALL);

/** What GET_FEATURES answers. Logging is the session's and the queues', not the device's. */
export function offeredFeatures(target: BackendTarget, protocolFeatures: bigint): bigint {
  const logs = (protocolFeatures & bit(wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD)) !== 0n;
  return (
    (target.features & ~SESSION_FEATURES) |
    bit(wire.VHOST_USER_F_PROTOCOL_FEATURES) |
    (logs ? bit(wire.VHOST_F_LOG_ALL) : 0n)
  );
}
