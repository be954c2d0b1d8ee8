/** Which features the guest's block driver negotiates: see features.ts, which does it for net. */
import { VringError } from '../base/errors.ts';
import {
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_F_ZONED,
} from '../wire/virtio-blk.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_BLOCK,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  featureNames,
  featureSet,
  hasFeature,
} from '../wire/virtio.ts';
import { parseChoice, type FeatureChoice } from './features.ts';

/** All that is taken when it is offered. */
const DEFAULT_FEATURES: readonly number[] = [
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  VIRTIO_F_IN_ORDER,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_ZONED,
];

const KNOWN_FEATURES: readonly number[] = [...DEFAULT_FEATURES, VIRTIO_F_RING_PACKED];

/** Short names besides those of the headers. */
const SHORT: Readonly<Record<string, readonly number[]>> = {
  PACKED: [VIRTIO_F_RING_PACKED],
  INDIRECT: [VIRTIO_RING_F_INDIRECT_DESC],
};

/** Parses `+in_order,-indirect`. @throws ConfigError at `path`. */
export function parseBlkFeatures(text: string, path: string): FeatureChoice {
  return parseChoice(text, path, {
    deviceId: VIRTIO_ID_BLOCK,
    known: KNOWN_FEATURES,
    short: SHORT,
  });
}

export type BlkFeatureWishes = {
  readonly choice: FeatureChoice;
  readonly packed: boolean;
  readonly queues: number;
};

/**
 * The features to acknowledge out of those offered.
 * @throws VringError ERR_VRING_GUEST_FEATURE when something that was asked for is not offered.
 */
export function chooseBlkFeatures(offered: bigint, wishes: BlkFeatureWishes): bigint {
  const { choice, packed, queues } = wishes;
  const demanded = [VIRTIO_F_VERSION_1, ...choice.on];
  if (packed) demanded.push(VIRTIO_F_RING_PACKED);
  if (queues > 1) demanded.push(VIRTIO_BLK_F_MQ);
  const refused = demanded.filter((bit) => choice.off.includes(bit));
  if (refused.length > 0) {
    const text = `${names(refused)} cannot be negotiated: it is needed, and was switched off`;
    throw new VringError('ERR_VRING_GUEST_FEATURE', text);
  }
  const missing = demanded.filter((bit) => !hasFeature(offered, bit));
  if (missing.length > 0) {
    const text =
      `the back-end does not offer ${names(missing)}; it offers ` +
      featureNames(offered, VIRTIO_ID_BLOCK).join(' ');
    throw new VringError('ERR_VRING_GUEST_FEATURE', text);
  }
  return offered & featureSet(...DEFAULT_FEATURES, ...demanded) & ~featureSet(...choice.off);
}

function names(bits: readonly number[]): string {
  return featureNames(featureSet(...bits), VIRTIO_ID_BLOCK).join(' ');
}
