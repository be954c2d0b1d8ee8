/** Which features a front-end acks that it did not ack before, and the other way round. */
import { protocolFeatureNames } from '../wire/vhost-user.ts';
import { featureNames, VIRTIO_ID_NET } from '../wire/virtio.ts';

export type AckedFeatures = { readonly features: bigint; readonly protocolFeatures: bigint };

/** Each difference with its sign and name: `+RING_PACKED`, `-protocol STATUS`. */
export function featureChanges(before: AckedFeatures, now: AckedFeatures): string[] {
  const virtio = (bits: bigint): string[] => featureNames(bits, VIRTIO_ID_NET);
  const protocol = (bits: bigint): string[] =>
    protocolFeatureNames(bits).map((name) => `protocol ${name}`);
  return [
    ...changes(before.features, now.features, virtio),
    ...changes(before.protocolFeatures, now.protocolFeatures, protocol),
  ];
}

function changes(before: bigint, now: bigint, names: (bits: bigint) => string[]): string[] {
  return [
    ...names(now & ~before).map((name) => `+${name}`),
    ...names(before & ~now).map((name) => `-${name}`),
  ];
}
