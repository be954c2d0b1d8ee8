/**
 * Which features the guest's net driver negotiates: what it wants by default, what the user
 * forces on or off, and what the dependencies of virtio 5.1.3.1 leave of it.
 */
import { ConfigError, VringError } from '../base/errors.ts';
import {
  NET_FEATURE_REQUIRES,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_STATUS,
} from '../wire/virtio-net.ts';
import {
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_NET,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  featureNames,
  featureSet,
  hasFeature,
} from '../wire/virtio.ts';

/** Sets of bit numbers: forced on (an error if not offered), and never negotiated. */
export type FeatureChoice = { readonly on: readonly number[]; readonly off: readonly number[] };

export const NO_CHOICE: FeatureChoice = { on: [], off: [] };

/** What a Linux guest would take over vhost-user; the control queue only when it is asked for. */
const DEFAULT_FEATURES: readonly number[] = [
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_USO,
];

/** What comes along with the control queue, when it is offered. */
const CONTROL_FEATURES: readonly number[] = [
  VIRTIO_NET_F_CTRL_RX,
  VIRTIO_NET_F_CTRL_VLAN,
  VIRTIO_NET_F_CTRL_MAC_ADDR,
  VIRTIO_NET_F_GUEST_ANNOUNCE,
];

/** All that this driver can do: nothing else can be forced on. */
const KNOWN_FEATURES: readonly number[] = [
  ...DEFAULT_FEATURES,
  ...CONTROL_FEATURES,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_MQ,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_IN_ORDER,
];

/** Short names for groups of bits. */
const GROUPS: Readonly<Record<string, readonly number[]>> = {
  PACKED: [VIRTIO_F_RING_PACKED],
  INDIRECT: [VIRTIO_RING_F_INDIRECT_DESC],
  MRG: [VIRTIO_NET_F_MRG_RXBUF],
  TSO: [
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
  ],
  USO: [VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6],
  GUEST_USO: [VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6],
};

/**
 * Parses `+in_order,-csum,-tso`. Names as in the headers without prefix, in either case.
 * @throws ConfigError at `path` for a name that the driver does not know.
 */
export function parseFeatureChoice(text: string, path: string): FeatureChoice {
  return parseChoice(text, path, {
    deviceId: VIRTIO_ID_NET,
    known: KNOWN_FEATURES,
    short: GROUPS,
  });
}

/** What a driver can do: bits, and short names for some or for groups of them. */
export type FeatureVocabulary = {
  readonly deviceId: number;
  readonly known: readonly number[];
  readonly short: Readonly<Record<string, readonly number[]>>;
};

/** As `parseFeatureChoice`, for any driver. */
export function parseChoice(
  text: string,
  path: string,
  vocabulary: FeatureVocabulary,
): FeatureChoice {
  const on: number[] = [];
  const off: number[] = [];
  for (const item of text.split(',')) {
    const match = /^([+-])([a-z0-9_-]+)$/i.exec(item.trim());
    if (match === null) {
      throw new ConfigError(path, `"${item}" is not of the form +name or -name`);
    }
    const bits = bitsOf(match[2].toUpperCase().replaceAll('-', '_'), vocabulary);
    if (bits === null) {
      const known = knownNames(vocabulary).join(', ');
      throw new ConfigError(path, `"${match[2]}" is none of ${known}`);
    }
    (match[1] === '+' ? on : off).push(...bits);
  }
  return { on, off };
}

export type FeatureWishes = {
  readonly choice: FeatureChoice;
  readonly packed: boolean;
  readonly queuePairs: number;
  /** What it is called, for errors. */
  readonly backend?: string;
};

/**
 * The features to acknowledge out of those offered.
 * @throws VringError ERR_VRING_GUEST_FEATURE when something that was asked for is not offered.
 */
export function chooseFeatures(offered: bigint, wishes: FeatureWishes): bigint {
  const { choice } = wishes;
  const demanded = [VIRTIO_F_VERSION_1, ...choice.on];
  if (wishes.packed) demanded.push(VIRTIO_F_RING_PACKED);
  if (wishes.queuePairs > 1) demanded.push(VIRTIO_NET_F_MQ);
  const missing = demanded.filter((bit) => !hasFeature(offered, bit));
  if (missing.length > 0) {
    const hint = missing.includes(VIRTIO_F_ACCESS_PLATFORM)
      ? ' (a port of vring offers ACCESS_PLATFORM when it says iommu=on)'
      : '';
    throw new VringError(
      'ERR_VRING_GUEST_FEATURE',
      `${wishes.backend ?? 'the back-end'} does not offer ${names(missing)}; it offers ` +
        featureNames(offered, 1).join(' ') +
        hint,
    );
  }
  const wanted = [...DEFAULT_FEATURES, ...demanded];
  if (choice.on.includes(VIRTIO_NET_F_CTRL_VQ)) wanted.push(...CONTROL_FEATURES);
  const chosen = offered & featureSet(...wanted) & ~featureSet(...choice.off);
  const sound = dropUnsupported(chosen);
  const lost = demanded.filter((bit) => !hasFeature(sound, bit));
  if (lost.length > 0) {
    throw new VringError(
      'ERR_VRING_GUEST_FEATURE',
      `${names(lost)} cannot be negotiated: it was switched off, or something that it requires`,
    );
  }
  return sound;
}

/**
 * Takes away what lacks its requirement, until nothing does. MQ is allowed without CTRL_VQ: over
 * vhost the front-end keeps the control queue and enables pairs with SET_VRING_ENABLE.
 */
function dropUnsupported(features: bigint): bigint {
  let sound = features;
  for (;;) {
    const before = sound;
    for (const [bit, anyOf] of NET_FEATURE_REQUIRES) {
      if (bit === VIRTIO_NET_F_MQ || !hasFeature(sound, bit)) continue;
      if (!anyOf.some((needed) => hasFeature(sound, needed))) sound &= ~featureSet(bit);
    }
    if (sound === before) return sound;
  }
}

function bitsOf(name: string, vocabulary: FeatureVocabulary): readonly number[] | null {
  const { short, known, deviceId } = vocabulary;
  if (Object.hasOwn(short, name)) return short[name];
  const bit = known.find((one) => featureNames(featureSet(one), deviceId)[0] === name);
  return bit === undefined ? null : [bit];
}

function knownNames({ short, known, deviceId }: FeatureVocabulary): string[] {
  const single = known.map((bit) => featureNames(featureSet(bit), deviceId)[0]);
  return [...single, ...Object.keys(short)].map((name) => name.toLowerCase());
}

function names(bits: readonly number[]): string {
  return featureNames(featureSet(...bits), 1).join(' ');
}
