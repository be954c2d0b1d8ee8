/**
 * What VDUSE takes of a device. drivers/vdpa/vdpa_user/vduse_dev.c of Linux 6.1,
 * `features_is_valid` and `vduse_validate_config`: the kernel answers EINVAL to all of it alike,
 * so it is looked at here first and said by name.
 */
import { VringError } from '../base/errors.ts';
import { VDUSE_NAME_MAX } from '../wire/vduse.ts';
import { NET_FEATURE_REQUIRES, VIRTIO_NET_F_CTRL_VQ } from '../wire/virtio-net.ts';
import {
  deviceName,
  featureSet,
  hasFeature,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_ADMIN_VQ,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_SR_IOV,
  VIRTIO_F_SUSPEND,
  VIRTIO_F_VERSION_1,
  VIRTIO_ID_BLOCK,
  VIRTIO_ID_NET,
} from '../wire/virtio.ts';

/** linux/virtio_blk.h: the driver may switch the write-back cache, in the configuration space. */
const VIRTIO_BLK_F_CONFIG_WCE = 11;

/** VHOST_F_LOG_ALL and VHOST_USER_F_PROTOCOL_FEATURES: of other transports. */
const FOREIGN = featureSet(26, 30);

/** Features that need something of the transport which VDUSE has no message for. */
const UNCARRIED = featureSet(
  VIRTIO_F_SR_IOV,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_ADMIN_VQ,
  VIRTIO_F_SUSPEND,
);

/** The kernel's: larger ones are EINVAL. */
const MAX_CONFIG_BYTES = 4096;
const MAX_QUEUES = 0xffff;
/** `struct vduse_vq_config.max_size`; virtio stops before. */
const MAX_QUEUE_SIZE = 32768;

export type VduseConfig = {
  readonly name: string;
  readonly deviceId: number;
  readonly vendorId: number;
  /** As `vduseFeatures` returned them. */
  readonly features: bigint;
  readonly queueCount: number;
  readonly queueSizeMax: number;
  /** The configuration space. */
  readonly config: Uint8Array;
};

/**
 * What is offered of a device's features, ACCESS_PLATFORM added: the transport translates, the
 * device never knows.
 * @throws VringError ERR_VRING_VDUSE_FEATURES: it has not what every VDUSE device must have.
 */
export function vduseFeatures(deviceId: number, features: bigint): bigint {
  if (!hasFeature(features, VIRTIO_F_VERSION_1)) {
    const text =
      `a virtio-${deviceName(deviceId)} device without VERSION_1 cannot be served over VDUSE: ` +
      'its driver would not translate addresses; offer VERSION_1';
    throw new VringError('ERR_VRING_VDUSE_FEATURES', text);
  }
  let offered = (features & ~FOREIGN & ~UNCARRIED) | featureSet(VIRTIO_F_ACCESS_PLATFORM);
  // The configuration space is read-only for the driver.
  if (deviceId === VIRTIO_ID_BLOCK) offered &= ~featureSet(VIRTIO_BLK_F_CONFIG_WCE);
  if (deviceId === VIRTIO_ID_NET) offered = withoutControlQueue(offered);
  return offered;
}

/** Without the control queue, and what makes no sense without it: MQ, RSS, CTRL_RX ... */
function withoutControlQueue(features: bigint): bigint {
  let left = features & ~featureSet(VIRTIO_NET_F_CTRL_VQ);
  for (let before = 0n; before !== left;) {
    before = left;
    for (const [bit, alternatives] of NET_FEATURE_REQUIRES) {
      if (!alternatives.some((other) => hasFeature(left, other))) left &= ~featureSet(bit);
    }
  }
  return left;
}

/** @throws VringError ERR_VRING_VDUSE_CONFIG: the kernel would say no more than EINVAL. */
export function checkVduseConfig(config: VduseConfig): void {
  const refuse = (problem: string): never => {
    const text = `VDUSE device ${JSON.stringify(config.name)}: ${problem}`;
    throw new VringError('ERR_VRING_VDUSE_CONFIG', text);
  };
  checkVduseName(config.name);
  const { queueCount, queueSizeMax } = config;
  if (queueCount < 1 || queueCount > MAX_QUEUES) refuse(`${queueCount} queues, expected 1..65535`);
  if (queueSizeMax < 1 || queueSizeMax > MAX_QUEUE_SIZE) {
    refuse(`queues of ${queueSizeMax} descriptors, expected 1..${MAX_QUEUE_SIZE}`);
  }
  if (config.config.length > MAX_CONFIG_BYTES) {
    refuse(`a configuration space of ${config.config.length} bytes, expected at most 4096`);
  }
}

/**
 * The name is a file in /dev/vduse and a device of the vdpa bus.
 * @throws VringError ERR_VRING_VDUSE_CONFIG.
 */
export function checkVduseName(name: string): void {
  const legal = /^[\w.:-]+$/.test(name) && !/^\.{1,2}$/.test(name) && name !== 'control';
  if (legal && name.length < VDUSE_NAME_MAX) return;
  const text =
    `${JSON.stringify(name)} is no name of a VDUSE device; expected at most ` +
    `${VDUSE_NAME_MAX - 1} of A-Z a-z 0-9 _ . : - and not "control"`;
  throw new VringError('ERR_VRING_VDUSE_CONFIG', text);
}
