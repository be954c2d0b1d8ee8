/** Whether a check has anything to say about a peer. */
import { PROTOCOL_FEATURE_NAMES } from '../wire/vhost-user.ts';
import { featureNames, hasFeature } from '../wire/virtio.ts';
import { type Check, type Level, LEVELS, type Offer } from './check.ts';

/** Null: it applies. Otherwise what is missing. */
export function whyNot(check: Check, offer: Offer): string | null {
  const { protocol = [], virtio = [], devices, traffic, rings } = check.needs;
  const { profile, features, protocolFeatures } = offer;
  if (devices !== undefined && !devices.includes(profile.name)) {
    return `only for ${devices.join(', ')}`;
  }
  if (traffic && profile.request === null) {
    return `no request of a ${profile.name} device is known to the runner`;
  }
  if (rings !== undefined && profile.rings < rings) return `the device has ${profile.rings} ring`;
  for (const bit of virtio) {
    if (hasFeature(features, bit)) continue;
    const [name] = featureNames(1n << BigInt(bit), profile.deviceId);
    return `virtio feature ${name} is not offered`;
  }
  for (const bit of protocol) {
    if (hasFeature(protocolFeatures, bit)) continue;
    return `protocol feature ${PROTOCOL_FEATURE_NAMES[bit] ?? bit} is not offered`;
  }
  return null;
}

/** A level includes those before it. */
export function inLevel(check: Check, level: Level): boolean {
  return LEVELS.indexOf(check.level) <= LEVELS.indexOf(level);
}

/** `only` holds ids, or beginnings of ids: `BE-CONFIG`. */
export function selected(check: Check, only: readonly string[]): boolean {
  return only.length === 0 || only.some((id) => check.id === id || check.id.startsWith(`${id}-`));
}
